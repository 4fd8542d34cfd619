package index

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"iter"
)

// LearnVersion notes the MD5 of a content, in hexadecimal. From then on it is
// the Version of each image with that content key that the store itself tells
// none for.
func (x *Index) LearnVersion(ctx context.Context, contentKey, md5 string) error {
	id := contentID(contentKey)
	var same bool
	_, err := x.state.read.row(ctx, []any{&same},
		`SELECT key = ?2 AND md5 = ?3 FROM content WHERE id = ?1`, id, contentKey, md5)
	if err != nil || same {
		return x.state.failed("look up a content", err)
	}
	return x.write(ctx, "note a version", func(t *txn) error {
		if err := t.content(id, contentKey); err != nil {
			return err
		}
		_, err := t.exec(`UPDATE content SET md5 = ? WHERE id = ?`, md5, id)
		return err
	})
}

// content makes the row of a content. In the all but impossible case that
// another key has the number, what was learnt of that one is forgotten.
func (t *txn) content(id int64, key string) error {
	_, err := t.exec(`INSERT INTO content (id, key) VALUES (?1, ?2) ON CONFLICT DO UPDATE
		SET key = ?2, md5 = '', attributes = NULL, labels = '' WHERE key <> ?2`, id, key)
	return err
}

// SetAttributes keeps what is inside of a content: attributes, a JSON value,
// for Attributes, and labels, which each image with that content key is found
// by from then on.
func (x *Index) SetAttributes(ctx context.Context, contentKey string, attributes json.RawMessage, labels map[string]string) error {
	if !json.Valid(attributes) {
		return fmt.Errorf("index: attributes of %s: not JSON", contentKey)
	}
	text := ""
	if len(labels) > 0 {
		data, err := json.Marshal(labels)
		if err != nil {
			return fmt.Errorf("index: labels of %s: %w", contentKey, err)
		}
		text = string(data)
	}
	id := contentID(contentKey)
	var same bool
	_, err := x.state.read.row(ctx, []any{&same},
		`SELECT key = ?2 AND attributes IS ?3 AND labels = ?4 FROM content WHERE id = ?1`,
		id, contentKey, string(attributes), text)
	if err != nil || same {
		return x.state.failed("look up a content", err)
	}
	err = x.write(ctx, "note attributes", func(t *txn) error {
		if err := t.content(id, contentKey); err != nil {
			return err
		}
		changed, err := t.exec(`UPDATE content SET labels = ?2 WHERE id = ?1 AND labels <> ?2`, id, text)
		if err != nil {
			return err
		}
		if changed > 0 {
			_, err := t.exec(`INSERT INTO search_queue SELECT id FROM image WHERE content = ? ON CONFLICT DO NOTHING`, id)
			if err != nil {
				return err
			}
		}
		_, err = t.exec(`UPDATE content SET attributes = ? WHERE id = ?`, string(attributes), id)
		return err
	})
	if err == nil {
		x.wakeIndexer()
	}
	return err
}

// Attributes returns what SetAttributes kept of a content; false when it kept
// nothing.
func (x *Index) Attributes(ctx context.Context, contentKey string) (json.RawMessage, bool, error) {
	var text string
	ok, err := x.state.read.row(ctx, []any{&text},
		`SELECT attributes FROM content WHERE id = ? AND key = ? AND attributes IS NOT NULL`,
		contentID(contentKey), contentKey)
	if err != nil || !ok {
		return nil, false, x.state.failed("read attributes", err)
	}
	return json.RawMessage(text), true, nil
}

// SetXattr keeps an extended attribute of a name in the tree, whether or not
// there is such an image; a nil value removes it.
func (x *Index) SetXattr(ctx context.Context, client, dir, file, name string, value []byte) error {
	id, err := x.makeClient(ctx, client)
	if err != nil {
		return err
	}
	return x.write(ctx, "keep an attribute of "+file, func(t *txn) error {
		if value == nil {
			_, err := t.exec(`DELETE FROM xattr WHERE client = ? AND dir = ? AND file = ? AND name = ?`, id, dir, file, name)
			return err
		}
		_, err := t.exec(`INSERT OR REPLACE INTO xattr VALUES (?, ?, ?, ?, ?)`, id, dir, file, name, value)
		return err
	})
}

// Xattrs returns the extended attributes of a name in the tree; values are
// never nil.
func (x *Index) Xattrs(ctx context.Context, client, dir, file string) (map[string][]byte, error) {
	attrs, err := x.xattrs(ctx, client, dir, file)
	return attrs, x.state.failed("read attributes of "+file, err)
}

func (x *Index) xattrs(ctx context.Context, client, dir, file string) (map[string][]byte, error) {
	id, err := x.client(ctx, client)
	if err != nil || id == 0 {
		return nil, err
	}
	rows, err := x.state.read.rows(ctx, `SELECT name, value FROM xattr WHERE client = ? AND dir = ? AND file = ?`, id, dir, file)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	attrs := map[string][]byte{}
	for rows.Next() {
		var name string
		value := []byte{}
		if err := rows.Scan(&name, &value); err != nil {
			return nil, err
		}
		if value == nil {
			value = []byte{}
		}
		attrs[name] = value
	}
	return attrs, rows.Err()
}

// MoveXattrs gives the extended attributes of one name to another, in place of
// what that had, as a rename does.
func (x *Index) MoveXattrs(ctx context.Context, client, dir, file, toDir, toFile string) error {
	if dir == toDir && file == toFile {
		return nil
	}
	return x.onXattrs(ctx, "move attributes of "+file, client, func(t *txn, id int64) error {
		if _, err := t.exec(`DELETE FROM xattr WHERE client = ? AND dir = ? AND file = ?`, id, toDir, toFile); err != nil {
			return err
		}
		_, err := t.exec(`UPDATE xattr SET dir = ?, file = ? WHERE client = ? AND dir = ? AND file = ?`,
			toDir, toFile, id, dir, file)
		return err
	})
}

// DropXattrs removes all extended attributes of a name in the tree, for an
// image that is deleted.
func (x *Index) DropXattrs(ctx context.Context, client, dir, file string) error {
	return x.onXattrs(ctx, "drop attributes of "+file, client, func(t *txn, id int64) error {
		_, err := t.exec(`DELETE FROM xattr WHERE client = ? AND dir = ? AND file = ?`, id, dir, file)
		return err
	})
}

func (x *Index) onXattrs(ctx context.Context, doing, client string, f func(t *txn, id int64) error) error {
	id, err := x.client(ctx, client)
	if err != nil || id == 0 {
		return x.state.failed(doing, err)
	}
	return x.write(ctx, doing, func(t *txn) error { return f(t, id) })
}

// Note returns a small durable fact of that kind; false when there is none.
func (x *Index) Note(ctx context.Context, kind, key string) ([]byte, bool, error) {
	var data []byte
	ok, err := x.state.read.row(ctx, []any{&data}, `SELECT data FROM note WHERE kind = ? AND key = ?`, kind, key)
	return data, ok, x.state.failed("read a note of kind "+kind, err)
}

// SetNote keeps a small fact; nil data removes it.
func (x *Index) SetNote(ctx context.Context, kind, key string, data []byte) error {
	return x.write(ctx, "keep a note of kind "+kind, func(t *txn) error {
		if data == nil {
			_, err := t.exec(`DELETE FROM note WHERE kind = ? AND key = ?`, kind, key)
			return err
		}
		_, err := t.exec(`INSERT OR REPLACE INTO note VALUES (?, ?, ?)`, kind, key, data)
		return err
	})
}

// Note is a fact that SetNote kept.
type Note struct {
	Key  string
	Data []byte
}

// Notes yields all facts of a kind, by key. It holds nothing while the loop
// body runs. An error ends it.
func (x *Index) Notes(ctx context.Context, kind string) iter.Seq2[Note, error] {
	return func(yield func(Note, error) bool) {
		for after, more := (sql.NullString{}), true; more; {
			notes, err := x.notes(ctx, kind, after)
			if err != nil {
				yield(Note{}, x.state.failed("read notes of kind "+kind, err))
				return
			}
			for _, n := range notes {
				if !yield(n, nil) {
					return
				}
				after = sql.NullString{String: n.Key, Valid: true}
			}
			more = len(notes) == x.page
		}
	}
}

func (x *Index) notes(ctx context.Context, kind string, after sql.NullString) ([]Note, error) {
	rows, err := x.state.read.rows(ctx, `SELECT key, data FROM note
		WHERE kind = ?1 AND (?2 IS NULL OR key > ?2) ORDER BY key LIMIT ?3`, kind, after, x.page)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []Note
	for rows.Next() {
		var n Note
		if err := rows.Scan(&n.Key, &n.Data); err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, rows.Err()
}
