package cache

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sregfs/sregfs/test/bubble"
)

// crashWorld is what exists outside of the cache: the true contents.
type crashWorld struct {
	contents [][]byte
}

func newCrashWorld() *crashWorld {
	w := &crashWorld{}
	for i, n := range []int{100_000, 32 << 10, 1, 200_001, 64 << 10, 90_000} {
		w.contents = append(w.contents, content(n, uint64(i)))
	}
	return w
}

func (w *crashWorld) spec(i int) (Spec, *source) {
	s := &source{data: w.contents[i], rtt: time.Millisecond}
	return Spec{Key: fmt.Sprint("object ", i), Size: int64(len(s.data)), Sum: sha(s.data), Fetcher: s}, s
}

// use is a life of a cache: reads, fills, builds, evictions, removals. It
// fails the test for any wrong byte; errors are the disk's good right.
func (w *crashWorld) use(t *testing.T, c *Cache, r *rand.Rand) {
	ctx := context.Background()
	for range 12 {
		i := r.IntN(len(w.contents))
		spec, _ := w.spec(i)
		data := w.contents[i]
		switch r.IntN(8) {
		case 0:
			c.Remove(spec.Key)
			continue
		case 1:
			if o, err := c.Build(ctx, "built", func(ctx context.Context, wr *Writer) error {
				if _, err := wr.Write(w.contents[0]); err != nil {
					return err
				}
				return wr.Commit(int64(len(w.contents[0])))
			}); err == nil {
				w.check(t, o, w.contents[0], r)
				o.Close()
			}
			continue
		case 2:
			time.Sleep(2 * time.Second)
			continue
		}
		o, err := c.Object(spec)
		if err != nil {
			if errors.Is(err, ErrCorrupt) {
				t.Errorf("object %d counts as corrupt: %v", i, err)
			}
			continue
		}
		switch r.IntN(3) {
		case 0:
			o.Fill(ctx)
		case 1:
			time.Sleep(time.Second)
		}
		for range 3 {
			w.check(t, o, data, r)
		}
		o.Close()
	}
}

// check reads a piece at random. With a source that works, the read must
// succeed, whatever the disk does.
func (w *crashWorld) check(t *testing.T, o *Object, data []byte, r *rand.Rand) {
	off := r.IntN(len(data))
	p := make([]byte, 1+r.IntN(len(data)-off))
	n, err := o.ReadAt(context.Background(), p, int64(off))
	if !bytes.Equal(p[:n], data[off:off+n]) {
		t.Errorf("%s: wrong bytes in [%d, %d)", o.l.key, off, off+n)
	}
	if err != nil && o.l.fetcher != nil {
		t.Errorf("%s: read of [%d, %d): %v", o.l.key, off, off+len(p), err)
	}
}

// TestCrashAnywhere lets the power go before each single step that changes the
// disk, loses what was not synced, and has the next run read everything.
func TestCrashAnywhere(t *testing.T) {
	world := newCrashWorld()
	for i := range *crashRuns {
		kill := i * 7 % 150
		crashOnce(t, world, *crashSeed+uint64(i), kill)
		if t.Failed() {
			t.Fatalf("with -crash.seed=%d, killed at step %d", *crashSeed+uint64(i), kill)
		}
	}
}

var (
	crashSeed = flag.Uint64("crash.seed", 1, "seed of TestCrashAnywhere")
	crashRuns = flag.Int("crash.runs", 40, "how often TestCrashAnywhere crashes")
)

func crashOnce(t *testing.T, world *crashWorld, seed uint64, kill int) {
	bubble.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(seed, uint64(kill)))
		d := newMemDisk()
		options := Options{Log: quiet(), Limit: 350_000}
		// Two lives that end in a crash, and one that must find nothing wrong.
		for range 2 {
			steps := 0
			d.before = func(op, name string) error {
				if steps++; steps > kill {
					return errDead
				}
				return nil
			}
			c, err := open(d, options)
			if err == nil {
				world.use(t, c, r)
				c.Close()
			}
			d = d.crash(r)
			kill = kill/2 + r.IntN(40)
		}
		c, err := open(d, options)
		if err != nil {
			t.Errorf("the cache does not open after a crash: %v", err)
			return
		}
		defer c.Close()
		for i, data := range world.contents {
			spec, _ := world.spec(i)
			o, err := c.Object(spec)
			if err != nil {
				t.Errorf("object %d: %v", i, err)
				continue
			}
			p := make([]byte, len(data))
			if _, err := o.ReadAt(context.Background(), p, 0); err != nil || !bytes.Equal(p, data) {
				t.Errorf("object %d after the crash: %v, bytes right: %v", i, err, bytes.Equal(p, data))
			}
			o.Close()
		}
		if s := c.Stats(); s.VerifyFailures > 0 {
			t.Errorf("%d objects were put together wrong", s.VerifyFailures)
		}
		if used := d.used(); used > options.Limit {
			t.Errorf("the disk holds %d bytes, over the limit of %d", used, options.Limit)
		}
	})
}

// TestSurvivesCrash: what was flushed is not fetched again.
func TestSurvivesCrash(t *testing.T) {
	for seed := range uint64(10) {
		survive(t, seed)
	}
}

func survive(t *testing.T, seed uint64) {
	bubble.Test(t, func(t *testing.T) {
		data := content(1<<20, 1)
		d := newMemDisk()
		c, err := open(d, Options{Log: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		src := &source{data: data}
		o, err := c.Object(Spec{Key: "k", Size: int64(len(data)), Fetcher: src})
		if err != nil {
			t.Fatal(err)
		}
		mustRead(t, o, data, 100_000, 50_000)
		time.Sleep(2 * flushEvery)
		after := d.crash(rand.New(rand.NewPCG(seed, 1)))
		o.Close()
		c.Close()

		c, err = open(after, Options{Log: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if o, err = c.Object(Spec{Key: "k", Size: -1}); err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		mustRead(t, o, data, 100_000, 50_000)
		if _, err := o.ReadAt(context.Background(), make([]byte, 1), 900_000); !errors.Is(err, ErrNotCached) {
			t.Errorf("what is not here, with nobody to ask: %v", err)
		}
	})
}
