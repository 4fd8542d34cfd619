package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sregfs/sregfs/test/bubble"
)

func keySpec(i, size int) (Spec, *source) {
	src := &source{data: content(size, uint64(i))}
	return Spec{Key: fmt.Sprint("k", i), Size: int64(size), Fetcher: src}, src
}

// fillAndClose has all of an object fetched.
func fillAndClose(t *testing.T, c *Cache, spec Spec) {
	t.Helper()
	o, err := c.Object(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if err := o.Fill(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func here(c *Cache, n int) (keys []int) {
	for i := range n {
		if cached, _, _ := c.Stat(fmt.Sprint("k", i)); cached > 0 {
			keys = append(keys, i)
		}
	}
	return keys
}

func TestEviction(t *testing.T) {
	const size = 10 * blockSize
	inBubble(t, Options{Limit: 4*(size+overhead(size)) + 100}, func(t *testing.T, c *Cache, d *memDisk) {
		for i := range 4 {
			spec, _ := keySpec(i, size)
			fillAndClose(t, c, spec)
			time.Sleep(time.Minute)
		}
		// 0 is the oldest; used again, it is the youngest.
		spec, _ := keySpec(0, size)
		fillAndClose(t, c, spec)
		spec, _ = keySpec(4, size)
		fillAndClose(t, c, spec)
		if got := fmt.Sprint(here(c, 5)); got != "[0 2 3 4]" {
			t.Errorf("the cache has %v, want [0 2 3 4]", got)
		}
		// What is pinned stays, what is open too.
		if err := c.Pin("k2", true); err != nil {
			t.Fatal(err)
		}
		spec, src3 := keySpec(3, size)
		open3 := mustOpen(t, c, spec)
		for i := 5; i < 8; i++ {
			spec, _ := keySpec(i, size)
			fillAndClose(t, c, spec)
		}
		if got := fmt.Sprint(here(c, 8)); got != "[2 3 6 7]" {
			t.Errorf("the cache has %v, want [2 3 6 7]", got)
		}
		mustRead(t, open3, src3.data, 0, size)
		if n, _ := src3.count(); n != 0 {
			t.Error("an open object was evicted")
		}
		// So does what is reserved.
		release, err := c.Reserve(2 * size)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(here(c, 8)); got != "[2 3]" {
			t.Errorf("with a reservation the cache has %v, want [2 3]", got)
		}
		if _, err := c.Reserve(size); !errors.Is(err, ErrNoRoom) {
			t.Errorf("a reservation that cannot be had: %v", err)
		}
		spec, src8 := keySpec(8, size)
		o8 := mustOpen(t, c, spec)
		mustRead(t, o8, src8.data, 0, size)
		if err := o8.Fill(context.Background()); !errors.Is(err, ErrNoRoom) {
			t.Errorf("Fill without room: %v", err)
		}
		if s := c.Stats(); s.Uncached == 0 || s.Reserved != 2*size {
			t.Errorf("stats: %+v", s)
		}
		o8.Close()
		release()
		release()
		if s := c.Stats(); s.Reserved != 0 {
			t.Errorf("%d reserved after release", s.Reserved)
		}
		open3.Close()
		if err := c.Pin("k2", false); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Reserve(3 * size); err != nil {
			t.Error(err)
		}
		if got := fmt.Sprint(here(c, 8)); got != "[2]" && got != "[3]" && got != "[]" {
			t.Errorf("unpinned and closed, the cache has %v", got)
		}
		if d.used() > c.opts.Limit {
			t.Errorf("%d bytes on disk", d.used())
		}
	})
}

// TestUseSurvivesRestart: the order of eviction and pins are durable.
func TestUseSurvivesRestart(t *testing.T) {
	const size = 4 * blockSize
	dir := t.TempDir()
	c := openCache(t, dir, Options{})
	for i := range 3 {
		spec, _ := keySpec(i, size)
		fillAndClose(t, c, spec)
		c.flushAll()
	}
	if err := c.Pin("k1", true); err != nil {
		t.Fatal(err)
	}
	spec, _ := keySpec(0, size)
	openObject(t, c, spec).Close()
	c.Close()
	c = openCache(t, dir, Options{Limit: 2 * (size + overhead(size))})
	if err := c.charge(0, false); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(here(c, 3)); got != "[0 1]" {
		t.Errorf("after a restart with a lower limit the cache has %v, want [0 1]", got)
	}
	if !c.Pinned("k1") || c.Pinned("k0") {
		t.Error("the pins were lost")
	}
}

// TestHardLimit has many readers of many objects against a small limit, and
// looks all the time at what the disk holds.
func TestHardLimit(t *testing.T) {
	const size, limit = 300_000, 1_000_000
	inBubble(t, Options{Limit: limit}, func(t *testing.T, c *Cache, d *memDisk) {
		ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
		defer cancel()
		var specs [10]Spec
		for i := range specs {
			specs[i], _ = keySpec(i, size)
			specs[i].Fetcher.(*source).rtt = time.Millisecond
		}
		var wg sync.WaitGroup
		for w := range 16 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(w), 1))
				for ctx.Err() == nil {
					spec := specs[r.IntN(len(specs))]
					src := spec.Fetcher.(*source)
					o, err := c.Object(spec)
					if err != nil {
						t.Error(err)
						return
					}
					for range 4 {
						n := 1 + r.IntN(100_000)
						mustRead(t, o, src.data, r.IntN(size-n), n)
						time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
					}
					o.Close()
				}
			})
		}
		for ctx.Err() == nil {
			if used := d.used(); used > limit {
				t.Errorf("%d bytes on disk", used)
				cancel()
			}
			if s := c.Stats(); s.Used+s.Reserved > limit || s.Used < 0 {
				t.Errorf("account: %+v", s)
				cancel()
			}
			time.Sleep(7 * time.Millisecond)
		}
		wg.Wait()
		c.flushAll()
		synctest.Wait()
		if s := c.Stats(); s.Evictions == 0 || s.Used < d.used() {
			t.Errorf("%d bytes are on disk, the account says %+v", d.used(), s)
		}
	})
}

// TestCommitUnderATransfer: an object that is committed while a transfer brings
// it is charged once, whatever room the transfer has taken.
func TestCommitUnderATransfer(t *testing.T) {
	const size = 64 * blockSize
	inBubble(t, Options{ReadAhead: -1, Limit: 4 * size}, func(t *testing.T, c *Cache, _ *memDisk) {
		spec, src := keySpec(1, size)
		held, release := io.Pipe()
		src.fault = func(_ int, _, _ int64, r io.Reader) (io.Reader, error) {
			return io.MultiReader(io.LimitReader(r, 2*blockSize), held, r), nil
		}
		o := mustOpen(t, c, spec)
		go o.ReadAt(context.Background(), make([]byte, size), 0)
		synctest.Wait()
		w, err := c.Create(context.Background(), spec.Key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(src.data); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(size); err != nil {
			t.Fatal(err)
		}
		release.Close()
		synctest.Wait()
		if used, want := c.Stats().Used, size+overhead(size); used != want {
			t.Errorf("%d bytes are charged, want %d", used, want)
		}
		o.Close()
		if err := c.Remove(spec.Key); err != nil {
			t.Error(err)
		}
		if used := c.Stats().Used; used != 0 {
			t.Errorf("%d bytes are charged for nothing", used)
		}
	})
}

// TestDiskFull: reads go on without the disk, and use it again when it can be
// used again.
func TestDiskFull(t *testing.T) {
	for _, errno := range []error{syscall.ENOSPC, syscall.EIO, syscall.EROFS} {
		t.Run(errno.Error(), func(t *testing.T) {
			inBubble(t, Options{}, func(t *testing.T, c *Cache, d *memDisk) {
				full := true
				d.before = func(op, name string) error {
					if full {
						return errno
					}
					return nil
				}
				const n = 4 << 20
				src := &source{data: content(n, 1), rtt: 20 * time.Millisecond, pipe: &pipe{rate: mbit200}}
				o := mustOpen(t, c, specOf(src))
				start := time.Now()
				for off := 0; off < n; off += 128 << 10 {
					mustRead(t, o, src.data, off, 128<<10)
				}
				took, plain := time.Since(start), download(n, src.rtt, mbit200)
				if took > 2*plain {
					t.Errorf("reading without a disk took %v, a download %v", took, plain)
				}
				if _, served := src.count(); served > n {
					t.Errorf("%d bytes were fetched of %d", served, n)
				}
				if err := o.Fill(context.Background()); !errors.Is(err, errno) {
					t.Errorf("Fill: %v", err)
				}
				if s := c.Stats(); s.Uncached == 0 || s.DiskErrors == 0 || o.Cached() != 0 {
					t.Errorf("cached %d, %+v", o.Cached(), s)
				}
				full = false
				if err := o.Fill(context.Background()); err != nil {
					t.Errorf("Fill, with room again: %v", err)
				}
				mustRead(t, o, src.data, 0, n)
				o.Close()
			})
		})
	}
}

// TestDiskFullOfOldObjects: a disk that is full below the limit is made use of
// by giving up what was used least recently.
func TestDiskFullOfOldObjects(t *testing.T) {
	const size = 10 * blockSize
	inBubble(t, Options{}, func(t *testing.T, c *Cache, d *memDisk) {
		for i := range 3 {
			spec, _ := keySpec(i, size)
			fillAndClose(t, c, spec)
			c.flushAll()
		}
		d.before = func(op, name string) error {
			if op == "write" && len(d.names) > 9 { // three files each
				return syscall.ENOSPC
			}
			return nil
		}
		spec, _ := keySpec(3, size)
		fillAndClose(t, c, spec)
		if got := fmt.Sprint(here(c, 4)); got != "[1 2 3]" {
			t.Errorf("the cache has %v, want [1 2 3]", got)
		}
	})
}

func TestManyOpenObjects(t *testing.T) {
	c := openCache(t, t.TempDir(), Options{})
	c.fds.max = 8
	var objects []*Object
	var wants [][]byte
	for i := range 80 {
		spec, src := keySpec(i, 3*blockSize)
		o := openObject(t, c, spec)
		objects, wants = append(objects, o), append(wants, src.data)
		mustRead(t, o, src.data, 0, 100)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 9))
			for range 200 {
				i := r.IntN(len(objects))
				mustRead(t, objects[i], wants[i], r.IntN(2*blockSize), blockSize)
			}
		})
	}
	wg.Wait()
	if n := len(c.fds.open); n > 8 {
		t.Errorf("%d files are open", n)
	}
	// A file that the kernel reads from stays open.
	if err := objects[0].Fill(context.Background()); err != nil {
		t.Fatal(err)
	}
	f, ok := objects[0].File()
	if !ok {
		t.Fatal("no File")
	}
	for i, o := range objects[1:] {
		mustRead(t, o, wants[i+1], 0, 10)
	}
	p := make([]byte, 3*blockSize)
	if _, err := f.ReadAt(p, 0); err != nil || !bytes.Equal(p, wants[0]) {
		t.Errorf("a File in use was closed: %v", err)
	}
	objects[0].Close()
	c.flushAll()
	if _, err := f.ReadAt(p, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the File of a closed object: %v", err)
	}
}

func TestRemove(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, d *memDisk) {
		if err := c.Remove("unknown"); err != nil {
			t.Error(err)
		}
		spec, src := keySpec(1, 64*blockSize)
		o := mustOpen(t, c, spec)
		mustRead(t, o, src.data, 0, 10*blockSize)
		c.Pin("k1", true)
		o.Close()
		if err := c.Remove("k1"); err != nil { // not yet saved
			t.Fatal(err)
		}
		if c.Pinned("k1") || len(d.names) != 0 || c.Stats().Used != 0 {
			t.Errorf("left: %v, %+v", d, c.Stats())
		}
	})
}

// TestRemoveOfAnObjectOpenedAgain: Remove waits for what an object's last
// reader left under way, but not for the next one to close it.
func TestRemoveOfAnObjectOpenedAgain(t *testing.T) {
	inBubble(t, Options{ReadAhead: -1}, func(t *testing.T, c *Cache, _ *memDisk) {
		spec, src := keySpec(1, 64*blockSize)
		held, release := io.Pipe() // a body that does not end with its context
		src.fault = func(req int, _, _ int64, r io.Reader) (io.Reader, error) {
			if req == 0 {
				return io.MultiReader(held, r), nil
			}
			return r, nil
		}
		o := mustOpen(t, c, spec)
		go o.ReadAt(context.Background(), make([]byte, 10), 0)
		synctest.Wait()
		o.Close()
		removed := make(chan error, 1)
		go func() { removed <- c.Remove("k1") }()
		synctest.Wait()
		o = mustOpen(t, c, spec)
		synctest.Wait()
		select {
		case err := <-removed:
			if !errors.Is(err, ErrInUse) {
				t.Errorf("Remove: %v, want %v", err, ErrInUse)
			}
		default:
			t.Error("Remove waits until the object is closed again")
		}
		release.Close()
		if err := o.Fill(context.Background()); err != nil {
			t.Errorf("Fill: %v", err)
		}
		o.Close()
	})
}

func TestTraceAndPrefetch(t *testing.T) {
	inBubble(t, Options{ReadAhead: -1}, func(t *testing.T, c *Cache, _ *memDisk) {
		src := &source{data: content(16<<20, 1), rtt: 20 * time.Millisecond}
		o := mustOpen(t, c, specOf(src))
		for _, off := range []int{5 << 20, 1 << 20, 1<<20 + blockSize, 9 << 20, 5 << 20, 16<<20 - 10} {
			mustRead(t, o, src.data, off, 10)
		}
		trace := o.Trace()
		want := []Range{{5 << 20, blockSize}, {1 << 20, 2 * blockSize}, {9 << 20, blockSize}, {16<<20 - blockSize, blockSize}}
		if fmt.Sprint(trace) != fmt.Sprint(want) {
			t.Errorf("Trace %v, want %v", trace, want)
		}
		o.Close()
		if err := c.Remove("k"); err != nil {
			t.Fatal(err)
		}
		o = mustOpen(t, c, specOf(src))
		defer o.Close()
		before, _ := src.count()
		start := time.Now()
		o.Prefetch(append(trace, Range{-5, 3}, Range{1 << 40, 5}, Range{0, 0}))
		time.Sleep(21 * time.Millisecond)
		for _, r := range trace {
			mustRead(t, o, src.data, int(r.Off), int(r.N))
		}
		if d := time.Since(start); d > 30*time.Millisecond {
			t.Errorf("with hints the reads took %v, want one round trip", d)
		}
		if after, _ := src.count(); after-before != 4 {
			t.Errorf("%d requests, want 4", after-before)
		}
	})
}

// TestEvictionAfterTrouble: objects that could not be evicted while the disk
// refused it are when it is well again.
func TestEvictionAfterTrouble(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const n = 16 * blockSize
		d := newMemDisk()
		c, err := open(d, Options{Log: quiet(), ReadAhead: -1, Limit: 4 * (n + overhead(n))})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			spec, _ := keySpec(i, n)
			fillAndClose(t, c, spec)
		}
		time.Sleep(time.Minute)
		d.fails(func(string, string) error { return syscall.EROFS })
		spec, src := keySpec(10, n)
		o := mustOpen(t, c, spec)
		mustRead(t, o, src.data, 0, n)
		o.Close()
		time.Sleep(time.Hour)
		d.fails(nil)
		spec, _ = keySpec(11, n)
		fillAndClose(t, c, spec)
		release, err := c.Reserve(blockSize)
		if err != nil {
			t.Fatal(err)
		}
		release()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestChargedOnce: blocks that have to be fetched again are not charged again,
// though the object was closed in between.
func TestChargedOnce(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const n = 64 * blockSize
		c, err := open(newMemDisk(), Options{Log: quiet(), ReadAhead: -1, Limit: n + n/2})
		if err != nil {
			t.Fatal(err)
		}
		spec, src := keySpec(1, n)
		spec.Sum = sha(src.data)
		src.fault = func(req int, off, k int64, body io.Reader) (io.Reader, error) {
			if req > 0 {
				time.Sleep(10 * time.Second)
				return body, nil
			}
			wrong := bytes.Clone(src.data[off : off+k])
			wrong[0] ^= 1
			return bytes.NewReader(wrong), nil
		}
		o := mustOpen(t, c, spec)
		_, _ = o.ReadAt(t.Context(), make([]byte, n), 0) // it may be found out after it or before
		time.Sleep(5 * time.Second)
		o.Close()
		time.Sleep(time.Minute)
		fillAndClose(t, c, spec)
		if used := c.Stats().Used; used > n+overhead(n) {
			t.Errorf("%d bytes are charged for %d", used, n+overhead(n))
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestGivenBackOnce: room for a file that is not needed, and cannot be removed,
// is given back once.
func TestGivenBackOnce(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const n = 16 * blockSize
		d := newMemDisk()
		c, err := open(d, Options{Log: quiet(), ReadAhead: -1})
		if err != nil {
			t.Fatal(err)
		}
		spec, src := keySpec(1, n)
		fill := func() error {
			w, err := c.Create(t.Context(), spec.Key)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(src.data); err != nil {
				t.Fatal(err)
			}
			return w.Commit(n)
		}
		if err := fill(); err != nil {
			t.Fatal(err)
		}
		o := mustOpen(t, c, spec)
		d.fails(func(op, _ string) error {
			if op == "remove" {
				return syscall.EIO
			}
			return nil
		})
		if err := fill(); err == nil {
			t.Error("the file was removed")
		}
		d.fails(nil)
		if used := c.Stats().Used; used != n+overhead(n) {
			t.Errorf("%d bytes are charged, want %d", used, n+overhead(n))
		}
		o.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}
