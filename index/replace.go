package index

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
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

	compared  int64 // the clock when put_image and gone_image were filled
	put, gone int64 // and how many are in them

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
	// Comparing takes longest. It is done while others may write, and done
	// again only if one did.
	if err := r.deferred(r.compare); err != nil {
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
	return r.deferred(func() error {
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
		_, err := r.conn.ExecContext(r.ctx, `CREATE INDEX temp.new_image_object ON new_image (object)`)
		return err
	})
}

// deferred runs f in a transaction that writes nothing but temporary tables.
// It takes no lock that others would wait for, and spares a commit for each
// statement.
func (r *replacement) deferred(f func() error) error {
	if _, err := r.conn.ExecContext(r.ctx, `BEGIN DEFERRED`); err != nil {
		return err
	}
	err := f()
	end := `COMMIT`
	if err != nil {
		end = `ROLLBACK`
	}
	_, e := r.conn.ExecContext(context.WithoutCancel(r.ctx), end)
	return errors.Join(err, e)
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
