package fs

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"unsafe"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/index"
)

// many is a store of n images in one collection.
type many struct {
	*backendtest.MemoryStore
	n int
}

func (m many) List(ctx context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		for i := range m.n {
			img := backends.Image{
				Ref:      backends.Ref{Collection: "c", Name: fmt.Sprintf("image%06d", i), Tag: "v1"},
				ID:       fmt.Sprintf("id:%06d", i),
				Key:      fmt.Sprintf("/c/image%06d:v1.simg", i),
				Revision: fmt.Sprint(i), Size: int64(i), Modified: time.Unix(int64(i), 0),
			}
			if !yield(backends.Entry{Image: img}, nil) {
				return
			}
		}
	}
}

// folder is the collection of a store of n images, known and listed, as the
// kernel would ask for it, without a kernel, and the calls of the store.
func folder(t *testing.T, n int, kernel fusefs.ServerCallbacks) (fuse.RawFileSystem, *dirNode, *backendtest.Counter) {
	t.Helper()
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	x, err := index.Open(t.Context(), index.Options{State: filepath.Join(dir, "state.db"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	store, calls := backendtest.Counting(many{backendtest.Memory(), n})
	cat, err := catalog.New(map[string]backends.Store{"mem": store}, catalog.Options{Index: x, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cat.Close()
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := cat.Client("mem").Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	indexed(t, filepath.Join(dir, "state.db"))
	calls.Reset()
	tree := &Tree{cat: cat, log: log, born: time.Now()}
	tree.pending.init()
	tree.nodes.init()
	d := &dirNode{tree: tree, cl: cat.Client("mem"), dir: "c"}
	return fusefs.NewNodeFS(d, &fusefs.Options{ServerCallbacks: kernel}), d, calls
}

// indexed waits until the search index is made, which takes memory of its own.
func indexed(t *testing.T, state string) {
	t.Helper()
	db, err := sql.Open("sqlite", state)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for left := 1; left > 0; time.Sleep(10 * time.Millisecond) {
		if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM search_queue`).Scan(&left); err != nil {
			t.Fatal(err)
		}
	}
}

// list reads a directory to its end, as ls -l does, or its names alone. It
// returns the numbers of the nodes that it was given, by name.
func list(t *testing.T, raw fuse.RawFileSystem, plus bool) (names int, ids map[string]uint64) {
	t.Helper()
	var opened fuse.OpenOut
	header := fuse.InHeader{NodeId: 1}
	if st := raw.OpenDir(nil, &fuse.OpenIn{InHeader: header}, &opened); !st.Ok() {
		t.Fatal(st)
	}
	defer raw.ReleaseDir(&fuse.ReleaseIn{InHeader: header, Fh: opened.Fh})
	ids = map[string]uint64{}
	for off := uint64(0); ; {
		buf := make([]byte, 4096)
		out := fuse.NewDirEntryList(buf, off)
		in := &fuse.ReadIn{InHeader: header, Fh: opened.Fh, Offset: off, Size: uint32(len(buf))}
		read := raw.ReadDir
		if plus {
			read = raw.ReadDirPlus
		}
		if st := read(nil, in, out); !st.Ok() {
			t.Fatal(st)
		}
		if out.Offset == off {
			return names, ids
		}
		n := int(out.Offset - off)
		names, off = names+n, out.Offset
		if plus {
			entries(buf, n, ids)
		}
	}
}

// entries takes n answers of READDIRPLUS apart (struct fuse_direntplus).
func entries(buf []byte, n int, ids map[string]uint64) {
	const entry, dirent = int(unsafe.Sizeof(fuse.EntryOut{})), 24
	for range n {
		id := binary.NativeEndian.Uint64(buf)
		length := int(binary.NativeEndian.Uint32(buf[entry+16:]))
		if name := string(buf[entry+dirent:][:length]); id != 0 {
			ids[name] = id
		}
		buf = buf[(entry+dirent+length+7)/8*8:]
	}
}

// TestListingOfManyImages: the names of a directory alone make no nodes, all
// about them makes small ones and asks the store of none, a second listing
// makes no more, and what the kernel forgets is gone.
func TestListingOfManyImages(t *testing.T) {
	const images = 2_000
	raw, d, calls := folder(t, images, nil)
	known := func(want int) {
		t.Helper()
		if got := len(d.Children()); got != want {
			t.Errorf("%d nodes, want %d", got, want)
		}
	}
	count := func(got int, _ map[string]uint64) {
		t.Helper()
		if got != images+2 {
			t.Errorf("%d names, want %d", got, images+2)
		}
	}
	count(list(t, raw, false))
	known(0)
	before := inUse()
	count(list(t, raw, true))
	known(images)
	each := (inUse() - before) / images
	t.Logf("%d bytes for each image", each)
	if each > 1000 {
		t.Errorf("%d bytes for each image, want at most 1000", each)
	}
	count(list(t, raw, true))
	known(images)
	for _, op := range []string{"list", "stat"} {
		if n := calls.Count(op); n > 0 {
			t.Errorf("the store was asked %d times: %s", n, op)
		}
	}
	_, ids := list(t, raw, true)
	if len(ids) != images {
		t.Errorf("%d nodes are given", len(ids))
	}
	for _, id := range ids {
		raw.Forget(id, 3) // as often as it was listed
	}
	known(0)
	if each := (inUse() - before) / images; each > 300 {
		t.Errorf("%d bytes stay behind for each image", each)
	}
	runtime.KeepAlive(raw)
}

// TestListingShowsWhatLookupShows: ls -l and stat say the same.
func TestListingShowsWhatLookupShows(t *testing.T) {
	raw, d, _ := folder(t, pageSize+3, nil)
	h := &dirHandle{n: d}
	names := 0
	for {
		e, errno := h.Readdirent(t.Context())
		if errno != 0 {
			t.Fatal(errno)
		}
		if e == nil {
			break
		}
		if e.Name == "." || e.Name == ".." {
			continue
		}
		names++
		var listed, asked fuse.EntryOut
		n, errno := h.Lookup(t.Context(), e.Name, &listed)
		if errno != 0 {
			t.Fatal(e.Name, errno)
		}
		if st := raw.Lookup(nil, &fuse.InHeader{NodeId: 1}, e.Name, &asked); !st.Ok() {
			t.Fatal(e.Name, st)
		}
		if listed.Size != asked.Size || listed.Mtime != asked.Mtime || listed.Mode != asked.Mode || listed.Ino != asked.Ino ||
			e.Ino != asked.Ino || n.StableAttr().Gen != asked.Generation {
			t.Fatalf("%s: listed %+v, asked %+v", e.Name, listed, asked)
		}
	}
	if names != pageSize+3 {
		t.Errorf("%d names", names)
	}
}

// TestListingWhileImagesGo: a name that has gone since the listing began is
// shown no more, and the others are shown all the same.
func TestListingWhileImagesGo(t *testing.T) {
	_, d, _ := folder(t, pageSize+3, nil)
	h := &dirHandle{n: d}
	if e, errno := h.Readdirent(t.Context()); errno != 0 || e == nil {
		t.Fatal(errno)
	}
	ref := backends.Ref{Collection: "c", Name: "image000001", Tag: "v1"}
	img, err := d.cl.Find(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.tree.cat.Index().RemoveImage(t.Context(), "mem", img); err != nil {
		t.Fatal(err)
	}
	var out fuse.EntryOut
	if n, errno := h.Lookup(t.Context(), ref.File(), &out); errno == 0 || n != nil {
		t.Errorf("what has gone is shown: %v, %v", n, errno)
	}
	ref.Name = fmt.Sprintf("image%06d", pageSize+2)
	if _, errno := h.Lookup(t.Context(), ref.File(), &out); errno != 0 {
		t.Error(errno)
	}
}

// inUse is how much of the heap is in use.
func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
