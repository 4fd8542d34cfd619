package local

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"io"
	iofs "io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
)

const (
	v1 = "02c08a25c8f4697e16e896239e549a2b"
	v2 = "ed9755a0871f04db3e14971bec56a33f"
)

func write(t *testing.T, dir, name, data string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

// age sets a file's time back.
func age(t *testing.T, dir, name string, d time.Duration) {
	t.Helper()
	at := time.Now().Add(-d)
	if err := os.Chtimes(filepath.Join(dir, name), at, at); err != nil {
		t.Fatal(err)
	}
}

// listed returns a listing as REF → path, and the collections.
func listed(t *testing.T, s *Store) (images map[string]string, collections []string) {
	t.Helper()
	images = map[string]string{}
	for e, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Collection != "" {
			collections = append(collections, e.Collection)
			continue
		}
		r := e.Image.Ref.String()
		for images[r] != "" {
			r += " again"
		}
		images[r] = e.Image.Key
	}
	slices.Sort(collections)
	return images, collections
}

func parse(t *testing.T, s string) backends.Ref {
	t.Helper()
	r, err := backends.ParseRef(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func read(t *testing.T, s *Store, img backends.Image) (string, error) {
	t.Helper()
	rc, err := s.OpenRange(t.Context(), img, 0, -1)
	if err != nil {
		return "", err
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	return string(b), err
}

func pushAs(ctx context.Context, s *Store, r backends.Ref, data string, replaces *backends.Image) (backends.Image, error) {
	u, err := s.Begin(ctx, r, "")
	if err != nil {
		return backends.Image{}, err
	}
	sum := md5.Sum([]byte(data))
	return u.Commit(ctx, strings.NewReader(data), int64(len(data)), backends.Content{MD5: hex.EncodeToString(sum[:]), Replaces: replaces})
}

// TestLayouts reads what every program that knows the folder has left there.
func TestLayouts(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{
		"pusheen-asaurus:red.simg":      "/pusheen-asaurus:red",
		"vsoch/hello-world:latest.simg": "vsoch/hello-world:latest",
		"vsoch/plain.sif":               "vsoch/plain:latest",
		"vsoch/old:x.img":               "vsoch/old:x",
		"nvidia/clara/x:1.simg":         "nvidia/clara/x:1",
		// The later Python client.
		"library/ubuntu/22.04.sif":              "library/ubuntu:22.04",
		"library/ubuntu/24.04@" + v1 + ".sif":   "library/ubuntu:24.04",
		"a/b/c/tag.sif":                         "a/b/c:tag",
		"a/b/in-the-collection:x.simg":          "a/b/in-the-collection:x",
		"vsoch/pancakes:latest@" + v1 + ".simg": "vsoch/pancakes:latest",
	}
	for name := range files {
		write(t, dir, name, name)
	}
	for _, name := range []string{"README.md", ".hidden:x.simg", ".cache/x:y.simg", "vsoch/notes.txt", "lost+found/x:y.simg", "vsoch/.x:red.simg.AbC123"} {
		write(t, dir, name, "no image")
	}
	if err := os.MkdirAll(filepath.Join(dir, "empty/inner"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, Options{})
	images, collections := listed(t, s)
	want := map[string]string{}
	for name, ref := range files {
		want[ref] = "/" + name
	}
	if !maps.Equal(images, want) {
		t.Errorf("listed\n%v, want\n%v", images, want)
	}
	if want := []string{"a", "a/b", "empty", "empty/inner", "library", "nvidia", "nvidia/clara", "vsoch"}; !slices.Equal(collections, want) {
		t.Errorf("collections %q, want %q", collections, want)
	}
	for name, ref := range files {
		r := parse(t, ref)
		img, err := s.Stat(t.Context(), r)
		if err != nil || img.Key != "/"+name || img.Ref != r {
			t.Errorf("Stat(%s) = %s %s, %v; want %s", ref, img.Ref, img.Key, err, name)
			continue
		}
		if got, err := read(t, s, img); got != name || err != nil {
			t.Errorf("%s reads as %q, %v", ref, got, err)
		}
		wantVersion := ""
		if strings.Contains(name, v1) {
			wantVersion = v1
			if img, err := s.Stat(t.Context(), r.WithVersion(v1)); err != nil || img.Key != "/"+name {
				t.Errorf("Stat(%s@%s) = %s, %v", ref, v1, img.Key, err)
			}
		}
		if img.Version != wantVersion {
			t.Errorf("%s has version %q, want %q", ref, img.Version, wantVersion)
		}
	}
	// What looks like the other layout does not answer to two names.
	if img, err := s.Stat(t.Context(), backends.Ref{Collection: "library/ubuntu", Name: "22.04", Tag: "latest"}); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("library/ubuntu/22.04.sif is also %+v, %v", img, err)
	}
}

// TestVersionsInNames: the newest file has the bare name when no other does.
func TestVersionsInNames(t *testing.T) {
	dir := t.TempDir()
	first, second := "c/i:x@"+v1+".simg", "c/i:x@"+v2+".simg"
	write(t, dir, first, "first")
	age(t, dir, first, time.Hour)
	write(t, dir, second, "second")
	s := open(t, dir, Options{})
	want := map[string]string{"c/i:x": "/" + second, "c/i:x@" + v1: "/" + first}
	if got, _ := listed(t, s); !maps.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
	for r, data := range map[string]string{"c/i:x": "second", "c/i:x@" + v1: "first", "c/i:x@" + v2: "second"} {
		img, err := s.Stat(t.Context(), parse(t, r))
		if err != nil || img.Ref.String() != r {
			t.Errorf("Stat(%s) = %s, %v", r, img.Ref, err)
		}
		if got, err := read(t, s, img); got != data || err != nil {
			t.Errorf("%s reads as %q, %v; want %q", r, got, err, data)
		}
	}
	// A push of the bare name stands beside them, and takes it.
	if _, err := pushAs(t.Context(), s, parse(t, "c/i:x"), "third", nil); err != nil {
		t.Fatal(err)
	}
	want = map[string]string{"c/i:x": "/c/i:x.simg", "c/i:x@" + v1: "/" + first, "c/i:x@" + v2: "/" + second}
	if got, _ := listed(t, s); !maps.Equal(got, want) {
		t.Errorf("after the push %v, want %v", got, want)
	}
}

// TestTwoFilesOfOneName are both listed; the newer is found.
func TestTwoFilesOfOneName(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "c/x.sif", "older")
	age(t, dir, "c/x.sif", time.Hour)
	write(t, dir, "c/x:latest.simg", "newer")
	s := open(t, dir, Options{})
	want := map[string]string{"c/x:latest": "", "c/x:latest again": ""}
	got, _ := listed(t, s)
	for k := range got {
		if _, ok := want[k]; !ok || len(got) != 2 {
			t.Errorf("listed %v", got)
		}
	}
	img, err := s.Stat(t.Context(), parse(t, "c/x"))
	if err != nil || img.Key != "/c/x:latest.simg" {
		t.Errorf("Stat = %s, %v", img.Key, err)
	}
}

// TestOverwriteKeepsTheName: x.sif stays x.sif.
func TestOverwriteKeepsTheName(t *testing.T) {
	for _, name := range []string{"c/x.sif", "c/x.img", "c/x:latest.sif", "c/x/latest.sif"} {
		dir := t.TempDir()
		write(t, dir, name, "old")
		s := open(t, dir, Options{})
		r := parse(t, "c/x")
		old, err := s.Stat(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pushAs(t.Context(), s, r, "new", &old); err != nil {
			t.Fatal(err)
		}
		if got, _ := listed(t, s); !maps.Equal(got, map[string]string{"c/x:latest": "/" + name}) {
			t.Errorf("%s: after the overwrite %v", name, got)
		}
	}
}

// TestLastTagTakesItsFolder along, or an image would leave a collection.
func TestLastTagTakesItsFolder(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "c/i/a.sif", "a")
	write(t, dir, "c/i/b.sif", "b")
	s := open(t, dir, Options{})
	for _, tag := range []string{"a", "b"} {
		img, err := s.Stat(t.Context(), parse(t, "c/i:"+tag))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(t.Context(), img); err != nil {
			t.Fatal(err)
		}
	}
	if _, collections := listed(t, s); !slices.Equal(collections, []string{"c"}) {
		t.Errorf("collections %q, want c alone", collections)
	}
}

// TestLinks: those that stay inside are followed, those that lead out are not,
// for reading or writing, by name or by key.
func TestLinks(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	write(t, outside, "secret:x.simg", "secret")
	write(t, dir, "c/real:x.simg", "inside")
	for name, target := range map[string]string{
		"c/in:x.simg": "real:x.simg", "c/out:x.simg": filepath.Join(outside, "secret:x.simg"), "c/up:x.simg": "../../../../../../etc/passwd",
		"c/self:x.simg": "self:x.simg", "away": outside,
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, dir, Options{})
	if got, _ := listed(t, s); !maps.Equal(got, map[string]string{"c/real:x": "/c/real:x.simg", "c/in:x": "/c/in:x.simg"}) {
		t.Errorf("listed %v", got)
	}
	img, err := s.Stat(t.Context(), parse(t, "c/in:x"))
	if got, readErr := read(t, s, img); err != nil || readErr != nil || got != "inside" {
		t.Errorf("the link inside: %q, %v, %v", got, err, readErr)
	}
	for _, r := range []string{"c/out:x", "c/up:x", "c/self:x", "away/secret:x"} {
		if img, err := s.Stat(t.Context(), parse(t, r)); err == nil {
			t.Errorf("Stat(%s) = %+v", r, img)
		}
	}
	for _, key := range []string{"/c/out:x.simg", "/away/secret:x.simg", "/../" + filepath.Base(outside) + "/secret:x.simg", "//etc/passwd"} {
		if got, err := read(t, s, backends.Image{Key: key, Revision: img.Revision}); err == nil {
			t.Errorf("OpenRange of %s gives %q", key, got)
		}
		if err := s.Remove(t.Context(), backends.Image{Key: "/away/secret:x.simg"}); err == nil {
			t.Errorf("Remove reaches outside")
		}
	}
	if img, err := pushAs(t.Context(), s, parse(t, "away/new:x"), "x", nil); err == nil {
		t.Errorf("a push through a link = %+v", img)
	}
	if left, _ := os.ReadDir(outside); len(left) != 1 {
		t.Errorf("outside there is %v", left)
	}
}

// TestBadNames cannot be pushed, and nothing is made on the way.
func TestBadNames(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	for _, r := range []backends.Ref{
		{Collection: "..", Name: "i", Tag: "x"}, {Collection: "a/../b", Name: "i", Tag: "x"}, {Collection: "/a", Name: "i", Tag: "x"},
		{Collection: ".git", Name: "i", Tag: "x"}, {Collection: "c", Name: ".i", Tag: "x"}, {Collection: "c", Name: "a/b", Tag: "x"},
		{Collection: "c", Name: "a:b", Tag: "x"}, {Collection: "c", Name: "a\x00", Tag: "x"}, {Collection: "c", Name: "", Tag: "x"},
		{Collection: "c", Name: strings.Repeat("n", 250), Tag: "x"}, {Collection: strings.Repeat("n", 256), Name: "i", Tag: "x"},
	} {
		if _, err := s.Begin(t.Context(), r, ""); !errors.Is(err, backends.ErrInvalidName) {
			t.Errorf("Begin(%q) = %v, want ErrInvalidName", r, err)
		}
		if _, err := s.Stat(t.Context(), r); !errors.Is(err, iofs.ErrNotExist) {
			t.Errorf("Stat(%q) = %v, want ErrNotExist", r, err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("the folder holds %v", left)
	}
}

// TestWrittenInPlace: another program writes into the file that is being read.
func TestWrittenInPlace(t *testing.T) {
	for what, change := range map[string]func(f *os.File){
		"written":   func(f *os.File) { f.WriteAt([]byte("NEW"), 500_000) },
		"truncated": func(f *os.File) { f.Truncate(600_000) },
		"extended":  func(f *os.File) { f.Seek(0, io.SeekEnd); f.WriteString("more") },
	} {
		dir := t.TempDir()
		write(t, dir, "c/i:x.simg", strings.Repeat("old bytes ", 100_000))
		age(t, dir, "c/i:x.simg", time.Minute)
		s := open(t, dir, Options{})
		img, err := s.Stat(t.Context(), parse(t, "c/i:x"))
		if err != nil {
			t.Fatal(err)
		}
		rc, err := s.OpenRange(t.Context(), img, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(rc, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(filepath.Join(dir, "c/i:x.simg"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		change(f)
		f.Close()
		if _, err := io.ReadAll(rc); !errors.Is(err, backends.ErrStale) {
			t.Errorf("%s: reading on = %v, want ErrStale", what, err)
		}
		rc.Close()
		if _, err := s.LocalFile(t.Context(), img); !errors.Is(err, backends.ErrStale) {
			t.Errorf("%s: LocalFile = %v, want ErrStale", what, err)
		}
	}
}

// TestRenamedWhileOpen: neither a new name, nor a new mode, nor deletion
// disturbs a reader.
func TestRenamedWhileOpen(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "c/i:x.simg", "the bytes")
	s := open(t, dir, Options{})
	img, _ := s.Stat(t.Context(), parse(t, "c/i:x"))
	rc, err := s.OpenRange(t.Context(), img, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	os.Chmod(filepath.Join(dir, "c/i:x.simg"), 0o755)
	os.Rename(filepath.Join(dir, "c/i:x.simg"), filepath.Join(dir, "c/j:x.simg"))
	os.Remove(filepath.Join(dir, "c/j:x.simg"))
	if got, err := io.ReadAll(rc); string(got) != "the bytes" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestLocalFile(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	img, err := pushAs(t.Context(), s, parse(t, "c/i:x"), "content", nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.LocalFile(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); string(b) != "content" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	if want := filepath.Join(dir, "c/i:x.simg"); f.Name() != want {
		t.Errorf("Name() = %q, want %q", f.Name(), want)
	}
	info, err := f.Stat()
	if err != nil || info.Mode().Perm()&0o100 == 0 {
		t.Errorf("mode %v, %v: an image is to be executable", info.Mode(), err)
	}
}

// TestDeletedFolder is unknown, not empty.
func TestDeletedFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "shub")
	write(t, dir, "c/i:x.simg", "x")
	s := open(t, dir, Options{})
	cursor, err := s.Cursor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for _, err := range s.List(t.Context()) {
		if !errors.Is(err, backends.ErrUnreachable) {
			t.Errorf("List = %v, want ErrUnreachable", err)
		}
	}
	if _, err := s.Stat(t.Context(), parse(t, "c/i:x")); !errors.Is(err, backends.ErrUnreachable) {
		t.Errorf("Stat = %v, want ErrUnreachable", err)
	}
	for range 50 {
		var ch backends.Changes
		if ch, err = s.Changes(t.Context(), cursor, 100*time.Millisecond); err != nil {
			break
		}
		cursor = ch.Cursor
	}
	if !errors.Is(err, backends.ErrUnreachable) {
		t.Errorf("Changes = %v, want ErrUnreachable", err)
	}
}

// TestUnreadableFolder makes a listing an error, never a short list.
func TestUnreadableFolder(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a/i:x.simg", "x")
	write(t, dir, "c/i:x.simg", "x")
	os.Chmod(filepath.Join(dir, "c"), 0)
	defer os.Chmod(filepath.Join(dir, "c"), 0o755)
	s := open(t, dir, Options{})
	if os.Getuid() == 0 {
		// For root every folder is readable; this thread becomes somebody
		// else in the file system's eyes (setfsuid(2)).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := unix.Setfsuid(65534); err != nil {
			t.Fatal(err)
		}
		defer unix.Setfsuid(0)
	}
	var last error
	for _, err := range s.List(t.Context()) {
		last = err
	}
	if !errors.Is(last, iofs.ErrPermission) {
		t.Errorf("List ends with %v, want ErrPermission", last)
	}
}

func FuzzRefOf(f *testing.F) {
	for _, s := range []string{"a:b.simg", "c/a:b.simg", "c/i/t@v.sif", ".x.simg", ":x.simg", "a/@.sif", "x:y.url", "a/b/c.sif", "//0.sif", "../x:y.simg", "a//b:c.simg"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		r, nested, ok := refOf(p)
		if !ok {
			return
		}
		if r.Name == "" || r.Tag == "" {
			t.Errorf("refOf(%q) = %+v", p, r)
		}
		if to, err := pathOf(r); err == nil && !nested {
			if back, _, _ := refOf(to); back != r {
				t.Errorf("%q is %s, which goes to %q, which is %s", p, r, to, back)
			}
		}
	})
}
