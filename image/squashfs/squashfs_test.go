package squashfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/sregfs/sregfs/image/squashfs"
)

// pack runs mksquashfs on a tree and returns the image.
func pack(t testing.TB, tree string, args ...string) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image.sqfs")
	args = append([]string{tree, name, "-noappend", "-quiet", "-no-progress"}, args...)
	if out, err := exec.Command("mksquashfs", args...).CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs %q: %v\n%s", args[2:], err, out)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t testing.TB, image []byte) *squashfs.FS {
	t.Helper()
	f, err := squashfs.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// text is n bytes that compress, noise n bytes that do not.
func text(n int, seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "line %d of some text, with a number %x in it\n", b.Len(), rnd.Uint32N(1000))
	}
	return b.Bytes()[:n]
}

func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// hardTree makes a tree with everything that the format treats apart.
func hardTree(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	file := func(name string, b []byte) {
		t.Helper()
		name = filepath.Join(root, name)
		must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must(t, os.WriteFile(name, b, 0o644))
	}
	for _, n := range []int{0, 1, 4095, 4096, 4097, 131071, 131072, 131073, 300_000} {
		file(fmt.Sprintf("sizes/text%d", n), text(n, uint64(n)))
		file(fmt.Sprintf("sizes/noise%d", n), noise(n, byte(n)))
	}
	for i := range 400 {
		file(fmt.Sprintf("many/a rather long name, so that it takes an index %04d", i), text(i%50, 1))
	}
	file("deep/"+strings.Repeat("d/", 40)+"file", []byte("deep"))
	file(strings.Repeat("n", 255), []byte("long name"))
	file("odd/\xff\xfe not UTF-8", []byte("odd"))
	sparse := append(make([]byte, 300_000), text(10_000, 2)...)
	file("sparse", append(sparse, make([]byte, 200_000)...))
	must(t, os.Chmod(filepath.Join(root, "sparse"), 0o755|os.ModeSetuid|os.ModeSetgid|os.ModeSticky))
	must(t, os.Symlink("sizes/text4097", filepath.Join(root, "link")))
	must(t, os.Symlink(strings.Repeat("x/", 1500), filepath.Join(root, "long link")))
	must(t, os.Mkdir(filepath.Join(root, "empty"), 0o700))
	must(t, syscall.Mkfifo(filepath.Join(root, "fifo"), 0o600))
	must(t, os.Link(filepath.Join(root, "sparse"), filepath.Join(root, "hard link")))
	must(t, os.Chtimes(filepath.Join(root, "link"), time.Unix(1e9, 0), time.Unix(1e9, 0)))
	return root
}

// TestReadsWhatMksquashfsPacked compares every entry with the tree that it was
// made from, for every compressor and layout.
func TestReadsWhatMksquashfsPacked(t *testing.T) {
	tree := hardTree(t)
	for _, args := range []string{
		"-comp gzip", "-comp xz", "-comp zstd", "-comp lz4", "-comp lzo", "-comp lzma",
		"-comp lz4 -Xhc -b 1M", "-comp lzo -Xalgorithm lzo1x_1 -b 4K", "-comp xz -Xbcj x86 -b 1M",
		"-comp zstd -b 1M", "-comp gzip -Xwindow-size 8 -b 4K",
		"-no-fragments", "-always-use-fragments -b 1M", "-noI -noD -noF", "-noI", "-noD", "-noF", "-no-sparse -no-exports -no-xattrs",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			compareTrees(t, open(t, pack(t, tree, strings.Fields(args)...)), tree)
		})
	}
}

func compareTrees(t *testing.T, got *squashfs.FS, tree string) {
	t.Helper()
	want := os.DirFS(tree).(iofs.ReadLinkFS)
	seen := map[string]bool{}
	must(t, iofs.WalkDir(got, ".", func(name string, _ iofs.DirEntry, err error) error {
		seen[name] = true
		return err
	}))
	// Not WalkDir: os.DirFS refuses names that are not UTF-8.
	must(t, filepath.WalkDir(tree, func(name string, d iofs.DirEntry, err error) error {
		must(t, err)
		rel, err := filepath.Rel(tree, name)
		must(t, err)
		if !iofs.ValidPath(rel) {
			dir, err := got.ReadDir(filepath.Dir(rel))
			if err != nil || len(dir) != 1 || dir[0].Name() != filepath.Base(rel) {
				t.Errorf("ReadDir(%q) = %v, %v, want %q", filepath.Dir(rel), dir, err, filepath.Base(rel))
			}
			delete(seen, rel)
			return nil
		}
		if !seen[rel] {
			t.Errorf("%.60q is not in the walk", rel)
		}
		delete(seen, rel)
		w, err := d.Info()
		must(t, err)
		g, err := got.Lstat(rel)
		if err != nil {
			t.Errorf("Lstat: %v", err)
			return nil
		}
		if g.Mode() != w.Mode() || !g.ModTime().Equal(w.ModTime().Truncate(time.Second)) ||
			(!w.IsDir() && g.Size() != w.Size()) {
			t.Errorf("Lstat(%.60q) = %v, want %v", rel, g, iofs.FormatFileInfo(w))
		}
		switch w.Mode().Type() {
		case 0:
			b, err := got.ReadFile(rel)
			must(t, err)
			src, err := os.ReadFile(name)
			must(t, err)
			if !bytes.Equal(b, src) {
				t.Errorf("ReadFile(%.60q): %d bytes differ from the %d packed", rel, len(b), len(src))
			}
		case iofs.ModeSymlink:
			target, err := got.ReadLink(rel)
			src, _ := want.ReadLink(rel)
			if err != nil || target != src {
				t.Errorf("ReadLink(%q) = %.60q, %v, want %.60q", rel, target, err, src)
			}
		}
		return nil
	}))
	for name := range seen {
		t.Errorf("%.60q is in the walk alone", name)
	}
}

// TestIsAnFS asks the standard library's oracle.
func TestIsAnFS(t *testing.T) {
	tree := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(tree, "dir/sub"), 0o755))
	for name, b := range map[string][]byte{"a": text(200_000, 1), "dir/b": nil, "dir/sub/c": noise(5000, 1)} {
		must(t, os.WriteFile(filepath.Join(tree, name), b, 0o644))
	}
	must(t, os.Symlink("sub/c", filepath.Join(tree, "dir/link")))
	must(t, fstest.TestFS(open(t, pack(t, tree)), "a", "dir/b", "dir/sub/c", "dir/link"))
}

func TestSymbolicLinksStayInside(t *testing.T) {
	tree := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(tree, "dir/sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(tree, "dir/sub/file"), []byte("content"), 0o644))
	for name, target := range map[string]string{
		"relative": "dir/sub/file", "absolute": "/dir/sub/file", "dir/up": "../dir/./sub//file",
		"outside": "../../../../dir/sub/file", "todir": "dir/sub", "chain": "relative",
		"host": "/etc/passwd", "loop": "loop", "ping": "pong", "pong": "ping", "throughfile": "dir/sub/file/more",
		"root": "/", "dir/here": ".", "bomb": strings.Repeat("dir/here/../", 300) + "bomb",
	} {
		must(t, os.Symlink(target, filepath.Join(tree, name)))
	}
	f := open(t, pack(t, tree))
	for _, tc := range []struct {
		name string
		want error
	}{
		{"relative", nil}, {"absolute", nil}, {"dir/up", nil}, {"outside", nil}, {"todir/file", nil}, {"chain", nil},
		{"root/root/dir/here/sub/file", nil}, {"dir/here/here/here/sub/file", nil},
		{"host", iofs.ErrNotExist}, {"throughfile", iofs.ErrNotExist}, {"relative/x", iofs.ErrNotExist},
		{"nothing", iofs.ErrNotExist}, {"dir/sub/nothing", iofs.ErrNotExist},
		{"loop", iofs.ErrInvalid}, {"ping", iofs.ErrInvalid}, {"bomb", iofs.ErrInvalid},
		{"/dir", iofs.ErrInvalid}, {"../dir", iofs.ErrInvalid}, {"", iofs.ErrInvalid},
	} {
		b, err := f.ReadFile(tc.name)
		if !errors.Is(err, tc.want) || tc.want == nil && string(b) != "content" {
			t.Errorf("ReadFile(%q) = %q, %v, want error %v", tc.name, b, err, tc.want)
		}
	}
	if _, err := f.ReadLink("dir"); !errors.Is(err, iofs.ErrInvalid) {
		t.Errorf("ReadLink of a directory: %v, want %v", err, iofs.ErrInvalid)
	}
	if _, err := f.ReadDir("relative"); !errors.Is(err, iofs.ErrInvalid) {
		t.Errorf("ReadDir of a file: %v, want %v", err, iofs.ErrInvalid)
	}
}

func TestReadAtAnyOffset(t *testing.T) {
	tree := t.TempDir()
	want := append(text(300_000, 1), make([]byte, 200_000)...)
	want = append(want, noise(150_001, 1)...)
	must(t, os.WriteFile(filepath.Join(tree, "file"), want, 0o644))
	for _, comp := range []string{"gzip", "lz4"} {
		file, err := open(t, pack(t, tree, "-comp", comp)).Open("file")
		must(t, err)
		at := file.(io.ReaderAt)
		rnd := rand.New(rand.NewPCG(1, 1))
		for range 300 {
			off, p := rnd.IntN(len(want)+10), make([]byte, rnd.IntN(200_000))
			n, err := at.ReadAt(p, int64(off))
			rest := want[min(off, len(want)):]
			if wantN := min(len(p), len(rest)); n != wantN || !bytes.Equal(p[:n], rest[:n]) ||
				(n < len(p)) != (err == io.EOF) && len(p) > 0 {
				t.Fatalf("%s: ReadAt(%d bytes, %d) = %d, %v, want %d", comp, len(p), off, n, err, wantN)
			}
		}
		must(t, fstestSeek(file.(io.ReadSeeker), want))
	}
}

func fstestSeek(r io.ReadSeeker, want []byte) error {
	if _, err := r.Seek(-5, io.SeekEnd); err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(b, want[len(want)-5:]) {
		return fmt.Errorf("after Seek(-5, SeekEnd): %q, %v", b, err)
	}
	if _, err := r.Seek(-1, io.SeekStart); !errors.Is(err, iofs.ErrInvalid) {
		return fmt.Errorf("Seek(-1, SeekStart): %v, want %v", err, iofs.ErrInvalid)
	}
	return nil
}

// counting counts what is read, and fails while fail is set.
type counting struct {
	r     io.ReaderAt
	reads atomic.Int64
	bytes atomic.Int64
	fail  atomic.Bool
}

var errBroken = errors.New("line is down")

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	if c.fail.Load() {
		return 0, errBroken
	}
	c.reads.Add(1)
	n, err := c.r.ReadAt(p, off)
	c.bytes.Add(int64(n))
	return n, err
}

// TestSmallFileCostsLittle reads one small file of an image of a thousand, at
// the start of a fragment of a MiB.
func TestSmallFileCostsLittle(t *testing.T) {
	tree := t.TempDir()
	must(t, os.WriteFile(filepath.Join(tree, "0first"), text(500, 1), 0o644))
	for i := range 1000 {
		must(t, os.WriteFile(filepath.Join(tree, fmt.Sprintf("file%d", i)), noise(1000, byte(i)), 0o644))
	}
	for _, comp := range []string{"gzip", "xz", "zstd"} {
		image := pack(t, tree, "-comp", comp, "-b", "1M")
		c := &counting{r: bytes.NewReader(image)}
		f, err := squashfs.Open(c, int64(len(image)))
		must(t, err)
		_, err = f.ReadFile("0first")
		must(t, err)
		if reads, n := c.reads.Load(), c.bytes.Load(); reads > 10 || n > 160<<10 {
			t.Errorf("%s: %d reads of %d bytes in all, want at most 10 of 160 KiB", comp, reads, n)
		}
	}
}

// TestFailedReadsPass checks that a broken line is told as such, and forgotten.
func TestFailedReadsPass(t *testing.T) {
	tree := t.TempDir()
	must(t, os.WriteFile(filepath.Join(tree, "file"), text(300_000, 1), 0o644))
	for _, comp := range []string{"gzip", "xz", "zstd", "lz4", "lzo", "lzma"} {
		image := pack(t, tree, "-comp", comp)
		for okReads := range int64(8) {
			c := &counting{r: bytes.NewReader(image)}
			f, err := squashfs.Open(breakAfter{c, okReads + 1}, int64(len(image)))
			must(t, err)
			_, err = f.ReadFile("file")
			if err != nil && (!errors.Is(err, errBroken) || errors.Is(err, squashfs.ErrCorrupt)) {
				t.Errorf("%s, line down after %d reads: %v, want %v", comp, okReads, err, errBroken)
			}
			c.fail.Store(false)
			c.reads.Store(-1000)
			if _, err := f.ReadFile("file"); err != nil {
				t.Errorf("%s, line up again: %v", comp, err)
			}
		}
	}
}

// breakAfter breaks its line after so many reads.
type breakAfter struct {
	*counting
	n int64
}

func (b breakAfter) ReadAt(p []byte, off int64) (int, error) {
	if b.reads.Load() >= b.n {
		b.fail.Store(true)
	}
	return b.counting.ReadAt(p, off)
}

func TestConcurrentReaders(t *testing.T) {
	tree := t.TempDir()
	want := map[string][]byte{}
	for i := range 20 {
		name := fmt.Sprintf("file%d", i)
		want[name] = text(5_000*i, uint64(i))
		must(t, os.WriteFile(filepath.Join(tree, name), want[name], 0o644))
	}
	for _, comp := range []string{"zstd", "xz", "lzo"} {
		f := open(t, pack(t, tree, "-comp", comp))
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for name, w := range want {
					if b, err := f.ReadFile(name); err != nil || !bytes.Equal(b, w) {
						t.Errorf("%s: ReadFile(%s): %d bytes, %v, want %d", comp, name, len(b), err, len(w))
					}
				}
			})
		}
		wg.Wait()
	}
}
