package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sregfs/sregfs/test/bubble"
)

// inBubble runs do in virtual time with a cache on a disk in memory.
func inBubble(t *testing.T, o Options, do func(t *testing.T, c *Cache, d *memDisk)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) {
		if o.Log == nil {
			o.Log = quiet()
		}
		d := newMemDisk()
		c, err := open(d, o)
		if err != nil {
			t.Fatal(err)
		}
		do(t, c, d)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

func mustOpen(t *testing.T, c *Cache, spec Spec) *Object {
	t.Helper()
	o, err := c.Object(spec)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func specOf(src *source) Spec {
	return Spec{Key: "k", Size: int64(len(src.data)), Fetcher: src}
}

func TestReadersShareOneRequest(t *testing.T) {
	inBubble(t, Options{ReadAhead: -1}, func(t *testing.T, c *Cache, _ *memDisk) {
		src := &source{data: content(1<<20, 1), rtt: 20 * time.Millisecond, pipe: &pipe{rate: mbit200}}
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				o := mustOpen(t, c, specOf(src)) // 64 handles of one object
				defer o.Close()
				p := make([]byte, 100<<10)
				if _, err := o.ReadAt(context.Background(), p, int64(i)); err != nil || !bytes.Equal(p, src.data[i:i+100<<10]) {
					t.Errorf("reader %d: %v", i, err)
				}
				time.Sleep(time.Second) // so that none closes before all have read
			})
		}
		wg.Wait()
		if n, b := src.count(); n != 1 || b != 4*blockSize {
			t.Errorf("64 readers made %d requests of %d bytes, want 1 of %d", n, b, 4*blockSize)
		}
	})
}

func TestWokenAsBytesArrive(t *testing.T) {
	inBubble(t, Options{ReadAhead: -1}, func(t *testing.T, c *Cache, _ *memDisk) {
		src := &source{data: content(1<<20, 1), pipe: &pipe{rate: 1 << 20}} // a second in all
		o := mustOpen(t, c, specOf(src))
		defer o.Close()
		whole := make(chan time.Duration)
		start := time.Now()
		go func() {
			o.ReadAt(context.Background(), make([]byte, 1<<20), 0)
			whole <- time.Since(start)
		}()
		time.Sleep(time.Millisecond)
		mustRead(t, o, src.data, 0, 10)
		if d := time.Since(start); d > 50*time.Millisecond {
			t.Errorf("the first bytes of a transfer under way came after %v", d)
		}
		if d := <-whole; d < 900*time.Millisecond {
			t.Errorf("the whole came after %v", d)
		}
		if n, _ := src.count(); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
	})
}

func TestCancelEndsOnlyTheWait(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, _ *memDisk) {
		src := &source{data: content(1<<20, 1), rtt: time.Second}
		o := mustOpen(t, c, specOf(src))
		defer o.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := o.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a read whose context ended: %v", err)
		}
		if d := time.Since(start); d != 10*time.Millisecond {
			t.Errorf("it returned after %v", d)
		}
		mustRead(t, o, src.data, 0, 10)
		if n, _ := src.count(); n != 1 {
			t.Errorf("%d requests: the second reader did not join the first one's fetch", n)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("the second reader waited until %v, want one second", d)
		}
	})
}

func TestCloseStopsFetching(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, _ *memDisk) {
		src := &source{data: content(16<<20, 1), rtt: 10 * time.Millisecond, pipe: &pipe{rate: 1 << 20}}
		o := mustOpen(t, c, specOf(src))
		go o.Fill(context.Background())
		other := make(chan error)
		go func() {
			_, err := o.ReadAt(context.Background(), make([]byte, 1), 15<<20)
			other <- err
		}()
		time.Sleep(time.Second)
		if err := <-other; err != nil {
			t.Error(err)
		}
		go func() {
			_, err := o.ReadAt(context.Background(), make([]byte, 1), 14<<20)
			other <- err
		}()
		time.Sleep(time.Millisecond)
		o.Close()
		if err := <-other; !errors.Is(err, ErrClosed) {
			t.Errorf("a reader whose handle was closed got %v", err)
		}
		time.Sleep(time.Second)
		_, served := src.count()
		time.Sleep(10 * time.Second)
		if _, b := src.count(); b != served || src.open != 0 {
			t.Errorf("after the last Close %d bytes more were fetched, %d bodies are open", b-served, src.open)
		}
		// Opened again, it goes on from what is there.
		o = mustOpen(t, c, specOf(src))
		defer o.Close()
		if o.Cached() == 0 {
			t.Error("what was fetched is gone")
		}
		mustRead(t, o, src.data, 3<<20, 100)
	})
}

func TestReopenWhileTransfersEnd(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, _ *memDisk) {
		src := &source{data: content(4<<20, 1), rtt: 10 * time.Millisecond, pipe: &pipe{rate: 8 << 20}}
		for i := range 20 {
			o := mustOpen(t, c, specOf(src))
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*time.Millisecond)
			o.ReadAt(ctx, make([]byte, 1<<20), int64(i)<<17)
			cancel()
			o.Close()
			o = mustOpen(t, c, specOf(src))
			mustRead(t, o, src.data, i<<17, 1<<20)
			o.Close()
		}
	})
}

var errCut = errors.New("connection reset")

func TestFaultsOfTheFetcher(t *testing.T) {
	cut := func(at int64) func(int, int64, int64, io.Reader) (io.Reader, error) {
		return func(_ int, _, _ int64, r io.Reader) (io.Reader, error) {
			return io.MultiReader(io.LimitReader(r, at), errReader{errCut}), nil
		}
	}
	for _, tc := range []struct {
		name     string
		fault    func(req int, off, n int64, r io.Reader) (io.Reader, error)
		want     error
		requests int
	}{
		{"cut after two blocks each time", cut(70_000), nil, 4},
		{"cut at once, always", cut(0), errCut, fetchTries},
		{"short, then fine", func(req int, _, _ int64, r io.Reader) (io.Reader, error) {
			if req == 0 {
				return io.LimitReader(r, 100_000), nil
			}
			return r, nil
		}, nil, 2},
		{"always empty", func(_ int, _, _ int64, r io.Reader) (io.Reader, error) {
			return bytes.NewReader(nil), nil
		}, io.ErrUnexpectedEOF, fetchTries},
		{"too long", func(_ int, _, _ int64, r io.Reader) (io.Reader, error) {
			return io.MultiReader(r, bytes.NewReader([]byte{1})), nil
		}, ErrLength, 1},
		{"refused", func(int, int64, int64, io.Reader) (io.Reader, error) {
			return nil, errCut
		}, errCut, 1},
		{"stalls", func(_ int, _, _ int64, r io.Reader) (io.Reader, error) {
			return io.MultiReader(io.LimitReader(r, 1000), stallReader{}), nil
		}, ErrStalled, fetchTries},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, Options{FetchTimeout: time.Second, ReadAhead: -1}, func(t *testing.T, c *Cache, _ *memDisk) {
				src := &source{data: content(256<<10, 1), rtt: time.Millisecond, fault: tc.fault}
				o := mustOpen(t, c, Spec{Key: "k", Size: 1 << 30, Fetcher: src})
				defer o.Close()
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						p := make([]byte, 256<<10)
						_, err := o.ReadAt(context.Background(), p, 0)
						if !errors.Is(err, tc.want) {
							t.Errorf("got %v, want %v", err, tc.want)
						}
						if err == nil && !bytes.Equal(p, src.data) {
							t.Error("wrong bytes")
						}
					})
				}
				wg.Wait()
				if n, _ := src.count(); n != tc.requests {
					t.Errorf("%d requests, want %d", n, tc.requests)
				}
				// The next reader tries again.
				src.fault = nil
				mustRead(t, o, src.data, 0, 256<<10)
			})
		})
	}
}

// TestPatience: a fetcher that waits for others may be silent for longer than any
// time-out.
func TestPatience(t *testing.T) {
	inBubble(t, Options{ReadAhead: -1}, func(t *testing.T, c *Cache, _ *memDisk) {
		src := &source{data: content(256<<10, 1), rtt: time.Hour}
		o := mustOpen(t, c, Spec{Key: "k", Size: 256 << 10, Fetcher: src, Exact: true})
		defer o.Close()
		mustRead(t, o, src.data, 0, 256<<10)
		if n, _ := src.count(); n != 1 {
			t.Errorf("%d requests, want one", n)
		}
	})
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// stallReader gives nothing for longer than any time-out. (A body's Read
// looks at its context before and after.)
type stallReader struct{}

func (stallReader) Read([]byte) (int, error) {
	time.Sleep(time.Hour)
	return 0, io.ErrNoProgress
}

func TestWrongContent(t *testing.T) {
	for _, tc := range []struct {
		name  string
		wrong int // how many of the first fetches of the last block are wrong
		want  error
	}{
		{"once", 1, nil}, {"always", 100, ErrCorrupt},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, Options{}, func(t *testing.T, c *Cache, d *memDisk) {
				data := content(300_000, 1)
				src := &source{data: data}
				left := tc.wrong
				removed := int64(0)
				d.before = func(op, name string) error {
					if op == "remove" && strings.HasSuffix(name, dataSuffix) {
						if n := c.Revoked(); n != removed {
							t.Errorf("%d counted as gone before they were, want %d", n, removed)
						}
						removed++
					}
					return nil
				}
				src.fault = func(_ int, off, n int64, r io.Reader) (io.Reader, error) {
					if off+n == int64(len(data)) && left > 0 {
						left--
						return io.MultiReader(io.LimitReader(r, n-1), bytes.NewReader([]byte{data[len(data)-1] ^ 1})), nil
					}
					return r, nil
				}
				spec := specOf(src)
				spec.Sum = sha(data)
				o := mustOpen(t, c, spec)
				if err := o.Fill(context.Background()); !errors.Is(err, tc.want) {
					t.Errorf("Fill: %v, want %v", err, tc.want)
				}
				s := c.Stats()
				if n := c.Revoked(); n != s.VerifyFailures || n != removed {
					t.Errorf("%d counted as gone, %d removed, %d failed", n, removed, s.VerifyFailures)
				}
				if tc.want == nil {
					if s.VerifyFailures != 1 || !o.Complete() {
						t.Errorf("complete %v after %d failures", o.Complete(), s.VerifyFailures)
					}
					mustRead(t, o, data, 0, len(data))
					o.Close()
					return
				}
				if s.VerifyFailures != 2 {
					t.Errorf("%d failures, want 2: fetched again once", s.VerifyFailures)
				}
				if _, ok := o.File(); ok || o.Complete() {
					t.Error("a corrupt object is served as complete")
				}
				if _, err := o.ReadAt(context.Background(), make([]byte, 10), 0); !errors.Is(err, ErrCorrupt) {
					t.Errorf("ReadAt: %v", err)
				}
				o.Close()
				if _, err := c.Object(spec); !errors.Is(err, ErrCorrupt) {
					t.Errorf("Object: %v", err)
				}
				// Told to forget, it tries again.
				left = 0
				if err := c.Remove("k"); err != nil {
					t.Fatal(err)
				}
				o = mustOpen(t, c, spec)
				defer o.Close()
				if err := o.Fill(context.Background()); err != nil {
					t.Errorf("after Remove: %v", err)
				}
			})
		})
	}
}

// TestDroppedUnderAReader: bytes that were read from disk are not handed out
// when the object was dropped meanwhile.
func TestDroppedUnderAReader(t *testing.T) {
	inBubble(t, Options{ReadAhead: -1}, func(t *testing.T, c *Cache, d *memDisk) {
		right, wrong := content(300_000, 1), content(300_000, 2)
		src := &source{data: wrong}
		o := mustOpen(t, c, Spec{Key: "k", Size: 300_000, Fetcher: src})
		defer o.Close()
		mustRead(t, o, wrong, 0, 1000)
		synctest.Wait() // until it is on disk
		src.data = right
		d.afterRead = func() {
			d.afterRead = nil
			if err := o.l.drop(); err != nil {
				t.Error(err)
			}
		}
		mustRead(t, o, right, 0, 1000)
	})
}

// TestDroppedFromMemory: what the disk did not take is dropped with the rest.
func TestDroppedFromMemory(t *testing.T) {
	inBubble(t, Options{ReadAhead: -1}, func(t *testing.T, c *Cache, d *memDisk) {
		right, wrong := content(300_000, 1), content(300_000, 2)
		src := &source{data: wrong}
		o := mustOpen(t, c, Spec{Key: "k", Size: 300_000, Fetcher: src})
		defer o.Close()
		mustRead(t, o, wrong, 200_000, 1000) // so that there is a file to drop
		synctest.Wait()
		d.before = func(string, string) error { return syscall.ENOSPC }
		mustRead(t, o, wrong, 0, 1000)
		synctest.Wait()
		d.before = nil
		src.data = right
		if err := o.l.drop(); err != nil {
			t.Fatal(err)
		}
		mustRead(t, o, right, 0, 1000)
	})
}

// TestDroppedUnderAWriter: a block that was being written when the object was
// dropped lies in the old file, and does not count as present in the new one.
func TestDroppedUnderAWriter(t *testing.T) {
	inBubble(t, Options{ReadAhead: -1}, func(t *testing.T, c *Cache, d *memDisk) {
		src := &source{data: content(300_000, 1)}
		o := mustOpen(t, c, specOf(src))
		defer o.Close()
		d.afterWrite = func() {
			d.afterWrite = nil
			if err := o.l.drop(); err != nil {
				t.Error(err)
			}
		}
		mustRead(t, o, src.data, 0, 2*blockSize) // the second block makes the new file long enough
		synctest.Wait()
		mustRead(t, o, src.data, 0, 1000)
		if n, _ := src.count(); n != 2 {
			t.Errorf("%d requests, want 2: the dropped block once more", n)
		}
	})
}

func TestSumOfAnotherKind(t *testing.T) {
	// A checksum that becomes known after a part was fetched counts all the same.
	inBubble(t, Options{}, func(t *testing.T, c *Cache, _ *memDisk) {
		const part = 3 << 20
		src := &source{data: content(4<<20, 1)}
		src.fault = func(_ int, off, _ int64, body io.Reader) (io.Reader, error) {
			if off >= part {
				time.Sleep(time.Second) // it is asked for with the first part
			}
			return body, nil
		}
		o := mustOpen(t, c, specOf(src))
		mustRead(t, o, src.data, 0, part)
		spec := specOf(src)
		spec.Sum = Sum{Hex: "00", New: sha256.New}
		o2 := mustOpen(t, c, spec)
		if err := o2.Fill(context.Background()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("Fill: %v", err)
		}
		o.Close()
		o2.Close()
	})
}

func TestNoSource(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, _ *memDisk) {
		if _, err := c.Object(Spec{Key: "k", Size: 10}); !errors.Is(err, ErrNotCached) {
			t.Errorf("an unknown key without a Fetcher: %v", err)
		}
		src := &source{data: content(1<<20, 1)}
		o := mustOpen(t, c, specOf(src))
		mustRead(t, o, src.data, 0, 10)
		time.Sleep(time.Minute)
		o.Close()
		o = mustOpen(t, c, Spec{Key: "k", Size: -1})
		defer o.Close()
		mustRead(t, o, src.data, 0, 10)
		if err := o.Fill(context.Background()); !errors.Is(err, ErrNotCached) {
			t.Errorf("Fill without a Fetcher: %v", err)
		}
		if _, err := c.Object(Spec{Key: "k", Size: 5, Fetcher: src}); !errors.Is(err, ErrInUse) {
			t.Errorf("the same key with another size, while open: %v", err)
		}
	})
}

func TestFillEndsWithItsContext(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, _ *memDisk) {
		src := &source{data: content(16<<20, 1), pipe: &pipe{rate: 1 << 20}}
		o := mustOpen(t, c, specOf(src))
		defer o.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := o.Fill(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Fill: %v", err)
		}
		time.Sleep(time.Second)
		_, before := src.count()
		time.Sleep(10 * time.Second)
		if _, after := src.count(); after != before {
			t.Errorf("%d bytes were fetched for nobody", after-before)
		}
	})
}

// TestOneSlot: with a single slot, a demand read waits for a piece of the
// background work and not for all of it.
func TestOneSlot(t *testing.T) {
	inBubble(t, Options{Parallel: 1}, func(t *testing.T, c *Cache, _ *memDisk) {
		src := &source{data: content(16<<20, 1), rtt: 10 * time.Millisecond, pipe: &pipe{rate: 1 << 20}}
		o := mustOpen(t, c, specOf(src))
		defer o.Close()
		ctx, cancel := context.WithCancel(context.Background())
		filled := make(chan error)
		go func() { filled <- o.Fill(ctx) }()
		time.Sleep(time.Second)
		start := time.Now()
		mustRead(t, o, src.data, 15<<20, 100)
		if d := time.Since(start); d > 200*time.Millisecond {
			t.Errorf("a demand read took %v", d)
		}
		cancel()
		<-filled
	})
}

// TestSlotForDemand: background work leaves a slot free, so that a demand read
// need not break off a transfer.
func TestSlotForDemand(t *testing.T) {
	inBubble(t, Options{Parallel: 3, ReadAhead: -1}, func(t *testing.T, c *Cache, _ *memDisk) {
		src := &source{data: content(16<<20, 1), rtt: 10 * time.Millisecond, pipe: &pipe{rate: 8 << 20}}
		o := mustOpen(t, c, specOf(src))
		defer o.Close()
		o.Prefetch([]Range{{0, 1 << 20}, {2 << 20, 1 << 20}, {4 << 20, 1 << 20}, {6 << 20, 1 << 20}})
		time.Sleep(50 * time.Millisecond)
		mustRead(t, o, src.data, 15<<20, 100)
		time.Sleep(time.Minute)
		if n, _ := src.count(); n != 5 {
			t.Errorf("%d requests for four hints and a read", n)
		}
	})
}

// TestCloseOfTheCache ends whatever is under way.
func TestCloseOfTheCache(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, _ *memDisk) {
		src := &source{data: content(16<<20, 1), rtt: time.Hour}
		o := mustOpen(t, c, specOf(src))
		errs := make(chan error)
		go func() {
			_, err := o.ReadAt(context.Background(), make([]byte, 10), 0)
			errs <- err
		}()
		go func() { errs <- o.Fill(context.Background()) }()
		go func() {
			_, err := c.Build(context.Background(), "b", func(ctx context.Context, w *Writer) error {
				<-ctx.Done()
				return context.Cause(ctx)
			})
			errs <- err
		}()
		time.Sleep(time.Second)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		for range 3 {
			if err := <-errs; !errors.Is(err, ErrClosed) {
				t.Errorf("got %v", err)
			}
		}
		if _, err := o.ReadAt(context.Background(), make([]byte, 10), 0); !errors.Is(err, ErrClosed) {
			t.Errorf("ReadAt: %v", err)
		}
		if _, err := c.Object(specOf(src)); !errors.Is(err, ErrClosed) {
			t.Errorf("Object: %v", err)
		}
		if _, err := c.Build(context.Background(), "b", nil); !errors.Is(err, ErrClosed) {
			t.Errorf("Build: %v", err)
		}
		o.Close()
	})
}

// TestCloseOfTheCacheWithAQueue: readers whose transfers have no slot yet are
// told too.
func TestCloseOfTheCacheWithAQueue(t *testing.T) {
	inBubble(t, Options{Parallel: 1, ReadAhead: -1}, func(t *testing.T, c *Cache, _ *memDisk) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		errs := make(chan error, 3)
		for i := range 3 {
			spec, src := keySpec(i, 4*blockSize)
			src.rtt = time.Hour
			o := mustOpen(t, c, spec)
			defer o.Close()
			go func() {
				_, err := o.ReadAt(ctx, make([]byte, 10), 0)
				errs <- err
			}()
		}
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		for range 3 {
			if err := <-errs; !errors.Is(err, ErrClosed) {
				t.Errorf("ReadAt: %v, want %v", err, ErrClosed)
			}
		}
	})
}
