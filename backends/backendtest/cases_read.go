package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"maps"
	"runtime"
	"strings"
	"sync"

	"github.com/sregfs/sregfs/backends"
)

// big is more than connections and buffers on the way hold, so that a reader
// that stops halfway leaves something unread.
const big = 16 << 20

var basicCases = []testCase{
	{"Capabilities/Declared", nil, func(e *env) {
		check := func(name string, declared, found bool) {
			if declared != found {
				e.Errorf("%s: declared %v, the store has it: %v", name, declared, found)
			}
		}
		check("Pusher", e.opts.HasPush, has[backends.Pusher](e))
		check("Remover", e.opts.HasRemove, has[backends.Remover](e))
		check("Renamer", e.opts.HasRename, has[backends.Renamer](e))
		check("Collector", e.opts.HasCollections, has[backends.Collector](e))
		check("CollectionFinder", e.opts.FindsCollections, has[backends.CollectionFinder](e))
		check("Sharer", e.opts.HasShare, has[backends.Sharer](e))
		check("Searcher", e.opts.HasSearch, has[backends.Searcher](e))
		check("Finder", e.opts.HasFind, has[backends.Finder](e))
		check("Versioner", e.opts.HasVersions, has[backends.Versioner](e))
		check("Watcher", e.opts.HasWatch, has[backends.Watcher](e))
		check("Usager", e.opts.HasUsage, has[backends.Usager](e))
		check("Accounter", e.opts.HasAccount, has[backends.Accounter](e))
		f, ok := backends.As[backends.CaseFolder](e.store)
		check("FoldsCase", e.opts.FoldsCase, ok && f.FoldsCase())
	}},
	{"List/Empty", nil, func(e *env) {
		if l := e.list(); len(l.images) != 0 {
			e.Errorf("a new store lists %v", l.images)
		}
	}},
	{"List/CompleteOnce", nil, func(e *env) {
		want := map[backends.Ref]int{}
		for i, r := range []backends.Ref{
			ref("pusheen", "asaurus", "red"), ref("pusheen", "asaurus", "blue"), ref("pusheen", "asaurus", "latest"),
			ref("pusheen", "other", "red"), ref("vsoch", "asaurus", "red"), ref("a/b/c", "nested", "x"), ref("a", "upper", "x"),
		} {
			want[r] = 100 + i
			e.push(r, random(uint64(i), want[r]))
		}
		l := e.list()
		for r, size := range want {
			found := l.named(r)
			if len(found) != 1 {
				e.Errorf("%s is listed %d times", r, len(found))
				continue
			}
			if found[0].Size != int64(size) {
				e.Errorf("%s: listed size %d, want %d", r, found[0].Size, size)
			}
			now := e.stat(r)
			if identity(now) != identity(found[0]) || now.Revision != found[0].Revision || now.Sum != found[0].Sum {
				e.Errorf("%s: List says %+v, Stat %+v", r, found[0], now)
			}
		}
		if len(l.images) != len(want) {
			e.Errorf("%d images are listed, want %d", len(l.images), len(want))
		}
		if ids := count(l, func(i backends.Image) bool { return i.ID != "" }); e.opts.HasIDs != (ids > 0) {
			e.Errorf("HasIDs is %v, but %d of %d images have an ID", e.opts.HasIDs, ids, len(want))
		}
	}},
	{"List/OutsideCollections", nil, func(e *env) {
		r := ref("", "alone", "x")
		e.wantContent(e.push(r, []byte("outside")), []byte("outside"))
		e.wantOne(r)
	}},
	{"List/Pages", func(o Opts) bool { return o.PageSize > 0 }, func(e *env) {
		total := 0
		for _, upTo := range []int{e.opts.PageSize, e.opts.PageSize + 1} {
			for ; total < upTo; total++ {
				e.push(ref("", fmt.Sprintf("image%04d", total), "x"), []byte{byte(total)})
			}
			if n := len(e.list().images); n != total {
				e.Errorf("with pages of %d, %d of %d images are listed", e.opts.PageSize, n, total)
			}
		}
	}},
	{"List/StopsWhenAsked", nil, func(e *env) {
		for i := range 5 {
			e.push(ref("c", fmt.Sprintf("i%d", i), "x"), []byte("x"))
		}
		e.wantNoLeak(func() {
			for _, err := range e.store.List(e.ctx) {
				e.must(err, "List")
				break
			}
		})
	}},
	{"List/Cancelled", nil, func(e *env) {
		e.push(ref("c", "i", "x"), []byte("x"))
		e.push(ref("c", "j", "x"), []byte("x"))
		ctx, cancel := context.WithCancel(e.ctx)
		cancel()
		n := 0
		for _, err := range e.store.List(ctx) {
			n++
			e.wantErr(err, context.Canceled, "List with a cancelled context")
		}
		if n != 1 {
			e.Errorf("List with a cancelled context yields %d times, want one error", n)
		}
		// In the midst of it: an error, or a complete listing.
		ctx, cancel = context.WithCancel(e.ctx)
		defer cancel()
		images, failed := 0, false
		for entry, err := range e.store.List(ctx) {
			if failed {
				e.Fatalf("List goes on after an error: %+v, %v", entry, err)
			}
			if err != nil {
				failed = true
				e.wantErr(err, context.Canceled, "List cancelled on the way")
			} else if entry.Collection == "" {
				images++
			}
			cancel()
		}
		if !failed && images != 2 {
			e.Errorf("List was cancelled, ended without an error, and had %d of 2 images", images)
		}
	}},
	{"Stat/Absent", nil, func(e *env) {
		e.push(ref("c", "i", "x"), []byte("x"))
		for _, r := range []backends.Ref{
			ref("c", "i", "y"), ref("c", "j", "x"), ref("d", "i", "x"), ref("c/i", "i", "x"), ref("", "i", "x"),
			ref("c", "i", "x").WithVersion("d41d8cd98f00b204e9800998ecf8427e"), ref("c", "i", "x").WithVersion("no-such"),
		} {
			img, err := e.store.Stat(e.ctx, r)
			if !errors.Is(err, iofs.ErrNotExist) {
				e.Errorf("Stat(%s) = %+v, %v; want ErrNotExist", r, img, err)
			} else if !strings.Contains(err.Error(), r.Name+":"+r.Tag) {
				e.Errorf("Stat(%s): the error does not name the image: %v", r, err)
			}
		}
	}},
	{"Stat/ByTag", nil, func(e *env) {
		red, blue := ref("c", "i", "red"), ref("c", "i", "blue")
		e.push(red, []byte("red"))
		e.push(blue, []byte("blue!"))
		for r, want := range map[backends.Ref]string{red: "red", blue: "blue!"} {
			img := e.stat(r)
			if img.Ref != r || img.Size != int64(len(want)) {
				e.Errorf("Stat(%s) = %s, %d bytes", r, img.Ref, img.Size)
			}
			e.wantContent(img, []byte(want))
		}
	}},
	{"Stat/ByVersion", nil, func(e *env) {
		r := ref("c", "i", "x")
		img := e.push(r, []byte("content"))
		for what, v := range map[string]string{"version": img.Version, "revision": img.Revision, "checksum": img.Sum.Hex} {
			if v == "" || strings.ContainsAny(v, "/") {
				continue
			}
			got, err := e.store.Stat(e.ctx, r.WithVersion(v))
			if err != nil || got.Ref != r.WithVersion(v) || got.Revision != img.Revision {
				e.Errorf("Stat by %s %q = %+v, %v; want that image under that name", what, v, got, err)
			}
		}
	}},
	{"Stat/Cancelled", nil, func(e *env) {
		r := ref("c", "i", "x")
		e.push(r, []byte("x"))
		ctx, cancel := context.WithCancel(e.ctx)
		cancel()
		_, err := e.store.Stat(ctx, r)
		e.wantErr(err, context.Canceled, "Stat with a cancelled context")
	}},
}

var readCases = []testCase{
	{"OpenRange/Ranges", nil, func(e *env) {
		const size = 3*4096 + 17
		data := random(1, size)
		img := e.push(ref("c", "i", "x"), data)
		for _, c := range []struct{ off, n int64 }{
			{0, -1}, {0, 0}, {0, 1}, {0, 10}, {0, size}, {0, size + 1}, {0, 4096}, {0, 4097},
			{1, -1}, {17, 100}, {4095, 2}, {4096, 4096}, {4096, 4097}, {8192, -1},
			{size - 10, 10}, {size - 10, 100}, {size - 1, 1}, {size - 1, -1},
			{size, -1}, {size, 0}, {size, 10}, {size + 1, 10}, {size + 1000, -1}, {1 << 40, 1 << 20},
		} {
			from := min(c.off, size)
			to := int64(size)
			if c.n >= 0 {
				to = min(size, from+c.n)
			}
			got, err := e.read(img, c.off, c.n)
			if err != nil || !bytes.Equal(got, data[from:to]) {
				e.Errorf("OpenRange(%d, %d) = %s, %v; want %s", c.off, c.n, brief(got), err, brief(data[from:to]))
			}
		}
	}},
	{"OpenRange/Negative", nil, func(e *env) {
		img := e.push(ref("c", "i", "x"), []byte("content"))
		if got, err := e.read(img, -1, 3); err == nil {
			e.Errorf("OpenRange(-1, 3) = %q, want an error", got)
		}
	}},
	{"OpenRange/CloseEarly", nil, func(e *env) {
		img := e.push(ref("c", "i", "x"), random(2, big))
		e.wantNoLeak(func() {
			rc, err := e.store.OpenRange(e.ctx, img, 5, -1)
			e.must(err, "OpenRange")
			if _, err := io.ReadFull(rc, make([]byte, 1)); err != nil {
				e.Errorf("Read: %v", err)
			}
			if err := rc.Close(); err != nil {
				e.Errorf("Close before the end: %v", err)
			}
		})
	}},
	{"OpenRange/Cancelled", nil, func(e *env) {
		img := e.push(ref("c", "i", "x"), []byte("content"))
		ctx, cancel := context.WithCancel(e.ctx)
		cancel()
		rc, err := e.store.OpenRange(ctx, img, 0, -1)
		if err == nil {
			_, err = io.ReadAll(rc)
			rc.Close()
		}
		e.wantErr(err, context.Canceled, "OpenRange with a cancelled context")
	}},
	{"OpenRange/CancelledOnTheWay", nil, func(e *env) {
		img := e.push(ref("c", "i", "x"), random(3, big))
		ctx, cancel := context.WithCancel(e.ctx)
		defer cancel()
		rc, err := e.store.OpenRange(ctx, img, 0, -1)
		e.must(err, "OpenRange")
		defer rc.Close()
		_, err = io.ReadFull(rc, make([]byte, 1000))
		e.must(err, "Read")
		cancel()
		_, err = io.Copy(io.Discard, rc)
		e.wantErr(err, context.Canceled, "reading on after the context was cancelled")
	}},
	{"OpenRange/UnknownRevision", nil, func(e *env) {
		img := e.push(ref("c", "i", "x"), []byte("content"))
		// A revision of the store's own form, that no image has any more.
		other := e.push(ref("c", "j", "x"), []byte("other content"))
		img.Revision, img.Version, img.Sum = other.Revision, other.Version, other.Sum
		if img.Revision == other.Revision && identity(img) == identity(other) {
			e.Fatal("two images have one identity")
		}
		got, err := e.read(img, 0, -1)
		// A store of contents may well have it: then it is that content.
		if err == nil && string(got) == "other content" {
			return
		}
		e.wantErr(err, backends.ErrStale, "OpenRange of a revision that the image does not have (read %q)", got)
	}},
	{"OpenRange/Removed", func(o Opts) bool { return o.HasRemove }, func(e *env) {
		img := e.push(ref("c", "i", "x"), []byte("content"))
		e.must(capability[backends.Remover](e).Remove(e.ctx, img), "Remove")
		got, err := e.read(img, 0, -1)
		if err == nil && string(got) == "content" {
			return // kept in a bin, still that version
		}
		if !errors.Is(err, backends.ErrStale) && !errors.Is(err, iofs.ErrNotExist) {
			e.Errorf("OpenRange of a removed image = %q, %v; want ErrStale", got, err)
		}
	}},
	{"OpenRange/ReplacedBefore", nil, func(e *env) {
		r := ref("c", "i", "x")
		old := random(4, 100_000)
		img := e.push(r, old)
		now := e.push(r, random(5, 100_000))
		e.wantOldOrStale(old, func() ([]byte, error) { return e.read(img, 0, -1) })
		e.wantOldOrStale(old[50_000:], func() ([]byte, error) { return e.read(img, 50_000, -1) })
		e.wantContent(now, random(5, 100_000))
	}},
	{"OpenRange/ReplacedWhileOpen", nil, func(e *env) {
		r := ref("c", "i", "x")
		old := random(6, big)
		img := e.push(r, old)
		rc, err := e.store.OpenRange(e.ctx, img, 0, -1)
		e.must(err, "OpenRange")
		defer rc.Close()
		head := make([]byte, 10_000)
		_, err = io.ReadFull(rc, head)
		e.must(err, "Read")
		e.push(r, random(7, big))
		e.wantOldOrStale(old, func() ([]byte, error) {
			tail, err := io.ReadAll(rc)
			return append(head, tail...), err
		})
	}},
	{"OpenRange/Concurrent", nil, func(e *env) {
		data := random(8, 1<<20)
		r := ref("c", "i", "x")
		img := e.push(r, data)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				off := int64(i) * 100_000
				got, err := e.read(img, off, 200_000)
				if want := data[off : off+200_000]; err != nil || !bytes.Equal(got, want) {
					e.Errorf("OpenRange(%d, 200000) beside others = %s, %v", off, brief(got), err)
				}
				if _, err := e.store.Stat(e.ctx, r); err != nil {
					e.Errorf("Stat beside others: %v", err)
				}
				for _, err := range e.store.List(e.ctx) {
					if err != nil {
						e.Errorf("List beside others: %v", err)
					}
				}
			})
		}
		wg.Wait()
	}},
}

func has[T any](e *env) bool {
	_, ok := backends.As[T](e.store)
	return ok
}

func count(l listing, ok func(backends.Image) bool) (n int) {
	for img := range maps.Values(l.images) {
		if ok(img) {
			n++
		}
	}
	return n
}

// wantOldOrStale checks that a read of a version that was replaced gives its
// bytes or ErrStale.
func (e *env) wantOldOrStale(old []byte, read func() ([]byte, error)) {
	e.Helper()
	got, err := read()
	switch {
	case errors.Is(err, backends.ErrStale):
	case err != nil:
		e.Errorf("reading what was replaced: %v, want the old bytes or ErrStale", err)
	case !bytes.Equal(got, old):
		e.Errorf("reading what was replaced gives %s, want the old bytes %s or ErrStale", brief(got), brief(old))
	}
}

// wantNoLeak runs f many times and checks that no goroutines stay. A few may,
// of connections that are kept for later.
func (e *env) wantNoLeak(f func()) {
	e.Helper()
	for range 3 {
		f()
	}
	const times, spare = 20, 10
	before := runtime.NumGoroutine()
	for range times {
		f()
	}
	now := 0
	if e.eventually(func() bool { now = runtime.NumGoroutine(); return now <= before+spare }) {
		return
	}
	buf := make([]byte, 1<<16)
	e.Errorf("%d goroutines after %d times, %d before:\n%s", now, times, before, buf[:runtime.Stack(buf, true)])
}
