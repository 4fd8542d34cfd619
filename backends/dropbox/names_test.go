package dropbox_test

import (
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

// TestSpelling: collections are spelled as their folders are, though
// path_display is right in its last component alone.
func TestSpelling(t *testing.T) {
	s := serve(t, dropboxtest.Options{LossyDisplay: true, PageMax: 3})
	store := open(t, s)
	cursor, err := store.Cursor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		s.Put(fmt.Sprintf("/Outer/In Ner/Image:%d.simg", i), []byte{byte(i)})
	}
	want := backends.Ref{Collection: "Outer/In Ner", Name: "Image", Tag: "0"}
	for _, asked := range []backends.Ref{want, {Collection: "outer/in ner", Name: "IMAGE", Tag: "0"}} {
		// Each store knows no spelling at first.
		if img, err := open(t, s).Stat(t.Context(), asked); err != nil || img.Ref != want {
			t.Errorf("Stat(%s) = %s, %v; want %s", asked, img.Ref, err, want)
		}
	}
	img, err := store.Stat(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := open(t, s).Find(t.Context(), img.ID); err != nil || got.Ref != want {
		t.Errorf("Find = %s, %v; want %s", got.Ref, err, want)
	}
	for got, err := range open(t, s).Search(t.Context(), "image 0") {
		if err != nil || got.Ref != want {
			t.Errorf("Search yields %s, %v; want %s", got.Ref, err, want)
		}
	}
	if got := list(t, open(t, s)); len(got) != 7 || got[0] != "Outer/" || got[1] != "Outer/In Ner/" || got[2] != want.String() {
		t.Errorf("List = %q", got)
	}
	watcher := open(t, s)
	ch, err := watcher.Changes(t.Context(), cursor, 0)
	if err != nil || len(ch.List) != 7 || ch.List[6].Entry.Image.Ref.Collection != want.Collection {
		t.Errorf("Changes = %+v, %v", ch, err)
	}
	// A change in a folder whose own entry lies before the cursor.
	s.Put("/OUTER/IN NER/New:x.simg", nil)
	ch, err = open(t, s).Changes(t.Context(), ch.Cursor, 0)
	if err != nil || len(ch.List) != 1 || ch.List[0].Entry.Image.Ref.String() != "Outer/In Ner/New:x" {
		t.Errorf("Changes = %+v, %v", ch, err)
	}
}

// TestOtherNames: files that were named by other programs are images too, each
// reference once, and a push keeps the name that a file has.
func TestOtherNames(t *testing.T) {
	s := serve(t, dropboxtest.Options{})
	store := open(t, s)
	for _, p := range []string{
		"/c/both:latest.simg", "/c/both.simg", // the first has the name
		"/c/sif.sif", "/c/tagged:v1.sif", "/c/tagged:v1.img", "/alone.img",
		"/c/readme.txt", "/c/noext", "/c/.hidden:x.simg.part",
	} {
		s.Put(p, []byte(p))
	}
	versioned := map[string]string{}
	for _, name := range list(t, store) {
		ref, version, _ := strings.Cut(name, "@")
		versioned[ref] += version + ";"
	}
	for ref, want := range map[string]int{"c/": 1, "c/both:latest": 2, "c/sif:latest": 1, "c/tagged:v1": 2, "/alone:latest": 1} {
		if got := strings.Count(versioned[ref], ";"); got != want {
			t.Errorf("%s is listed %d times, want %d (%q)", ref, got, want, versioned[ref])
		}
		delete(versioned, ref)
	}
	if len(versioned) != 0 {
		t.Errorf("listed besides: %q", versioned)
	}
	for ref, want := range map[string]string{"c/both": "/c/both:latest.simg", "c/tagged:v1": "/c/tagged:v1.sif", "/alone": "/alone.img"} {
		r, err := backends.ParseRef(ref)
		if err != nil {
			t.Fatal(err)
		}
		img, err := store.Stat(t.Context(), r)
		if err != nil || img.Key != want || img.Ref != r {
			t.Errorf("Stat(%s) = %s at %s, %v; want %s", ref, img.Ref, img.Key, err, want)
		}
	}
	// The second of a name is found by the version that the listing gave it.
	for e, err := range store.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Image.Ref.Version == "" {
			continue
		}
		if img, err := store.Stat(t.Context(), e.Image.Ref); err != nil || img.Key != e.Image.Key || img.Ref != e.Image.Ref {
			t.Errorf("Stat(%s) = %+v, %v", e.Image.Ref, img, err)
		}
	}
	mustPush(t, store, backends.Ref{Collection: "c", Name: "sif", Tag: "latest"}, []byte("new"))
	if got, ok := s.Get("/c/sif.sif"); !ok || string(got) != "new" || len(s.Paths()) != 9 {
		t.Errorf("after an overwrite c/sif.sif is %q; files %q", got, s.Paths())
	}
	img, err := store.Stat(t.Context(), backends.Ref{Collection: "c", Name: "sif", Tag: "latest"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Rename(t.Context(), img, red); err != nil || !slices.Contains(s.Paths(), "/pusheen/asaurus:red.sif") {
		t.Errorf("Rename: %v, files %q", err, s.Paths())
	}
}

func TestImpossibleNames(t *testing.T) {
	s := serve(t, dropboxtest.Options{})
	store := open(t, s)
	for _, ref := range []backends.Ref{
		{Collection: "c", Name: `back\slash`, Tag: "x"},
		{Collection: "c", Name: "a/b", Tag: "x"},
		{Collection: "c", Name: "col:on", Tag: "x"},
		{Collection: "c", Name: "nul\x00", Tag: "x"},
		{Collection: "c ", Name: "i", Tag: "x"},
		{Collection: "..", Name: "i", Tag: "x"},
		{Collection: "a//b", Name: "i", Tag: "x"},
		{Collection: "c", Name: "\xff", Tag: "x"},
		{Collection: "c", Name: strings.Repeat("x", 300), Tag: "x"},
	} {
		if _, err := store.Begin(t.Context(), ref, ""); !errors.Is(err, backends.ErrInvalidName) {
			t.Errorf("Begin(%q) = %v, want ErrInvalidName", ref, err)
		}
		if ref.Name == "col:on" {
			continue // as a name with the tag "on:x" it could be there
		}
		if _, err := store.Stat(t.Context(), ref); !errors.Is(err, iofs.ErrNotExist) {
			t.Errorf("Stat(%q) = %v, want ErrNotExist", ref, err)
		}
	}
	if n := s.Count("files/upload").Requests; n != 0 {
		t.Errorf("%d uploads were tried", n)
	}
}

// TestManyPages lists more than one request may return.
func TestManyPages(t *testing.T) {
	s := serve(t, dropboxtest.Options{Space: 1 << 40})
	paths := make([]string, 4500)
	for i := range paths {
		paths[i] = fmt.Sprintf("/Col/Image:%04d.simg", i)
	}
	s.PutAll(paths, []byte("the same"))
	got := list(t, open(t, s))
	if len(got) != 4501 || got[4500] != "Col/Image:4499" {
		t.Errorf("%d entries are listed, want 4501", len(got))
	}
	if n := s.Count("files/list_folder").Requests + s.Count("files/list_folder/continue").Requests; n != 3 {
		t.Errorf("it took %d requests, want 3", n)
	}
}

// TestRecord: the record's members are the Python client's.
func TestRecord(t *testing.T) {
	s := serve(t, dropboxtest.Options{})
	at := time.Date(2018, 1, 28, 18, 42, 13, 0, time.UTC)
	store := open(t, s)
	u, err := store.Begin(t.Context(), red, "")
	if err != nil {
		t.Fatal(err)
	}
	img, err := u.Commit(t.Context(), strings.NewReader("x"), 1, backends.Content{Modified: at})
	if err != nil {
		t.Fatal(err)
	}
	if !img.Modified.Equal(at) || img.Created.Before(at) || img.URL != "https://content.dropboxapi.com/2/files/download" || img.Version != "" {
		t.Errorf("image %+v", img)
	}
	var m map[string]any
	if err := json.Unmarshal(img.Remote, &m); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]any{"collection": "pusheen", "image": "asaurus", "tag": "red", "version": nil,
		"storage": "pusheen/asaurus:red.simg", "uri": "pusheen/asaurus:red", "url": "pusheen/asaurus"} {
		if got, ok := m[k]; !ok || got != want {
			t.Errorf("metrics[%q] = %v, want %v", k, got, want)
		}
	}
	if d, ok := m["dropbox"].(map[string]any); !ok || d["id"] != img.ID || d["rev"] != img.Revision {
		t.Errorf("metrics[dropbox] = %v", m["dropbox"])
	}
}

func TestSearchFindsCollections(t *testing.T) {
	s := serve(t, dropboxtest.Options{PageMax: 2})
	store := open(t, s)
	for i := range 3 {
		s.Put(fmt.Sprintf("/Pusheen/deep/green:%d.simg", i), nil)
	}
	s.Put("/vsoch/pusheen:x.simg", nil)
	for word, want := range map[string]int{"pusheen": 4, "push": 4, "deep": 3, "": 4, "ushe": 0} {
		seen := map[string]bool{}
		for img, err := range store.Search(t.Context(), word) {
			if err != nil || seen[img.ID] || img.Ref.Collection == "pusheen/deep" {
				t.Errorf("Search(%q) yields %s, %v", word, img.Ref, err)
			}
			seen[img.ID] = true
		}
		if len(seen) != want {
			t.Errorf("Search(%q) finds %d images, want %d", word, len(seen), want)
		}
	}
	img, err := store.Stat(t.Context(), backends.Ref{Collection: "vsoch", Name: "pusheen", Tag: "x"})
	if err != nil {
		t.Fatal(err)
	}
	for got, err := range store.Search(t.Context(), img.ID) {
		if err != nil || got.Ref != img.Ref {
			t.Errorf("Search(%q) yields %s, %v", img.ID, got.Ref, err)
		}
	}
}
