package index

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
)

func TestReplaceListing(t *testing.T) {
	red, blue := image("pusheen/asaurus:red", "1", "r1"), image("pusheen/asaurus:blue", "2", "b1")
	root := image("/alone:latest", "3", "a1")
	deep := image("nvidia/clara/x:1", "4", "x1")
	moved := image("vsoch/asaurus:red", "1", "r1")
	changed := image("pusheen/asaurus:red", "1", "r2")
	place := func(img backends.Image) Place { return Place{img.Ref.Dir(), img.Ref.File()} }

	for name, c := range map[string]struct {
		before            []backends.Image
		beforeCollections []string
		after             []backends.Image
		afterCollections  []string
		changed           []Place
		tree              []string
	}{
		"nothing":            {},
		"empty collection":   {afterCollections: []string{"a/b"}, changed: []Place{{"a", ""}, {"a/b", ""}}, tree: []string{"a/", "a/b/"}},
		"collection is gone": {beforeCollections: []string{"a/b", "c"}, afterCollections: []string{"c"}, changed: []Place{{"a", ""}, {"a/b", ""}}, tree: []string{"c/"}},
		"same": {
			before: []backends.Image{red, root, deep}, after: []backends.Image{deep, red, root},
			tree: []string{"alone:latest.simg a1", "nvidia/", "nvidia/clara/", "nvidia/clara/x:1.simg x1", "pusheen/", "pusheen/asaurus:red.simg r1"},
		},
		"added": {
			before: []backends.Image{red}, after: []backends.Image{red, blue, root},
			changed: []Place{place(root), place(blue)},
			tree:    []string{"alone:latest.simg a1", "pusheen/", "pusheen/asaurus:blue.simg b1", "pusheen/asaurus:red.simg r1"},
		},
		"removed": {
			before: []backends.Image{red, blue, root}, after: []backends.Image{red},
			changed: []Place{place(root), place(blue)}, tree: []string{"pusheen/", "pusheen/asaurus:red.simg r1"},
		},
		"removed with its collections": {
			before: []backends.Image{deep}, after: nil,
			changed: []Place{{"nvidia", ""}, {"nvidia/clara", ""}, place(deep)},
		},
		"content": {
			before: []backends.Image{red, blue}, after: []backends.Image{changed, blue},
			changed: []Place{place(red)}, tree: []string{"pusheen/", "pusheen/asaurus:blue.simg b1", "pusheen/asaurus:red.simg r2"},
		},
		"renamed": {
			before: []backends.Image{red}, after: []backends.Image{moved},
			changed: []Place{{"pusheen", ""}, place(red), {"vsoch", ""}, place(moved)},
			tree:    []string{"vsoch/", "vsoch/asaurus:red.simg r1"},
		},
		"told twice": {
			before: []backends.Image{red}, after: []backends.Image{red, changed, blue},
			changed: []Place{place(blue), place(red)},
			tree:    []string{"pusheen/", "pusheen/asaurus:blue.simg b1", "pusheen/asaurus:red.simg r2"},
		},
		"swapped": {
			before:  []backends.Image{red, blue},
			after:   []backends.Image{image("pusheen/asaurus:blue", "1", "r1"), image("pusheen/asaurus:red", "2", "b1")},
			changed: []Place{place(blue), place(red)},
			tree:    []string{"pusheen/", "pusheen/asaurus:blue.simg r1", "pusheen/asaurus:red.simg b1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := openTest(t)
			replace(t, x, c.before, c.beforeCollections...)
			d := replace(t, x, c.after, c.afterCollections...)
			check(t, "Diff", d, Diff{Changed: c.changed})
			check(t, "tree", tree(t, x, "dropbox"), c.tree)
			check(t, "tree of another client", tree(t, x, "gdrive"), []string(nil))
			l, err := x.Listing(t.Context(), "dropbox")
			if err != nil || !l.Known || l.Cursor != "cursor" || l.At.IsZero() {
				t.Errorf("Listing = %+v, %v", l, err)
			}
		})
	}
}

func TestReplaceListingIsAllOrNothing(t *testing.T) {
	x := openTest(t)
	replace(t, x, []backends.Image{image("a/b:c", "1", "r")}, "empty")
	want := tree(t, x, "dropbox")
	broken := errors.New("page 2 cannot be had")
	many := make([]backends.Image, 3*batch+1)
	for n := range many {
		many[n] = image(fmt.Sprintf("x/y:%d", n), fmt.Sprint("n", n), "r")
	}
	for _, n := range []int{0, 1, batch, len(many)} {
		d, err := x.ReplaceListing(t.Context(), "dropbox", entries(many[:n], []string{"new"}, broken), "later")
		if err != broken {
			t.Errorf("after %d entries: error is %v, want the listing's own", n, err)
		}
		check(t, "Diff", d, Diff{})
	}
	check(t, "tree", tree(t, x, "dropbox"), want)
	if l, err := x.Listing(t.Context(), "dropbox"); l.Cursor != "cursor" || err != nil {
		t.Errorf("Listing = %+v, %v", l, err)
	}
	// A listing that is given up midway.
	ctx, cancel := context.WithCancel(t.Context())
	slow := func(yield func(backends.Entry, error) bool) {
		for _, img := range many {
			if !yield(backends.Entry{Image: img}, nil) {
				return
			}
			cancel()
		}
	}
	if _, err := x.ReplaceListing(ctx, "dropbox", slow, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled listing: %v", err)
	}
	check(t, "tree", tree(t, x, "dropbox"), want)
}

func TestManyChangesAreNotToldSingly(t *testing.T) {
	x := openTest(t)
	x.maxPlaces = 50
	for _, n := range []int{x.maxPlaces - 1, x.maxPlaces} {
		var images []backends.Image
		for k := range n {
			images = append(images, image(fmt.Sprintf("x/y:%d", k), fmt.Sprint("n", k), "r"))
		}
		replace(t, x, nil)
		// The collection is one more place.
		d := replace(t, x, images)
		if full := n == x.maxPlaces; d.Full != full || full != (len(d.Changed) == 0) {
			t.Errorf("%d new images: Full %v, %d places", n, d.Full, len(d.Changed))
		}
	}
}

// TestWhatIsLearntMeanwhile checks that an act during a listing goes before
// what the listing says.
func TestWhatIsLearntMeanwhile(t *testing.T) {
	for name, c := range map[string]struct {
		act  func(ctx context.Context, x *Index) error
		tree []string
	}{
		"push of a new one": {
			func(ctx context.Context, x *Index) error {
				_, err := x.PutImage(ctx, "dropbox", image("a/new:1", "9", "n1"))
				return err
			},
			[]string{"a/", "a/b:1.simg r1", "a/b:2.simg s1", "a/new:1.simg n1", "c/"},
		},
		"push over one": {
			func(ctx context.Context, x *Index) error {
				_, err := x.PutImage(ctx, "dropbox", image("a/b:1", "1", "r2"))
				return err
			},
			[]string{"a/", "a/b:1.simg r2", "a/b:2.simg s1", "c/"},
		},
		"push over one that makes another object": {
			func(ctx context.Context, x *Index) error {
				_, err := x.PutImage(ctx, "dropbox", image("a/b:1", "7", "r2"))
				return err
			},
			[]string{"a/", "a/b:1.simg r2", "a/b:2.simg s1", "c/"},
		},
		"removal": {
			func(ctx context.Context, x *Index) error {
				_, err := x.RemoveImage(ctx, "dropbox", image("a/b:1", "1", "r1"))
				return err
			},
			[]string{"a/", "a/b:2.simg s1", "c/"},
		},
		"removal of what only the listing knows": {
			func(ctx context.Context, x *Index) error {
				_, err := x.RemoveImage(ctx, "dropbox", image("a/b:2", "2", "s1"))
				return err
			},
			[]string{"a/", "a/b:1.simg r1", "c/"},
		},
		"change told by the feed": {
			func(ctx context.Context, x *Index) error {
				_, err := x.Apply(ctx, "dropbox", []backends.Change{
					{Deleted: true, Entry: backends.Entry{Image: backends.Image{Key: "/a/b:1.simg"}}},
					{Entry: backends.Entry{Image: image("a/b:3", "3", "t1")}},
				}, "")
				return err
			},
			[]string{"a/", "a/b:2.simg s1", "a/b:3.simg t1", "c/"},
		},
		"mkdir":            {func(ctx context.Context, x *Index) error { return x.PutCollection(ctx, "dropbox", "d") }, []string{"a/", "a/b:1.simg r1", "a/b:2.simg s1", "c/", "d/"}},
		"rmdir":            {func(ctx context.Context, x *Index) error { return x.RemoveCollection(ctx, "dropbox", "c") }, []string{"a/", "a/b:1.simg r1", "a/b:2.simg s1"}},
		"rmdir of the old": {func(ctx context.Context, x *Index) error { return x.RemoveCollection(ctx, "dropbox", "o") }, []string{"a/", "a/b:1.simg r1", "a/b:2.simg s1", "c/"}},
	} {
		t.Run(name, func(t *testing.T) {
			x, ctx := openTest(t), t.Context()
			replace(t, x, []backends.Image{image("a/b:1", "1", "r1"), image("a/old:1", "5", "o1")}, "o")
			listed := []backends.Image{image("a/b:1", "1", "r1"), image("a/b:2", "2", "s1")}
			during := func(yield func(backends.Entry, error) bool) {
				entries(listed, []string{"c"}, nil)(yield)
				if err := c.act(ctx, x); err != nil {
					t.Error(err)
				}
			}
			if _, err := x.ReplaceListing(ctx, "dropbox", during, ""); err != nil {
				t.Fatal(err)
			}
			check(t, "tree", tree(t, x, "dropbox"), c.tree)
			// The next listing is believed again.
			replace(t, x, listed, "c")
			check(t, "tree after the next", tree(t, x, "dropbox"), []string{"a/", "a/b:1.simg r1", "a/b:2.simg s1", "c/"})
		})
	}
}

func TestApply(t *testing.T) {
	deleted := func(img backends.Image) backends.Change {
		return backends.Change{Deleted: true, Entry: backends.Entry{Image: img}}
	}
	put := func(img backends.Image) backends.Change { return backends.Change{Entry: backends.Entry{Image: img}} }
	start := []backends.Image{
		image("a/b:1", "1", "r1"), image("a/b:2", "2", "s1"), image("a/deep/x:1", "3", "x1"), image("ab/y:1", "4", "y1"),
	}
	const rest = "ab/y:1.simg y1"
	for name, c := range map[string]struct {
		changes []backends.Change
		changed []Place
		tree    []string
	}{
		"nothing": {tree: []string{"a/", "a/b:1.simg r1", "a/b:2.simg s1", "a/deep/", "a/deep/x:1.simg x1", "ab/", rest, "empty/", "empty/folder/"}},
		"by ID": {
			[]backends.Change{deleted(backends.Image{ID: "1"})}, []Place{{"a", "b:1.simg"}},
			[]string{"a/", "a/b:2.simg s1", "a/deep/", "a/deep/x:1.simg x1", "ab/", rest, "empty/", "empty/folder/"},
		},
		"by Key": {
			[]backends.Change{deleted(backends.Image{Key: "/a/b:1.simg"})}, []Place{{"a", "b:1.simg"}},
			[]string{"a/", "a/b:2.simg s1", "a/deep/", "a/deep/x:1.simg x1", "ab/", rest, "empty/", "empty/folder/"},
		},
		"a folder by Key": {
			[]backends.Change{deleted(backends.Image{Key: "/a"})},
			[]Place{{"a", ""}, {"a", "b:1.simg"}, {"a", "b:2.simg"}, {"a/deep", ""}, {"a/deep", "x:1.simg"}},
			[]string{"ab/", rest, "empty/", "empty/folder/"},
		},
		"an empty folder by Key": {
			[]backends.Change{deleted(backends.Image{Key: "/empty/folder"})}, []Place{{"empty", ""}, {"empty/folder", ""}},
			[]string{"a/", "a/b:1.simg r1", "a/b:2.simg s1", "a/deep/", "a/deep/x:1.simg x1", "ab/", rest},
		},
		"an empty folder by the one above": {
			[]backends.Change{deleted(backends.Image{Key: "/empty"})}, []Place{{"empty", ""}, {"empty/folder", ""}},
			[]string{"a/", "a/b:1.simg r1", "a/b:2.simg s1", "a/deep/", "a/deep/x:1.simg x1", "ab/", rest},
		},
		"a collection by name": {
			[]backends.Change{{Deleted: true, Entry: backends.Entry{Collection: "a"}}},
			[]Place{{"a", ""}, {"a", "b:1.simg"}, {"a", "b:2.simg"}, {"a/deep", ""}, {"a/deep", "x:1.simg"}},
			[]string{"ab/", rest, "empty/", "empty/folder/"},
		},
		"a collection whose name differs by case from another's": {
			[]backends.Change{{Entry: backends.Entry{Collection: "Empty"}},
				{Deleted: true, Entry: backends.Entry{Collection: "Empty", Image: backends.Image{Key: "/Empty"}}}},
			[]Place{{"Empty", ""}},
			[]string{"a/", "a/b:1.simg r1", "a/b:2.simg s1", "a/deep/", "a/deep/x:1.simg x1", "ab/", rest, "empty/", "empty/folder/"},
		},
		"late news of an object that was replaced": {
			[]backends.Change{put(image("a/b:1", "9", "r9")), deleted(backends.Image{ID: "1", Key: "/a/b:1.simg"})},
			[]Place{{"a", "b:1.simg"}},
			[]string{"a/", "a/b:1.simg r9", "a/b:2.simg s1", "a/deep/", "a/deep/x:1.simg x1", "ab/", rest, "empty/", "empty/folder/"},
		},
		"new and changed": {
			[]backends.Change{put(image("n/n:1", "8", "n1")), put(image("a/b:2", "2", "s2")), {Entry: backends.Entry{Collection: "m"}}},
			[]Place{{"a", "b:2.simg"}, {"m", ""}, {"n", ""}, {"n", "n:1.simg"}},
			[]string{"a/", "a/b:1.simg r1", "a/b:2.simg s2", "a/deep/", "a/deep/x:1.simg x1", "ab/", rest, "empty/", "empty/folder/", "m/", "n/", "n/n:1.simg n1"},
		},
		"renamed out of its collection": {
			[]backends.Change{put(image("z/b:1", "4", "y1"))},
			[]Place{{"ab", ""}, {"ab", "y:1.simg"}, {"z", ""}, {"z", "b:1.simg"}},
			[]string{"a/", "a/b:1.simg r1", "a/b:2.simg s1", "a/deep/", "a/deep/x:1.simg x1", "empty/", "empty/folder/", "z/", "z/b:1.simg y1"},
		},
		"in order": {
			[]backends.Change{deleted(backends.Image{ID: "1"}), put(image("a/b:1", "1", "r5")), put(image("a/b:2", "2", "s5")), deleted(backends.Image{ID: "2"})},
			[]Place{{"a", "b:1.simg"}, {"a", "b:2.simg"}},
			[]string{"a/", "a/b:1.simg r5", "a/deep/", "a/deep/x:1.simg x1", "ab/", rest, "empty/", "empty/folder/"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			x, ctx := openTest(t), t.Context()
			replace(t, x, start, "empty/folder")
			for range 2 { // a feed may tell everything twice
				if d, err := x.Apply(ctx, "dropbox", c.changes, "next"); err != nil {
					t.Fatal(err)
				} else if c.changed != nil {
					check(t, "Diff", sorted(d), Diff{Changed: c.changed})
				}
				check(t, "tree", tree(t, x, "dropbox"), c.tree)
				if name == "in order" || name == "late news of an object that was replaced" {
					break
				}
				c.changed = nil
			}
			if l, err := x.Listing(ctx, "dropbox"); l.Cursor != "next" || err != nil {
				t.Errorf("Listing = %+v, %v", l, err)
			}
		})
	}
}

// TestCollectionsOfTheirOwn checks collections that the store knows by ID.
func TestCollectionsOfTheirOwn(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	collection := func(name, id string) backends.Entry {
		return backends.Entry{Collection: name, Image: backends.Image{ID: id}}
	}
	apply := func(changes ...backends.Change) {
		t.Helper()
		if _, err := x.Apply(ctx, "gdrive", changes, ""); err != nil {
			t.Fatal(err)
		}
	}
	apply(backends.Change{Entry: collection("a", "f1")}, backends.Change{Entry: collection("b", "f2")})
	check(t, "made", tree(t, x, "gdrive"), []string{"a/", "b/"})
	apply(backends.Change{Entry: collection("c", "f1")})
	check(t, "renamed", tree(t, x, "gdrive"), []string{"b/", "c/"})
	apply(backends.Change{Deleted: true, Entry: backends.Entry{Image: backends.Image{ID: "f2"}}})
	check(t, "deleted", tree(t, x, "gdrive"), []string{"c/"})
	if err := x.PutCollection(ctx, "gdrive", "c"); err != nil {
		t.Fatal(err)
	}
	apply(backends.Change{Deleted: true, Entry: backends.Entry{Image: backends.Image{ID: "f1"}}})
	check(t, "deleted after it was put again without its ID", tree(t, x, "gdrive"), []string(nil))
}

func TestRemoveCollectionKeepsImages(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	replace(t, x, []backends.Image{image("a/b:c", "1", "r")}, "a", "z")
	for _, name := range []string{"a", "z", "nothing"} {
		if err := x.RemoveCollection(ctx, "dropbox", name); err != nil {
			t.Fatal(err)
		}
	}
	check(t, "tree", tree(t, x, "dropbox"), []string{"a/", "a/b:c.simg r"})
}

func TestDropClient(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	replace(t, x, []backends.Image{image("a/b:c", "1", "r")}, "z")
	if _, err := x.PutImage(ctx, "gdrive", image("a/b:c", "1", "r")); err != nil {
		t.Fatal(err)
	}
	drain(t, x)
	if err := x.DropClient(ctx, "dropbox"); err != nil {
		t.Fatal(err)
	}
	check(t, "tree", tree(t, x, "dropbox"), []string(nil))
	check(t, "tree of the other", tree(t, x, "gdrive"), []string{"a/", "a/b:c.simg r"})
	if l, err := x.Listing(ctx, "dropbox"); l != (Listing{}) || err != nil {
		t.Errorf("Listing = %+v, %v", l, err)
	}
	found, err := x.Search(ctx, "", "b:c", 0)
	if len(found) != 1 || err != nil {
		t.Errorf("Search = %+v, %v", found, err)
	}
	replace(t, x, []backends.Image{image("a/b:c", "1", "r")})
	check(t, "tree after a new listing", tree(t, x, "dropbox"), []string{"a/", "a/b:c.simg r"})
}

func TestSetListedAt(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	for _, at := range []time.Time{time.Unix(1, 23).UTC(), {}} {
		if err := x.SetListedAt(ctx, "dropbox", at); err != nil {
			t.Fatal(err)
		}
		l, err := x.Listing(ctx, "dropbox")
		check(t, "Listing", []any{l, err}, []any{Listing{At: at}, nil})
	}
}

// TestSameListingWritesLittle measures what a listing that brings nothing new
// puts into the write-ahead log.
func TestSameListingWritesLittle(t *testing.T) {
	const n = 1_500
	dir := t.TempDir()
	x := openIn(t, dir)
	listing := func() iter.Seq2[backends.Entry, error] { return synthetic(n, 0) }
	if _, err := x.ReplaceListing(t.Context(), "dropbox", listing(), "1"); err != nil {
		t.Fatal(err)
	}
	x.cancel() // indexing writes as well
	x.work.Wait()
	drain(t, x)
	if _, err := x.state.write.ExecContext(t.Context(), `PRAGMA wal_checkpoint(TRUNCATE)`); err != nil {
		t.Fatal(err)
	}
	if _, err := x.ReplaceListing(t.Context(), "dropbox", listing(), "2"); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "state.db-wal"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 64<<10 {
		t.Errorf("%d bytes were written", info.Size())
	}
}
