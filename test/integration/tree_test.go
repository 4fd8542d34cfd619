//go:build integration

package integration

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/cache/staging"
	"github.com/sregfs/sregfs/fs"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/index"
)

// mountStores mounts stores in this very process, for tests that need to reach
// into them. Everything ends with the test.
func mountStores(t *testing.T, stores map[string]backends.Store) (mnt string, cat *catalog.Catalog) {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	x, err := index.Open(t.Context(), index.Options{Database: filepath.Join(dir, "sregistry.db"), State: filepath.Join(dir, "state.db"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open(filepath.Join(dir, "objects"), cache.Options{Limit: 4 << 30, Parallel: 9, Log: log,
		OnComplete: func(done cache.Completed) { cat.Learnt(done.Key, done.MD5) }})
	if err != nil {
		t.Fatal(err)
	}
	area, err := staging.Open(filepath.Join(dir, "staging"), staging.Options{Reserve: c.Reserve, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if cat, err = catalog.New(stores, catalog.Options{Index: x, Cache: c, Staging: area, Log: log}); err != nil {
		t.Fatal(err)
	}
	cat.Start()
	for _, cl := range cat.Clients() {
		// What is done beside the first listing may show in it for a moment more.
		if err := cl.Listed(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	mnt = filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	tree, err := fs.Mount(mnt, cat, fs.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() {
		if err := tree.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
		}
		tree.Wait()
		cat.Close()
		for _, err := range []error{area.Close(), c.Close(), x.Close()} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	return mnt, cat
}

// testWriter sends a daemon's log to the test's.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(string(p[:len(p)-1]))
	return len(p), nil
}
