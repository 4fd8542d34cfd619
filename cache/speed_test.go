package cache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
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
	synctest.Test(t, func(t *testing.T) {
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

func TestColdSequential(t *testing.T) {
	const n = 64 << 20
	for _, rate := range []float64{mbit200, gbit1} {
		t.Run(fmt.Sprintf("%.0fMbit", rate*8/1e6), func(t *testing.T) {
			const rtt = 20 * time.Millisecond
			onLink(t, n, rtt, rate, Options{}, func(t *testing.T, o *Object, src *source) {
				p := make([]byte, 128<<10)
				start := time.Now()
				for off := int64(0); off < n; off += int64(len(p)) {
					if _, err := o.ReadAt(context.Background(), p, off); err != nil {
						t.Fatal(err)
					}
				}
				took, plain := time.Since(start), download(n, rtt, rate)
				req, served := src.count()
				t.Logf("%v against %v plain, ratio %.3f, %d requests, %d bytes", took, plain, plain.Seconds()/took.Seconds(), req, served)
			})
		})
	}
}

func TestColdPiecemeal(t *testing.T) {
	const n, rtt, rate = 64 << 20, 20 * time.Millisecond, mbit200
	for _, size := range []int{32 << 10, 128 << 10, 1 << 20} {
		for _, readers := range []int{1, 4} {
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
					t.Logf("%v against %v plain, ratio %.3f, %d requests, %.2f of the bytes", took, plain, took.Seconds()/plain.Seconds(), req, float64(served)/n)
				})
			})
		}
	}
}

func TestColdFill(t *testing.T) {
	const n, rtt, rate = 64 << 20, 20 * time.Millisecond, mbit200
	onLink(t, n, rtt, rate, Options{}, func(t *testing.T, o *Object, src *source) {
		start := time.Now()
		if err := o.Fill(context.Background()); err != nil {
			t.Fatal(err)
		}
		took, plain := time.Since(start), download(n, rtt, rate)
		req, served := src.count()
		t.Logf("%v against %v plain, ratio %.3f, %d requests, %d bytes", took, plain, plain.Seconds()/took.Seconds(), req, served)
	})
}

// TestDemandBeforeBackground: while everything is being fetched, a read of
// something far away takes hardly longer than on an idle link.
func TestDemandBeforeBackground(t *testing.T) {
	const n, rtt, rate = 64 << 20, 20 * time.Millisecond, mbit200
	onLink(t, n, rtt, rate, Options{}, func(t *testing.T, o *Object, src *source) {
		ctx, cancel := context.WithCancel(context.Background())
		filled := make(chan error)
		go func() { filled <- o.Fill(ctx) }()
		time.Sleep(200 * time.Millisecond)
		var worst time.Duration
		p := make([]byte, 128<<10)
		for i := range 10 {
			start := time.Now()
			if _, err := o.ReadAt(ctx, p, int64(60-3*i)<<20); err != nil {
				t.Fatal(err)
			}
			worst = max(worst, time.Since(start))
		}
		t.Logf("worst demand read %v", worst)
		cancel()
		<-filled
	})
}
