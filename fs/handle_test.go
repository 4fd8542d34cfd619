package fs

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// TestKeepPages: the kernel keeps its pages unless bytes turned out to be wrong
// since, and not before all are closed that may have read such bytes.
func TestKeepPages(t *testing.T) {
	n := new(fileNode)
	revoked := int64(0)
	open := func(what string, keep bool) {
		t.Helper()
		if got := n.keepPages(revoked) == fuse.FOPEN_KEEP_CACHE; got != keep {
			t.Errorf("%s: keeps pages: %v, want %v", what, got, keep)
		}
		n.cached++
	}
	closed := func() { n.cached-- }
	open("the first", true)
	open("the second", true)
	revoked++
	open("after a failure", false)
	open("while the first two read", false)
	closed()
	closed()
	closed()
	open("while one of before reads", false)
	closed()
	closed()
	open("after all have left", false)
	open("since then", true)
	closed()
	closed()
	open("later", true)
	revoked += 2
	closed()
	open("after two failures", false)
	open("beside one that came after them", true)
}
