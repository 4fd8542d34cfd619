package catalog

import (
	"context"
	"errors"
	iofs "io/fs"
	"path"
	"strings"
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
)

// hostile are names that a store may have and a user may type.
var hostile = []backends.Ref{
	{Collection: "pusheen", Name: "asaurus", Tag: "red"},
	{Collection: "nvidia/clara", Name: "x", Tag: "1"},
	{Name: "outside", Tag: "latest"},
	{Collection: "..", Name: "..", Tag: ".."},
	{Collection: "a b", Name: "a:b", Tag: "t"},
	{Collection: "c", Name: "50%off 100%20", Tag: "a.simg"},
	{Collection: "c.simg", Name: "new\nline", Tag: "t"},
	{Collection: "library", Name: strings.Repeat("n", 300), Tag: "t"},
}

// resolver is a catalog of two stores, one that is listed and has the hostile
// names, one that is not listed and has the first of them.
func resolver(f *testing.F) *Catalog {
	f.Helper()
	one, two := backendtest.Memory(), backendtest.Memory()
	for _, ref := range hostile {
		one.Put(ref, []byte("1"), nil)
	}
	two.Put(hostile[0], []byte("2"), nil)
	c := open(f, f.TempDir(), map[string]backends.Store{"one": one, "two": two})
	if err := c.Client("one").Refresh(f.Context()); err != nil {
		f.Fatal(err)
	}
	return c
}

// answered checks that a look-up found an image or says that there is none,
// that the name is no name, or that several clients have it.
func answered(t *testing.T, err error) bool {
	t.Helper()
	switch {
	case err == nil:
		return true
	case errors.Is(err, iofs.ErrNotExist), errors.Is(err, backends.ErrInvalidName),
		strings.Contains(err.Error(), "no such client"), strings.Contains(err.Error(), "several clients have it"):
	default:
		t.Errorf("a look-up fails: %v", err)
	}
	return false
}

// FuzzResolve: what a user types for a URI leads to the image of that name, to
// no other, or to a reason.
func FuzzResolve(f *testing.F) {
	for _, uri := range []string{"one://pusheen/asaurus:red", "asaurus", "pusheen/asaurus:red", "TWO://pusheen/asaurus:red.sif",
		"google_drive://vsoch/x@02c08a25c8f4697e16e896239e549a2b", "one:///outside", "://", "one://../..:..", "three://a/b", "a//b"} {
		f.Add(uri)
	}
	for _, ref := range hostile {
		f.Add("one://" + ref.String())
	}
	c := resolver(f)
	f.Fuzz(func(t *testing.T, uri string) {
		name, ref, err := backends.ParseURI(uri)
		if !answered(t, err) {
			return
		}
		cl, img, err := c.Resolve(t.Context(), name, ref)
		if !answered(t, err) {
			return
		}
		if name != "" && cl.Name != name || img.Ref.Latest() != ref.Latest() {
			t.Errorf("Resolve(%q) is %s://%s, asked for was %s://%s", uri, cl.Name, img.Ref, name, ref)
		}
	})
}

// FuzzTreePath: a path below a client, as the kernel hands it on part by part,
// leads to what is shown under that very path, or to nothing.
func FuzzTreePath(f *testing.F) {
	for _, ref := range hostile {
		f.Add(ref.Dir(), ref.File())
		f.Add(ref.Dir(), ref.Sidecar())
		f.Add(ref.Collection, ref.Object())
		f.Add(path.Join(ref.Dir(), ref.Name), ref.Tag)
	}
	f.Add("pusheen", "asaurus:red@c4ca4238a0b923820dcc509a6f75849b.simg")
	f.Add("%", "%2E%2E:%.img")
	f.Add("", "..json")
	c := resolver(f)
	f.Fuzz(func(t *testing.T, dir, name string) {
		for _, cl := range c.Clients() {
			actual, ok, err := cl.Directory(t.Context(), path.Join(dir, name))
			if err != nil {
				t.Errorf("Directory(%q) = %v", path.Join(dir, name), err)
			}
			if ok && actual != path.Join(dir, name) {
				t.Errorf("the directory %q is shown as %q", path.Join(dir, name), actual)
			}
			if _, _, err := cl.Tag(t.Context(), dir, name); err != nil {
				t.Errorf("Tag(%q, %q) = %v", dir, name, err)
			}
			ref, _, isImage := backends.ParseFile(name)
			if !isImage {
				continue
			}
			img, err := cl.Lookup(t.Context(), dir, ref)
			if !answered(t, err) {
				continue
			}
			if img.Ref.Dir() != dir || img.Ref.Latest().File() != ref.Latest().File() {
				t.Errorf("%q in %q is the image %q in %q", name, dir, img.Ref.File(), img.Ref.Dir())
			}
		}
	})
}

// recorder is a store that takes any address for an image's.
type recorder struct{ backends.Store }

// Record is backends.Recorder's.
func (r recorder) Record(_ context.Context, ref backends.Ref, url string) (backends.Image, error) {
	return backends.Image{Ref: ref, Key: url, Revision: url, URL: url}, nil
}

// FuzzAddRecord: whatever is written for a record names an address or is refused,
// and leaves what is on record readable.
func FuzzAddRecord(f *testing.F) {
	for _, text := range []string{`{"url":"https://example.org/a.simg"}`, `{"url":"http://[::1]:80/","metrics":{"data":null}}`,
		`{"url":"file:///etc/passwd"}`, `{"url":"https://","metrics":[]}`, `{"url":"HTTPS://example.org/"}`, `{"url":1}`, `null`, ``} {
		f.Add([]byte(text))
	}
	memory := backendtest.Memory()
	c := open(f, f.TempDir(), map[string]backends.Store{"mem": recorder{memory}})
	cl := c.Client("mem")
	f.Fuzz(func(t *testing.T, text []byte) {
		err := cl.AddRecord(t.Context(), hostile[0], text)
		if err != nil {
			if !errors.Is(err, backends.ErrInvalidName) {
				t.Errorf("AddRecord(%q) = %v", text, err)
			}
			return
		}
		img, err := cl.Find(t.Context(), hostile[0])
		if err != nil || !strings.HasPrefix(img.URL, "http") {
			t.Errorf("AddRecord(%q) left %+v, %v", text, img, err)
		}
	})
}
