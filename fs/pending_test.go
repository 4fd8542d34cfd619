package fs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/cache/staging"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/image/imagetest"
	"github.com/sregfs/sregfs/index"
)

// newTestTree is a tree of one store in memory, "mem", that nobody has mounted.
func newTestTree(t *testing.T) *Tree {
	t.Helper()
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
	tree := &Tree{cat: cat, log: log, born: time.Now(), notify: make(chan notice, 100)}
	tree.pending.init()
	t.Cleanup(func() {
		tree.work.Wait()
		cat.Close()
		if err := errors.Join(area.Close(), objects.Close(), x.Close()); err != nil {
			t.Error(err)
		}
	})
	return tree
}

// TestSecondNodeOfAPush: the kernel forgets the node through which a file was
// written and gets another one for the name before the file is let go of. What
// was pushed is found through that one as well, also after a rename.
func TestSecondNodeOfAPush(t *testing.T) {
	tree := newTestTree(t)
	cl, ref := tree.cat.Client("mem"), backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "red"}
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

// TestOwedPush: a close was answered because another program had the file open
// too, and that one let go of it without a close. What was owed is done then, or
// told, and the bytes are kept: who closed it may have removed the source.
func TestOwedPush(t *testing.T) {
	whole, err := os.ReadFile(imagetest.SIF(t, imagetest.Opts{Seed: 1, NoShell: true, ExtraBytes: 100_000}))
	if err != nil {
		t.Fatal(err)
	}
	ref := backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "red"}
	for _, c := range []struct {
		name               string
		data               []byte
		owed, killed       bool
		pushed, told, kept bool
	}{
		{name: "unknown", data: []byte("of no known kind"), owed: true, pushed: true},
		{name: "truncated", data: whole[:len(whole)/2], owed: true, told: true, kept: true},
		{name: "whole", data: whole, owed: true, pushed: true},
		{name: "unknown, the last writer killed", data: []byte("of no known kind"), owed: true, killed: true, told: true, kept: true},
		{name: "truncated, the last writer killed", data: whole[:len(whole)/2], owed: true, killed: true, told: true, kept: true},
		{name: "unknown, the only writer killed", data: []byte("of no known kind"), killed: true, kept: true},
		{name: "truncated, the only writer killed", data: whole[:len(whole)/2], killed: true, told: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := newTestTree(t)
			cl := tree.cat.Client("mem")
			pf := tree.newPendingFile(cl, "pusheen", ref.File(), ref, nil)
			tree.pending.put(pf)
			n := &fileNode{tree: tree, cl: cl, dir: "pusheen", file: ref.File(), pf: pf}
			pf.hold(n)
			staged, err := pf.stage(t.Context(), true)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := staged.WriteAt(c.data, 0); err != nil {
				t.Fatal(err)
			}
			pf.owed = c.owed
			if c.killed {
				// The kernel calls off the wait of a program that is killed.
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				_ = tree.fail("push", pf.path(), pf.close(ctx, n, true))
			}
			pf.letGo()
			tree.work.Wait()
			img, err := cl.Store.Stat(t.Context(), ref)
			if pushed := err == nil && img.Size == int64(len(c.data)); pushed != c.pushed {
				t.Errorf("the remote has %d bytes (%v); pushed is %v, want %v", img.Size, err, pushed, c.pushed)
			}
			if failures := tree.cat.Failures(); len(failures) > 0 != c.told || len(failures) > 1 {
				t.Errorf("failures are %+v, want one: %v", failures, c.told)
			}
			held := tree.cat.Held()
			if len(held) > 0 != c.kept {
				t.Fatalf("held is %+v, want some: %v", held, c.kept)
			}
			if c.kept {
				if got, err := os.ReadFile(held[0].File); err != nil || !bytes.Equal(got, c.data) {
					t.Errorf("%d other bytes are held, want %d: %v", len(got), len(c.data), err)
				}
			}
		})
	}
}
