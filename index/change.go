package index

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// removedFor is how long a removal is remembered at least. No listing takes
// longer.
const removedFor = 24 * time.Hour

// write runs f in a transaction that writes the state, one at a time.
func (x *Index) write(ctx context.Context, doing string, f func(t *txn) error) error {
	err := x.locked(ctx, func() error {
		tx, err := x.state.write.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if err := f(&txn{ctx, tx, x.state.write}); err != nil {
			return err
		}
		return tx.Commit()
	})
	return x.state.failed(doing, err)
}

// locked runs f while this process writes nothing else. Waiting here is fair
// and ends with ctx; SQLite's own lock is for other processes.
func (x *Index) locked(ctx context.Context, f func() error) error {
	select {
	case x.writing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-x.writing }()
	return f()
}

// tick moves the clock on and returns the new time.
func (t *txn) tick() (now int64, err error) {
	_, err = t.row([]any{&now}, `UPDATE clock SET now = now + 1 RETURNING now`)
	return now, err
}

// client returns a client's number. It is 0 for one that was never told of.
func (x *Index) client(ctx context.Context, name string) (int64, error) {
	if id, ok := x.clients.Load(name); ok {
		return id.(int64), nil
	}
	var id int64
	ok, err := x.state.read.row(ctx, []any{&id}, `SELECT id FROM client WHERE name = ?`, name)
	if ok {
		x.clients.Store(name, id)
	}
	return id, err
}

// makeClient returns a client's number and makes one if need be.
func (x *Index) makeClient(ctx context.Context, name string) (int64, error) {
	id, err := x.client(ctx, name)
	if err != nil || id != 0 {
		return id, err
	}
	err = x.write(ctx, "note the client "+name, func(t *txn) error {
		_, err := t.exec(`INSERT INTO client (name) VALUES (?) ON CONFLICT DO NOTHING`, name)
		return err
	})
	if err != nil {
		return 0, err
	}
	return x.client(ctx, name)
}

// change is a transaction that changes what one client holds, image by image.
type change struct {
	*txn
	id     int64  // the client's number
	client string // and name
	now    int64
	places places
	// left are collections that something was taken from.
	left map[int64]bool
}

// change runs f as one change of a client's holdings.
func (x *Index) change(ctx context.Context, doing, client string, f func(c *change) error) (Diff, error) {
	id, err := x.makeClient(ctx, client)
	if err != nil {
		return Diff{}, err
	}
	var d Diff
	err = x.write(ctx, doing, func(t *txn) error {
		now, err := t.tick()
		if err != nil {
			return err
		}
		c := &change{txn: t, id: id, client: client, now: now, left: map[int64]bool{}, places: places{max: x.maxPlaces}}
		if err := f(c); err != nil {
			return err
		}
		for collection := range c.left {
			if err := c.dropEmpty(collection); err != nil {
				return err
			}
		}
		d = c.places.diff()
		return nil
	})
	if err != nil {
		return Diff{}, err
	}
	x.wakeIndexer()
	return d, nil
}

// collection returns the number of a collection and makes it, and all above
// it, if need be.
func (c *change) collection(name string) (int64, error) {
	dir := backends.CollectionPath(name)
	var id int64
	ok, err := c.row([]any{&id}, `SELECT id FROM collection WHERE client = ? AND dir = ? AND name = ?`, c.id, dir, name)
	if err != nil || ok {
		return id, err
	}
	parent, parentName, nested := above(dir, name)
	if nested {
		if _, err := c.collection(parentName); err != nil {
			return 0, err
		}
	}
	c.places.add(dir, "")
	_, err = c.row([]any{&id}, `INSERT INTO collection (client, dir, fold, parent, name, seq)
		VALUES (?, ?, ?, ?, ?, ?) RETURNING id`, c.id, dir, foldOf(dir), parent, name, c.now)
	return id, err
}

// above returns the directory above a collection's, nil for the client's own,
// and the name of the collection there; nested is false at the top.
func above(dir, name string) (parent any, parentName string, nested bool) {
	if dir == "" {
		return nil, "", false
	}
	i := strings.LastIndexByte(dir, '/')
	if i < 0 {
		return "", "", false
	}
	return dir[:i], name[:strings.LastIndexByte(name, '/')], true
}

// put takes an image in. A row that says the same already is left alone.
func (c *change) put(img backends.Image) error {
	r := newRow(c.client, img)
	if r.path != "" {
		// Another object that had this path is gone.
		if err := c.remove(`i.path = ?2 AND i.path <> '' AND i.object <> ?3`, r.path, r.object); err != nil {
			return err
		}
	}
	if err := c.noteReturn(r.object); err != nil {
		return err
	}
	collection, err := c.collection(img.Ref.Collection)
	if err != nil {
		return err
	}
	var old struct {
		id, collection int64
		place          Place
		same           bool
	}
	args := append([]any{c.id, r.object, collection}, r.values()...)
	found, err := c.row([]any{&old.id, &old.collection, &old.place.Dir, &old.place.File, &old.same},
		`SELECT i.id, i.collection, c.dir, i.file, `+sameImage+`
		FROM image i JOIN collection c ON c.id = i.collection WHERE i.client = ?1 AND i.object = ?2`, args...)
	if err != nil || found && old.same {
		return err
	}
	c.places.add(backends.CollectionPath(img.Ref.Collection), r.file)
	args = append([]any{c.id, collection, c.now}, r.values()...)
	if !found {
		_, err = c.row([]any{&old.id}, insertImage+` RETURNING id`, args...)
	} else {
		c.places.add(old.place.Dir, old.place.File)
		if old.collection != collection {
			c.left[old.collection] = true
		}
		_, err = c.exec(`UPDATE image SET (client, collection, seq, `+imageColumns+`) =
			(?, ?, ?, `+imageMarks+`) WHERE id = ?`, append(args, old.id)...)
	}
	if err != nil {
		return err
	}
	_, err = c.exec(`INSERT INTO search_queue VALUES (?) ON CONFLICT DO NOTHING`, old.id)
	return err
}

var (
	imageMarks  = strings.TrimSuffix(strings.Repeat("?, ", imageColumnCount), ", ")
	insertImage = `INSERT INTO image (client, collection, seq, ` + imageColumns + `) VALUES (?, ?, ?, ` + imageMarks + `)`
	// sameImage compares an image i with a collection ?3 and columns ?4 and on.
	sameImage = func() string {
		marks := make([]string, imageColumnCount)
		for n := range marks {
			marks[n] = fmt.Sprintf("?%d", n+4)
		}
		columns := strings.ReplaceAll(imageColumns, ", ", ", i.")
		return `(i.collection, i.` + columns + `) IS (?3, ` + strings.Join(marks, ", ") + `)`
	}()
)

// remove takes images i of the client out: those for which the condition holds
// with its arguments from ?2 on.
func (c *change) remove(condition string, args ...any) error {
	for {
		n, err := c.removeSome(condition, args)
		if err != nil || n < removeBatch {
			return err
		}
	}
}

// removeBatch is how many images are removed with one round of statements.
const removeBatch = 10_000

func removeSelect(condition string) string {
	return `SELECT i.id, i.collection, c.dir, i.file FROM image i JOIN collection c ON c.id = i.collection
		WHERE i.client = ?1 AND ` + condition + ` LIMIT ` + strconv.Itoa(removeBatch)
}

func (c *change) removeSome(condition string, args []any) (int, error) {
	rows, err := c.rows(removeSelect(condition), append([]any{c.id}, args...)...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var ids []int64
	for rows.Next() {
		var (
			id, collection int64
			place          Place
		)
		if err := rows.Scan(&id, &collection, &place.Dir, &place.File); err != nil {
			return 0, err
		}
		c.left[collection] = true
		c.places.add(place.Dir, place.File)
		ids = append(ids, id)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil || len(ids) == 0 {
		return 0, err
	}
	set, err := json.Marshal(ids)
	if err != nil {
		return 0, err
	}
	if _, err := c.exec(`INSERT OR REPLACE INTO removed SELECT client, object, ?2, ?3 FROM image
		WHERE id IN (SELECT value FROM json_each(?1))`, string(set), c.now, time.Now().UnixNano()); err != nil {
		return 0, err
	}
	for _, query := range []string{
		`DELETE FROM image WHERE id IN (SELECT value FROM json_each(?))`,
		`DELETE FROM search_queue WHERE id IN (SELECT value FROM json_each(?))`,
		`DELETE FROM trigram WHERE rowid IN (SELECT id FROM words WHERE id IN (SELECT value FROM json_each(?)))`,
		`DELETE FROM words WHERE id IN (SELECT value FROM json_each(?))`,
	} {
		if _, err := c.exec(query, string(set)); err != nil {
			return 0, err
		}
	}
	return len(ids), nil
}

// objectCollection begins what the table of removals calls a collection, by
// its directory.
const objectCollection = "c"

// noteRemoval keeps a listing that is under way from bringing back what is
// gone.
func (c *change) noteRemoval(object string) error {
	now := time.Now()
	if _, err := c.exec(`DELETE FROM removed WHERE at < ?`, now.Add(-removedFor).UnixNano()); err != nil {
		return err
	}
	_, err := c.exec(`INSERT OR REPLACE INTO removed VALUES (?, ?, ?, ?)`, c.id, object, c.now, now.UnixNano())
	return err
}

// noteReturn reverses noteRemoval.
func (c *change) noteReturn(object string) error {
	_, err := c.exec(`DELETE FROM removed WHERE client = ? AND object = ?`, c.id, object)
	return err
}

// removeCollections takes the own mark off collections k of the client, so
// that they vanish with the last image in them. The condition has its arguments
// from ?3 on.
func (c *change) removeCollections(condition string, args ...any) error {
	rows, err := c.rows(`UPDATE collection AS k SET own = 0, seq = ?2
		WHERE k.client = ?1 AND k.own = 1 AND `+condition+` RETURNING id, dir`, append([]any{c.id, c.now}, args...)...)
	if err != nil {
		return err
	}
	defer rows.Close()
	var dirs []string
	for rows.Next() {
		var id int64
		var dir string
		if err := rows.Scan(&id, &dir); err != nil {
			return err
		}
		c.left[id] = true
		dirs = append(dirs, dir)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := c.noteRemoval(objectCollection + dir); err != nil {
			return err
		}
	}
	return nil
}

// dropEmpty deletes a collection that is there for nothing any more, and those
// above it that are then.
func (c *change) dropEmpty(id int64) error {
	for {
		var dir, parent string
		var above bool
		ok, err := c.row([]any{&dir, &parent, &above}, `DELETE FROM collection AS k
			WHERE k.id = ? AND k.own = 0
			AND NOT EXISTS (SELECT 1 FROM image i WHERE i.collection = k.id)
			AND NOT EXISTS (SELECT 1 FROM collection b WHERE b.client = k.client AND b.parent = k.dir)
			RETURNING dir, coalesce(parent, ''), coalesce(parent, '') <> ''`, id)
		if err != nil || !ok {
			return err
		}
		c.places.add(dir, "")
		if !above {
			return nil
		}
		ok, err = c.row([]any{&id}, `SELECT id FROM collection WHERE client = ? AND dir = ?`, c.id, parent)
		if err != nil || !ok {
			return err
		}
	}
}
