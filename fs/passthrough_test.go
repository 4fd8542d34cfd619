package fs

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// fakeKernel numbers the files that it is told of, never with the same number
// twice, as the kernel does.
type fakeKernel struct {
	t     *testing.T
	last  int32
	open  map[int32]bool
	errno syscall.Errno
}

func (k *fakeKernel) RegisterBackingFd(m *fuse.BackingMap) (int32, syscall.Errno) {
	if k.errno != 0 {
		return 0, k.errno
	}
	k.last += 1 << 20
	k.open[k.last] = true
	return k.last, 0
}

func (k *fakeKernel) UnregisterBackingFd(id int32) syscall.Errno {
	if !k.open[id] {
		k.t.Errorf("the file %d is taken back, which the kernel does not have", id)
	}
	delete(k.open, id)
	return 0
}

// answering is a tree whose every open is answered with its flags.
type answering struct {
	fuse.RawFileSystem
	flags uint32
}

func (a *answering) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = a.flags
	return fuse.OK
}

func newTestPassthrough(t *testing.T) (*passthrough, *fakeKernel, *answering) {
	k := &fakeKernel{t: t, open: map[int32]bool{}}
	tree := &answering{RawFileSystem: fuse.NewDefaultRawFileSystem()}
	p := newPassthrough(tree, slog.New(slog.DiscardHandler))
	p.kernel = k
	return p, k, tree
}

// TestPassthroughOpens: an open is answered with the kernel's own number of the
// file whose slot the node named, whatever other files came and went, and an
// open without a slot as the node said.
func TestPassthroughOpens(t *testing.T) {
	p, k, tree := newTestPassthrough(t)
	f := os.Stdin
	p.last = maxSlot - 2 // so that the slots begin again
	held := map[uint32]int32{}
	for i := range 8 {
		slot := p.hold(f)
		if slot == 0 || slot > maxSlot || held[slot] != 0 {
			t.Fatalf("hold = %d beside %v", slot, slices.Collect(maps.Keys(held)))
		}
		held[slot] = k.last
		if i%3 == 2 {
			p.letGo(slot)
			delete(held, slot)
		}
	}
	if len(k.open) != len(held) {
		t.Errorf("the kernel has %d files, want %d", len(k.open), len(held))
	}
	for slot, id := range held {
		tree.flags = slot << slotShift
		var out fuse.OpenOut
		if status := p.Open(nil, &fuse.OpenIn{}, &out); !status.Ok() || out.BackingID != id || out.OpenFlags != fuse.FOPEN_PASSTHROUGH {
			t.Errorf("open in slot %d: %v with file %d and flags %#x, want file %d", slot, status, out.BackingID, out.OpenFlags, id)
		}
	}
	tree.flags = fuse.FOPEN_KEEP_CACHE
	var out fuse.OpenOut
	if p.Open(nil, &fuse.OpenIn{}, &out); out.BackingID != 0 || out.OpenFlags != fuse.FOPEN_KEEP_CACHE {
		t.Errorf("an ordinary open is answered with file %d and flags %#x", out.BackingID, out.OpenFlags)
	}
}

// TestPassthroughRefused: a kernel that cannot do it is not asked again, one
// that is short of something is.
func TestPassthroughRefused(t *testing.T) {
	for errno, again := range map[syscall.Errno]bool{syscall.EPERM: false, syscall.ENOTTY: false, syscall.ELOOP: false, syscall.ENOMEM: true} {
		p, k, _ := newTestPassthrough(t)
		k.errno = errno
		if slot := p.hold(os.Stdin); slot != 0 {
			t.Errorf("%v: hold = %d", errno, slot)
		}
		k.errno = 0
		if slot := p.hold(os.Stdin); slot != 0 != again {
			t.Errorf("after %v: hold = %d", errno, slot)
		}
	}
}

// TestPassCounts: handles on one inode that are passed through share one file,
// which the kernel has as long as there are any; beside handles of other kinds
// there are none.
func TestPassCounts(t *testing.T) {
	p, k, _ := newTestPassthrough(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "object"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := &fileNode{tree: &Tree{pass: p}}
	n.cached++
	if n.pass(f) {
		t.Error("passed through beside a handle through the page cache")
	}
	n.letGo(&n.cached)
	for range 3 {
		if !n.pass(f) {
			t.Fatal("not passed through")
		}
	}
	if len(k.open) != 1 || n.passed != 3 {
		t.Errorf("%d files for %d handles", len(k.open), n.passed)
	}
	for range 3 {
		if len(k.open) != 1 {
			t.Errorf("%d files while handles are open", len(k.open))
		}
		n.letGo(&n.passed)
	}
	if len(k.open) != 0 || n.slot != 0 {
		t.Errorf("%d files, slot %d after the last handle", len(k.open), n.slot)
	}
}
