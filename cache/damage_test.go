package cache

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sregfs/sregfs/test/bubble"
)

// TestDamageOnDisk alters a cache's files between two runs. Whatever was done
// to them, the next run serves the right bytes, and fetches no more than it
// must.
func TestDamageOnDisk(t *testing.T) {
	data := content(1<<20, 1)
	flip := func(at int64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			f, err := os.OpenFile(path+dataSuffix, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b := make([]byte, 1)
			f.ReadAt(b, at)
			b[0] ^= 0x10
			if _, err := f.WriteAt(b, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	edit := func(change func(*meta)) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			b, err := os.ReadFile(path + metaSuffix)
			if err != nil {
				t.Fatal(err)
			}
			m, err := parseMeta(b)
			if err != nil {
				t.Fatal(err)
			}
			change(&m)
			b, _ = json.Marshal(m)
			if err := os.WriteFile(path+metaSuffix, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	do := func(f func(path string) error) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := f(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	const none, one, all = 0, blockSize, 1 << 20
	for _, tc := range []struct {
		name   string
		damage func(t *testing.T, path string)
		// what is fetched again of the quarter that was read, and of a
		// complete object
		part, whole int64
	}{
		{"nothing", func(*testing.T, string) {}, none, none},
		{"a bit", flip(100_000), one, one},
		{"a bit in the last block", flip(1<<20 - 1), none, one},
		{"data cut", do(func(p string) error { return os.Truncate(p+dataSuffix, 300<<10) }), 0, 1<<20 - 9*blockSize},
		{"data empty", do(func(p string) error { return os.Truncate(p+dataSuffix, 0) }), 256 << 10, all},
		{"data gone", do(func(p string) error { return os.Remove(p + dataSuffix) }), 256 << 10, all},
		{"data a link", do(func(p string) error {
			os.WriteFile(p+"x", data, 0o600)
			os.Remove(p + dataSuffix)
			return os.Symlink(p+"x", p+dataSuffix)
		}), 256 << 10, all},
		{"map gone", do(func(p string) error { return os.Remove(p + mapSuffix) }), 256 << 10, all},
		{"map cut", do(func(p string) error { return os.Truncate(p+mapSuffix, 4*slotSize+3) }), 4 * blockSize, 1<<20 - 4*blockSize},
		{"map garbage", do(func(p string) error { return os.WriteFile(p+mapSuffix, bytes.Repeat([]byte("garbage!"), 32), 0o600) }), 256 << 10, all},
		{"description gone", do(func(p string) error { return os.Remove(p + metaSuffix) }), 256 << 10, all},
		{"description garbage", do(func(p string) error { return os.WriteFile(p+metaSuffix, []byte("{"), 0o600) }), 256 << 10, all},
		{"description of another", edit(func(m *meta) { m.Key = "other" }), 256 << 10, all},
		{"another nonce", edit(func(m *meta) { m.Nonce++ }), 256 << 10, all},
		{"complete, it says", edit(func(m *meta) { m.Complete = true }), none, none},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, whole := range []bool{false, true} {
				dir := t.TempDir()
				src := &source{data: data}
				spec := Spec{Key: "k", Size: int64(len(data)), Sum: sha(data), Fetcher: src}
				read := 256 << 10 // too little for the rest to be fetched
				if whole {
					read = len(data)
				}
				c := openCache(t, dir, Options{ReadAhead: -1})
				o := openObject(t, c, spec)
				mustRead(t, o, data, 0, read)
				if whole {
					if err := o.Fill(context.Background()); err != nil {
						t.Fatal(err)
					}
				}
				o.Close()
				c.Close()

				tc.damage(t, filepath.Join(dir, "objects", objectName("k")))

				c = openCache(t, dir, Options{ReadAhead: -1})
				_, before := src.count()
				o = openObject(t, c, spec)
				if f, ok := o.File(); ok {
					got := make([]byte, len(data))
					if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
						t.Errorf("whole %v: the kernel is given a damaged file", whole)
					}
				}
				for off := 0; off < read; off += 64 << 10 {
					mustRead(t, o, data, off, 64<<10)
				}
				want := tc.part
				if whole {
					want = tc.whole
				}
				if whole {
					if err := o.Fill(context.Background()); err != nil {
						t.Errorf("Fill: %v", err)
					}
					if _, after := src.count(); after-before != want {
						t.Errorf("whole: %d bytes were fetched again, want %d", after-before, want)
					}
				} else if _, after := src.count(); after-before != want {
					t.Errorf("part: %d bytes were fetched again, want %d", after-before, want)
				}
				mustRead(t, o, data, 0, len(data))
				o.Close()
				c.Close()
			}
		})
	}
}

// TestDamageWhileOpen alters the data file under an open object.
func TestDamageWhileOpen(t *testing.T) {
	dir := t.TempDir()
	data := content(1<<20, 1)
	src := &source{data: data}
	c := openCache(t, dir, Options{})
	o := openObject(t, c, Spec{Key: "k", Size: int64(len(data)), Sum: sha(data), Fetcher: src})
	if err := o.Fill(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "objects", objectName("k")+dataSuffix), 100_000); err != nil {
		t.Fatal(err)
	}
	mustRead(t, o, data, 0, len(data))
	if s := c.Stats(); s.BadBlocks == 0 {
		t.Error("the damage was not counted")
	}
}

func TestLockVersionModesLinks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	c := openCache(t, dir, Options{})
	_, err := Open(dir, Options{Log: quiet()})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second Open: %v", err)
	}
	src := &source{data: content(100_000, 1)}
	o := openObject(t, c, Spec{Key: "k", Size: 100_000, Fetcher: src})
	if err := o.Fill(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := c.Pin("p", true); err != nil {
		t.Fatal(err)
	}
	o.Close()
	c.Close()
	filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err != nil || fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v (%v)", path, fi.Mode(), err)
		}
		return nil
	})

	for content, want := range map[string]error{
		"sregfs-cache 2\n": ErrVersion, "sregfs-cache x\n": nil, "": nil, "something else": nil,
	} {
		os.WriteFile(filepath.Join(dir, "version"), []byte(content), 0o600)
		if c, err := Open(dir, Options{Log: quiet()}); err == nil || (want != nil && !errors.Is(err, want)) {
			t.Errorf("version %q: %v", content, err)
			if c != nil {
				c.Close()
			}
		}
	}
	os.WriteFile(filepath.Join(dir, "version"), []byte("sregfs-cache 1\n"), 0o600)

	// A link in the place of the objects would lead out of the cache.
	objects := filepath.Join(dir, "objects")
	os.Rename(objects, dir+"/elsewhere")
	os.Symlink(dir+"/elsewhere", objects)
	if c, err := Open(dir, Options{Log: quiet()}); err == nil {
		t.Error("a symbolic link was followed")
		c.Close()
	}
}

func TestSweepsLeavings(t *testing.T) {
	dir := t.TempDir()
	openCache(t, dir, Options{}).Close()
	objects := filepath.Join(dir, "objects")
	name := objectName("x")
	for _, f := range []string{"tmp.ABC", name + dataSuffix, name + mapSuffix} {
		os.WriteFile(filepath.Join(objects, f), []byte("x"), 0o600)
	}
	os.WriteFile(filepath.Join(objects, "notes.txt"), []byte("somebody's"), 0o600)
	openCache(t, dir, Options{}).Close()
	left, _ := os.ReadDir(objects)
	if len(left) != 1 || left[0].Name() != "notes.txt" {
		t.Errorf("left: %v", left)
	}
}

func FuzzDescription(f *testing.F) {
	b, _ := json.Marshal(meta{Version: 1, Key: "k", Size: 5, Block: blockSize, Nonce: 7})
	f.Add(b)
	f.Add([]byte(`{"version":1,"size":1e30}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err != nil {
			return
		}
		if m.Size < 0 || m.blocks() < 0 || m.Key == "" {
			t.Errorf("accepted %+v", m)
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseMeta(again); err != nil {
			t.Errorf("what was read cannot be read again: %v", err)
		}
	})
}

// TestCompleteNeedsNoMap: what the kernel reads by itself is opened without the
// checksums of its blocks, of which there are many.
func TestCompleteNeedsNoMap(t *testing.T) {
	dir, data := t.TempDir(), content(1<<20, 1)
	src := &source{data: data}
	spec := Spec{Key: "k", Size: int64(len(data)), Fetcher: src}
	c := openCache(t, dir, Options{})
	o := openObject(t, c, spec)
	if err := o.Fill(context.Background()); err != nil {
		t.Fatal(err)
	}
	o.Close()
	c.Close()
	if err := os.Truncate(filepath.Join(dir, "objects", objectName("k")+mapSuffix), 0); err != nil {
		t.Fatal(err)
	}
	_, before := src.count()
	o = openObject(t, openCache(t, dir, Options{}), spec)
	if f, ok := o.File(); !ok {
		t.Error("there is no file for the kernel")
	} else {
		got := make([]byte, len(data))
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
			t.Errorf("the kernel's file is another: %v", err)
		}
	}
	if _, after := src.count(); after != before {
		t.Errorf("opening it fetched %d bytes", after-before)
	}
	// Who reads it through us needs them.
	mustRead(t, o, data, 0, len(data))
	if _, after := src.count(); after == before {
		t.Error("bytes without a checksum were trusted")
	}
}

// TestSyncFails: what the disk could not make durable is fetched again before the
// object counts as complete, and is right after the power was lost.
func TestSyncFails(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d := newMemDisk()
		failed := false
		d.before = func(op, name string) error {
			if op != "sync" || failed || filepath.Ext(name) != dataSuffix {
				return nil
			}
			// Linux tells of it once, and takes the pages for written.
			failed = true
			d.names[name].writes = nil
			return syscall.EIO
		}
		c, err := open(d, Options{Log: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		spec, src := keySpec(1, 8*blockSize)
		o := mustOpen(t, c, spec)
		for range 2 {
			mustRead(t, o, src.data, 0, len(src.data))
			time.Sleep(time.Minute)
		}
		if _, served := src.count(); !failed || served < 2*int64(len(src.data)) {
			t.Errorf("%d bytes were fetched after a failure", served)
		}
		if !o.Complete() {
			t.Error("it is not complete")
		}
		d = d.crash(rand.New(rand.NewPCG(1, 1)))
		o.Close()
		c.Close()
		if c, err = open(d, Options{Log: quiet()}); err != nil {
			t.Fatal(err)
		}
		o = mustOpen(t, c, spec)
		mustRead(t, o, src.data, 0, len(src.data))
		o.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestUnsealFails: that an object is not complete any more is written down as soon
// as the disk allows it, if it did not at first.
func TestUnsealFails(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d := newMemDisk()
		spec, src := keySpec(1, 64*blockSize)
		run := func() *Cache {
			c, err := open(d, Options{Log: quiet(), ReadAhead: -1})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		complete := func() bool {
			d.mu.Lock()
			defer d.mu.Unlock()
			m, err := parseMeta(d.names[objectName(spec.Key)+metaSuffix].data)
			if err != nil {
				t.Fatal(err)
			}
			return m.Complete
		}
		c := run()
		fillAndClose(t, c, spec)
		if err := c.Close(); err != nil || !complete() {
			t.Fatalf("the object is complete: %v, %v", complete(), err)
		}

		// Two blocks go bad, and cannot be had again.
		const first, second = 3, 40
		for _, b := range []int{first, second} {
			d.names[objectName(spec.Key)+dataSuffix].data[b*blockSize] ^= 1
		}
		src.fault = func(int, int64, int64, io.Reader) (io.Reader, error) { return nil, syscall.ECONNRESET }
		var failed atomic.Bool
		d.before = func(_, name string) error {
			if failed.Load() || !strings.HasSuffix(name, metaSuffix) && !strings.HasPrefix(name, "tmp.") {
				return nil
			}
			failed.Store(true)
			return syscall.ENOSPC
		}
		c = run()
		o := mustOpen(t, c, spec)
		for _, b := range []int{first, second} {
			if _, err := o.ReadAt(t.Context(), make([]byte, 10), int64(b)*blockSize); err == nil {
				t.Fatal("a damaged block was read")
			}
			time.Sleep(time.Minute)
			if failed.Load() && b == first && !complete() {
				t.Fatal("the first try did not fail")
			}
		}
		if !failed.Load() || complete() {
			t.Errorf("the description still says that the object is complete; the disk failed: %v", failed.Load())
		}
		o.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// slowLast is a body that stands still for three seconds after so many bytes.
type slowLast struct {
	body  io.Reader
	n     int64
	after int64
}

func (s *slowLast) Read(p []byte) (int, error) {
	if s.n < s.after {
		p = p[:min(int64(len(p)), s.after-s.n)]
	} else if s.n == s.after {
		time.Sleep(3 * time.Second)
	}
	n, err := s.body.Read(p)
	s.n += int64(n)
	return n, err
}

// tooLong is a fault: the first answer has one byte more than was asked for, none
// of them right, and its end comes after its beginning was written down.
func tooLong(blocks int) func(int, int64, int64, io.Reader) (io.Reader, error) {
	return func(req int, _, _ int64, body io.Reader) (io.Reader, error) {
		if req > 0 {
			return body, nil
		}
		n := blocks * blockSize
		return &slowLast{body: bytes.NewReader(content(n+1, 99)), after: int64(n - blockSize)}, nil
	}
}

// TestTooLongIsForgotten: what came in an answer that was too long does not come
// back with the next opening.
func TestTooLongIsForgotten(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d := newMemDisk()
		c, err := open(d, Options{Log: quiet(), ReadAhead: -1})
		if err != nil {
			t.Fatal(err)
		}
		const part = 8 * blockSize
		spec, src := keySpec(1, 64*blockSize)
		src.fault = tooLong(8)
		o := mustOpen(t, c, spec)
		if _, err := o.ReadAt(t.Context(), make([]byte, part), 0); !errors.Is(err, ErrLength) {
			t.Fatal(err)
		}
		o.Close()
		time.Sleep(time.Minute)
		o = mustOpen(t, c, spec)
		mustRead(t, o, src.data, 0, part)
		o.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestDroppedWhileHashed: the checksums are those of the bytes that are here in
// the end, whenever others were dropped.
func TestDroppedWhileHashed(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		done := make(chan Completed, 10)
		d := newMemDisk()
		c, err := open(d, Options{Log: quiet(), ReadAhead: -1, OnComplete: func(c Completed) { done <- c }})
		if err != nil {
			t.Fatal(err)
		}
		spec, src := keySpec(1, 256*blockSize)
		src.fault = tooLong(40)
		var reads atomic.Int32
		d.afterRead = func() {
			if reads.Add(1) == 20 {
				time.Sleep(4 * time.Second)
			}
		}
		o := mustOpen(t, c, spec)
		time.AfterFunc(time.Second, func() { mustOpen(t, c, spec).Close() }) // has it hashed
		if _, err := o.ReadAt(t.Context(), make([]byte, 40*blockSize), 0); !errors.Is(err, ErrLength) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if reads.Load() < 20 {
			t.Fatal("nothing was hashed meanwhile")
		}
		if err := o.Fill(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		o.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		close(done)
		if told := <-done; told.SHA256 != sha(src.data).Hex || len(done) > 0 {
			t.Errorf("told %+v and %d more; want SHA-256 %s", told, len(done), sha(src.data).Hex)
		}
	})
}

// TestOneFailedNote: what the disk refused to note once is noted later: with what
// comes next, or when the object is closed.
func TestOneFailedNote(t *testing.T) {
	for _, suffix := range []string{metaSuffix, mapSuffix} {
		for _, more := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, more %v", suffix, more), func(t *testing.T) {
				bubble.Test(t, func(t *testing.T) {
					d := newMemDisk()
					var failed atomic.Bool
					d.before = func(_, name string) error {
						if failed.Load() || !strings.HasSuffix(name, suffix) && (suffix != metaSuffix || !strings.HasPrefix(name, "tmp.")) {
							return nil
						}
						failed.Store(true)
						return syscall.ENOSPC
					}
					c, err := open(d, Options{Log: quiet(), ReadAhead: -1})
					if err != nil {
						t.Fatal(err)
					}
					spec, src := keySpec(1, 64*blockSize)
					o := mustOpen(t, c, spec)
					mustRead(t, o, src.data, 0, 8*blockSize)
					time.Sleep(time.Minute)
					if more {
						mustRead(t, o, src.data, 32*blockSize, 8*blockSize)
						time.Sleep(time.Minute)
					}
					want := o.Cached()
					o.Close()
					time.Sleep(time.Minute)
					if err := c.Close(); err != nil {
						t.Error(err)
					}
					if c, err = open(d, Options{Log: quiet(), ReadAhead: -1}); err != nil {
						t.Fatal(err)
					}
					if have, _, _ := c.Stat(spec.Key); !failed.Load() || have != want {
						t.Errorf("%d bytes are here after the next start, want %d; the disk failed: %v", have, want, failed.Load())
					}
					if err := c.Close(); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}
