package index

import (
	"context"
	"fmt"
	"iter"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
)

// synthetic yields n images as a Dropbox folder would have them, 100 to a
// collection; the first few are of a later revision.
func synthetic(n, changed int) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		for k := range n {
			revision := k
			if k < changed {
				revision += n
			}
			collection, name := fmt.Sprintf("collection-%d", k/100), fmt.Sprintf("image%d", k%100)
			img := backends.Image{
				Ref: backends.Ref{Collection: collection, Name: name, Tag: "latest"},
				// IDs come in no order.
				ID:       fmt.Sprintf("id:%020d", k*7919%1_000_003),
				Key:      "/" + collection + "/" + name + ":latest.simg",
				Revision: fmt.Sprintf("015f%012x", revision),
				Size:     int64(k) * 1000,
				Sum:      backends.Checksum{Algorithm: backends.DropboxHash, Hex: fmt.Sprintf("%064x", revision)},
				Modified: time.Unix(1700000000+int64(k), 123456789),
				URL:      "https://content.dropboxapi.com/2/files/download",
			}
			if !yield(backends.Entry{Image: img}, nil) {
				return
			}
		}
	}
}

// cpu reports the processor time that each operation took, which tells more
// than the clock on a machine that others use too. Its result ends it.
func cpu(b *testing.B) (end func()) {
	used := func() int64 {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	began := used()
	return func() { b.ReportMetric(float64(used()-began)/float64(b.N), "cpu-ns/op") }
}

func benchIndex(b *testing.B) *Index {
	b.Helper()
	x, err := Open(b.Context(), Options{State: filepath.Join(b.TempDir(), "state.db")})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := x.Close(); err != nil {
			b.Error(err)
		}
	})
	return x
}

func mustReplace(b *testing.B, x *Index, n, changed int) {
	b.Helper()
	if _, err := x.ReplaceListing(b.Context(), "dropbox", synthetic(n, changed), "cursor"); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkReplaceListing(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprintf("first/%d", n), func(b *testing.B) {
			defer cpu(b)()
			for b.Loop() {
				b.StopTimer()
				x := benchIndex(b)
				x.cancel() // the indexer is measured by itself
				x.work.Wait()
				b.StartTimer()
				mustReplace(b, x, n, 0)
			}
		})
		for _, changed := range []int{0, 10} {
			b.Run(fmt.Sprintf("changed=%d/%d", changed, n), func(b *testing.B) {
				x := benchIndex(b)
				mustReplace(b, x, n, 0)
				drain(b, x)
				more := 0
				defer cpu(b)()
				for b.Loop() {
					more = changed - more
					mustReplace(b, x, n, more)
				}
			})
		}
	}
}

// drain has the whole queue indexed.
func drain(tb testing.TB, x *Index) {
	tb.Helper()
	for more := true; more; {
		var err error
		if more, err = x.indexSome(tb.Context()); err != nil {
			tb.Fatal(err)
		}
	}
}

func BenchmarkIndexQueue(b *testing.B) {
	const n = 100_000
	defer cpu(b)()
	for b.Loop() {
		b.StopTimer()
		x := benchIndex(b)
		x.cancel() // no indexer but ours
		x.work.Wait()
		mustReplace(b, x, n, 0)
		b.StartTimer()
		drain(b, x)
	}
}

func BenchmarkQuestions(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchQuestions(b, n) })
	}
}

func benchQuestions(b *testing.B, n int) {
	x := benchIndex(b)
	mustReplace(b, x, n, 0)
	drain(b, x)
	// The tree's contexts can be cancelled.
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	for _, fold := range []bool{false, true} {
		b.Run(fmt.Sprintf("Lookup/fold=%v", fold), func(b *testing.B) {
			k := 0
			defer cpu(b)()
			for b.Loop() {
				k += 7919
				dir, file := fmt.Sprintf("collection-%d", k%n/100), fmt.Sprintf("image%d:latest.simg", k%100)
				if _, ok, err := x.Lookup(ctx, "dropbox", dir, file, fold); err != nil || !ok {
					b.Fatal(dir, file, ok, err)
				}
			}
		})
	}
	b.Run("Lookup/absent", func(b *testing.B) {
		defer cpu(b)()
		for b.Loop() {
			if _, ok, err := x.Lookup(ctx, "dropbox", "collection-1", "nothing:latest.simg", true); err != nil || ok {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("Images/100", func(b *testing.B) {
		defer cpu(b)()
		for b.Loop() {
			for _, err := range x.Images(ctx, "dropbox", "collection-7") {
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	for _, word := range []string{"collection-77/image55", "image99", "im", "zz", "zzzz"} {
		b.Run("Search/"+word, func(b *testing.B) {
			defer cpu(b)()
			for b.Loop() {
				if _, err := x.Search(ctx, "", word, 1000); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("PutImage/same", func(b *testing.B) {
		img, _, err := x.Lookup(ctx, "dropbox", "collection-1", "image1:latest.simg", true)
		if err != nil {
			b.Fatal(err)
		}
		defer cpu(b)()
		for b.Loop() {
			if _, err := x.PutImage(ctx, "dropbox", img); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("PutImage/changed", func(b *testing.B) {
		img, _, err := x.Lookup(ctx, "dropbox", "collection-1", "image1:latest.simg", true)
		if err != nil {
			b.Fatal(err)
		}
		defer cpu(b)()
		for b.Loop() {
			img.Size++
			if _, err := x.PutImage(ctx, "dropbox", img); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkImages lists a single directory of 100,000 images.
func BenchmarkImages(b *testing.B) {
	x := benchIndex(b)
	flat := func(yield func(backends.Entry, error) bool) {
		for e := range synthetic(100_000, 0) {
			e.Image.Ref.Name, e.Image.Ref.Collection = e.Image.Ref.Collection+e.Image.Ref.Name, "flat"
			if !yield(e, nil) {
				return
			}
		}
	}
	if _, err := x.ReplaceListing(b.Context(), "dropbox", flat, ""); err != nil {
		b.Fatal(err)
	}
	drain(b, x)
	defer cpu(b)()
	for b.Loop() {
		n := 0
		for _, err := range x.Images(b.Context(), "dropbox", "flat") {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != 100_000 {
			b.Fatal(n)
		}
	}
}
