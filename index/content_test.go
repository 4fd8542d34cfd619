package index

import (
	"fmt"
	"slices"
	"testing"

	"github.com/sregfs/sregfs/backends"
)

func TestLearnVersion(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	const md5 = "02c08a25c8f4697e16e896239e549a2b"
	sum := backends.Checksum{Algorithm: backends.DropboxHash, Hex: "abc"}
	red, blue := image("pusheen/asaurus:red", "1", "r"), image("pusheen/asaurus:blue", "2", "b")
	red.Sum, blue.Sum = sum, sum // one content, two names
	told := image("pusheen/asaurus:told", "3", "t")
	told.Sum, told.Version = sum, "sha256:1"
	plain := image("pusheen/asaurus:plain", "4", "p")
	replace(t, x, []backends.Image{red, blue, told, plain})
	for range 2 {
		if err := x.LearnVersion(ctx, red.ContentKey("dropbox"), md5); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.LearnVersion(ctx, plain.ContentKey("dropbox"), "other"); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"red": md5, "blue": md5, "told": "sha256:1", "plain": "other"}
	for tag, version := range want {
		img, _, err := x.Lookup(ctx, "dropbox", "pusheen", "asaurus:"+tag+".simg", true)
		if err != nil || img.Version != version {
			t.Errorf("Lookup of %s: version %q, %v; want %q", tag, img.Version, err, version)
		}
		img, _, err = x.ByID(ctx, "dropbox", img.ID)
		if err != nil || img.Version != version {
			t.Errorf("ByID of %s: version %q, %v; want %q", tag, img.Version, err, version)
		}
	}
	for _, img := range collect(t, x.Images(ctx, "dropbox", "pusheen")) {
		if img.Version != want[img.Ref.Tag] {
			t.Errorf("Images: %s has version %q, want %q", img.Ref.Tag, img.Version, want[img.Ref.Tag])
		}
	}
	found, err := x.Search(ctx, "", "asaurus:red", 0)
	if err != nil || len(found) != 1 || found[0].Image.Version != md5 {
		t.Errorf("Search = %+v, %v", found, err)
	}
	// The same revision in another client is another content.
	if _, err := x.PutImage(ctx, "gdrive", plain); err != nil {
		t.Fatal(err)
	}
	if img, _, err := x.ByID(ctx, "gdrive", "4"); err != nil || img.Version != "" {
		t.Errorf("another client's version is %q, %v", img.Version, err)
	}
	// A listing that says nothing new changes nothing, though the store does
	// not tell what was learnt.
	if d := replace(t, x, []backends.Image{red, blue, told, plain}); d.Full || len(d.Changed) > 0 {
		t.Errorf("the same listing changes %+v", d)
	}
	// New content, unknown version.
	plain.Revision = "p2"
	if _, err := x.PutImage(ctx, "dropbox", plain); err != nil {
		t.Fatal(err)
	}
	if img, _, err := x.ByID(ctx, "dropbox", "4"); err != nil || img.Version != "" {
		t.Errorf("version of new content is %q, %v", img.Version, err)
	}
}

// TestContentsWithOneNumber plants what is learnt of one content under the
// number of another.
func TestContentsWithOneNumber(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	img := image("a/b:1", "1", "r")
	replace(t, x, []backends.Image{img})
	key := img.ContentKey("dropbox")
	if _, err := x.state.write.ExecContext(ctx, `INSERT INTO content (id, key, md5, attributes, labels)
		VALUES (?, 'another', 'wrong', '{}', '{"wrong":"label"}')`, contentID(key)); err != nil {
		t.Fatal(err)
	}
	if got, _, err := x.ByID(ctx, "dropbox", "1"); err != nil || got.Version != "" {
		t.Errorf("version is %q, %v", got.Version, err)
	}
	if _, ok, err := x.Attributes(ctx, key); ok || err != nil {
		t.Errorf("Attributes = %v, %v", ok, err)
	}
	if found, err := x.Search(ctx, "", "wrong", 0); len(found) > 0 || err != nil {
		t.Errorf("Search = %+v, %v", found, err)
	}
	if err := x.LearnVersion(ctx, key, "right"); err != nil {
		t.Fatal(err)
	}
	if got, _, err := x.ByID(ctx, "dropbox", "1"); err != nil || got.Version != "right" {
		t.Errorf("then version is %q, %v", got.Version, err)
	}
	if _, ok, err := x.Attributes(ctx, key); ok || err != nil {
		t.Errorf("then Attributes = %v, %v", ok, err)
	}
}

func TestAttributes(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	if _, ok, err := x.Attributes(ctx, "key"); ok || err != nil {
		t.Errorf("Attributes of nothing = %v, %v", ok, err)
	}
	if err := x.LearnVersion(ctx, "key", "md5"); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := x.Attributes(ctx, "key"); ok || err != nil {
		t.Errorf("Attributes of a version alone = %v, %v", ok, err)
	}
	for _, attributes := range []string{`{"labels": null}`, `{"labels":{"a":"b"}}`, `null`} {
		for range 2 {
			if err := x.SetAttributes(ctx, "key", []byte(attributes), map[string]string{"a": attributes}); err != nil {
				t.Fatal(err)
			}
			got, ok, err := x.Attributes(ctx, "key")
			check(t, "Attributes", []any{string(got), ok, err}, []any{attributes, true, nil})
		}
	}
	for _, bad := range []string{"", "{", "{} x"} {
		if err := x.SetAttributes(ctx, "key", []byte(bad), nil); err == nil {
			t.Errorf("SetAttributes takes %q", bad)
		}
	}
}

func TestXattrs(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	set := func(dir, file, name string, value []byte) {
		t.Helper()
		if err := x.SetXattr(ctx, "dropbox", dir, file, name, value); err != nil {
			t.Fatal(err)
		}
	}
	have := func(dir, file string, want map[string][]byte) {
		t.Helper()
		got, err := x.Xattrs(ctx, "dropbox", dir, file)
		check(t, "Xattrs of "+dir+"/"+file, []any{got, err}, []any{want, nil})
	}
	if got, err := x.Xattrs(ctx, "nobody", "a", "b"); len(got) != 0 || err != nil {
		t.Errorf("Xattrs of nobody = %v, %v", got, err)
	}
	none := map[string][]byte{}
	set("a", "b", "user.x", []byte("1\x00\xff"))
	set("a", "b", "user.y", []byte{})
	set("a", "b", "user.x", []byte("2\x00\xff"))
	set("a", "b", "user.z", []byte("gone"))
	set("a", "b", "user.z", nil)
	set("a", "b", "user.never", nil)
	set("to", "old", "user.old", []byte("o"))
	both := map[string][]byte{"user.x": []byte("2\x00\xff"), "user.y": {}}
	have("a", "b", both)
	have("a", "c", none)
	for _, from := range []string{"a", "to"} { // the second is onto itself
		if err := x.MoveXattrs(ctx, "dropbox", from, map[string]string{"a": "b", "to": "old"}[from], "to", "old"); err != nil {
			t.Fatal(err)
		}
		have("a", "b", none)
		have("to", "old", both)
	}
	if err := x.DropXattrs(ctx, "dropbox", "to", "old"); err != nil {
		t.Fatal(err)
	}
	have("to", "old", none)
}

func TestNotes(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	if _, ok, err := x.Note(ctx, "k", ""); ok || err != nil {
		t.Errorf("Note of nothing = %v, %v", ok, err)
	}
	set := func(kind, key string, data []byte) {
		t.Helper()
		if err := x.SetNote(ctx, kind, key, data); err != nil {
			t.Fatal(err)
		}
	}
	set("k", "", []byte("empty key"))
	set("k", "b", []byte("1"))
	set("k", "b", []byte("2"))
	set("k", "a", []byte{})
	set("k", "gone", []byte("x"))
	set("k", "gone", nil)
	set("other", "c", []byte("3"))
	data, ok, err := x.Note(ctx, "k", "b")
	check(t, "Note", []any{string(data), ok, err}, []any{"2", true, nil})
	if _, ok, err := x.Note(ctx, "k", "gone"); ok || err != nil {
		t.Errorf("Note that was removed = %v, %v", ok, err)
	}
	var got []string
	for _, n := range collect(t, x.Notes(ctx, "k")) {
		got = append(got, n.Key+"="+string(n.Data))
	}
	check(t, "Notes", got, []string{"=empty key", "a=", "b=2"})

	x.page = 50
	tx, err := x.state.write.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	for n := range 2*x.page + 1 {
		if _, err := tx.Exec(`INSERT INTO note VALUES ('many', ?, 'd')`, fmt.Sprintf("%06d", n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	keys := []string{}
	for _, n := range collect(t, x.Notes(ctx, "many")) {
		keys = append(keys, n.Key)
	}
	if len(keys) != 2*x.page+1 || !slices.IsSorted(keys) {
		t.Errorf("%d notes, in order %v", len(keys), slices.IsSorted(keys))
	}
}
