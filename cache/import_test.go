package cache

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"
)

// TestManySmallFiles reads 400 of 1,500 small files that lie side by side in a
// large object, package by package, as the start of a large Python program
// does: cold, and then with the profile of the first start.
func TestManySmallFiles(t *testing.T) {
	const n, rtt, rate = 48 << 20, 20 * time.Millisecond, mbit200
	r := rand.New(rand.NewPCG(5, 6))
	type piece struct{ off, n int64 }
	var packages [][]piece
	off := int64(5 << 20)
	for range 100 {
		var files []piece
		for range 15 {
			size := 2000 + int64(r.ExpFloat64()*15000)
			files = append(files, piece{off, size})
			off += size
		}
		packages = append(packages, files)
	}
	var reads []piece
	touched := map[int64]bool{}
	for _, i := range r.Perm(len(packages))[:45] {
		for _, j := range r.Perm(15)[:9] {
			reads = append(reads, packages[i][j])
			for b := packages[i][j].off / blockSize; b <= (packages[i][j].off+packages[i][j].n-1)/blockSize; b++ {
				touched[b] = true
			}
		}
	}
	blocks := int64(len(touched)) * blockSize // what the reads touch
	var trace []Range
	run := func(t *testing.T, o *Object) time.Duration {
		start := time.Now()
		for _, f := range reads {
			if _, err := o.ReadAt(context.Background(), make([]byte, f.n), f.off); err != nil {
				t.Fatal(err)
			}
		}
		return time.Since(start)
	}
	onLink(t, n, rtt, rate, Options{}, func(t *testing.T, o *Object, src *source) {
		took := run(t, o)
		req, served := src.count()
		t.Logf("first: %v, %d requests, %d bytes for %d", took, req, served, blocks)
		if took > 3*time.Second || served > 2*blocks {
			t.Errorf("the first start took %v and %d bytes for %d", took, served, blocks)
		}
		trace = o.Trace()
	})
	onLink(t, n, rtt, rate, Options{}, func(t *testing.T, o *Object, src *source) {
		o.Replay(trace)
		took := run(t, o)
		req, served := src.count()
		t.Logf("known: %v, %d requests, %d bytes for %d", took, req, served, blocks)
		if took > 1500*time.Millisecond || served > blocks+blocks/10 {
			t.Errorf("a start with a profile took %v and %d bytes for %d", took, served, blocks)
		}
	})
}
