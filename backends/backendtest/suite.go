package backendtest

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// Opts declare what a store can do. Run fails when the store can do less or
// more than that, so that no capability is lost unseen.
type Opts struct {
	// The optional interfaces that the store fulfils.
	HasPush          bool // backends.Pusher
	HasRemove        bool // backends.Remover
	HasRename        bool // backends.Renamer
	HasCollections   bool // backends.Collector
	FindsCollections bool // backends.CollectionFinder
	HasShare         bool // backends.Sharer
	HasSearch        bool // backends.Searcher
	HasFind          bool // backends.Finder
	HasVersions      bool // backends.Versioner
	HasWatch         bool // backends.Watcher
	HasUsage         bool // backends.Usager
	HasAccount       bool // backends.Accounter

	// HasIDs: Image.ID is set, unique, and survives a rename.
	HasIDs bool
	// HasParts: uploads take parts ahead of Commit.
	HasParts bool
	// HasResume: an Upload's State lets another process go on with it.
	HasResume bool
	// HasShareEmail: Share takes an address as well.
	HasShareEmail bool
	// ChecksReplaces: Commit fails with ErrStale when Content.Replaces is not
	// what is there.
	ChecksReplaces bool
	// ChecksContent: Commit refuses content that has not the MD5 that
	// Content.MD5 says.
	ChecksContent bool
	// FoldsCase: names that differ only by case are one.
	FoldsCase bool

	// Put puts an image into the store by some other way than Push. It is
	// needed where HasPush is false.
	Put func(t *testing.T, s backends.Store, ref backends.Ref, data []byte)
	// Reopen opens the store that s is once more, as another process would.
	// Without it s serves.
	Reopen func(t *testing.T, s backends.Store) backends.Store
	// PageSize is how many entries the store's listing gets with one request;
	// 0 for stores without pages.
	PageSize int
	// Settle is how long the store may take to show a change in searches and
	// in its feed, and to end what an early Close left; 5 seconds when it is not set.
	Settle time.Duration
	// Without names cases that do not hold for this store, each with the
	// reason ("Push/Empty": "the service refuses empty files").
	Without map[string]string
}

// reporter is what cases use of *testing.T; the suite's own test records with
// another one what cases say of wrong stores.
type reporter interface {
	Helper()
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// env is what a case works with.
type env struct {
	reporter
	t     *testing.T // for the hooks in opts
	opts  Opts
	store backends.Store
	ctx   context.Context
}

// testCase is one thing that stores promise.
type testCase struct {
	name string
	// needs reports whether the declared capabilities call for it; nil for
	// always.
	needs func(Opts) bool
	run   func(e *env)
}

// Run proves that the stores which open makes keep the promises of package
// backends. Each case gets a new, empty store, and is a subtest that is named
// GROUP/CASE. The stores must answer without faults; how a client stands
// faults is for its own tests.
func Run(t *testing.T, open func(t *testing.T) backends.Store, o Opts) {
	if o.Settle == 0 {
		o.Settle = 5 * time.Second
	}
	if !o.HasPush && o.Put == nil {
		t.Fatal("Opts: Put is needed where HasPush is false")
	}
	known := map[string]bool{}
	for _, c := range allCases() {
		known[c.name] = true
		t.Run(c.name, func(t *testing.T) {
			if c.needs != nil && !c.needs(o) {
				t.Skip("not among the declared capabilities")
			}
			if why, ok := o.Without[c.name]; ok {
				if why == "" {
					t.Fatalf("Opts.Without[%q] gives no reason", c.name)
				}
				t.Skip("left out: " + why)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c.run(&env{reporter: t, t: t, opts: o, store: open(t), ctx: ctx})
		})
	}
	for name := range o.Without {
		if !known[name] {
			t.Errorf("Opts.Without names %q, which is no case", name)
		}
	}
}

func allCases() (all []testCase) {
	for _, group := range [][]testCase{basicCases, readCases, nameCases(), pushCases, changeCases, extraCases, watchCases} {
		all = append(all, group...)
	}
	return all
}

func ref(collection, name, tag string) backends.Ref {
	return backends.Ref{Collection: collection, Name: name, Tag: tag}
}

// random returns n bytes that are the same in each run, and differ by seed.
func random(seed uint64, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b) // never fails
	return b
}

// contentOf is what a pusher says of data.
func contentOf(data []byte, replaces *backends.Image) backends.Content {
	m, s := md5.Sum(data), sha256.Sum256(data)
	return backends.Content{MD5: hex.EncodeToString(m[:]), SHA256: hex.EncodeToString(s[:]), Replaces: replaces}
}

// must ends the case when err is not nil.
func (e *env) must(err error, format string, args ...any) {
	e.Helper()
	if err != nil {
		e.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
}

// wantErr checks err's kind.
func (e *env) wantErr(err, kind error, format string, args ...any) {
	e.Helper()
	if !errors.Is(err, kind) {
		e.Errorf("%s: got error %v, want %v", fmt.Sprintf(format, args...), err, kind)
	}
}

// tryPush pushes with one Commit.
func (e *env) tryPush(ctx context.Context, r backends.Ref, data io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
	e.Helper()
	u := e.begin(r, "")
	img, err := u.Commit(ctx, data, size, c)
	if err != nil {
		if err := u.Abort(e.ctx); err != nil {
			e.Errorf("Abort(%s) after a failed Commit: %v", r, err)
		}
	}
	return img, err
}

func (e *env) begin(r backends.Ref, resume string) backends.Upload {
	e.Helper()
	u, err := capability[backends.Pusher](e).Begin(e.ctx, r, resume)
	e.must(err, "Begin(%s)", r)
	return u
}

// push puts data in place as r, over whatever is there.
func (e *env) push(r backends.Ref, data []byte) backends.Image {
	e.Helper()
	if e.opts.Put != nil && !e.opts.HasPush {
		e.opts.Put(e.t, e.store, r, data)
		return e.stat(r)
	}
	var replaces *backends.Image
	old, err := e.store.Stat(e.ctx, r)
	if err == nil {
		replaces = &old
	} else if !errors.Is(err, iofs.ErrNotExist) {
		e.Fatalf("Stat(%s) before a push: %v", r, err)
	}
	img, err := e.tryPush(e.ctx, r, bytes.NewReader(data), int64(len(data)), contentOf(data, replaces))
	e.must(err, "push %s", r)
	return img
}

func (e *env) stat(r backends.Ref) backends.Image {
	e.Helper()
	img, err := e.store.Stat(e.ctx, r)
	e.must(err, "Stat(%s)", r)
	return img
}

// read reads a range whole.
func (e *env) read(img backends.Image, off, n int64) ([]byte, error) {
	rc, err := e.store.OpenRange(e.ctx, img, off, n)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

// wantContent checks that img reads as want.
func (e *env) wantContent(img backends.Image, want []byte) {
	e.Helper()
	got, err := e.read(img, 0, -1)
	if err != nil || !bytes.Equal(got, want) {
		e.Errorf("%s reads as %s, %v; want %s", img.Ref, brief(got), err, brief(want))
	}
}

// brief shows bytes in a message.
func brief(b []byte) string {
	if len(b) <= 16 {
		return fmt.Sprintf("%d bytes %x", len(b), b)
	}
	return fmt.Sprintf("%d bytes %x…%x", len(b), b[:8], b[len(b)-8:])
}

// list returns a complete listing. It fails when anything is in it twice.
func (e *env) list() listing {
	e.Helper()
	return e.listOf(e.store)
}

func (e *env) listOf(s backends.Store) listing {
	e.Helper()
	l := listing{images: map[string]backends.Image{}, collections: map[string]backends.Entry{}}
	for entry, err := range s.List(e.ctx) {
		e.must(err, "List")
		if entry.Collection != "" {
			if _, twice := l.collections[entry.Collection]; twice {
				e.Errorf("List yields the collection %q twice", entry.Collection)
			}
			l.collections[entry.Collection] = entry
			continue
		}
		img := entry.Image
		if img.Ref.IsZero() || img.Revision == "" {
			e.Errorf("List yields an image without name or revision: %+v", img)
		}
		if img.ID == "" && img.Key == "" {
			e.Errorf("List yields %s with neither ID nor Key", img.Ref)
		}
		if _, twice := l.images[identity(img)]; twice {
			e.Errorf("List yields %s twice", img.Ref)
		}
		l.images[identity(img)] = img
	}
	return l
}

// listing is what a store lists, images by identity.
type listing struct {
	images      map[string]backends.Image
	collections map[string]backends.Entry
}

// identity is what tells objects apart.
func identity(img backends.Image) string {
	if img.ID != "" {
		return "id " + img.ID
	}
	return "key " + img.Key
}

// named returns the images that are listed under r.
func (l listing) named(r backends.Ref) (found []backends.Image) {
	for _, img := range l.images {
		if img.Ref == r {
			found = append(found, img)
		}
	}
	return found
}

// refs are the listed names and revisions, for comparing.
func (l listing) refs() map[string]bool {
	m := map[string]bool{}
	for _, img := range l.images {
		m[img.Ref.String()+" "+img.Revision] = true
	}
	return m
}

// wantOne checks that r is listed once.
func (e *env) wantOne(r backends.Ref) {
	e.Helper()
	if found := e.list().named(r); len(found) != 1 {
		e.Errorf("%d images are listed as %s, want 1: %+v", len(found), r, found)
	}
}

// wantNone checks that there is nothing under r.
func (e *env) wantNone(r backends.Ref) {
	e.Helper()
	if found := e.list().named(r); len(found) != 0 {
		e.Errorf("%s is still listed: %+v", r, found)
	}
	_, err := e.store.Stat(e.ctx, r)
	e.wantErr(err, iofs.ErrNotExist, "Stat(%s)", r)
}

// capability returns the capability T, which the case needs.
func capability[T any](e *env) T {
	e.Helper()
	c, ok := backends.As[T](e.store)
	if !ok {
		e.Fatalf("the store is no %T", new(T))
	}
	return c
}

// reopen is the store as another process would open it.
func (e *env) reopen() backends.Store {
	e.Helper()
	if e.opts.Reopen == nil {
		return e.store
	}
	return e.opts.Reopen(e.t, e.store)
}

// eventually waits until ok, or for Opts.Settle.
func (e *env) eventually(ok func() bool) bool {
	deadline := time.Now().Add(e.opts.Settle)
	for !ok() {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(20 * time.Millisecond)
	}
	return true
}
