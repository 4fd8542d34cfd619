//go:build integration

package squash

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	iofs "io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// These tests compare a hard tree on disk with what independent readers show
// of the image made of it. They need root (devices, trusted attributes, loop
// mounts), squashfs-tools, squashfuse and squashfs-tools-ng.

// record is all that can be said of one entry but the content of large files,
// of which it has the checksum.
type record struct {
	mode       uint32
	uid, gid   uint32
	size       int64
	mtime      int64
	rdev       uint64
	nlink      uint64
	target     string
	sum        string
	xattrs     string
	sameAs     string // the first name of the same inode
	entryCount int
}

// snapshot reads a tree through the kernel.
func snapshot(t *testing.T, root string) map[string]record {
	t.Helper()
	return snapshotBut(t, root, readXattrs)
}

// snapshotBut is snapshot with another way to read extended attributes.
func snapshotBut(t *testing.T, root string, readXattrs func(string) ([]Xattr, error)) map[string]record {
	t.Helper()
	out := map[string]record{}
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		r := record{mode: st.Mode, uid: st.Uid, gid: st.Gid, mtime: st.Mtim.Sec, nlink: uint64(st.Nlink)}
		switch st.Mode & ModeType {
		case ModeRegular:
			r.size = st.Size
			if r.sum, err = sumFile(path); err != nil {
				return err
			}
		case ModeSymlink:
			if r.target, err = os.Readlink(path); err != nil {
				return err
			}
		case ModeChar, ModeBlock:
			r.rdev = st.Rdev
		case ModeDir:
			list, err := os.ReadDir(path)
			if err != nil {
				return err
			}
			r.entryCount = len(list)
		}
		if st.Nlink > 1 && st.Mode&ModeType != ModeDir {
			if _, ok := first[st.Ino]; !ok {
				first[st.Ino] = name
			}
			r.sameAs = first[st.Ino]
		}
		x, err := readXattrs(path)
		if err != nil {
			return err
		}
		r.xattrs = fmt.Sprintf("%q", x)
		out[name] = r
		return nil
	})
	if err != nil {
		t.Fatalf("reading %s: %v", root, err)
	}
	return out
}

func sumFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if st.Size() > 1<<30 { // a sparse one: its middle would take minutes
		_, err = io.Copy(h, io.NewSectionReader(f, 0, AlignedFileSize))
		if err == nil {
			_, err = f.Seek(-AlignedFileSize, io.SeekEnd)
		}
	}
	if err == nil {
		_, err = io.Copy(h, f)
	}
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func readXattrs(path string) ([]Xattr, error) {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return nil, fmt.Errorf("listxattr %s: %w", path, err)
	}
	var out []Xattr
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		val := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, name, val)
		if err != nil {
			return nil, fmt.Errorf("getxattr %s %s: %w", path, name, err)
		}
		out = append(out, Xattr{name, string(val[:n])})
	}
	slices.SortFunc(out, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// compare reports the first differences between two snapshots.
func compare(t *testing.T, got, want map[string]record, forgive func(*record)) {
	t.Helper()
	bad := 0
	for _, name := range slices.Sorted(maps.Keys(want)) {
		g, ok := got[name]
		w := want[name]
		if forgive != nil {
			forgive(&g)
			forgive(&w)
		}
		if !ok || g != w {
			if bad++; bad <= 5 {
				t.Errorf("%.100q:\n got %+v\nwant %+v", name, g, w)
			}
		}
	}
	if bad > 5 {
		t.Errorf("and %d more", bad-5)
	}
	if len(got) != len(want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// hardTree makes a directory with everything that a container's root may hold.
func hardTree(t *testing.T) string {
	root := filepath.Join(t.TempDir(), "tree")
	must(t, os.Mkdir(root, 0o755))
	p := func(name string) string { return filepath.Join(root, name) }
	write := func(name string, content []byte, mode os.FileMode) {
		must(t, os.WriteFile(p(name), content, 0o600))
		must(t, os.Chmod(p(name), mode))
	}
	for _, n := range []int{0, 1, 100, BlockSize - 1, BlockSize, BlockSize + 1, AlignedFileSize, 5<<20 + 3} {
		write(fmt.Sprint("size", n), noise(n), 0o644)
	}
	write("zeros", make([]byte, 3*BlockSize+5), 0o600)
	write("mixed", slices.Concat(noise(BlockSize), make([]byte, 2*BlockSize), []byte("tail")), 0o600)
	f, err := os.Create(p("huge"))
	must(t, err)
	must(t, f.Truncate(5<<30))
	_, err = f.WriteAt([]byte("end"), 5<<30-3)
	must(t, err)
	must(t, f.Close())
	for i, mode := range []uint32{0o4755, 0o2755, 0o1777, 0o7777, 0, 0o222} {
		name := fmt.Sprint("mode", i)
		write(name, []byte(name), 0o644)
		must(t, unix.Chown(p(name), 1000+i*100000, 4_000_000_000-i))
		must(t, unix.Chmod(p(name), mode))
	}
	must(t, os.Symlink("size1", p("link")))
	must(t, os.Symlink(strings.Repeat("l/", 2000), p("longlink")))
	must(t, unix.Lchown(p("link"), 7, 8))
	must(t, unix.Mknod(p("fifo"), unix.S_IFIFO|0o640, 0))
	must(t, unix.Mknod(p("sock"), unix.S_IFSOCK|0o640, 0))
	must(t, unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(p("chr"), unix.S_IFCHR|0o600, int(unix.Mkdev(4095, 1<<20-1))))
	must(t, unix.Mknod(p("blk"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
	must(t, os.MkdirAll(p("a/b/c"), 0o755))
	must(t, os.Link(p("size100"), p("a/b/c/hard")))
	must(t, os.Link(p("size100"), p("zhard")))
	must(t, os.Link(p("fifo"), p("a/fifo2")))
	must(t, os.Link(p("link"), p("a/link2")))
	must(t, os.Mkdir(p("empty"), 0o1777))
	must(t, os.Mkdir(p("many"), 0o755))
	for i := range 3300 {
		write(fmt.Sprintf("many/%s-%d", strings.Repeat("m", i%90), i), []byte(fmt.Sprint(i)), 0o644)
	}
	write("many/"+strings.Repeat("x", 255), nil, 0o644)
	write("many/\xff\xfe not utf-8\n", []byte("x"), 0o644)
	write("many/#[]*?\"'\\ ", []byte("y"), 0o644)
	must(t, os.MkdirAll(p(strings.Repeat("deep/", 40)), 0o700))
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	must(t, unix.Lsetxattr(p("size1"), "security.capability", []byte(capability), 0))
	for _, name := range []string{"size100", "a", "link", "null", "fifo"} {
		must(t, unix.Lsetxattr(p(name), "trusted.t", []byte("of "+name), 0))
	}
	for _, name := range []string{"size100", "empty", "many"} {
		must(t, unix.Lsetxattr(p(name), "user.empty", nil, 0))
		must(t, unix.Lsetxattr(p(name), "user.bin", bytes.Repeat([]byte{0, 255}, 700), 0))
	}
	// Times last, the deepest first.
	snap := snapshot(t, root)
	names := slices.Sorted(maps.Keys(snap))
	slices.Reverse(names)
	for i, name := range names {
		ts := []unix.Timespec{{Sec: int64(i) * 400_000}, {Sec: int64(i) * 400_000}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p(name), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
	return root
}

// fromDisk makes the inode of path and all below it.
func (b *builder) fromDisk(path string, seen map[uint64]*Inode) *Inode {
	t := b.t
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	if ino, ok := seen[st.Ino]; ok {
		return ino
	}
	ino := &Inode{Mode: st.Mode, UID: st.Uid, GID: st.Gid, MTime: uint32(st.Mtim.Sec)}
	if st.Mode&ModeType != ModeDir {
		seen[st.Ino] = ino
	}
	var err error
	if ino.Xattrs, err = readXattrs(path); err != nil {
		t.Fatal(err)
	}
	switch st.Mode & ModeType {
	case ModeRegular:
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		ino.Size, ino.Source = st.Size, int(st.Ino)%len(b.data)
		if ino.Offset, ino.Blocks, err = b.data[ino.Source].File(st.Size, f); err != nil {
			t.Fatal(err)
		}
	case ModeSymlink:
		if ino.Target, err = os.Readlink(path); err != nil {
			t.Fatal(err)
		}
	case ModeChar, ModeBlock:
		ino.Major, ino.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case ModeDir:
		list, err := os.ReadDir(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range list {
			ino.Entries = append(ino.Entries, Entry{d.Name(), b.fromDisk(filepath.Join(path, d.Name()), seen)})
		}
	}
	return ino
}

// mount runs a mount command and unmounts at the end.
func mount(t *testing.T, name string, args ...string) {
	t.Helper()
	dir := args[len(args)-1]
	must(t, os.MkdirAll(dir, 0o755))
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

func TestReadersAgree(t *testing.T) {
	tree := hardTree(t)
	want := snapshot(t, tree)
	for _, codec := range []Codec{Plain, Zstd} {
		b := newBuilder(t, codec, 3)
		root := b.fromDisk(tree, map[uint64]*Inode{})
		img := b.image(root, Options{Codec: codec})
		tmp := t.TempDir()
		path := filepath.Join(tmp, "image.sqfs")
		must(t, os.WriteFile(path, img, 0o600))

		t.Run("kernel/"+codec.String(), func(t *testing.T) {
			dir := filepath.Join(tmp, "kernel")
			mount(t, "mount", "-t", "squashfs", "-o", "loop,ro", path, dir)
			compare(t, snapshot(t, dir), want, nil)
			for name := range want {
				if strings.HasPrefix(name, "many/") {
					if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
						t.Fatalf("look-up by index: %v", err)
					}
				}
			}
		})
		t.Run("unsquashfs/"+codec.String(), func(t *testing.T) {
			dir := filepath.Join(tmp, "unsquashfs")
			out, err := exec.Command("unsquashfs", "-no-progress", "-strict-errors", "-d", dir, path).CombinedOutput()
			if err != nil {
				t.Fatalf("unsquashfs: %v\n%s", err, out)
			}
			compare(t, snapshot(t, dir), want, nil)
		})
		t.Run("squashfuse_ll/"+codec.String(), func(t *testing.T) {
			dir := filepath.Join(tmp, "fuse")
			mount(t, "squashfuse_ll", path, dir)
			// squashfuse 0.1 shows trusted attributes under other prefixes,
			// on mksquashfs's images too.
			got := snapshotBut(t, dir, func(string) ([]Xattr, error) { return nil, nil })
			compare(t, got, want, func(r *record) { r.xattrs = "" })
		})
	}
}

// TestSecondOpinion compares with the image that squashfs-tools-ng makes of the
// same tree.
func TestSecondOpinion(t *testing.T) {
	tree := hardTree(t)
	must(t, os.Remove(filepath.Join(tree, "huge")))
	must(t, os.Remove(filepath.Join(tree, "sock"))) // tar has no sockets
	tmp := t.TempDir()
	other := filepath.Join(tmp, "other.sqfs")
	tarred := exec.Command("tar", "--xattrs", "--xattrs-include=*", "--format=pax", "-C", tree, "-c", ".")
	conv := exec.Command("tar2sqfs", "-q", other)
	pipe, err := tarred.StdoutPipe()
	must(t, err)
	conv.Stdin = pipe
	must(t, tarred.Start())
	if out, err := conv.CombinedOutput(); err != nil {
		t.Fatalf("tar2sqfs: %v\n%s", err, out)
	}
	must(t, tarred.Wait())

	b := newBuilder(t, Plain, 1)
	ours := filepath.Join(tmp, "ours.sqfs")
	must(t, os.WriteFile(ours, b.image(b.fromDisk(tree, map[uint64]*Inode{}), Options{}), 0o600))
	mount(t, "mount", "-t", "squashfs", "-o", "loop,ro", ours, filepath.Join(tmp, "a"))
	mount(t, "mount", "-t", "squashfs", "-o", "loop,ro", other, filepath.Join(tmp, "b"))
	compare(t, snapshot(t, filepath.Join(tmp, "a")), snapshot(t, filepath.Join(tmp, "b")), func(r *record) {
		// tar2sqfs counts a directory's files as its links, and does not
		// link what is not a regular file.
		if r.mode&ModeType != ModeRegular {
			r.nlink, r.sameAs = 0, ""
		}
	})
}

// TestLargeDirectoryAndFarFile reads through the kernel a directory of 50,000
// names and a file that begins beyond 4 GiB.
func TestLargeDirectoryAndFarFile(t *testing.T) {
	var entries []Entry
	for i := range 50_000 {
		entries = append(entries, Entry{fmt.Sprintf("name-%07d", i*7919%50_000), &Inode{Mode: ModeSymlink | 0o777, Target: fmt.Sprint(i)}})
	}
	const gib = 1 << 30
	root := dir(Entry{"large", dir(entries...)},
		Entry{"filler", &Inode{Mode: ModeRegular | 0o644, Size: 5 * gib}},
		Entry{"far", &Inode{Mode: ModeRegular | 0o644, Size: 3, Source: 1}})
	img, err := Layout(root, Options{})
	must(t, err)
	path := filepath.Join(t.TempDir(), "image.sqfs")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(img.Size))
	for off, p := range map[int64][]byte{0: img.Superblock, img.MetadataOffset: img.Metadata, img.Segments[1].Offset: []byte("far")} {
		_, err := f.WriteAt(p, off)
		must(t, err)
	}
	mnt := filepath.Join(t.TempDir(), "mnt")
	mount(t, "mount", "-t", "squashfs", "-o", "loop,ro", path, mnt)
	if got, err := os.ReadFile(filepath.Join(mnt, "far")); string(got) != "far" {
		t.Errorf("far file: %q, %v", got, err)
	}
	list, err := os.ReadDir(filepath.Join(mnt, "large"))
	if len(list) != len(entries) {
		t.Fatalf("listing: %d names, %v; want %d", len(list), err, len(entries))
	}
	for _, e := range entries {
		if got, err := os.Readlink(filepath.Join(mnt, "large", e.Name)); got != e.Inode.Target {
			t.Fatalf("%s -> %q, %v; want %q", e.Name, got, err, e.Inode.Target)
		}
	}
}
