package index

import (
	"context"
	"database/sql"
	"strings"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// Listing returns how well a client's holdings are known; the zero Listing for
// a client that was never listed.
func (x *Index) Listing(ctx context.Context, client string) (Listing, error) {
	var l Listing
	var at sql.NullInt64
	_, err := x.state.read.row(ctx, []any{&l.Known, &l.Cursor, &at},
		`SELECT known, cursor, at FROM client WHERE name = ?`, client)
	if at.Valid {
		l.At = time.Unix(0, at.Int64).UTC()
	}
	return l, x.state.failed("read the state of "+client, err)
}

// SetListedAt notes that a client's listing was right at that time.
func (x *Index) SetListedAt(ctx context.Context, client string, at time.Time) error {
	id, err := x.makeClient(ctx, client)
	if err != nil {
		return err
	}
	when := sql.NullInt64{Int64: at.UnixNano(), Valid: !at.IsZero()}
	return x.write(ctx, "note when "+client+" was listed", func(t *txn) error {
		_, err := t.exec(`UPDATE client SET at = ? WHERE id = ?`, when, id)
		return err
	})
}

// Apply takes in a stretch of a client's change feed, in its order, and the
// position behind it, all or nothing. Applying the same again changes nothing.
func (x *Index) Apply(ctx context.Context, client string, changes []backends.Change, cursor string) (Diff, error) {
	return x.change(ctx, "apply changes of "+client, client, func(c *change) error {
		for _, ch := range changes {
			if err := c.apply(ch); err != nil {
				return err
			}
		}
		_, err := c.exec(`UPDATE client SET cursor = ?, at = ? WHERE id = ?`, cursor, time.Now().UnixNano(), c.id)
		return err
	})
}

// Conditions for remove. Without saying that there is a path they would not be
// answered by the index of paths, which leaves out those that have none, but by
// a look at every image.
const (
	atPath    = `i.path <> '' AND i.path = ?2`
	belowPath = `i.path <> '' AND i.path > ?2 AND i.path < ?3`
)

func (c *change) apply(ch backends.Change) error {
	e := ch.Entry
	switch {
	case !ch.Deleted && e.Collection != "":
		return c.putCollection(e.Collection, e.Image.ID, e.Image.Key)
	case !ch.Deleted:
		return c.put(e.Image)
	case e.Collection != "":
		if err := c.removeBelow(backends.CollectionPath(e.Collection)); err != nil {
			return err
		}
	}
	id, key := e.Image.ID, e.Image.Key
	if id != "" {
		if err := c.remove(`i.object = ?2`, objectID+id); err != nil {
			return err
		}
		if err := c.removeCollections(`k.object = ?3`, id); err != nil {
			return err
		}
	}
	if key == "" {
		return nil
	}
	// Another object may have the path by now, and have been told of before.
	if id == "" {
		if err := c.remove(atPath, key); err != nil {
			return err
		}
	}
	if err := c.remove(belowPath, key+"/", key+"0"); err != nil {
		return err
	}
	if err := c.removeCollections(`(k.path = ?3 OR k.path > ?4 AND k.path < ?5)`, key, key+"/", key+"0"); err != nil || e.Collection != "" {
		return err
	}
	// A feed may know no more of a deleted folder than its path, which is the
	// collection's name but for case.
	dir := strings.ToLower(backends.CollectionPath(strings.Trim(key, "/")))
	return c.removeCollections(`k.path = '' AND (lower(k.dir) = ?3 OR k.fold = ?3 OR
		k.dir > ?4 AND k.dir < ?5 OR k.fold > ?4 AND k.fold < ?5)`, dir, dir+"/", dir+"0")
}

// removeBelow takes out a collection with all that lies in it.
func (c *change) removeBelow(dir string) error {
	err := c.remove(`i.collection IN (SELECT id FROM collection WHERE client = ?1
		AND (dir = ?2 OR dir > ?3 AND dir < ?4))`, dir, dir+"/", dir+"0")
	if err != nil {
		return err
	}
	return c.removeCollections(`(k.dir = ?3 OR k.dir > ?4 AND k.dir < ?5)`, dir, dir+"/", dir+"0")
}

func (c *change) putCollection(name, object, path string) error {
	id, err := c.collection(name)
	if err != nil {
		return err
	}
	if err := c.noteReturn(objectCollection + backends.CollectionPath(name)); err != nil {
		return err
	}
	if object != "" {
		// It may have been renamed; under the old name it is implied at most.
		if err := c.removeCollections(`k.object = ?3 AND k.id <> ?4`, object, id); err != nil {
			return err
		}
	}
	_, err = c.exec(`UPDATE collection SET own = 1, object = ?2, path = ?3, seq = ?4
		WHERE id = ?1 AND (own, object, path) IS NOT (1, ?2, ?3)`, id, object, path, c.now)
	return err
}

// PutImage takes in what was learnt of one image, by a push or a question,
// before the listing tells of it. It takes the place of what has the same ID
// or, where there is none, the same Key.
func (x *Index) PutImage(ctx context.Context, client string, img backends.Image) (Diff, error) {
	same, err := x.has(ctx, client, img)
	if err != nil || same {
		return Diff{}, x.state.failed("look up "+img.Ref.String(), err)
	}
	return x.change(ctx, "note "+img.Ref.String(), client, func(c *change) error { return c.put(img) })
}

// has reports whether the index says just that of an image already; most
// questions to a store find nothing new, and need not wait for a writer.
func (x *Index) has(ctx context.Context, client string, img backends.Image) (bool, error) {
	id, err := x.client(ctx, client)
	if err != nil || id == 0 {
		return false, err
	}
	r := newRow(client, img)
	var collection int64
	ok, err := x.state.read.row(ctx, []any{&collection},
		`SELECT id FROM collection WHERE client = ? AND dir = ? AND name = ?`, id, img.Ref.Dir(), img.Ref.Collection)
	if err != nil || !ok {
		return false, err
	}
	var same bool
	_, err = x.state.read.row(ctx, []any{&same},
		`SELECT `+sameImage+` FROM image i WHERE i.client = ?1 AND i.object = ?2`,
		append([]any{id, r.object, collection}, r.values()...)...)
	return same, err
}

// RemoveImage takes out the object with img's ID or, where it has none, with
// its Key. A listing that began before does not bring it back.
func (x *Index) RemoveImage(ctx context.Context, client string, img backends.Image) (Diff, error) {
	return x.change(ctx, "forget "+img.Ref.String(), client, func(c *change) error {
		object := objectOf(img)
		if err := c.remove(`i.object = ?2`, object); err != nil {
			return err
		}
		// It may not be here yet, but in a listing that is under way.
		return c.noteRemoval(object)
	})
}

// PutCollection notes that a client has a collection of that name, the
// store's.
func (x *Index) PutCollection(ctx context.Context, client, name string) error {
	_, err := x.change(ctx, "note the collection "+name, client, func(c *change) error {
		var object, path string
		_, err := c.row([]any{&object, &path}, `SELECT object, path FROM collection WHERE client = ? AND name = ? AND own`, c.id, name)
		if err != nil {
			return err
		}
		return c.putCollection(name, object, path)
	})
	return err
}

// RemoveCollection notes that a client has no collection of that name. What
// images there are keep it in the tree.
func (x *Index) RemoveCollection(ctx context.Context, client, name string) error {
	_, err := x.change(ctx, "forget the collection "+name, client, func(c *change) error {
		if err := c.removeCollections(`k.name = ?3`, name); err != nil {
			return err
		}
		// It may not be here yet, but in a listing that is under way.
		return c.noteRemoval(objectCollection + backends.CollectionPath(name))
	})
	return err
}

// DropClient forgets all that a client holds, its feed's position and its
// extended attributes.
func (x *Index) DropClient(ctx context.Context, client string) error {
	id, err := x.client(ctx, client)
	if err != nil || id == 0 {
		return x.state.failed("forget "+client, err)
	}
	return x.write(ctx, "forget "+client, func(t *txn) error {
		for _, query := range []string{
			`DELETE FROM trigram WHERE rowid IN (SELECT w.id FROM words w JOIN image i ON i.id = w.id WHERE i.client = ?)`,
			`DELETE FROM words WHERE id IN (SELECT id FROM image WHERE client = ?)`,
			`DELETE FROM search_queue WHERE id IN (SELECT id FROM image WHERE client = ?)`,
			`DELETE FROM image WHERE client = ?`,
			`DELETE FROM collection WHERE client = ?`,
			`DELETE FROM removed WHERE client = ?`,
			`DELETE FROM xattr WHERE client = ?`,
			`UPDATE client SET known = 0, cursor = '', at = NULL WHERE id = ?`,
		} {
			if _, err := t.exec(query, id); err != nil {
				return err
			}
		}
		return nil
	})
}
