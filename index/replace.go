package index

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// batch is how many entries of a listing go into the staging table with one
// statement.
const batch = 40

// ReplaceListing takes in a complete listing of what a client holds, and the
// change feed's position from before it began, all or nothing: an error in
// entries leaves everything as it was and is returned. What was noted by
// PutImage, RemoveImage or Apply since ReplaceListing was called goes before
// what the listing says of the same object.
//
// entries may be slow: nobody waits for it, and what it yields is staged on
// disk. An object that it yields twice counts as it was yielded last.
func (x *Index) ReplaceListing(ctx context.Context, client string, entries iter.Seq2[backends.Entry, error], cursor string) (Diff, error) {
	id, err := x.makeClient(ctx, client)
	if err != nil {
		return Diff{}, err
	}
	r := &replacement{x: x, ctx: ctx, client: client, id: id, collections: map[string]int64{}}
	d, err := r.run(entries, cursor)
	var foreign foreignError
	switch {
	case errors.As(err, &foreign):
		return Diff{}, foreign.error
	case err != nil:
		return Diff{}, x.state.failed("take in a listing of "+client, err)
	}
	x.wakeIndexer()
	return d, nil
}

// foreignError is an error of the listing itself, to be passed on as it is.
type foreignError struct{ error }

// replacement is one run of ReplaceListing.
type replacement struct {
	x      *Index
	ctx    context.Context
	client string
	id     int64
	conn   *sql.Conn // has the staging tables, which only it can see
	since  int64     // the clock when it began

	insert      *sql.Stmt // of a whole batch
	pending     []any     // arguments of rows to be staged
	collections map[string]int64
}

// The staging tables. Numbers of collections in them are theirs. A collection
// is own when an entry told of it.
const stagingTables = `
CREATE TEMP TABLE new_collection (
	id INTEGER PRIMARY KEY, dir TEXT NOT NULL, fold TEXT NOT NULL, parent TEXT, name TEXT NOT NULL,
	own INTEGER NOT NULL, object TEXT NOT NULL, path TEXT NOT NULL, real INTEGER, UNIQUE (dir, name));
CREATE TEMP TABLE new_image (collection INTEGER NOT NULL, ` + imageColumns + `);
CREATE TEMP TABLE put_image (new INTEGER PRIMARY KEY, old INTEGER);
CREATE TEMP TABLE gone_image (id INTEGER PRIMARY KEY);
`

func (r *replacement) run(entries iter.Seq2[backends.Entry, error], cursor string) (d Diff, err error) {
	ctx, st := r.ctx, r.x.state
	if r.conn, err = st.write.Conn(ctx); err != nil {
		return d, err
	}
	defer func() {
		// A connection that is called bad is closed, which frees the staging
		// tables and their file, whatever became of ctx.
		_ = r.conn.Raw(func(any) error { return driver.ErrBadConn })
	}()
	if err := r.conn.QueryRowContext(ctx, `SELECT now FROM clock`).Scan(&r.since); err != nil {
		return d, err
	}
	if err := r.stage(entries); err != nil {
		return d, err
	}
	err = r.x.locked(ctx, func() error {
		tx, err := r.conn.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if d, err = r.commit(&txn{ctx, tx, st.write}); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE client SET known = 1, cursor = ?, at = ? WHERE id = ?`,
			cursor, time.Now().UnixNano(), r.id)
		if err != nil {
			return err
		}
		return tx.Commit()
	})
	return d, err
}

// stage writes the entries into the staging tables.
func (r *replacement) stage(entries iter.Seq2[backends.Entry, error]) (err error) {
	if _, err := r.conn.ExecContext(r.ctx, stagingTables); err != nil {
		return err
	}
	marks := "(?, " + imageMarks + ")"
	many := strings.TrimSuffix(strings.Repeat(marks+", ", batch), ", ")
	into := `INSERT INTO temp.new_image (collection, ` + imageColumns + `) VALUES `
	if r.insert, err = r.conn.PrepareContext(r.ctx, into+many); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.insert.Close()) }()
	// Temporary tables are written without any lock on the file, and a
	// transaction spares them a commit for each statement.
	if _, err := r.conn.ExecContext(r.ctx, `BEGIN DEFERRED`); err != nil {
		return err
	}
	end := `ROLLBACK`
	defer func() {
		_, e := r.conn.ExecContext(context.WithoutCancel(r.ctx), end)
		err = errors.Join(err, e)
	}()
	for e, err := range entries {
		if err != nil {
			return foreignError{err}
		}
		if err := r.entry(e); err != nil {
			return err
		}
	}
	if len(r.pending) > 0 {
		rows := len(r.pending) / (imageColumnCount + 1)
		rest := strings.TrimSuffix(strings.Repeat(marks+", ", rows), ", ")
		if _, err := r.conn.ExecContext(r.ctx, into+rest, r.pending...); err != nil {
			return err
		}
	}
	end = `COMMIT`
	return nil
}

func (r *replacement) entry(e backends.Entry) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if e.Collection != "" {
		_, err := r.collection(e.Collection, true, e.Image.ID, e.Image.Key)
		return err
	}
	row := newRow(r.client, e.Image)
	collection, err := r.collection(e.Image.Ref.Collection, false, "", "")
	if err != nil {
		return err
	}
	r.pending = append(append(r.pending, collection), row.values()...)
	if len(r.pending) < batch*(imageColumnCount+1) {
		return nil
	}
	_, err = r.insert.ExecContext(r.ctx, r.pending...)
	r.pending = r.pending[:0]
	return err
}

// collection stages a collection, and those above it, and returns its number
// in the staging table.
func (r *replacement) collection(name string, own bool, object, path string) (int64, error) {
	if id, ok := r.collections[name]; ok && !own {
		return id, nil
	}
	dir := backends.CollectionPath(name)
	parent, parentName, nested := above(dir, name)
	if nested {
		if _, err := r.collection(parentName, false, "", ""); err != nil {
			return 0, err
		}
	}
	var id int64
	err := r.conn.QueryRowContext(r.ctx, `INSERT INTO temp.new_collection (dir, fold, parent, name, own, object, path)
		VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET own = max(own, excluded.own),
		object = CASE WHEN excluded.own THEN excluded.object ELSE object END,
		path = CASE WHEN excluded.own THEN excluded.path ELSE path END
		RETURNING id`, dir, foldOf(dir), parent, name, own, object, path).Scan(&id)
	if len(r.collections) == 10_000 {
		clear(r.collections)
	}
	r.collections[name] = id
	return id, err
}

// commit makes the client hold what was staged.
func (r *replacement) commit(t *txn) (Diff, error) {
	places := places{max: r.x.maxPlaces}
	now, err := t.tick()
	if err != nil {
		return Diff{}, err
	}
	exec := func(query string, args ...any) (int64, error) {
		res, err := t.tx.ExecContext(t.ctx, query, args...)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", strings.Fields(query)[0], err)
		}
		return res.RowsAffected()
	}
	if _, err := exec(`CREATE INDEX temp.new_image_object ON new_image (object)`); err != nil {
		return Diff{}, err
	}
	if err := r.newCollections(t, now, &places); err != nil {
		return Diff{}, err
	}
	// Of an object that came twice, the last one counts.
	put, err := exec(`INSERT INTO temp.put_image
		SELECT max(n.rowid), i.id FROM temp.new_image n
		JOIN temp.new_collection c ON c.id = n.collection
		LEFT JOIN image i ON i.client = ?1 AND i.object = n.object
		WHERE CASE WHEN i.id IS NULL
			THEN NOT EXISTS (SELECT 1 FROM removed d WHERE d.client = ?1 AND d.object = n.object AND d.seq > ?2)
			ELSE i.seq <= ?2 END
		GROUP BY n.object
		HAVING i.id IS NULL OR (i.collection, i.path, i.file, i.data) IS NOT (c.real, n.path, n.file, n.data)`, r.id, r.since)
	if err != nil {
		return Diff{}, err
	}
	gone, err := exec(`INSERT INTO temp.gone_image SELECT i.id FROM image i WHERE i.client = ?1 AND i.seq <= ?2
		AND NOT EXISTS (SELECT 1 FROM temp.new_image n WHERE n.object = i.object)`, r.id, r.since)
	if err != nil {
		return Diff{}, err
	}
	if put+gone > int64(r.x.maxPlaces) {
		places.full, places.seen = true, nil
	} else if put+gone > 0 {
		if err := r.tell(t, &places); err != nil {
			return Diff{}, err
		}
	}
	for _, s := range []struct {
		run   bool
		query string
		args  []any
	}{
		{gone > 0, `DELETE FROM trigram WHERE rowid IN (SELECT w.id FROM temp.gone_image g JOIN words w ON w.id = g.id)`, nil},
		{gone > 0, `DELETE FROM words WHERE id IN (SELECT id FROM temp.gone_image)`, nil},
		{gone > 0, `DELETE FROM search_queue WHERE id IN (SELECT id FROM temp.gone_image)`, nil},
		{gone > 0, `DELETE FROM image WHERE id IN (SELECT id FROM temp.gone_image)`, nil},
		{put > 0, `UPDATE image AS i SET (collection, seq, ` + imageColumns + `) = (c.real, ?1, ` + prefixed("n.") + `)
			FROM temp.put_image p
			CROSS JOIN temp.new_image n ON n.rowid = p.new CROSS JOIN temp.new_collection c ON c.id = n.collection
			WHERE i.id = p.old`, []any{now}},
		{put > 0, `INSERT INTO image (client, collection, seq, ` + imageColumns + `)
			SELECT ?1, c.real, ?2, ` + prefixed("n.") + ` FROM temp.put_image p
			JOIN temp.new_image n ON n.rowid = p.new JOIN temp.new_collection c ON c.id = n.collection
			WHERE p.old IS NULL ORDER BY p.new`, []any{r.id, now}},
		{put > 0, `INSERT INTO search_queue SELECT id FROM image WHERE client = ? AND seq = ? ON CONFLICT DO NOTHING`, []any{r.id, now}},
		{true, `DELETE FROM removed WHERE client = ? AND seq <= ?`, []any{r.id, r.since}},
	} {
		if !s.run {
			continue
		}
		if _, err := exec(s.query, s.args...); err != nil {
			return Diff{}, err
		}
	}
	if err := r.dropCollections(t, &places); err != nil {
		return Diff{}, err
	}
	return places.diff(), nil
}

func prefixed(prefix string) string {
	return prefix + strings.ReplaceAll(imageColumns, ", ", ", "+prefix)
}

// newCollections makes the collections that are not there yet and fills in
// the real numbers of all.
func (r *replacement) newCollections(t *txn, now int64, places *places) error {
	rows, err := t.tx.QueryContext(t.ctx, `INSERT INTO collection (client, dir, fold, parent, name, own, object, path, seq)
		SELECT ?1, dir, fold, parent, name, own AND NOT EXISTS (
				SELECT 1 FROM removed d WHERE d.client = ?1 AND d.object = ?4 || n.dir AND d.seq > ?3),
			object, path, ?2 FROM temp.new_collection n WHERE true
		ON CONFLICT DO NOTHING RETURNING dir`, r.id, now, r.since, objectCollection)
	dirs, err := list[string](rows, err)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		places.add(dir, "")
	}
	for _, query := range []string{
		`UPDATE temp.new_collection AS n SET real = c.id FROM collection c
			WHERE c.client = ?1 AND c.dir = n.dir AND c.name = n.name AND ?2 = ?2 AND ?3 = ?3`,
		`UPDATE collection AS c SET own = 1, object = n.object, path = n.path, seq = ?2 FROM temp.new_collection n
			WHERE n.real = c.id AND n.own AND c.client = ?1 AND c.seq <= ?3
			AND (c.own, c.object, c.path) IS NOT (1, n.object, n.path)`,
		`UPDATE collection AS c SET own = 0, seq = ?2 WHERE c.client = ?1 AND c.own = 1 AND c.seq <= ?3
			AND NOT EXISTS (SELECT 1 FROM temp.new_collection n WHERE n.own AND n.dir = c.dir AND n.name = c.name)`,
	} {
		if _, err := t.tx.ExecContext(t.ctx, query, r.id, now, r.since); err != nil {
			return err
		}
	}
	return nil
}

// tell gathers the places that put_image and gone_image touch.
func (r *replacement) tell(t *txn, places *places) error {
	rows, err := t.tx.QueryContext(t.ctx, `
		SELECT c.dir, i.file FROM temp.gone_image g JOIN image i ON i.id = g.id JOIN collection c ON c.id = i.collection
		UNION SELECT c.dir, i.file FROM temp.put_image p JOIN image i ON i.id = p.old JOIN collection c ON c.id = i.collection
		UNION SELECT c.dir, n.file FROM temp.put_image p JOIN temp.new_image n ON n.rowid = p.new
			JOIN temp.new_collection c ON c.id = n.collection`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var dir, file string
		if err := rows.Scan(&dir, &file); err != nil {
			return err
		}
		places.add(dir, file)
	}
	return rows.Err()
}

// dropCollections deletes the collections that are there for nothing any more,
// from the leaves up.
func (r *replacement) dropCollections(t *txn, places *places) error {
	for {
		rows, err := t.tx.QueryContext(t.ctx, `DELETE FROM collection AS k WHERE k.client = ?1 AND k.own = 0
			AND NOT EXISTS (SELECT 1 FROM image i WHERE i.collection = k.id)
			AND NOT EXISTS (SELECT 1 FROM collection b WHERE b.client = k.client AND b.parent = k.dir)
			RETURNING dir`, r.id)
		dirs, err := list[string](rows, err)
		if err != nil || len(dirs) == 0 {
			return err
		}
		for _, dir := range dirs {
			places.add(dir, "")
		}
	}
}
