//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

// TestFSX does the same random things to an image in the tree and to a local
// file, as fsx does: what is read must be alike at every step, and after every
// close the remote must have it.
func TestFSX(t *testing.T) {
	seed := crashSeed(t)
	steps := 400
	if long() {
		steps = 20_000
	}
	eachClient(t, func(t *testing.T, a account) {
		rng := rand.New(rand.NewPCG(seed, 2))
		d := newMachine(t, a.env...).mount("--client=" + a.client)
		d.run("mkdir %s/pusheen", a.client)
		const most = 400_000
		path := filepath.Join(d.dir, a.client, "pusheen/a:1.simg")
		model := filepath.Join(d.home, "model")
		var files [2]*os.File
		open := func(flags int) {
			t.Helper()
			for i, p := range []string{path, model} {
				f, err := os.OpenFile(p, flags, 0o755)
				if err != nil {
					t.Fatal(err)
				}
				files[i] = f
			}
		}
		both := func(what string, act func(f *os.File) error) {
			t.Helper()
			for _, f := range files {
				if err := act(f); err != nil {
					t.Fatalf("%s on %s: %v", what, f.Name(), err)
				}
			}
		}
		defer func() { both("close", (*os.File).Close) }()
		// Not empty, and no image: an image cut short would be refused.
		head := []byte("no image, just bytes\n")
		open(os.O_RDWR | os.O_CREATE)
		both("write", func(f *os.File) error { _, err := f.WriteAt(head, 0); return err })
		for step := range steps {
			off, n := rng.Int64N(most), 1+rng.IntN(60_000)
			switch act := rng.IntN(100); {
			case act < 35:
				data := make([]byte, n)
				for i := range data {
					data[i] = byte(rng.Uint32())
				}
				off = max(off, int64(len(head)))
				both("write", func(f *os.File) error { _, err := f.WriteAt(data, off); return err })
			case act < 45:
				off = max(off, int64(len(head)))
				both("truncate", func(f *os.File) error { return f.Truncate(off) })
			case act < 85:
				var got [2][]byte
				for i, f := range files {
					got[i] = make([]byte, n)
					k, err := f.ReadAt(got[i], off)
					if err != nil && !errors.Is(err, io.EOF) {
						t.Fatalf("step %d: read: %v", step, err)
					}
					got[i] = got[i][:k]
				}
				if !bytes.Equal(got[0], got[1]) {
					t.Fatalf("step %d: read of %d at %d differs", step, n, off)
				}
			case act < 92:
				var sizes [2]int64
				for i, f := range files {
					info, err := f.Stat()
					if err != nil {
						t.Fatalf("step %d: stat: %v", step, err)
					}
					sizes[i] = info.Size()
				}
				if sizes[0] != sizes[1] {
					t.Fatalf("step %d: size is %d, want %d", step, sizes[0], sizes[1])
				}
			case act < 94:
				both("sync", (*os.File).Sync)
			default:
				both("close", (*os.File).Close)
				a.mustHold(t, "pusheen/a:1", model)
				open(os.O_RDWR)
			}
		}
	})
}

// TestParallelReaders: 200 readers over 50 images, in small and large ranges,
// from a cache that has room for some of them only.
func TestParallelReaders(t *testing.T) {
	seed := crashSeed(t)
	s := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second})
	t.Cleanup(s.Close)
	rng := rand.New(rand.NewPCG(seed, 3))
	contents := make([][]byte, 50)
	total := int64(0)
	for i := range contents {
		contents[i] = make([]byte, 200_000+rng.IntN(2_000_000))
		for j := range contents[i] {
			contents[i][j] = byte(rng.Uint32())
		}
		total += int64(len(contents[i]))
		s.Put(fmt.Sprintf("/pusheen/a:%d.simg", i), contents[i])
	}
	d := newMachine(t, dropboxAt(s).env...).mount("--client=dropbox", "--cache-size=40M")
	reads := 15
	if long() {
		reads = 1000
	}
	var work sync.WaitGroup
	for r := range 200 {
		rng := rand.New(rand.NewPCG(seed, uint64(1000+r)))
		work.Go(func() {
			i := rng.IntN(len(contents))
			data := contents[i]
			f, err := os.Open(filepath.Join(d.dir, fmt.Sprintf("dropbox/pusheen/a:%d.simg", i)))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for range reads {
				off := rng.IntN(len(data))
				n := 1 + rng.IntN(4096)
				if rng.IntN(4) == 0 {
					n = 1 + rng.IntN(1<<20)
				}
				buf := make([]byte, min(n, len(data)-off))
				if _, err := f.ReadAt(buf, int64(off)); err != nil || !bytes.Equal(buf, data[off:off+len(buf)]) {
					t.Errorf("image %d, %d at %d: %v", i, len(buf), off, err)
					return
				}
			}
		})
	}
	work.Wait()
	if sent := s.Count("files/download").Out; !long() && sent > total*3/2 {
		t.Errorf("%d bytes came for %d", sent, total)
	}
}

// TestFIO: fio wrote a file with checksums in each block and verifies them over
// the tree, lazily and from the cache, in order and at random, read and mapped.
func TestFIO(t *testing.T) {
	a := dropboxAccount(t)
	d := newMachine(t, a.env...).mount("--client=dropbox")
	const job = "--name=verify --size=24m --bs=16k --verify=crc32c --output-format=terse"
	d.run("cd %s && fio %s --rw=write --do_verify=0 --filename=%[1]s/blocks", d.home, job)
	for i, how := range []string{"--rw=randread --ioengine=psync", "--rw=read --ioengine=psync", "--rw=randread --ioengine=mmap", "--rw=randread --ioengine=psync --numjobs=4"} {
		name := fmt.Sprintf("pusheen/a:%d", i)
		a.put(t, name, filepath.Join(d.home, "blocks"))
		d.eventually(name, func() error {
			_, err := os.Stat(filepath.Join(d.dir, "dropbox", name+".simg"))
			return err
		})
		for range 2 {
			// fio takes a colon in a name for the end of it.
			d.run(`cd %s && fio %s --readonly %s --filename='%s/dropbox/pusheen/a\:%d.simg'`, d.home, job, how, d.dir, i)
		}
	}
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(d.dir, "dropbox/pusheen/a:0.simg"), &st); err != nil || st.Size != 24<<20 {
		t.Errorf("size %d, %v", st.Size, err)
	}
}
