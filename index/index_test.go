package index

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// openTest opens an index in a folder of the test's own.
func openTest(t *testing.T) *Index {
	t.Helper()
	return openIn(t, t.TempDir())
}

func openIn(t *testing.T, dir string) *Index {
	t.Helper()
	x, err := Open(t.Context(), Options{
		State:    filepath.Join(dir, "state.db"),
		Database: filepath.Join(dir, "records"),
		Log:      slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return x
}

// image is an image of the collection, name and tag that uri has, with id for
// its ID and a revision.
func image(uri, id, revision string) backends.Image {
	ref, err := backends.ParseRef(uri)
	if err != nil {
		panic(err)
	}
	img := backends.Image{Ref: ref, ID: id, Revision: revision, Size: int64(len(revision)),
		Modified: time.Date(2018, 1, 28, 16, 43, 28, 123456789, time.UTC)}
	img.Key = strings.ToLower("/" + ref.Collection + "/" + ref.Object())
	return img
}

// entries yields images, then collections, then err unless it is nil.
func entries(images []backends.Image, collections []string, err error) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		for _, img := range images {
			if !yield(backends.Entry{Image: img}, nil) {
				return
			}
		}
		for _, c := range collections {
			if !yield(backends.Entry{Collection: c}, nil) {
				return
			}
		}
		if err != nil {
			yield(backends.Entry{}, err)
		}
	}
}

func replace(t *testing.T, x *Index, images []backends.Image, collections ...string) Diff {
	t.Helper()
	d, err := x.ReplaceListing(t.Context(), "dropbox", entries(images, collections, nil), "cursor")
	if err != nil {
		t.Fatalf("ReplaceListing: %v", err)
	}
	return sorted(d)
}

func sorted(d Diff) Diff {
	slices.SortFunc(d.Changed, func(a, b Place) int {
		return strings.Compare(a.Dir+"\x00"+a.File, b.Dir+"\x00"+b.File)
	})
	return d
}

// check fails unless got is want.
func check(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}

// tree is all that the index shows of a client: "dir/" for a directory,
// "dir/file revision" for an image.
func tree(t *testing.T, x *Index, client string) []string {
	t.Helper()
	var all []string
	var walk func(dir string)
	walk = func(dir string) {
		for img, err := range x.Images(t.Context(), client, dir) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, strings.TrimPrefix(dir+"/", "/")+img.Ref.Latest().File()+" "+img.Revision)
		}
		children, err := x.Collections(t.Context(), client, dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range children {
			below := strings.TrimPrefix(dir+"/"+c, "/")
			all = append(all, below+"/")
			walk(below)
		}
	}
	walk("")
	return all
}

func TestOpenNeedsAStateFile(t *testing.T) {
	if x, err := Open(t.Context(), Options{}); err == nil {
		x.Close()
		t.Error("Open without a state file succeeded")
	}
}

func TestUnknownClient(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	if _, ok, err := x.Lookup(ctx, "nobody", "a", "b:c.simg", false); ok || err != nil {
		t.Errorf("Lookup = %v, %v", ok, err)
	}
	if l, err := x.Listing(ctx, "nobody"); l != (Listing{}) || err != nil {
		t.Errorf("Listing = %+v, %v", l, err)
	}
	if got := tree(t, x, "nobody"); got != nil {
		t.Errorf("it holds %q", got)
	}
	if f, err := x.Search(ctx, "nobody", "", 0); len(f) != 0 || err != nil {
		t.Errorf("Search = %v, %v", f, err)
	}
	for _, err := range x.IDs(ctx, "nobody") {
		t.Errorf("IDs yields something, %v", err)
	}
	if err := x.DropClient(ctx, "nobody"); err != nil {
		t.Error(err)
	}
}

// TestCancelled checks that every method ends with a context's error when that
// is done before.
func TestCancelled(t *testing.T) {
	x := openTest(t)
	replace(t, x, []backends.Image{image("a/b:c", "1", "r")})
	if _, _, err := x.PutRecord(t.Context(), Record{Client: "dropbox", Collection: "a", Name: "b", Tag: "c"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	img := image("a/b:c", "1", "s")
	ref := img.Ref
	for name, f := range map[string]func() error{
		"Open": func() error {
			x, err := Open(ctx, Options{State: filepath.Join(t.TempDir(), "s")})
			if err == nil {
				x.Close()
			}
			return err
		},
		"ReplaceListing": func() error {
			_, err := x.ReplaceListing(ctx, "dropbox", entries(nil, nil, nil), "")
			return err
		},
		"Apply":            func() error { _, err := x.Apply(ctx, "dropbox", nil, ""); return err },
		"PutImage":         func() error { _, err := x.PutImage(ctx, "dropbox", img); return err },
		"RemoveImage":      func() error { _, err := x.RemoveImage(ctx, "dropbox", img); return err },
		"PutCollection":    func() error { return x.PutCollection(ctx, "dropbox", "x") },
		"RemoveCollection": func() error { return x.RemoveCollection(ctx, "dropbox", "x") },
		"Listing":          func() error { _, err := x.Listing(ctx, "dropbox"); return err },
		"SetListedAt":      func() error { return x.SetListedAt(ctx, "dropbox", time.Now()) },
		"Lookup":           func() error { _, _, err := x.Lookup(ctx, "dropbox", "a", "b:c.simg", true); return err },
		"All":              func() error { _, err := x.All(ctx, "dropbox", "a", "b:c.simg", false); return err },
		"Images": func() error {
			for _, err := range x.Images(ctx, "dropbox", "a") {
				return err
			}
			return nil
		},
		"IDs": func() error {
			for _, err := range x.IDs(ctx, "dropbox") {
				return err
			}
			return nil
		},
		"Notes": func() error {
			for _, err := range x.Notes(ctx, "k") {
				return err
			}
			return nil
		},
		"Collections":   func() error { _, err := x.Collections(ctx, "dropbox", ""); return err },
		"HasCollection": func() error { _, _, _, err := x.HasCollection(ctx, "dropbox", "a", true); return err },
		"ByID":          func() error { _, _, err := x.ByID(ctx, "dropbox", "1"); return err },
		"Search":        func() error { _, err := x.Search(ctx, "", "abc", 0); return err },
		"Count":         func() error { _, _, err := x.Count(ctx, "dropbox"); return err },
		"DropClient":    func() error { return x.DropClient(ctx, "dropbox") },
		"LearnVersion":  func() error { return x.LearnVersion(ctx, "k", "m") },
		"SetAttributes": func() error { return x.SetAttributes(ctx, "k", []byte(`{}`), nil) },
		"Attributes":    func() error { _, _, err := x.Attributes(ctx, "k"); return err },
		"SetXattr":      func() error { return x.SetXattr(ctx, "dropbox", "a", "b", "n", []byte("v")) },
		"Xattrs":        func() error { _, err := x.Xattrs(ctx, "dropbox", "a", "b"); return err },
		"MoveXattrs":    func() error { return x.MoveXattrs(ctx, "dropbox", "a", "b", "c", "d") },
		"DropXattrs":    func() error { return x.DropXattrs(ctx, "dropbox", "a", "b") },
		"Note":          func() error { _, _, err := x.Note(ctx, "k", "k"); return err },
		"SetNote":       func() error { return x.SetNote(ctx, "k", "k", []byte("d")) },
		"PutRecord":     func() error { _, _, err := x.PutRecord(ctx, Record{Client: "dropbox"}); return err },
		"Records":       func() error { _, err := x.Records(ctx, ""); return err },
		"Record":        func() error { _, _, err := x.Record(ctx, "dropbox", ref); return err },
		"DeleteRecord":  func() error { _, err := x.DeleteRecord(ctx, "dropbox", ref); return err },
	} {
		if err := f(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s = %v, want context.Canceled", name, err)
		}
	}
	check(t, "what is left", tree(t, x, "dropbox"), []string{"a/", "a/b:c.simg r"})
}

// TestSurvivesReopening checks that all of it is on disk.
func TestSurvivesReopening(t *testing.T) {
	dir := t.TempDir()
	ctx := t.Context()
	img := image("a/b:c", "1", "r")
	at := time.Date(2020, 2, 3, 4, 5, 6, 789, time.UTC)
	x, err := Open(ctx, Options{State: filepath.Join(dir, "state.db")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.ReplaceListing(ctx, "dropbox", entries([]backends.Image{img}, []string{"empty"}, nil), "cursor"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		x.SetListedAt(ctx, "dropbox", at),
		x.SetNote(ctx, "kind", "key", []byte("data")),
		x.SetXattr(ctx, "dropbox", "a", "b:c.simg", "user.x", []byte{}),
		x.Close()); err != nil {
		t.Fatal(err)
	}
	x = openIn(t, dir)
	check(t, "tree", tree(t, x, "dropbox"), []string{"a/", "a/b:c.simg r", "empty/"})
	l, err := x.Listing(ctx, "dropbox")
	check(t, "Listing", l, Listing{Known: true, Cursor: "cursor", At: at})
	check(t, "its error", err, nil)
	data, ok, err := x.Note(ctx, "kind", "key")
	check(t, "Note", []any{string(data), ok, err}, []any{"data", true, nil})
	attrs, err := x.Xattrs(ctx, "dropbox", "a", "b:c.simg")
	check(t, "Xattrs", []any{attrs, err}, []any{map[string][]byte{"user.x": {}}, nil})
}
