package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/image/squash"
)

// benchImage is a layer in a file, gzipped as builders do.
type benchImage struct {
	name string
	fill func(w *tar.Writer) error
}

var benchImages = []benchImage{
	{"30-large-files", func(w *tar.Writer) error {
		return fillNoise(w, 30, func(*rand.Rand) int { return 10 << 20 })
	}},
	{"20000-small-files", func(w *tar.Writer) error {
		return fillNoise(w, 20_000, func(r *rand.Rand) int { return 8<<10 + r.IntN(14<<10) })
	}},
	{"usr", fillUsr},
}

// fillNoise writes files of which half the bytes do not compress.
func fillNoise(w *tar.Writer, n int, size func(*rand.Rand) int) error {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	src := rand.NewChaCha8([32]byte{1})
	for i := range n {
		p := make([]byte, size(r))
		src.Read(p)
		if n > 1000 && i%2 == 0 {
			p = bytes.ReplaceAll(p, []byte{0}, []byte("a word or two"))[:len(p)]
			for k := range p {
				p[k] = "the quick brown fox jumps "[p[k]%26]
			}
		}
		name := fmt.Sprintf("data/%d/%d", i%100, i)
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(p)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

// fillUsr takes real programs, libraries and texts, of this machine.
func fillUsr(w *tar.Writer) error {
	left := int64(1 << 30)
	for _, root := range []string{"/usr/lib", "/usr/share", "/usr/bin"} {
		err := filepath.WalkDir(root, func(path string, d iofs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || left < 0 {
				return err
			}
			p, err := os.ReadFile(path)
			if err != nil {
				return nil // private to someone
			}
			left -= int64(len(p))
			if err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o755, Size: int64(len(p)), Typeflag: tar.TypeReg}); err != nil {
				return err
			}
			_, err = w.Write(p)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// layer writes the layer to a file in dir.
func (i benchImage) layer(b *testing.B, dir string) Layer {
	b.Helper()
	path := filepath.Join(dir, "layer.tar.gz")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	blob, plain := sha256.New(), sha256.New()
	z, err := gzip.NewWriterLevel(io.MultiWriter(f, blob), gzip.BestSpeed)
	if err != nil {
		b.Fatal(err)
	}
	w := tar.NewWriter(io.MultiWriter(z, plain))
	if err := i.fill(w); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	if err := z.Close(); err != nil {
		b.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	return Layer{
		Digest: fmt.Sprintf("sha256:%x", blob.Sum(nil)), DiffID: fmt.Sprintf("sha256:%x", plain.Sum(nil)), Size: st.Size(),
		Open: func(context.Context) (io.ReadCloser, error) { return os.Open(path) },
	}
}

// BenchmarkImage makes a complete image from a layer that is on disk, in two
// steps that are timed together and apart: what an open waits for (scan and
// assemble), and writing it out as one file. It reports the sizes too.
func BenchmarkImage(b *testing.B) {
	for _, img := range benchImages {
		b.Run(img.name, func(b *testing.B) {
			dir := b.TempDir()
			l := img.layer(b, dir)
			config, err := json.Marshal(map[string]any{"rootfs": map[string]any{"diff_ids": []string{l.DiffID}}})
			if err != nil {
				b.Fatal(err)
			}
			for _, codec := range []squash.Codec{squash.Plain, squash.Zstd} {
				b.Run(codec.String(), func(b *testing.B) {
					var size int64
					start := cpuSeconds(b)
					for b.Loop() {
						data, err := os.Create(filepath.Join(dir, "data"))
						if err != nil {
							b.Fatal(err)
						}
						c, err := Scan(b.Context(), l, ScanOptions{Codec: codec}, data)
						if err != nil {
							b.Fatal(err)
						}
						im, err := Assemble(b.Context(), config, []*Contents{c}, Options{})
						if err != nil {
							b.Fatal(err)
						}
						size = im.Size()
						data.Close()
					}
					b.ReportMetric((cpuSeconds(b)-start)/float64(b.N), "cpu-s/op")
					b.ReportMetric(float64(l.Size)/1e6, "blob-MB")
					b.ReportMetric(float64(size)/1e6, "image-MB")
				})
				b.Run(codec.String()+"+file", func(b *testing.B) {
					data, err := os.Create(filepath.Join(dir, "data"))
					if err != nil {
						b.Fatal(err)
					}
					defer data.Close()
					c, err := Scan(b.Context(), l, ScanOptions{Codec: codec}, data)
					if err != nil {
						b.Fatal(err)
					}
					im, err := Assemble(b.Context(), config, []*Contents{c}, Options{})
					if err != nil {
						b.Fatal(err)
					}
					for b.Loop() {
						writeOut(b, im, data, filepath.Join(dir, "image.sif"))
					}
				})
			}
		})
	}
}

// cpuSeconds is what the process has used so far, on a busy machine the better
// measure.
func cpuSeconds(b *testing.B) float64 {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func writeOut(b *testing.B, im *Image, data *os.File, path string) {
	b.Helper()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := im.WriteFile(b.Context(), f, []*os.File{data}); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkAssemble is the cost of what is not proportional to the data.
func BenchmarkAssemble(b *testing.B) {
	for _, n := range []int{20_000, 200_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var list []byte
			for i := range n {
				list = appendEntry(list, &entry{kind: kindFile, name: fmt.Sprintf("usr/lib/d%d/file%d", i%100, i), size: 10_000, offset: int64(i) * 10_000})
			}
			c := &Contents{DiffID: "x", list: list}
			config := []byte(`{"rootfs":{"diff_ids":["x"]}}`)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Assemble(b.Context(), config, []*Contents{c}, Options{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkScanTOC opens a lazily readable layer of 20,000 files.
func BenchmarkScanTOC(b *testing.B) {
	var members []member
	for i := range 20_000 {
		members = append(members, file(fmt.Sprintf("usr/lib/d%d/file%d", i%100, i), noise(100)))
	}
	for _, format := range []string{"estargz", "zstd:chunked"} {
		b.Run(format, func(b *testing.B) {
			l, requests, fetched := lazyLayer(b, format, 1<<20, members...)
			b.ReportAllocs()
			for b.Loop() {
				requests.Store(0)
				fetched.Store(0)
				c, err := ScanTOC(b.Context(), l, Limits{})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := NewLazy(l, c); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(requests.Load()), "requests")
			b.ReportMetric(float64(fetched.Load())/1e6, "fetched-MB")
		})
	}
}
