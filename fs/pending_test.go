package fs

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/cache/staging"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/index"
)

// TestSecondNodeOfAPush: the kernel forgets the node through which a file was
// written and gets another one for the name before the file is let go of. What
// was pushed is found through that one as well, also after a rename.
func TestSecondNodeOfAPush(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	x, err := index.Open(t.Context(), index.Options{Database: filepath.Join(dir, "a.db"), State: filepath.Join(dir, "b.db"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	objects, err := cache.Open(filepath.Join(dir, "objects"), cache.Options{Limit: 1 << 30, Parallel: 1, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	area, err := staging.Open(filepath.Join(dir, "staging"), staging.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	cat, err := catalog.New(map[string]backends.Store{"mem": backendtest.Memory()}, catalog.Options{Index: x, Cache: objects, Staging: area, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		cat.Close()
		if err := errors.Join(area.Close(), objects.Close(), x.Close()); err != nil {
			t.Error(err)
		}
	}()
	tree := &Tree{cat: cat, log: log, born: time.Now()}
	tree.pending.init()
	cl, ref := cat.Client("mem"), backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "red"}
	pf := tree.newPendingFile(cl, "pusheen", ".tmp.x", backends.Ref{}, nil)
	tree.pending.put(pf)
	first := &fileNode{tree: tree, cl: cl, dir: "pusheen", file: ".tmp.x", pf: pf}
	if !pf.hold(first) {
		t.Fatal("a new file cannot be held")
	}
	staged, err := pf.stage(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := staged.WriteAt([]byte("an image"), 0); err != nil {
		t.Fatal(err)
	}
	second := &fileNode{tree: tree, cl: cl, dir: "pusheen", file: ".tmp.x", pf: pf}
	if err := pf.commitAs(t.Context(), "pusheen", ref); err != nil {
		t.Fatal(err)
	}
	pf.letGo()
	img, err := second.image(t.Context())
	if err != nil || img.Ref.Latest() != ref {
		t.Errorf("the second node stands for %v, %v", img.Ref, err)
	}
	blue := backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "blue"}
	moved, err := cl.Rename(t.Context(), img, blue)
	if err != nil {
		t.Fatal(err)
	}
	second.renamed("pusheen", blue.File(), moved)
	if img, err = second.image(t.Context()); err != nil || img.Ref.Latest() != blue {
		t.Errorf("after a rename it stands for %v, %v", img.Ref, err)
	}
}
