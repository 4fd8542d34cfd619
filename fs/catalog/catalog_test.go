package catalog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/cache/staging"
	"github.com/sregfs/sregfs/index"
)

// open makes a catalog over stores, with everything that it keeps in dir.
func open(t testing.TB, dir string, stores map[string]backends.Store) *Catalog {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	x, err := index.Open(t.Context(), index.Options{
		Database: filepath.Join(dir, "sregistry.db"), State: filepath.Join(dir, "state.db"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	var c *Catalog
	objects, err := cache.Open(filepath.Join(dir, "objects"), cache.Options{Limit: 1 << 30, Parallel: 4, Log: log,
		OnComplete: func(done cache.Completed) { c.Learnt(done.Key, done.MD5) }})
	if err != nil {
		t.Fatal(err)
	}
	area, err := staging.Open(filepath.Join(dir, "staging"), staging.Options{Reserve: objects.Reserve, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if c, err = New(stores, Options{Index: x, Cache: objects, Staging: area, Log: log}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if err := errors.Join(area.Close(), objects.Close(), x.Close()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// squash makes bytes that pass for a whole squashfs of n bytes.
func squash(t *testing.T, seed uint64, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = rnd.Read(b)
	return b
}

var red = backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "red"}

func push(t *testing.T, cl *Client, ref backends.Ref, data []byte, step int) (backends.Image, error) {
	t.Helper()
	s, err := cl.Stage(t.Context(), ref, "")
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(data); off += step {
		if _, err := s.WriteAt(data[off:min(off+step, len(data))], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	img, err := s.Commit(t.Context())
	s.Finish(true)
	return img, err
}

func content(t *testing.T, cl *Client, img backends.Image) []byte {
	t.Helper()
	c, err := cl.Open(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := make([]byte, c.Size())
	if _, err := c.ReadAt(t.Context(), b, 0); err != nil && int64(len(b)) != c.Size() {
		t.Fatal(err)
	}
	return b
}

func TestPushThenReadAsksNobody(t *testing.T) {
	m := backendtest.Memory()
	counted, counter := backendtest.Counting(m)
	c := open(t, t.TempDir(), map[string]backends.Store{"mem": counted})
	cl := c.Client("mem")
	for _, size := range []int{1, 100_000, 20 << 20} {
		data := squash(t, uint64(size), size)
		img, err := push(t, cl, red, data, 128<<10)
		if err != nil {
			t.Fatal(err)
		}
		before := counter.Count("OpenRange")
		if got := content(t, cl, img); !bytes.Equal(got, data) {
			t.Fatalf("%d bytes: read other bytes than were pushed", size)
		}
		if n := counter.Count("OpenRange") - before; n != 0 {
			t.Errorf("%d bytes: reading what was just pushed made %d requests", size, n)
		}
		found, err := cl.Find(t.Context(), red)
		if err != nil || found.Revision != img.Revision || len(found.Version) != 32 {
			t.Errorf("%d bytes: Find = %+v, %v", size, found, err)
		}
	}
}

// TestRewriteAfterSendingAhead writes a file's head last, as apptainer build
// does, after its parts have gone.
func TestRewriteAfterSendingAhead(t *testing.T) {
	m := backendtest.Memory()
	c := open(t, t.TempDir(), map[string]backends.Store{"mem": m})
	cl := c.Client("mem")
	data := squash(t, 1, 30<<20)
	s, err := cl.Stage(t.Context(), red, "")
	if err != nil {
		t.Fatal(err)
	}
	written := slices.Clone(data)
	copy(written, make([]byte, 4096))
	for off := 0; off < len(data); off += 1 << 20 {
		if _, err := s.WriteAt(written[off:off+1<<20], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.WriteAt(data[:4096], 0); err != nil {
		t.Fatal(err)
	}
	img, err := s.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Finish(true)
	if err := c.Cache().Remove(img.ContentKey("mem")); err != nil {
		t.Fatal(err)
	}
	if got := content(t, cl, img); !bytes.Equal(got, data) {
		t.Error("the remote has other bytes than were written last")
	}
	if n := m.Uploads(); n != 0 {
		t.Errorf("%d uploads are left on the store", n)
	}
}

func TestFailedPushKeepsTheBytes(t *testing.T) {
	down := true
	flaky := backendtest.Flaky(backendtest.Memory(), func(call backendtest.Call) error {
		if down && call.Op == "Commit" {
			return backends.ErrUnreachable
		}
		return nil
	})
	dir := t.TempDir()
	c := open(t, dir, map[string]backends.Store{"mem": flaky})
	cl := c.Client("mem")
	data := squash(t, 1, 50_000)
	s, err := cl.Stage(t.Context(), red, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context()); !errors.Is(err, backends.ErrUnreachable) {
		t.Fatalf("Commit = %v", err)
	}
	if held := c.Held(); len(held) != 1 || held[0].State != string(staging.Failed) || held[0].Bytes != 50_000 {
		t.Fatalf("Held = %+v", held)
	}
	if _, err := cl.Find(t.Context(), red); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("after a failed push Find = %v", err)
	}
	down = false
	if _, err := s.Commit(t.Context()); err != nil {
		t.Fatalf("the second Commit = %v", err)
	}
	s.Finish(true)
	if held := c.Held(); len(held) != 0 {
		t.Errorf("after the push Held = %+v", held)
	}
}

func TestUnreachableIsNotAbsent(t *testing.T) {
	m := backendtest.Memory()
	m.Put(red, squash(t, 1, 1000), nil)
	down := false
	flaky := backendtest.Flaky(m, func(backendtest.Call) error {
		if down {
			return backends.ErrUnreachable
		}
		return nil
	})
	c := open(t, t.TempDir(), map[string]backends.Store{"mem": flaky})
	cl := c.Client("mem")
	if err := cl.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	down = true
	if err := cl.Refresh(t.Context()); !errors.Is(err, backends.ErrUnreachable) {
		t.Fatalf("Refresh = %v", err)
	}
	if _, err := cl.Find(t.Context(), red); err != nil {
		t.Errorf("a known image cannot be found offline: %v", err)
	}
	n := 0
	for _, err := range cl.Images(t.Context(), "pusheen") {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 1 {
		t.Errorf("offline the collection lists %d images, want 1", n)
	}
}

// TestFirstListing: while the first listing is under way, a name is asked for
// singly, a collection's as well as an image's, and need not wait for it.
func TestFirstListing(t *testing.T) {
	m := backendtest.Memory()
	m.FoldCase = true
	m.Put(red, squash(t, 1, 1000), nil)
	slow := backendtest.Wrap(m, func(ctx context.Context, call backendtest.Call) error {
		if call.Op == "List" {
			<-ctx.Done()
		}
		return ctx.Err()
	})
	counted, counter := backendtest.Counting(slow)
	c := open(t, t.TempDir(), map[string]backends.Store{"mem": counted})
	c.Start()
	cl := c.Client("mem")
	for _, dir := range []string{"PUSHEEN", "pusheen"} {
		if actual, ok, err := cl.Directory(t.Context(), dir); actual != "pusheen" || !ok || err != nil {
			t.Errorf("Directory(%q) = %q, %v, %v", dir, actual, ok, err)
		}
	}
	if n := counter.Count("FindCollection"); n != 1 {
		t.Errorf("the store was asked for one collection %d times", n)
	}
	if actual, ok, err := cl.Directory(t.Context(), "nobody"); ok || err != nil {
		t.Errorf("Directory of none = %q, %v", actual, err)
	}
	if img, err := cl.Find(t.Context(), red); err != nil || img.Ref != red {
		t.Errorf("Find = %+v, %v", img, err)
	}
	if l := cl.Listing(); l.Known {
		t.Errorf("the listing is known: %+v", l)
	}
}

// mute is a store whose service does not answer.
type mute struct{ backends.Store }

func (m mute) Unwrap() backends.Store { return m.Store }

func (mute) Unreachable() error {
	return fmt.Errorf("%w: connection refused", backends.ErrUnreachable)
}

// TestFirstListingMute: nobody waits long for the first listing of a service that
// does not answer.
func TestFirstListingMute(t *testing.T) {
	slow := backendtest.Wrap(backendtest.Memory(), func(ctx context.Context, call backendtest.Call) error {
		if call.Op == "List" {
			<-ctx.Done()
		}
		return ctx.Err()
	})
	c := open(t, t.TempDir(), map[string]backends.Store{"mem": mute{slow}})
	c.Start()
	ctx, cancel := context.WithTimeout(t.Context(), firstListing/2)
	defer cancel()
	if err := c.Client("mem").Listed(ctx); !errors.Is(err, backends.ErrUnreachable) || !strings.Contains(err.Error(), "mem: remote cannot be reached: connection refused") {
		t.Errorf("listed: %v", err)
	}
}

func TestVersions(t *testing.T) {
	m := backendtest.Memory()
	c := open(t, t.TempDir(), map[string]backends.Store{"mem": m})
	cl := c.Client("mem")
	first, second := squash(t, 1, 70_000), squash(t, 2, 80_000)
	old, err := push(t, cl, red, first, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	now, err := push(t, cl, red, second, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for version, want := range map[string][]byte{old.Version: first, now.Version: second} {
		img, err := cl.Find(t.Context(), red.WithVersion(version))
		if err != nil {
			t.Fatalf("@%s: %v", version, err)
		}
		if got := content(t, cl, img); !bytes.Equal(got, want) {
			t.Errorf("@%s has other bytes", version)
		}
	}
	if _, err := cl.Find(t.Context(), red.WithVersion(strings.Repeat("0", 32))); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("a version that never was: %v", err)
	}
}

func TestRecord(t *testing.T) {
	m := backendtest.Memory()
	m.Put(red, []byte("no image at all, but somebody keeps it here"), nil)
	c := open(t, t.TempDir(), map[string]backends.Store{"mem": m})
	cl := c.Client("mem")
	img, err := cl.Find(t.Context(), red)
	if err != nil {
		t.Fatal(err)
	}
	text, err := cl.Record(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Client, Collection, Name, Tag, URI string
		Image                              *string
		Metrics                            struct {
			Data struct {
				Attributes map[string]any
				Type       string
			}
		}
	}
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if r.Client != "mem" || r.Collection != "pusheen" || r.Image != nil || r.Metrics.Data.Type != "container" ||
		r.Metrics.Data.Attributes["runscript"] != nil {
		t.Errorf("record is %s", text)
	}
}

func TestResolve(t *testing.T) {
	one, two := backendtest.Memory(), backendtest.Memory()
	one.Put(red, []byte("1"), nil)
	two.Put(red, []byte("2"), nil)
	green := red
	green.Tag = "green"
	two.Put(green, []byte("3"), nil)
	c := open(t, t.TempDir(), map[string]backends.Store{"one": one, "two": two})
	resolve := func(uri string) (*Client, error) {
		t.Helper()
		name, ref, err := backends.ParseURI(uri)
		if err != nil {
			t.Fatal(err)
		}
		cl, _, err := c.Resolve(t.Context(), name, ref)
		return cl, err
	}
	for uri, want := range map[string]string{
		"two://pusheen/asaurus:red":        "two",
		"one://pusheen/asaurus:red":        "one",
		"pusheen/asaurus:green":            "two",
		"two://pusheen/asaurus:green.simg": "two",
	} {
		if cl, err := resolve(uri); err != nil || cl.Name != want {
			t.Errorf("Resolve(%q) = %v, %v; want %s", uri, cl, err, want)
		}
	}
	for uri, want := range map[string]string{
		"pusheen/asaurus:red":         "one://pusheen/asaurus:red, two://pusheen/asaurus:red",
		"pusheen/asaurus:blue":        "does not exist",
		"three://pusheen/asaurus:red": "no such client",
	} {
		if _, err := resolve(uri); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Resolve(%q) = %v, want %q", uri, err, want)
		}
	}
}

// placed is a store that says where it is.
type placed struct {
	backends.Store
	place string
}

func (p placed) Unwrap() backends.Store { return p.Store }
func (p placed) Place() string          { return p.place }

// TestAnotherPlace points a client at another account: what was listed of the
// first one is not shown for the second one's, nor lost while it is the same.
func TestAnotherPlace(t *testing.T) {
	one, two := backendtest.Memory(), backendtest.Memory()
	one.Put(red, []byte("1"), nil)
	dir := t.TempDir()
	known := func(store backends.Store, refresh bool) (n int) {
		t.Helper()
		x, err := index.Open(t.Context(), index.Options{State: filepath.Join(dir, "state.db")})
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		c, err := New(map[string]backends.Store{"mem": store}, Options{Index: x, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if refresh {
			if err := c.Client("mem").Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for _, err := range x.Images(t.Context(), "mem", "pusheen") {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	if n := known(placed{one, "a"}, true); n != 1 {
		t.Fatalf("listed %d images, want 1", n)
	}
	if n := known(placed{one, "a"}, false); n != 1 {
		t.Errorf("the same place again knows %d images, want 1", n)
	}
	if n := known(placed{two, "b"}, false); n != 0 {
		t.Errorf("another place knows %d images of the first", n)
	}
}

// TestOpensInARow: the store is asked once for the opens that follow at once,
// again a moment later, and again when the answer was of another version.
func TestOpensInARow(t *testing.T) {
	counted, counter := backendtest.Counting(backendtest.Memory())
	cl := open(t, t.TempDir(), map[string]backends.Store{"mem": counted}).Client("mem")
	img, err := push(t, cl, red, squash(t, 1, 1000), 1000)
	if err != nil {
		t.Fatal(err)
	}
	cl.answers = answers{}
	asks := func(what string, img backends.Image, want int) {
		t.Helper()
		before := counter.Count("Stat")
		err := cl.Revalidate(t.Context(), img)
		if stale := img.Revision == "another"; stale != errors.Is(err, backends.ErrStale) || !stale && err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := counter.Count("Stat") - before; got != want {
			t.Errorf("%s: the store was asked %d times, want %d", what, got, want)
		}
	}
	asks("the first open", img, 1)
	asks("the next", img, 0)
	other := img
	other.Revision = "another"
	asks("another version", other, 1)
	for name, a := range cl.answers.of {
		a.at = a.at.Add(-standing)
		cl.answers.of[name] = a
	}
	asks("a moment later", img, 1)
	if _, err := cl.Lookup(t.Context(), red.Dir(), backends.Ref{Collection: "pusheen", Name: "nobody", Tag: "latest"}); !errors.Is(err, iofs.ErrNotExist) {
		t.Fatal(err)
	}
	asks("after a question for another name", img, 0)
}

// TestAnswersStayFew: names that were asked for once are forgotten.
func TestAnswersStayFew(t *testing.T) {
	var s answers
	for i := range 10 * maxAnswers {
		s.note(fmt.Sprint(i), answer{"r", time.Now()})
	}
	if n := len(s.of); n > maxAnswers {
		t.Errorf("%d answers are kept, want %d at most", n, maxAnswers)
	}
}
