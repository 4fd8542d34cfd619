package fs

import (
	"slices"
	"testing"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// forgetter is a kernel that forgets each name that it is told of, which it has
// seen in one listing.
type forgetter struct {
	fusefs.ServerCallbacks
	raw   fuse.RawFileSystem
	ids   map[string]uint64
	names []string
}

func (k *forgetter) EntryNotify(parent uint64, name string) fuse.Status {
	k.names = append(k.names, name)
	k.raw.Forget(k.ids[name], 1)
	return fuse.OK
}

// TestForgetListed: when too many images are known, the kernel forgets those
// that were listed some time ago, but none that is in use, and none while
// somebody is busy in their directory.
func TestForgetListed(t *testing.T) {
	const images = 100
	k := &forgetter{}
	raw, d, _ := folder(t, images, k)
	k.raw, d.tree.nodes.max = raw, images-1
	s := &d.tree.nodes
	_, k.ids = list(t, raw, true)
	if n := s.count.Load(); n != images {
		t.Fatalf("%d nodes are counted, want %d", n, images)
	}
	select {
	case <-s.wake:
	default:
		t.Error("nobody is told that there are too many")
	}
	const used = "image000007:v1.simg"
	d.GetChild(used).Operations().(*fileNode).cached++

	if d, wait := s.oldest(); d != nil || wait <= 0 {
		t.Fatalf("what was just listed may go after %v", wait)
	}
	end := d.acts.begin()
	d.tree.forgetFiles(d)
	end()
	if len(k.names) > 0 {
		t.Errorf("the kernel is told of %d names in a busy directory", len(k.names))
	}
	s.stay = 0
	if got, _ := s.oldest(); got != d {
		t.Fatal("the busy directory's turn does not come again")
	}
	for !d.acts.calm() {
		time.Sleep(actsCalm / 4)
	}
	d.tree.forgetFiles(d)
	if len(k.names) != images-1 || slices.Contains(k.names, used) {
		t.Errorf("the kernel is told of %d names, want all but the one in use", len(k.names))
	}
	if n := s.count.Load(); n != 1 || len(d.Children()) != 1 {
		t.Errorf("%d nodes are counted and %d there, want 1", n, len(d.Children()))
	}
	if got, wait := s.oldest(); got != nil || wait != 0 {
		t.Errorf("it goes on with %v after %v", got, wait)
	}
}
