package index

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sregfs/sregfs/backends"
)

// ErrRecords is wrapped by every error that comes of the seeds' database, the
// one thing here that can be out of use while all else works.
var ErrRecords = errors.New("records cannot be kept")

// Record is a row of the seeds' container table with its collection's name.
type Record struct {
	// ID and CollectionID are the rows' numbers; 0 while records are off.
	ID, CollectionID int64
	// Created is when the record was made, or what PutRecord was told.
	Created time.Time
	// Collection, Name and Tag are as in backends.Ref, Version the content's
	// hash, empty while nobody knows it.
	Client, Collection, Name, Tag, Version string
	// URI is COLLECTION/NAME:TAG, with @VERSION where that is known.
	URI string
	// URL is where the image can be fetched, Image its path on this machine;
	// nil for none.
	URL, Image *string
	// Metrics is a JSON object.
	Metrics json.RawMessage
}

// recordsTables are the Python client's tables, in the words that SQLAlchemy
// makes of its models (sregistry/database/models.py).
//
//go:embed sql/records/tables.sql
var recordsTables string

// recordSelect reads records for scanRecord. The cast keeps the driver from
// making something of the column's type.
const recordSelect = `SELECT r.id, r.collection_id, CAST(r.created_at AS TEXT), CAST(r.metrics AS TEXT), r.name, r.tag,
	r.image, r.url, coalesce(r.uri, ''), r.client, coalesce(r.version, ''), coalesce(c.name, '')
FROM container r LEFT JOIN collection c ON c.id = r.collection_id
`

// records is the seeds' database. It is opened when it is first needed, and
// anew after it could not be used, or when another file is in its place, so that
// what the user mends works again.
type records struct {
	named string        // as the option has it
	wait  time.Duration // for others that hold it locked

	// opening holds a token while one call opens or closes it, which may wait for
	// other programs.
	opening chan struct{}
	pool    *pool         // nil while not open; guarded by opening
	opened  iofs.FileInfo // the file that is open; guarded by opening
}

func newRecords(named string) *records {
	return &records{named: named, wait: recordsWait, opening: make(chan struct{}, 1)}
}

// recordsName is the database's name in a folder.
const recordsName = "sregistry.db"

// file is the database's path: the one named, or the one in the folder named.
// What does not exist is a folder unless it is called like a database, as the
// Python client knows folders only.
func (r *records) file() (string, error) {
	named, err := filepath.Abs(r.named)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(named); err == nil {
		if info.IsDir() {
			return filepath.Join(named, recordsName), nil
		}
		return named, nil
	}
	switch filepath.Ext(named) {
	case ".db", ".sqlite", ".sqlite3":
		if !strings.HasSuffix(r.named, "/") {
			return named, nil
		}
	}
	return filepath.Join(named, recordsName), nil
}

// check opens the database if it is there.
func (r *records) check(ctx context.Context) error {
	_, err := r.open(ctx, false)
	return err
}

// open returns the database, which it makes if need be and asked to; nil when
// there is none.
func (r *records) open(ctx context.Context, create bool) (*pool, error) {
	select {
	case r.opening <- struct{}{}:
	case <-ctx.Done():
		return nil, r.failed("open the database", ctx.Err())
	}
	defer func() { <-r.opening }()
	file, err := r.file()
	if err != nil {
		return nil, r.failed("open the database", err)
	}
	info, err := os.Stat(file)
	absent := errors.Is(err, iofs.ErrNotExist)
	if r.pool != nil && (absent || err == nil && !os.SameFile(info, r.opened)) {
		r.pool.Close()
		r.pool = nil
	}
	if r.pool != nil {
		return r.pool, nil
	}
	if absent {
		if !create {
			return nil, nil
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return nil, r.failed("open the database", err)
		}
	}
	// No other journal mode: the database may lie in a home directory that
	// several machines share, and it is the Python client's to choose.
	p, err := openPool(source(file, "_txlock=immediate",
		"_pragma=busy_timeout("+strconv.FormatInt(r.wait.Milliseconds(), 10)+")"))
	if err != nil {
		return nil, r.failed("open the database", err)
	}
	p.SetMaxOpenConns(4)
	if err := prepareRecords(ctx, p); err != nil {
		p.Close()
		return nil, r.failed("open the database", err)
	}
	if r.opened, err = os.Stat(file); err != nil {
		p.Close()
		return nil, r.failed("open the database", err)
	}
	r.pool = p
	return p, nil
}

// recordColumns are what the tables must have at least.
var recordColumns = map[string][]string{
	"collection": {"id", "name", "token", "created_at"},
	"container": {"id", "created_at", "metrics", "name", "tag", "image", "url", "uri", "client", "version",
		"collection_id"},
}

// errForeign is a database with tables of these names that are not the Python
// client's.
var errForeign = errors.New("its tables are not the Python client's")

// prepareRecords makes the tables that are not there, as the Python client
// does, and checks those that are.
func prepareRecords(ctx context.Context, p *pool) error {
	missing := false
	for table, wanted := range recordColumns {
		rows, err := p.QueryContext(ctx, `SELECT name FROM pragma_table_info(?)`, table)
		columns, err := list[string](rows, err)
		if err != nil {
			return err
		}
		if len(columns) == 0 {
			missing = true
			continue
		}
		has := map[string]bool{}
		for _, c := range columns {
			has[c] = true
		}
		for _, c := range wanted {
			if !has[c] {
				return fmt.Errorf("%w: %s has no column %s", errForeign, table, c)
			}
		}
	}
	if !missing {
		return nil
	}
	tx, err := p.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, recordsTables); err != nil {
		return err
	}
	return tx.Commit()
}

func (r *records) close() error {
	r.opening <- struct{}{}
	defer func() { <-r.opening }()
	if r.pool == nil {
		return nil
	}
	err := r.pool.Close()
	r.pool = nil
	return err
}

// failed makes one sentence of an error of the database.
func (r *records) failed(op string, err error) error {
	if err == nil {
		return nil
	}
	file, _ := r.file()
	const elsewhere = "set SREGISTRY_DATABASE to another place, or SREGISTRY_DISABLE=true to go without records"
	hint := hintFor(err, elsewhere)
	switch {
	case hint != "":
	case damaged(err):
		hint = "move it away or restore it from a backup; nothing has been written to it"
	case errors.Is(err, errForeign):
		hint = "it is another program's; " + elsewhere
	case !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
		hint = elsewhere
	}
	return &backends.Error{Op: op + " " + file, Err: fmt.Errorf("%w: %w", ErrRecords, err), Hint: hint}
}

// use runs f with the database; not at all when there is none.
func (r *records) use(ctx context.Context, op string, create bool, f func(p *pool) error) error {
	if r == nil {
		return nil
	}
	p, err := r.open(ctx, create)
	if err != nil || p == nil {
		return err
	}
	if err := f(p); err != nil {
		if damaged(err) {
			// The user will move the file away; then another one is opened.
			err = errors.Join(err, r.close())
		}
		return r.failed(op, err)
	}
	return nil
}

// split is a name as the Python client keeps it: it ends the collection at the
// first slash, where a Ref ends it at the last.
func split(collection, name string) (string, string) {
	if first, rest, nested := strings.Cut(collection, "/"); nested {
		return first, rest + "/" + name
	}
	return collection, name
}

// join reverses split.
func join(collection, name string) (string, string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return collection + "/" + name[:i], name[i+1:]
	}
	return collection, name
}

// PutRecord makes a record of an image or brings the one that is there up to
// date, as the seeds' add and record do. A record's number, its date, and a
// path or URL that r has none of, stay. Its metrics are kept but for the
// members that r brings something for. A record that knew no version gets r's.
// A new one without a date gets the present. It returns the record as it then is,
// and whether it is new. While records are off, r comes back.
func (x *Index) PutRecord(ctx context.Context, r Record) (Record, bool, error) {
	if r.Created.IsZero() {
		r.Created = time.Now().Truncate(time.Second)
	}
	r.Created = r.Created.UTC().Truncate(time.Microsecond)
	out, isNew := r, false
	err := x.records.use(ctx, "record "+r.URI+" in", true, func(p *pool) (err error) {
		out, isNew, err = putRecord(ctx, p, r)
		return err
	})
	return out, isNew, err
}

func putRecord(ctx context.Context, p *pool, r Record) (Record, bool, error) {
	tx, err := p.BeginTx(ctx, nil)
	if err != nil {
		return r, false, err
	}
	defer tx.Rollback()
	t := &txn{ctx, tx, p}
	collection, name := split(r.Collection, r.Name)
	found, err := t.row([]any{&r.CollectionID}, `SELECT id FROM collection WHERE name = ?`, collection)
	if err == nil && !found {
		_, err = t.row([]any{&r.CollectionID}, `INSERT INTO collection (name, token, created_at)
			VALUES (?, ?, CURRENT_TIMESTAMP) RETURNING id`, collection, uuid.NewString())
	}
	if err != nil {
		return r, false, err
	}
	rows, err := t.rows(recordSelect+`WHERE r.collection_id = ?1 AND r.name = ?2 AND r.tag = ?3 AND r.client = ?4
		AND coalesce(r.version, '') IN (?5, '') ORDER BY coalesce(r.version, '') = '', r.id LIMIT 1`,
		r.CollectionID, name, r.Tag, r.Client, r.Version)
	old, err := scanRecords(rows, err)
	if err != nil {
		return r, false, err
	}
	isNew := len(old) == 0
	if isNew {
		if r, err = insertRecord(t, r, name); err != nil {
			return r, false, err
		}
	} else {
		merged, err := merge(old[0], r)
		if err != nil {
			return r, false, err
		}
		if !same(merged, old[0]) {
			_, err = t.exec(`UPDATE container SET metrics = ?, image = ?, url = ?, uri = ?, version = ? WHERE id = ?`,
				string(merged.Metrics), merged.Image, merged.URL, merged.URI, merged.Version, merged.ID)
		}
		if err != nil {
			return r, false, err
		}
		r = merged
	}
	return r, isNew, tx.Commit()
}

func insertRecord(t *txn, r Record, name string) (Record, error) {
	if len(r.Metrics) == 0 {
		r.Metrics = json.RawMessage(`{}`)
	}
	if _, ok := object(r.Metrics); !ok {
		return r, errMetrics
	}
	_, err := t.row([]any{&r.ID}, `INSERT INTO container
		(created_at, metrics, name, tag, image, url, uri, client, version, collection_id)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id`,
		formatCreated(r.Created), string(r.Metrics), name, r.Tag, r.Image, r.URL, r.URI, r.Client, r.Version, r.CollectionID)
	return r, err
}

// merge is the record old with what r tells.
func merge(old, r Record) (Record, error) {
	metrics, err := mergeMetrics(old.Metrics, r.Metrics)
	if err != nil {
		return old, err
	}
	m := old
	m.Metrics = metrics
	if r.Image != nil {
		m.Image = r.Image
	}
	if r.URL != nil {
		m.URL = r.URL
	}
	if r.Version != "" {
		m.Version = r.Version
	}
	if r.URI != "" {
		m.URI = r.URI
	}
	return m, nil
}

func same(a, b Record) bool {
	equal := func(a, b *string) bool { return a == b || a != nil && b != nil && *a == *b }
	return string(a.Metrics) == string(b.Metrics) && equal(a.Image, b.Image) && equal(a.URL, b.URL) &&
		a.URI == b.URI && a.Version == b.Version
}

// Records returns the records, by number, whose name, tag, URI, client,
// version or collection has query in it, as LIKE does but with no wildcards;
// all of them without a query.
func (x *Index) Records(ctx context.Context, query string) ([]Record, error) {
	var all []Record
	err := x.records.use(ctx, "read the records in", false, func(p *pool) error {
		like := "%" + likeEscaper.Replace(query) + "%"
		rows, err := p.rows(ctx, recordSelect+`WHERE ?1 = '%%' OR r.name LIKE ?1 ESCAPE '\' OR r.tag LIKE ?1 ESCAPE '\'
			OR r.uri LIKE ?1 ESCAPE '\' OR r.client LIKE ?1 ESCAPE '\' OR r.version LIKE ?1 ESCAPE '\'
			OR c.name LIKE ?1 ESCAPE '\' OR c.name || '/' || r.name || ':' || r.tag LIKE ?1 ESCAPE '\' ORDER BY r.id`, like)
		all, err = scanRecords(rows, err)
		return err
	})
	return all, err
}

var likeEscaper = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// Record returns a client's record of the image that ref names: that version,
// or with none the one that was made last. It is false when there is none.
func (x *Index) Record(ctx context.Context, client string, ref backends.Ref) (Record, bool, error) {
	var all []Record
	err := x.records.use(ctx, "read the record of "+ref.String()+" in", false, func(p *pool) error {
		where, args := whereRecord(client, ref)
		rows, err := p.rows(ctx, recordSelect+where+` ORDER BY r.id DESC LIMIT 1`, args...)
		all, err = scanRecords(rows, err)
		return err
	})
	if err != nil || len(all) == 0 {
		return Record{}, false, err
	}
	return all[0], true, nil
}

// RecordClients returns the clients, as records name them, that have a record of
// the image that ref names, in order.
func (x *Index) RecordClients(ctx context.Context, ref backends.Ref) ([]string, error) {
	var names []string
	err := x.records.use(ctx, "read the records of "+ref.String()+" in", false, func(p *pool) error {
		names = nil
		rows, err := p.rows(ctx, `SELECT DISTINCT r.client FROM container r JOIN collection c ON c.id = r.collection_id
			`+ofImage+` ORDER BY r.client`, imageArgs(ref)...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				return err
			}
			names = append(names, name)
		}
		return rows.Err()
	})
	return names, err
}

// DeleteRecord deletes a client's record of the image that ref names: of that
// version, or with none of all. It reports whether there was one.
func (x *Index) DeleteRecord(ctx context.Context, client string, ref backends.Ref) (bool, error) {
	var n int64
	err := x.records.use(ctx, "forget "+ref.String()+" in", false, func(p *pool) error {
		where, args := whereRecord(client, ref)
		s, err := p.statement(ctx, `DELETE FROM container WHERE id IN (SELECT r.id FROM container r
			JOIN collection c ON c.id = r.collection_id `+where+`)`)
		if err != nil {
			return err
		}
		res, err := s.ExecContext(ctx, args...)
		if err != nil {
			return err
		}
		n, err = res.RowsAffected()
		return err
	})
	return n > 0, err
}

// ofImage finds an image in either way of cutting a nested name.
const ofImage = `WHERE (c.name = ?1 AND r.name = ?2 OR c.name = ?3 AND r.name = ?4) AND r.tag = ?5
	AND (?6 = '' OR r.version = ?6)`

func imageArgs(ref backends.Ref) []any {
	collection, name := split(ref.Collection, ref.Name)
	return []any{collection, name, ref.Collection, ref.Name, ref.Tag, ref.Version}
}

// whereRecord finds a client's records of an image.
func whereRecord(client string, ref backends.Ref) (string, []any) {
	return ofImage + ` AND r.client = ?7`, append(imageArgs(ref), client)
}

func scanRecords(rows *sql.Rows, err error) ([]Record, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []Record
	for rows.Next() {
		var r Record
		var created, metrics sql.NullString
		err := rows.Scan(&r.ID, &r.CollectionID, &created, &metrics, &r.Name, &r.Tag, &r.Image, &r.URL, &r.URI,
			&r.Client, &r.Version, &r.Collection)
		if err != nil {
			return nil, err
		}
		r.Created = parseCreated(created.String)
		r.Metrics = json.RawMessage(metrics.String)
		if !json.Valid(r.Metrics) {
			// Another program's fault; a record is worth more than that.
			r.Metrics = json.RawMessage(`{}`)
		}
		r.Collection, r.Name = join(r.Collection, r.Name)
		all = append(all, r)
	}
	return all, rows.Err()
}
