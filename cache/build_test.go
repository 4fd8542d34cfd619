package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestBuildOnce(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, _ *memDisk) {
		data := content(500_000, 1)
		var runs int
		build := func(ctx context.Context, w *Writer) error {
			runs++
			if err := sleep(ctx, time.Second); err != nil {
				return err
			}
			for _, p := range [][]byte{data[:1000], data[1000:200_000], data[200_000:]} {
				if _, err := w.Write(p); err != nil {
					return err
				}
			}
			return w.Commit(int64(len(data)))
		}
		short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if _, err := c.Build(short, "b", build); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a builder whose context ended: %v", err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				o, err := c.Build(context.Background(), "b", build)
				if err != nil {
					t.Error(err)
					return
				}
				defer o.Close()
				mustRead(t, o, data, 0, len(data))
			})
		}
		wg.Wait()
		if runs != 1 {
			t.Errorf("built %d times", runs)
		}

		// Nobody waits: it is cancelled after the grace.
		cause := make(chan error, 1)
		slow := func(ctx context.Context, w *Writer) error {
			<-ctx.Done()
			cause <- ctx.Err()
			return ctx.Err()
		}
		short, cancel = context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		start := time.Now()
		c.Build(short, "slow", slow)
		<-cause
		if d := time.Since(start); d != time.Second+buildGrace {
			t.Errorf("an abandoned build was cancelled after %v", d)
		}

		// An error goes to all who wait; nothing is left; the next builds anew.
		boom := errors.New("boom")
		fails := 0
		bad := func(ctx context.Context, w *Writer) error {
			fails++
			w.Write(data)
			time.Sleep(time.Second)
			return boom
		}
		for range 3 {
			wg.Go(func() {
				if _, err := c.Build(context.Background(), "bad", bad); !errors.Is(err, boom) {
					t.Errorf("a failed build: %v", err)
				}
			})
		}
		wg.Wait()
		if fails != 1 {
			t.Errorf("failed %d times", fails)
		}
		if _, err := c.Build(context.Background(), "none", func(context.Context, *Writer) error { return nil }); err == nil {
			t.Error("a build without a commit succeeded")
		}
		if n, _, _ := c.Stat("bad"); n != 0 {
			t.Error("half a build is visible")
		}
	})
}

// TestBuildSums: what is written in odd pieces has the checksums by which its
// blocks are checked when they are read from disk. Nobody is told of such an
// object.
func TestBuildSums(t *testing.T) {
	told := 0
	inBubble(t, Options{OnComplete: func(Completed) { told++ }}, func(t *testing.T, c *Cache, _ *memDisk) {
		for _, size := range []int{1, blockSize, 5*blockSize + 1, 40*blockSize - 1} {
			data := content(size, uint64(size))
			build := func(claim int) (*Object, error) {
				return c.Build(context.Background(), fmt.Sprint(size), func(ctx context.Context, w *Writer) error {
					for off, n := 0, 1; off < size; off, n = off+n, n*3 {
						if _, err := w.Write(data[off:min(off+n, size)]); err != nil {
							return err
						}
					}
					return w.Commit(int64(claim))
				})
			}
			if o, err := build(size + 1); err == nil {
				t.Errorf("%d bytes were taken for one more", size)
				o.Close()
			}
			o, err := build(size)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			o.l.distrust(0, o.l.blocks)
			mustRead(t, o, data, 0, size)
			o.Close()
		}
		if n := c.Stats().BadBlocks; n != 0 || told != 0 {
			t.Errorf("%d bad blocks, %d objects told of", n, told)
		}
	})
}

// TestBuildEndsWithItsContext: also while what is here is being checked.
func TestBuildEndsWithItsContext(t *testing.T) {
	inBubble(t, Options{ReadAhead: -1}, func(t *testing.T, c *Cache, d *memDisk) {
		spec, src := keySpec(1, 4*blockSize)
		o := mustOpen(t, c, spec)
		defer o.Close()
		d.afterRead = func() { time.Sleep(time.Minute) } // only the check reads
		mustRead(t, o, src.data, 0, len(src.data))
		synctest.Wait() // until the last block is on disk
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := c.Build(ctx, spec.Key, func(context.Context, *Writer) error {
			t.Error("what is here was built")
			return nil
		})
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != time.Second {
			t.Errorf("Build: %v after %v, want %v after a second", err, took, context.DeadlineExceeded)
		}
	})
}

func TestWriterKeepsToTheLimit(t *testing.T) {
	inBubble(t, Options{Limit: 1 << 20}, func(t *testing.T, c *Cache, d *memDisk) {
		w, err := c.Create(context.Background(), "big")
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Write(make([]byte, 2<<20))
		if !errors.Is(err, ErrNoRoom) {
			t.Errorf("a write past the limit: %v", err)
		}
		w.Abort()
		if s := c.Stats(); s.Used != 0 || d.used() != 0 {
			t.Errorf("after Abort: %+v, %d on disk", s, d.used())
		}
	})
}

func TestAdoptIntoAnOpenObject(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, filepath.Join(dir, "cache"), Options{})
	spec, src := keySpec(1, 20*blockSize)
	o := openObject(t, c, spec)
	mustRead(t, o, src.data, 0, 10)
	path := filepath.Join(dir, "staged")
	if err := os.WriteFile(path, src.data[1:], 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.Adopt("k1", path, int64(len(src.data)), nil); err == nil {
		t.Error("a file of another size was adopted")
	}
	if err := os.WriteFile(path, src.data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.Adopt("k1", path, int64(len(src.data)), nil); err != nil {
		t.Fatal(err)
	}
	before, _ := src.count()
	mustRead(t, o, src.data, 0, len(src.data))
	if after, _ := src.count(); after != before || !o.Complete() {
		t.Errorf("after Adopt %d requests were made, complete %v", after-before, o.Complete())
	}
	if f, ok := o.File(); !ok {
		t.Error("no File")
	} else if fi, err := f.Stat(); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	// What the kernel may be reading stays.
	f, ok := o.File()
	if err := os.WriteFile(path, src.data, 0o644); err != nil || !ok {
		t.Fatal(err, ok)
	}
	if err := c.Adopt("k1", path, int64(len(src.data)), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Stat(); err != nil {
		t.Errorf("the file of an open object was taken away: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the staged file is still there: %v", err)
	}
	// A link is not adopted.
	os.Symlink(path, path+"link")
	if err := c.Adopt("k2", path+"link", 10, nil); err == nil {
		t.Error("a link was adopted")
	}
}

// TestAdoptNeedsNoSecondRoom: what is reserved for a file is room enough to
// keep it, but for its description.
func TestAdoptNeedsNoSecondRoom(t *testing.T) {
	const size = 20 * blockSize
	for _, tc := range []struct {
		limit, used int64
		want        error
	}{
		{size + overhead(size), size + overhead(size), nil},
		{size, 0, ErrNoRoom},
	} {
		dir := t.TempDir()
		c := openCache(t, filepath.Join(dir, "cache"), Options{Limit: tc.limit})
		path := filepath.Join(dir, "staged")
		if err := os.WriteFile(path, content(size, 1), 0o600); err != nil {
			t.Fatal(err)
		}
		release, err := c.Reserve(size)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Adopt("k", path, size, release); !errors.Is(err, tc.want) {
			t.Errorf("limit %d: Adopt: %v, want %v", tc.limit, err, tc.want)
		}
		if s := c.Stats(); s.Used != tc.used || s.Reserved != 0 {
			t.Errorf("limit %d: %d used, %d reserved, want %d and 0", tc.limit, s.Used, s.Reserved, tc.used)
		}
		if _, err := os.Stat(path); (err == nil) != (tc.want != nil) {
			t.Errorf("limit %d: the staged file: %v", tc.limit, err)
		}
	}
}

func TestAdoptAcrossFileSystems(t *testing.T) {
	path := filepath.Join(t.TempDir(), "staged")
	data := content(200_000, 1)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	inBubble(t, Options{Limit: 300_000}, func(t *testing.T, c *Cache, d *memDisk) {
		d.before = func(op, name string) error {
			if op == "write" {
				return syscall.EIO
			}
			return nil
		}
		if err := c.Adopt("k", path, int64(len(data)), nil); !errors.Is(err, syscall.EIO) {
			t.Errorf("Adopt onto a broken disk: %v", err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("a file that could not be adopted is gone: %v", err)
		}
		d.before = nil
		if err := c.Adopt("k", path, int64(len(data)), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Error("the adopted file is still there")
		}
		o := mustOpen(t, c, Spec{Key: "k", Size: -1})
		mustRead(t, o, data, 0, len(data))
		o.Close()
		if s := c.Stats(); s.Used != int64(len(data))+overhead(int64(len(data))) {
			t.Errorf("the account is off: %+v", s)
		}
	})
}
