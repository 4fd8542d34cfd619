package cache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// BenchmarkHit reads 128 KiB and 4 KiB pieces that are cached, at random, with
// many readers of one object and of many, beside a plain file.
func BenchmarkHit(b *testing.B) {
	const size = 64 << 20
	data := content(size, 1)
	dir := b.TempDir()
	c := openCache(b, filepath.Join(dir, "cache"), Options{})
	var objects []*Object
	for i := range 4 {
		o := openObject(b, c, Spec{Key: fmt.Sprint(i), Size: size, Fetcher: &source{data: data}})
		if err := o.Fill(context.Background()); err != nil {
			b.Fatal(err)
		}
		objects = append(objects, o)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, data, 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(plain)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for _, n := range []int{4 << 10, 128 << 10} {
		run := func(name string, read func(i int, p []byte, off int64) error) {
			b.Run(fmt.Sprintf("%s/%dK", name, n>>10), func(b *testing.B) {
				b.SetBytes(int64(n))
				b.SetParallelism(32) // 64 readers on two processors
				b.ReportAllocs()
				var readers atomic.Int64
				b.RunParallel(func(pb *testing.PB) {
					i := int(readers.Add(1))
					r := rand.New(rand.NewPCG(uint64(i), 1))
					p := make([]byte, n)
					for pb.Next() {
						if err := read(i, p, r.Int64N(size-int64(n))); err != nil {
							b.Fatal(err)
						}
					}
				})
			})
		}
		ctx := context.Background()
		run("file", func(_ int, p []byte, off int64) error {
			_, err := f.ReadAt(p, off)
			return err
		})
		run("one", func(_ int, p []byte, off int64) error {
			_, err := objects[0].ReadAt(ctx, p, off)
			return err
		})
		run("four", func(i int, p []byte, off int64) error {
			_, err := objects[i%4].ReadAt(ctx, p, off)
			return err
		})
	}
}

// BenchmarkCold reads an object that is not cached from a source without
// latency: what the cache itself costs.
func BenchmarkCold(b *testing.B) {
	const size = 64 << 20
	src := &source{data: content(size, 1)}
	c := openCache(b, b.TempDir(), Options{})
	p := make([]byte, 128<<10)
	b.SetBytes(size)
	for b.Loop() {
		o := openObject(b, c, Spec{Key: "k", Size: size, Fetcher: src})
		for off := int64(0); off < size; off += int64(len(p)) {
			if _, err := o.ReadAt(context.Background(), p, off); err != nil {
				b.Fatal(err)
			}
		}
		o.Close()
		b.StopTimer()
		if err := c.Remove("k"); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkOpen opens a cache of 10,000 objects, half of them complete.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	c := openCache(b, dir, Options{})
	for i := range 10_000 {
		m := meta{Version: formatVersion, Key: fmt.Sprint(i), Size: 300 << 20, Block: blockSize, Nonce: 1, Complete: i%2 == 0}
		name := objectName(m.Key)
		if err := writeMeta(c.disk, name, &m); err != nil {
			b.Fatal(err)
		}
		f, err := c.disk.Open(name+mapSuffix, os.O_CREATE)
		if err != nil {
			b.Fatal(err)
		}
		var slot [slotSize]byte
		putSlot(slot[:], 1, i%9000, 5)
		f.WriteAt(slot[:], int64(i%9000)*slotSize)
		f.Close()
	}
	c.Close()
	b.ResetTimer()
	for b.Loop() {
		c, err := Open(dir, Options{Log: quiet()})
		if err != nil {
			b.Fatal(err)
		}
		if n := c.Stats().Objects; n != 10_000 {
			b.Fatalf("%d objects", n)
		}
		b.StopTimer()
		c.Close()
		b.StartTimer()
	}
}
