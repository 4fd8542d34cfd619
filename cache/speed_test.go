package cache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sregfs/sregfs/test/bubble"
)

// The tests in this file run in synctest's virtual time: a link's round trip
// and bandwidth are exact there, and so are the durations.

const (
	mbit200 = 200e6 / 8
	gbit1   = 1e9 / 8
)

// download is how long a plain download of n bytes takes on that link.
func download(n int, rtt time.Duration, rate float64) time.Duration {
	return rtt + time.Duration(float64(n)/rate*float64(time.Second))
}

// onLink runs do in virtual time on an object of n bytes behind a link.
func onLink(t *testing.T, n int, rtt time.Duration, rate float64, o Options, do func(t *testing.T, o *Object, src *source)) {
	t.Helper()
	dir, data := t.TempDir(), content(n, 7)
	bubble.Test(t, func(t *testing.T) {
		src := &source{data: data, rtt: rtt, pipe: &pipe{rate: rate}}
		c := openCache(t, dir, o)
		obj := openObject(t, c, Spec{Key: "k", Size: int64(n), Sum: sha(data), Fetcher: src})
		do(t, obj, src)
		obj.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// readPieces reads n bytes of o from the start, in pieces of which some are under way
// at once, each sent a little after the one before. It returns when each was there.
func readPieces(t *testing.T, o *Object, n, size int64, atOnce int) []time.Duration {
	t.Helper()
	start, came := time.Now(), make([]time.Duration, n/size)
	turn, done := make(chan bool, atOnce), make(chan error, n/size)
	for off := int64(0); off < n; off += size {
		turn <- true
		go func() {
			_, err := o.ReadAt(context.Background(), make([]byte, size), off)
			came[off/size] = time.Since(start)
			done <- err
			<-turn
		}()
		time.Sleep(50 * time.Microsecond)
	}
	for range n / size {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	return came
}

// TestColdSequential: the first read of a whole object keeps the link full from
// the first byte to the last, in few requests, read as the kernel reads: two
// pieces at a time. What is read first comes first.
func TestColdSequential(t *testing.T) {
	const n, size = 64 << 20, 256 << 10
	for _, rate := range []float64{mbit200, gbit1} {
		for _, rtt := range []time.Duration{time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond} {
			t.Run(fmt.Sprintf("%.0fMbit/%v", rate*8/1e6, rtt), func(t *testing.T) {
				onLink(t, n, rtt, rate, Options{}, func(t *testing.T, o *Object, src *source) {
					start := time.Now()
					came := readPieces(t, o, n, size, 2)
					took, plain := time.Since(start), download(n, rtt, rate)
					req, served := src.count()
					t.Logf("%v against %v plain, %d requests, %d bytes", took, plain, req, served)
					// Nobody knows at first how far away the store is.
					if took > plain+2*time.Millisecond+rtt/2 {
						t.Errorf("took %v, a plain download takes %v", took, plain)
					}
					for _, at := range []int{1 << 20, 4 << 20, 8 << 20} {
						plain := download(at, rtt, rate)
						t.Logf("%d MB: %v against %v", at>>20, came[at/size-1], plain)
						if took := came[at/size-1]; took > plain*5/4+rtt {
							t.Errorf("the first %d MB took %v, a plain download %v", at>>20, took, plain)
						}
					}
					if served > n*101/100 || req > 50 {
						t.Errorf("%d requests of %d bytes for %d", req, served, n)
					}
				})
			})
		}
	}
}

// TestColdOnce: the kernel reads a file ahead with several requests of a
// megabyte at a time. However slow the link, each byte comes once, but for the
// odd block that a request of read-ahead passes over, because ending it there
// would throw away more that is on its way.
func TestColdOnce(t *testing.T) {
	const n = 12 << 20
	for _, rate := range []float64{5e6, 60e6} {
		for _, rtt := range []time.Duration{0, 20 * time.Millisecond} {
			for _, size := range []int64{128 << 10, 1 << 20} {
				for _, atOnce := range []int{1, 2, 4} {
					t.Run(fmt.Sprintf("%.0fMB/%v/%dK/%d", rate/1e6, rtt, size>>10, atOnce), func(t *testing.T) {
						onLink(t, n, rtt, rate, Options{}, func(t *testing.T, o *Object, src *source) {
							readPieces(t, o, n, size, atOnce)
							if req, served := src.count(); served > n+n/100 {
								t.Errorf("%d requests of %d bytes for %d", req, served, n)
							}
						})
					})
				}
			}
		}
	}
}

// TestColdPiecemeal: reading all of an object in pieces at random.
func TestColdPiecemeal(t *testing.T) {
	const n, rtt, rate = 32 << 20, 20 * time.Millisecond, mbit200
	for _, tc := range []struct {
		size, readers int
		most          float64 // times a plain download
	}{
		{128 << 10, 1, 2.5}, // waits for a round trip each time until it is seen
		{128 << 10, 4, 1.2},
		{1 << 20, 4, 1.1},
	} {
		size, readers := tc.size, tc.readers
		t.Run(fmt.Sprintf("%dK/%d", size>>10, readers), func(t *testing.T) {
			onLink(t, n, rtt, rate, Options{}, func(t *testing.T, o *Object, src *source) {
				order := rand.New(rand.NewPCG(1, 2)).Perm(n / size)
				start := time.Now()
				done := make(chan error)
				for r := range readers {
					go func() {
						p := make([]byte, size)
						for i := r; i < len(order); i += readers {
							if _, err := o.ReadAt(context.Background(), p, int64(order[i]*size)); err != nil {
								done <- err
								return
							}
						}
						done <- nil
					}()
				}
				for range readers {
					if err := <-done; err != nil {
						t.Fatal(err)
					}
				}
				took, plain := time.Since(start), download(n, rtt, rate)
				req, served := src.count()
				t.Logf("%v against %v plain, %d requests, %d bytes", took, plain, req, served)
				if took.Seconds() > plain.Seconds()*tc.most {
					t.Errorf("took %v, a plain download takes %v", took, plain)
				}
				if served > n*105/100 {
					t.Errorf("%d bytes were fetched of %d", served, n)
				}
			})
		})
	}
}

func TestColdFill(t *testing.T) {
	const n, rtt, rate = 32 << 20, 20 * time.Millisecond, mbit200
	onLink(t, n, rtt, rate, Options{}, func(t *testing.T, o *Object, src *source) {
		start := time.Now()
		if err := o.Fill(context.Background()); err != nil {
			t.Fatal(err)
		}
		took, plain := time.Since(start), download(n, rtt, rate)
		req, served := src.count()
		t.Logf("%v against %v plain, %d requests, %d bytes", took, plain, req, served)
		if took.Seconds() > plain.Seconds()*1.05 || served != n || req > 30 {
			t.Errorf("took %v and %d requests of %d bytes, a plain download of %d takes %v", took, req, served, n, plain)
		}
	})
}

// TestDemandBeforeBackground: while everything is being fetched, a read of
// something far away takes hardly longer than on an idle link.
func TestDemandBeforeBackground(t *testing.T) {
	const n, rtt, rate = 32 << 20, 20 * time.Millisecond, mbit200
	onLink(t, n, rtt, rate, Options{}, func(t *testing.T, o *Object, src *source) {
		ctx, cancel := context.WithCancel(context.Background())
		filled := make(chan error)
		go func() { filled <- o.Fill(ctx) }()
		time.Sleep(200 * time.Millisecond)
		var worst time.Duration
		p := make([]byte, 128<<10)
		for i := range 10 {
			start := time.Now()
			if _, err := o.ReadAt(ctx, p, int64(30-2*i)<<20); err != nil {
				t.Fatal(err)
			}
			worst = max(worst, time.Since(start))
		}
		t.Logf("worst demand read %v", worst)
		if worst > 3*rtt {
			t.Errorf("a demand read took %v beside background work", worst)
		}
		cancel()
		<-filled
	})
}

// TestScattered: of small reads at random, hardly more is fetched than what was
// asked for: a little at first, while the cache learns that guesses are wrong.
func TestScattered(t *testing.T) {
	const n, rtt, rate = 32 << 20, 20 * time.Millisecond, mbit200
	onLink(t, n, rtt, rate, Options{}, func(t *testing.T, o *Object, src *source) {
		r := rand.New(rand.NewPCG(3, 4))
		asked := int64(0)
		for range 80 {
			off := r.Int64N(n - 4096)
			if _, err := o.ReadAt(context.Background(), make([]byte, 4096), off); err != nil {
				t.Fatal(err)
			}
			first, end := span(off, 4096)
			asked += int64(end-first) * blockSize
		}
		_, served := src.count()
		t.Logf("%d bytes in whole blocks were asked for, %d fetched", asked, served)
		if served > asked*11/10+1<<20 {
			t.Errorf("%d bytes were fetched for %d", served, asked)
		}
	})
}

// TestCopy: whoever begins with a large read of the first bytes, as programs
// that copy do, is read ahead before there is a sequence to see.
func TestCopy(t *testing.T) {
	const n = 128 << 20
	onLink(t, n, 20*time.Millisecond, gbit1, Options{}, func(t *testing.T, o *Object, src *source) {
		if _, err := o.ReadAt(context.Background(), make([]byte, 256<<10), 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if req, served := src.count(); served < 2<<20 || served > 5<<20 {
			t.Errorf("%d requests of %d bytes after the first 256 KiB", req, served)
		}
	})
}

// TestCopyAfterLook: a copy keeps the link full as well when its first bytes are
// here, because somebody has looked at them.
func TestCopyAfterLook(t *testing.T) {
	const n, rtt = 64 << 20, 20 * time.Millisecond
	for _, exact := range []bool{false, true} {
		dir, data := t.TempDir(), content(n, 7)
		bubble.Test(t, func(t *testing.T) {
			src := &source{data: data, rtt: rtt, pipe: &pipe{rate: gbit1}}
			c := openCache(t, dir, Options{})
			spec := Spec{Key: "k", Size: n, Fetcher: src, Exact: exact}
			look := openObject(t, c, spec)
			mustRead(t, look, data, 0, 64<<10)
			time.Sleep(time.Second)
			o := openObject(t, c, spec)
			start := time.Now()
			readPieces(t, o, n, 256<<10, 2)
			if took, plain := time.Since(start), download(n, rtt, gbit1); took > plain+rtt/2 {
				t.Errorf("exact %v: took %v, a plain download takes %v", exact, took, plain)
			}
			o.Close()
			look.Close()
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestExtent: whoever reads a file within an object is not read ahead beyond
// its end, until it has gone on there.
func TestExtent(t *testing.T) {
	const n, file, step = 32 << 20, 4 << 20, 128 << 10
	dir, data := t.TempDir(), content(n, 7)
	bubble.Test(t, func(t *testing.T) {
		src := &source{data: data, rtt: 20 * time.Millisecond, pipe: &pipe{rate: gbit1}}
		c := openCache(t, dir, Options{})
		o := openObject(t, c, Spec{Key: "k", Size: n, Fetcher: src,
			Extent: func(off int64) int64 { return off/file*file + file }})
		read := func(from, to int) {
			for off := from; off < to; off += step {
				mustRead(t, o, data, off, step)
			}
			time.Sleep(time.Second)
		}
		beyond := func(off int64) (n int64) {
			src.mu.Lock()
			defer src.mu.Unlock()
			for _, r := range src.requests {
				n += max(0, r.Off+r.N-max(r.Off, off))
			}
			return n
		}
		read(file+step, 2*file)
		if k := beyond(2 * file); k > 0 {
			t.Errorf("%d bytes were fetched behind a file that was read", k)
		}
		read(2*file, 2*file+1<<20)
		if k := beyond(2*file + 1<<20); k < 1<<20 {
			t.Errorf("%d bytes were fetched ahead of a reader of all", k)
		}
		o.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestFirstLook: opening an object and reading its head, as a program does
// that only wants to know what it is, fetches only that.
func TestFirstLook(t *testing.T) {
	onLink(t, 32<<20, 20*time.Millisecond, mbit200, Options{}, func(t *testing.T, o *Object, src *source) {
		for range 3 {
			if _, err := o.ReadAt(context.Background(), make([]byte, 32<<10), 0); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if req, served := src.count(); req != 1 || served > 128<<10 {
			t.Errorf("%d requests of %d bytes for the first 32 KiB", req, served)
		}
	})
}
