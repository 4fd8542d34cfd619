package squashfs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/sregfs/sregfs/image/squashfs"
)

// smallTree has one of each thing and little of it.
func smallTree(t testing.TB) string {
	t.Helper()
	tree := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(tree, "dir/sub"), 0o755))
	for name, b := range map[string][]byte{
		"a": text(300, 1), "dir/b": noise(300, 1), "dir/sub/c": text(9000, 2), "dir/d": make([]byte, 5000),
	} {
		must(t, os.WriteFile(filepath.Join(tree, name), b, 0o644))
	}
	must(t, os.Symlink("../a", filepath.Join(tree, "dir/link")))
	return tree
}

// smallImages are images of smallTree, by each compressor.
func smallImages(t testing.TB) [][]byte {
	t.Helper()
	tree := smallTree(t)
	var images [][]byte
	for _, comp := range []string{"gzip", "xz", "zstd", "lz4", "lzo", "lzma"} {
		images = append(images, pack(t, tree, "-comp", comp, "-b", "4K", "-nopad"))
	}
	return append(images, pack(t, tree, "-noI", "-b", "4K", "-nopad"))
}

// exercise does everything there is with what may be an image, and reports
// whether it went well. It gives up on what takes long by design: the limits
// for one file and one directory hold for each of many.
func exercise(image []byte) error {
	f, err := squashfs.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		return err
	}
	var first error
	note := func(err error) {
		if first == nil && err != nil {
			first = err
		}
	}
	steps := 0
	note(iofs.WalkDir(f, ".", func(name string, d iofs.DirEntry, err error) error {
		note(err)
		if steps++; steps > 50 {
			return iofs.SkipAll
		}
		if err != nil {
			return nil
		}
		if _, err := d.Info(); err != nil {
			note(err)
			return nil
		}
		if d.Type() == iofs.ModeSymlink {
			_, err := f.ReadLink(name)
			note(err)
		}
		file, err := f.Open(name)
		if err != nil || d.IsDir() {
			note(err)
			return nil
		}
		_, err = io.Copy(io.Discard, io.LimitReader(file, 1<<20))
		note(err)
		return nil
	}))
	return first
}

// TestDamageIsAnError changes bytes anywhere in images: nothing panics, and
// memory stays within bounds.
func TestDamageIsAnError(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for i, image := range smallImages(t) {
		if err := exercise(image); err != nil {
			t.Fatalf("whole image: %v", err)
		}
		failed := 0
		for range 300 {
			b := bytes.Clone(image)
			for range 1 + rnd.IntN(3) {
				b[rnd.IntN(len(b))] = byte(rnd.Uint32())
			}
			if exercise(b) != nil {
				failed++
			}
		}
		// Not all of it: lz4 and lzo have no checksum, and stored blocks neither.
		if failed < 50 {
			t.Errorf("image %d: damage was seen in %d of 300", i, failed)
		}
		for n := range 40 {
			if err := exercise(image[:len(image)*n/40]); err == nil {
				t.Errorf("image cut to %d of %d bytes: no error", len(image)*n/40, len(image))
			}
		}
	}
}

// TestClaimsTakeNoMemory lets a file claim to be huge.
func TestClaimsTakeNoMemory(t *testing.T) {
	tree := t.TempDir()
	const size = 1<<26 + 1
	f, err := os.Create(filepath.Join(tree, "huge"))
	must(t, err)
	must(t, f.Truncate(size))
	must(t, f.Close())
	image := pack(t, tree, "-noI", "-b", "1M")
	// A sparse file's inode has its size, and then how much of it is holes.
	at := bytes.Index(image, binary.LittleEndian.AppendUint64(nil, size))
	if at < 0 {
		t.Fatal("the file's size is not in the image")
	}
	binary.LittleEndian.PutUint64(image[at:], 1<<62)

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fsys := open(t, image)
	if _, err := fsys.ReadFile("huge"); !errors.Is(err, squashfs.ErrTooLarge) {
		t.Errorf("ReadFile: %v, want %v", err, squashfs.ErrTooLarge)
	}
	file, err := fsys.Open("huge")
	must(t, err)
	if n, err := file.(io.ReaderAt).ReadAt(make([]byte, 10), 1<<61); !errors.Is(err, squashfs.ErrCorrupt) {
		t.Errorf("ReadAt: %d, %v, want %v", n, err, squashfs.ErrCorrupt)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
		t.Errorf("took %d bytes", n)
	}
}

func TestSuperblocks(t *testing.T) {
	good := pack(t, smallTree(t))[:squashfs.SuperblockSize]
	put16 := func(i int, v uint16) func([]byte) { return func(b []byte) { binary.LittleEndian.PutUint16(b[i:], v) } }
	put32 := func(i int, v uint32) func([]byte) { return func(b []byte) { binary.LittleEndian.PutUint32(b[i:], v) } }
	put64 := func(i int, v uint64) func([]byte) { return func(b []byte) { binary.LittleEndian.PutUint64(b[i:], v) } }
	for name, tc := range map[string]struct {
		change func([]byte)
		want   error
	}{
		"good":                    {func([]byte) {}, nil},
		"magic":                   {func(b []byte) { b[0] = 'H' }, squashfs.ErrNotSquashfs},
		"version 3":               {put16(28, 3), squashfs.ErrNotSquashfs},
		"block size 0":            {put32(12, 0), squashfs.ErrCorrupt},
		"block size 2 MiB":        {put32(12, 2<<20), squashfs.ErrCorrupt},
		"block size not 2^n":      {put32(12, 5000), squashfs.ErrCorrupt},
		"other block log":         {put16(22, 12), squashfs.ErrCorrupt},
		"size 0":                  {put64(40, 0), squashfs.ErrCorrupt},
		"size negative":           {put64(40, 1<<63), squashfs.ErrCorrupt},
		"inode table in the head": {put64(64, 10), squashfs.ErrCorrupt},
		"inode table behind all":  {put64(64, 1<<40), squashfs.ErrCorrupt},
		"directory table far":     {put64(72, 1<<62), squashfs.ErrCorrupt},
		"fragment table far":      {put64(80, 1<<62), squashfs.ErrCorrupt},
		"no fragment table":       {put64(80, 1<<64-1), nil},
		"root outside":            {put64(32, 1<<60), squashfs.ErrCorrupt},
		"root's offset":           {put64(32, 9000), squashfs.ErrCorrupt},
	} {
		b := bytes.Clone(good)
		tc.change(b)
		if _, err := squashfs.ParseSuperblock(b); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	if _, err := squashfs.ParseSuperblock(good[:95]); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("95 bytes: %v, want %v", err, io.ErrUnexpectedEOF)
	}
	unknown := bytes.Clone(good)
	put16(20, 7)(unknown)
	if _, err := squashfs.Open(bytes.NewReader(unknown), 1<<30); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("compressor 7: %v, want %v", err, errors.ErrUnsupported)
	}
}

func FuzzImage(f *testing.F) {
	for _, image := range smallImages(f) {
		f.Add(image)
	}
	f.Fuzz(func(t *testing.T, image []byte) { exercise(image) })
}
