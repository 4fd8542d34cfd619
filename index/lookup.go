package index

import (
	"context"
	"database/sql"
	"iter"
	"slices"
	"strings"

	"github.com/sregfs/sregfs/backends"
)

// Conditions of look-ups by a name in the tree: client, directory, file. Under
// the second one, case does not count; its names are given in lower case.
const (
	whereExact = `WHERE c.client = ?1 AND c.dir = ?2 AND i.file = ?3`
	whereFold  = `WHERE i.id IN (
		SELECT j.id FROM image j JOIN collection d ON d.id = j.collection
			WHERE d.client = ?1 AND d.dir = ?2 AND j.file = ?3
		UNION ALL SELECT j.id FROM image j JOIN collection d ON d.id = j.collection
			WHERE d.client = ?1 AND d.dir = ?2 AND j.fold = ?3 AND j.fold <> ''
		UNION ALL SELECT j.id FROM image j JOIN collection d ON d.id = j.collection
			WHERE d.client = ?1 AND d.fold = ?2 AND d.fold <> '' AND j.file = ?3
		UNION ALL SELECT j.id FROM image j JOIN collection d ON d.id = j.collection
			WHERE d.client = ?1 AND d.fold = ?2 AND d.fold <> '' AND j.fold = ?3 AND j.fold <> '')`
)

// Lookup finds the image that a name in the tree leads to: of those that have
// the name, the one modified last, then the one with the greatest ID. file is
// an image's name without version, as Ref.File gives it. With fold, case does
// not count.
func (x *Index) Lookup(ctx context.Context, client, dir, file string, fold bool) (backends.Image, bool, error) {
	all, err := x.named(ctx, client, dir, file, fold)
	if err != nil || len(all) == 0 {
		return backends.Image{}, false, err
	}
	return slices.MinFunc(all, newer).image, true, nil
}

// All finds every object that has a name in the tree, the newest first.
func (x *Index) All(ctx context.Context, client, dir, file string, fold bool) ([]backends.Image, error) {
	all, err := x.named(ctx, client, dir, file, fold)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, newer)
	images := make([]backends.Image, len(all))
	for n, s := range all {
		images[n] = s.image
	}
	return images, nil
}

func (x *Index) named(ctx context.Context, client, dir, file string, fold bool) ([]stored, error) {
	id, err := x.client(ctx, client)
	if err == nil && id != 0 {
		var all []stored
		if fold {
			all, err = x.images(ctx, client, imageSelect+whereFold, id, strings.ToLower(dir), strings.ToLower(file))
		} else {
			all, err = x.images(ctx, client, imageSelect+whereExact, id, dir, file)
		}
		if err == nil {
			return all, nil
		}
	}
	return nil, x.state.failed("look up "+file, err)
}

// images runs a query for images of a client that begins with imageSelect.
func (x *Index) images(ctx context.Context, client, query string, args ...any) ([]stored, error) {
	return x.appendImages(ctx, nil, client, query, args...)
}

func (x *Index) appendImages(ctx context.Context, all []stored, client, query string, args ...any) ([]stored, error) {
	rows, err := x.state.read.rows(ctx, query, args...)
	if err != nil {
		return all, err
	}
	defer rows.Close()
	scanner := imageScanner(client)
	for rows.Next() {
		s, err := scanner.scan(rows)
		if err != nil {
			return all, err
		}
		all = append(all, s)
	}
	return all, rows.Err()
}

// Images yields the newest image of each name in a directory, by file name in
// byte order. It holds nothing while the loop body runs, and tells of changes
// that come meanwhile or not, but of each name once. An error ends it.
func (x *Index) Images(ctx context.Context, client, dir string) iter.Seq2[backends.Image, error] {
	return x.ImagesFrom(ctx, client, dir, "", x.page)
}

// ImagesFrom is Images without the names before from. It reads so many objects
// at once.
func (x *Index) ImagesFrom(ctx context.Context, client, dir, from string, page int) iter.Seq2[backends.Image, error] {
	return func(yield func(backends.Image, error) bool) {
		fail := func(err error) { yield(backends.Image{}, x.state.failed("list "+client+"/"+dir, err)) }
		id, collections, err := x.collections(ctx, client, dir)
		if err != nil {
			fail(err)
			return
		}
		if len(collections) == 0 {
			return
		}
		query := imageSelect + `WHERE i.collection = ?3 AND i.file >= ?4 ORDER BY i.file LIMIT ?5`
		if len(collections) > 1 {
			query = imageSelect + `WHERE c.client = ?1 AND c.dir = ?2 AND ?3 = ?3 AND i.file >= ?4 ORDER BY i.file LIMIT ?5`
		}
		size := page
		room, _ := x.rooms.Get().(*[]stored)
		if room == nil {
			room = new([]stored)
		}
		defer func() {
			clear((*room)[:cap(*room)]) // it keeps no image alive
			x.rooms.Put(room)
		}()
		for {
			all, err := x.appendImages(ctx, (*room)[:0], client, query, id, dir, collections[0], from, size)
			*room = all
			if err != nil {
				fail(err)
				return
			}
			last := len(all) < size
			if !last {
				// The name at the end may go on behind it.
				from = all[len(all)-1].place.File
				end := len(all)
				for end > 0 && all[end-1].place.File == from {
					end--
				}
				if end == 0 {
					size *= 2
					continue
				}
				all, size = all[:end], page
			}
			for n := 0; n < len(all); {
				end := n + 1
				for end < len(all) && all[end].place.File == all[n].place.File {
					end++
				}
				if !yield(slices.MinFunc(all[n:end], newer).image, nil) {
					return
				}
				n = end
			}
			if last {
				return
			}
		}
	}
}

// collections returns the numbers of a client and of what is a directory in
// its tree. There may be several: two of the store's names that are one there,
// such as "%" and the empty one.
func (x *Index) collections(ctx context.Context, client, dir string) (id int64, collections []int64, err error) {
	if id, err = x.client(ctx, client); err != nil {
		return 0, nil, err
	}
	rows, err := x.state.read.rows(ctx, `SELECT id FROM collection WHERE client = ? AND dir = ?`, id, dir)
	collections, err = list[int64](rows, err)
	return id, collections, err
}

// Names returns the file names of the images in a directory, each once, in byte
// order. It reads an index that holds nothing else, not the images.
func (x *Index) Names(ctx context.Context, client, dir string) ([]string, error) {
	names, err := x.names(ctx, client, dir)
	return names, x.state.failed("list "+client+"/"+dir, err)
}

// namesQuery answers with one row for many names: each row costs more than the
// name does. No name has a "/" in it.
const namesQuery = `SELECT group_concat(file, '/' ORDER BY file) FROM
	(SELECT DISTINCT file FROM image WHERE collection = ? AND file > ? ORDER BY file LIMIT ?)`

func (x *Index) names(ctx context.Context, client, dir string) ([]string, error) {
	_, collections, err := x.collections(ctx, client, dir)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, c := range collections {
		for after := ""; ; {
			var joined sql.NullString
			if _, err := x.state.read.row(ctx, []any{&joined}, namesQuery, c, after, x.page); err != nil {
				return nil, err
			}
			if joined.String == "" {
				break
			}
			some := strings.Split(joined.String, "/")
			all = append(all, some...)
			if len(some) < x.page {
				break
			}
			after = some[len(some)-1]
		}
	}
	if len(collections) > 1 {
		slices.Sort(all)
		all = slices.Compact(all)
	}
	return all, nil
}

// Collections returns the names of the directories right under a directory,
// in byte order: collections, and what leads to one.
func (x *Index) Collections(ctx context.Context, client, parent string) ([]string, error) {
	id, err := x.client(ctx, client)
	if err != nil {
		return nil, x.state.failed("list collections of "+client, err)
	}
	rows, err := x.state.read.rows(ctx,
		`SELECT DISTINCT dir FROM collection WHERE client = ? AND parent = ? ORDER BY dir`, id, parent)
	dirs, err := list[string](rows, err)
	if err != nil {
		return nil, x.state.failed("list collections of "+client, err)
	}
	for n, dir := range dirs {
		dirs[n] = dir[strings.LastIndexByte(dir, '/')+1:]
	}
	return dirs, nil
}

// HasCollection reports whether a directory is a collection or holds one: the
// store's name for it, and its path in the tree, which differs from dir only
// by case and only with fold. A client's own directory, "", is always there.
func (x *Index) HasCollection(ctx context.Context, client, dir string, fold bool) (name, actual string, ok bool, err error) {
	if dir == "" {
		return "", "", true, nil
	}
	id, err := x.client(ctx, client)
	if err != nil {
		return "", "", false, x.state.failed("look up "+dir, err)
	}
	const exact = `SELECT name, dir FROM collection WHERE client = ?1 AND dir = ?2 ORDER BY name LIMIT 1`
	ok, err = x.state.read.row(ctx, []any{&name, &actual}, exact, id, dir)
	if fold && !ok && err == nil {
		ok, err = x.state.read.row(ctx, []any{&name, &actual}, `SELECT name, dir FROM collection
			WHERE client = ?1 AND (dir = ?2 OR fold = ?2 AND fold <> '') ORDER BY own DESC, dir LIMIT 1`, id, strings.ToLower(dir))
	}
	return name, actual, ok, x.state.failed("look up "+dir, err)
}

// ByID finds the image with a store's permanent ID.
func (x *Index) ByID(ctx context.Context, client, id string) (backends.Image, bool, error) {
	number, err := x.client(ctx, client)
	if err == nil && number != 0 {
		var all []stored
		all, err = x.images(ctx, client, imageSelect+`WHERE i.client = ? AND i.object = ?`, number, objectID+id)
		if err == nil && len(all) > 0 {
			return all[0].image, true, nil
		}
	}
	return backends.Image{}, false, x.state.failed("look up id "+id, err)
}

// IDs yields the permanent IDs of all images of a client, in byte order. It
// holds nothing while the loop body runs. An error ends it.
func (x *Index) IDs(ctx context.Context, client string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		id, err := x.client(ctx, client)
		if err != nil {
			yield("", x.state.failed("list ids of "+client, err))
			return
		}
		for after := objectID; ; {
			rows, err := x.state.read.rows(ctx, `SELECT object FROM image
				WHERE client = ? AND object > ? AND object < ? ORDER BY object LIMIT ?`,
				id, after, "j", x.page)
			objects, err := list[string](rows, err)
			if err != nil {
				yield("", x.state.failed("list ids of "+client, err))
				return
			}
			for _, o := range objects {
				if !yield(o[len(objectID):], nil) {
					return
				}
			}
			if len(objects) < x.page {
				return
			}
			after = objects[len(objects)-1]
		}
	}
}

// Count returns how many images, and how many collections, implied ones
// included, a client has.
func (x *Index) Count(ctx context.Context, client string) (images, collections int64, err error) {
	id, err := x.client(ctx, client)
	if err == nil {
		_, err = x.state.read.row(ctx, []any{&images, &collections}, `SELECT
			(SELECT count(*) FROM image WHERE client = ?1),
			(SELECT count(*) FROM collection WHERE client = ?1 AND dir <> '')`, id)
	}
	return images, collections, x.state.failed("count images of "+client, err)
}
