package local

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// TestWatcherHoldsLittle: the picture of a folder of very many images takes
// little memory for each.
func TestWatcherHoldsLittle(t *testing.T) {
	const images = 5000
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "collection"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range images {
		if err := os.WriteFile(filepath.Join(dir, "collection", fmt.Sprintf("image%06d:v1.simg", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, err := New(dir, Options{NoInotify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := inUse()
	w := newWatcher(s)
	if err := w.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	each := (inUse() - before) / images
	if n := len(w.dirs["collection"].images); n != images {
		t.Fatalf("%d images in the picture", n)
	}
	t.Logf("%d bytes for each image", each)
	if each > 250 {
		t.Errorf("%d bytes for each image, want at most 250", each)
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
