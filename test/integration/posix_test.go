//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
)

// posixCase is one behaviour of a file system. It is tried in a folder of the
// local disk and in a collection, and must tell the same in both, except for
// what differs says. The cases are those of go-fuse's posixtest under names
// that an image can have, and some more.
type posixCase struct {
	name string
	try  func(p *posix)
	// differs is what the collection tells instead, and why the reason: see
	// docs/semantics.md.
	differs, why string
}

// posix is a folder that a case is tried in, and what it tells.
type posix struct {
	t    *testing.T
	dir  string
	told []string
}

func (p *posix) path(name string) string { return filepath.Join(p.dir, name) }

// tell notes how something went.
func (p *posix) tell(what string, results ...any) {
	for i, r := range results {
		if err, ok := r.(error); ok {
			var e syscall.Errno
			if errors.As(err, &e) {
				results[i] = unix.ErrnoName(e)
			}
		}
	}
	p.told = append(p.told, strings.TrimSpace(fmt.Sprintln(append([]any{what}, results...)...)))
}

// must stops the case for what never fails.
func (p *posix) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *posix) put(name string, data []byte) { p.must(os.WriteFile(p.path(name), data, 0o755)) }

// get tells what is in a file.
func (p *posix) get(name string) {
	data, err := os.ReadFile(p.path(name))
	p.tell(name, len(data), sum(data), err)
}

func sum(data []byte) uint64 {
	var h uint64 = 14695981039346656037
	for _, b := range data {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return h
}

func (p *posix) list() {
	entries, err := os.ReadDir(p.dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	p.tell("list", names, err)
}

var posixCases = []posixCase{
	{name: "FileBasic", try: func(p *posix) {
		p.put("a:1.simg", []byte("hello"))
		p.get("a:1.simg")
		info, err := os.Stat(p.path("a:1.simg"))
		p.must(err)
		st := info.Sys().(*syscall.Stat_t)
		p.tell("stat", info.Size(), info.Mode(), st.Nlink, st.Uid, st.Gid, info.IsDir())
		p.tell("remove", os.Remove(p.path("a:1.simg")))
		_, err = os.Stat(p.path("a:1.simg"))
		p.tell("stat", err)
		_, err = os.Open(p.path("a:1.simg"))
		p.tell("open", err)
		p.tell("remove", os.Remove(p.path("a:1.simg")))
		p.list()
	}},
	{name: "FileLarge", try: func(p *posix) {
		p.put("a:1.simg", noise(1, 385*1023))
		p.get("a:1.simg")
	}},
	{name: "Exclusive", try: func(p *posix) {
		p.put("a:1.simg", []byte("hello"))
		_, err := os.OpenFile(p.path("a:1.simg"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
		p.tell("pushed", err)
		f, err := os.OpenFile(p.path("b:1.simg"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
		p.must(err)
		_, err = os.OpenFile(p.path("b:1.simg"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
		p.tell("open", err)
		p.must(f.Close())
	}},
	{name: "TruncateFile", try: func(p *posix) {
		p.put("a:1.simg", []byte("hello world"))
		p.tell("grow", os.Truncate(p.path("a:1.simg"), 20000))
		p.get("a:1.simg")
		p.tell("shrink", os.Truncate(p.path("a:1.simg"), 5))
		p.get("a:1.simg")
		f, err := os.OpenFile(p.path("a:1.simg"), os.O_RDWR, 0)
		p.must(err)
		p.must(f.Truncate(3))
		p.must(f.Truncate(7))
		got := make([]byte, 10)
		n, err := f.ReadAt(got, 0)
		p.tell("shrunk and grown", got[:n], err)
		p.must(f.Close())
		p.get("a:1.simg")
	}},
	{name: "TruncateOnOpen", try: func(p *posix) {
		p.put("a:1.simg", noise(1, 5000))
		f, err := os.OpenFile(p.path("a:1.simg"), os.O_WRONLY|os.O_TRUNC, 0)
		p.must(err)
		info, err := f.Stat()
		p.tell("opened", info.Size(), err)
		_, err = f.WriteAt([]byte("tail"), 100)
		p.must(err)
		p.must(f.Close())
		p.get("a:1.simg")
	}},
	{name: "TruncateNoFile", try: func(p *posix) {
		p.tell("truncate", os.Truncate(p.path("a:1.simg"), 5))
	}},
	{name: "Empty", try: func(p *posix) {
		p.put("a:1.simg", nil)
		p.get("a:1.simg")
		p.list()
		p.tell("remove", os.Remove(p.path("a:1.simg")))
		p.list()
	}},
	{name: "AppendWrite", try: func(p *posix) {
		for _, s := range []string{"hello", " ", "world"} {
			f, err := os.OpenFile(p.path("a:1.simg"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o755)
			p.must(err)
			_, err = f.WriteString(s)
			p.must(err)
			_, err = f.WriteString("+")
			p.must(err)
			p.must(f.Close())
		}
		p.get("a:1.simg")
	}},
	{name: "TwoAppenders", try: func(p *posix) {
		var fs [2]*os.File
		for i := range fs {
			var err error
			fs[i], err = os.OpenFile(p.path("a:1.simg"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o755)
			p.must(err)
		}
		for i := range 10 {
			_, err := fmt.Fprintf(fs[i%2], "line %d\n", i)
			p.must(err)
		}
		p.must(fs[0].Close())
		p.must(fs[1].Close())
		p.get("a:1.simg")
	}},
	{name: "Sparse", try: func(p *posix) {
		f, err := os.Create(p.path("a:1.simg"))
		p.must(err)
		_, err = f.WriteAt([]byte("end"), 1<<20)
		p.must(err)
		_, err = f.WriteAt([]byte("start"), 0)
		p.must(err)
		p.must(f.Close())
		p.get("a:1.simg")
	}},
	{name: "DirectIO", try: func(p *posix) {
		f, err := os.OpenFile(p.path("a:1.simg"), os.O_CREATE|os.O_WRONLY|unix.O_DIRECT, 0o755)
		p.must(err)
		buf := aligned(8192)
		copy(buf, noise(1, 8192))
		_, err = f.Write(buf)
		p.tell("write", err)
		p.must(f.Close())
		f, err = os.OpenFile(p.path("a:1.simg"), os.O_RDONLY|unix.O_DIRECT, 0)
		p.must(err)
		clear(buf)
		n, err := f.ReadAt(buf[:4096], 4096)
		p.tell("read", n, sum(buf[:4096]), err)
		p.must(f.Close())
	}},
	{name: "FdLeak", try: func(p *posix) {
		p.put("a:1.simg", noise(1, 1000))
		open := func() int {
			fds, err := os.ReadDir("/proc/self/fd")
			p.must(err)
			return len(fds)
		}
		var first int
		for i := range 100 {
			p.must(os.WriteFile(p.path("b:1.simg"), noise(byte(i), 2000), 0o755))
			_, err := os.ReadFile(p.path("a:1.simg"))
			p.must(err)
			if i == 0 {
				first = open()
			}
		}
		// The daemon is in this process, and its cache closes a file only a
		// while after the last reader has.
		for range 150 {
			if open() <= first+20 {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		p.tell("leaks", open() > first+20)
	}},
	{name: "FstatDeleted", try: func(p *posix) {
		for _, name := range []string{"new:1.simg", "pushed:1.simg"} {
			p.put(name, noise(1, 5000))
			f, err := os.OpenFile(p.path(name), os.O_RDWR, 0)
			p.must(err)
			if name == "new:1.simg" {
				p.must(f.Truncate(4000))
			}
			p.must(os.Remove(p.path(name)))
			info, err := f.Stat()
			p.must(err)
			data, err := io.ReadAll(f)
			p.tell(name, info.Size(), sum(data), err)
			p.must(f.Close())
		}
		p.list()
	}},
	{name: "NlinkZero", try: func(p *posix) {
		f, err := os.Create(p.path("a:1.simg"))
		p.must(err)
		_, err = f.WriteString("hello")
		p.must(err)
		p.must(os.Remove(p.path("a:1.simg")))
		info, err := f.Stat()
		p.must(err)
		p.tell("links", info.Sys().(*syscall.Stat_t).Nlink)
		p.must(f.Close())
	}},
	{name: "ParallelFileOpen", try: func(p *posix) {
		p.put("a:1.simg", noise(1, 1000))
		var wg sync.WaitGroup
		errs := make([]error, 10)
		for i := range errs {
			wg.Go(func() {
				f, err := os.OpenFile(p.path("a:1.simg"), os.O_RDWR, 0)
				if err == nil {
					_, err = f.WriteAt([]byte{byte(i)}, int64(i))
					err = errors.Join(err, f.Close())
				}
				errs[i] = err
			})
		}
		wg.Wait()
		p.tell("errors", errors.Join(errs...))
		p.get("a:1.simg")
	}},
	{name: "RenameOverwriteDestNoExist", try: func(p *posix) { p.rename(false) }},
	{name: "RenameOverwriteDestExist", try: func(p *posix) { p.rename(true) }},
	{name: "RenameNoReplace", try: func(p *posix) {
		p.put("a:1.simg", []byte("a"))
		p.put("b:1.simg", []byte("b"))
		move := func(from, to string) error {
			return unix.Renameat2(unix.AT_FDCWD, p.path(from), unix.AT_FDCWD, p.path(to), unix.RENAME_NOREPLACE)
		}
		p.tell("onto one", move("a:1.simg", "b:1.simg"))
		p.tell("onto none", move("a:1.simg", "c:1.simg"))
		f, err := os.Create(p.path("d:1.simg"))
		p.must(err)
		_, err = f.WriteString("d")
		p.must(err)
		p.tell("onto one that is written", move("c:1.simg", "d:1.simg"))
		p.must(f.Close())
		p.list()
	}},
	{name: "RenameExchange", try: func(p *posix) {
		p.put("a:1.simg", []byte("a"))
		p.put("b:1.simg", []byte("b"))
		p.tell("exchange", unix.Renameat2(unix.AT_FDCWD, p.path("a:1.simg"), unix.AT_FDCWD, p.path("b:1.simg"), unix.RENAME_EXCHANGE))
		p.get("a:1.simg")
		p.get("b:1.simg")
	}, differs: "exchange EINVAL\na:1.simg 1 12638187200555641996 <nil>\nb:1.simg 1 12638190499090526629 <nil>",
		why: "no store can swap two names at once"},
	{name: "RenameOpenDir", try: func(p *posix) {
		p.must(os.Mkdir(p.path("d"), 0o755))
		f, err := os.Open(p.path("d"))
		p.must(err)
		defer f.Close()
		p.tell("rename", os.Rename(p.path("d"), p.path("e")))
	}, differs: "rename EXDEV", why: "collections are not renamed: mv copies image by image"},
	{name: "MkdirRmdir", try: func(p *posix) {
		p.tell("mkdir", os.Mkdir(p.path("d"), 0o755))
		p.tell("again", os.Mkdir(p.path("d"), 0o755))
		info, err := os.Stat(p.path("d"))
		p.must(err)
		p.tell("stat", info.Mode())
		p.put("d/a:1.simg", []byte("a"))
		p.tell("rmdir", unix.Rmdir(p.path("d")))
		p.tell("unlink", unix.Unlink(p.path("d")))
		p.tell("rmdir of a file", unix.Rmdir(p.path("d/a:1.simg")))
		p.must(os.Remove(p.path("d/a:1.simg")))
		p.tell("rmdir", unix.Rmdir(p.path("d")))
		p.tell("again", unix.Rmdir(p.path("d")))
		p.list()
	}},
	{name: "ReadDirBasic", try: func(p *posix) {
		for i := range 20 {
			p.put(fmt.Sprintf("a%02d:1.simg", i), []byte{byte(i)})
		}
		p.must(os.Mkdir(p.path("d"), 0o755))
		p.list()
		f, err := os.Open(p.dir)
		p.must(err)
		defer f.Close()
		names, err := f.Readdirnames(-1)
		p.must(err)
		_, err = f.Seek(0, io.SeekStart)
		p.must(err)
		again, err := f.Readdirnames(-1)
		p.tell("rewound", len(names), slices.Equal(names, again), err)
	}},
	{name: "DirSeek", try: func(p *posix) {
		const n = 50
		for i := range n {
			p.put(fmt.Sprintf("a%02d:1.simg", i), []byte{byte(i), 0})
		}
		fd, err := unix.Open(p.dir, unix.O_DIRECTORY, 0)
		p.must(err)
		defer unix.Close(fd)
		all := p.dirents(fd)
		p.tell("entries", len(all))
		same := true
		for i, e := range all {
			_, err := unix.Seek(fd, e.off, io.SeekStart)
			p.must(err)
			same = same && slices.Equal(p.dirents(fd), all[i+1:])
		}
		p.tell("the same from every place", same)
	}},
	{name: "ReadDirConsistency", try: func(p *posix) {
		for i := range 200 {
			p.must(os.Mkdir(p.path(fmt.Sprintf("d%03d", i)), 0o755))
		}
		f, err := os.Open(p.dir)
		p.must(err)
		defer f.Close()
		first, err := f.Readdirnames(20)
		p.must(err)
		for i := range 200 {
			if i%2 == 0 && !slices.Contains(first, fmt.Sprintf("d%03d", i)) {
				p.must(os.Remove(p.path(fmt.Sprintf("d%03d", i))))
			}
		}
		rest, err := f.Readdirnames(-1)
		p.must(err)
		all := append(first, rest...)
		odd, twice := 0, false
		slices.Sort(all)
		for i, name := range all {
			twice = twice || i > 0 && all[i-1] == name
			if name[3]%2 == 1 {
				odd++
			}
		}
		p.tell("what stayed", odd, "twice", twice)
	}},
	{name: "OpenAt", try: func(p *posix) {
		p.must(os.Mkdir(p.path("d"), 0o755))
		dir, err := unix.Open(p.path("d"), unix.O_DIRECTORY, 0)
		p.must(err)
		defer unix.Close(dir)
		fd, err := unix.Openat(dir, "a:1.simg", unix.O_CREAT|unix.O_RDWR|unix.O_EXCL, 0o755)
		p.must(err)
		_, err = unix.Write(fd, []byte("hello"))
		p.tell("write", err)
		p.must(unix.Close(fd))
		p.get("d/a:1.simg")
		p.tell("fsync of the folder", unix.Fsync(dir))
	}},
	{name: "FcntlFlockSetLk", try: func(p *posix) {
		p.put("a:1.simg", []byte("hello"))
		f, err := os.OpenFile(p.path("a:1.simg"), os.O_RDWR, 0)
		p.must(err)
		defer f.Close()
		lock := unix.Flock_t{Type: unix.F_WRLCK, Len: 3}
		p.tell("lock", unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock))
		p.tell("test", unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock), lock.Type == unix.F_UNLCK)
	}},
	{name: "Flock", try: func(p *posix) {
		p.put("a:1.simg", []byte("hello"))
		var fs [2]*os.File
		open := func(i int) (inode []byte) {
			var err error
			fs[i], err = os.Open(p.path("a:1.simg"))
			p.must(err)
			handle, _, err := unix.NameToHandleAt(int(fs[i].Fd()), "", unix.AT_EMPTY_PATH)
			p.must(err)
			return handle.Bytes()
		}
		// Soon after the push the name leads from the inode that was written to the
		// image's, as if that were renamed over it; locks are each one's own.
		for range 100 {
			if bytes.Equal(open(0), open(1)) {
				break
			}
			p.must(errors.Join(fs[0].Close(), fs[1].Close()))
		}
		defer fs[0].Close()
		defer fs[1].Close()
		p.tell("first", unix.Flock(int(fs[0].Fd()), unix.LOCK_EX|unix.LOCK_NB))
		p.tell("second", unix.Flock(int(fs[1].Fd()), unix.LOCK_EX|unix.LOCK_NB))
	}},
	{name: "LseekHoleSeeksToEOF", try: func(p *posix) {
		p.put("a:1.simg", noise(1, 5000))
		f, err := os.Open(p.path("a:1.simg"))
		p.must(err)
		defer f.Close()
		off, err := unix.Seek(int(f.Fd()), 42, unix.SEEK_HOLE)
		p.tell("hole", off, err)
		off, err = unix.Seek(int(f.Fd()), 42, unix.SEEK_DATA)
		p.tell("data", off, err)
		_, err = unix.Seek(int(f.Fd()), 5001, unix.SEEK_DATA)
		p.tell("data behind the end", err)
	}},
	{name: "XAttr", try: func(p *posix) {
		p.put("a:1.simg", []byte("hello"))
		file := p.path("a:1.simg")
		buf := make([]byte, 100)
		_, err := unix.Getxattr(file, "user.attr", buf)
		p.tell("none", err)
		p.tell("set", unix.Setxattr(file, "user.attr", []byte("value"), 0))
		n, err := unix.Getxattr(file, "user.attr", buf)
		p.tell("get", n, err)
		n, err = unix.Getxattr(file, "user.attr", nil)
		p.tell("size", n, err)
		_, err = unix.Getxattr(file, "user.attr", buf[:2])
		p.tell("too small", err)
		big := make([]byte, 8192)
		n, err = unix.Listxattr(file, big)
		p.tell("listed", bytes.Contains(big[:max(n, 0)], []byte("user.attr\x00")), err)
		p.tell("remove", unix.Removexattr(file, "user.attr"))
		p.tell("remove again", unix.Removexattr(file, "user.attr"))
	}},
	{name: "XAttrLarge", try: func(p *posix) {
		p.put("a:1.simg", []byte("hello"))
		p.tell("set", unix.Setxattr(p.path("a:1.simg"), "user.attr", noise(1, 2000), 0))
		buf := make([]byte, 3000)
		n, err := unix.Getxattr(p.path("a:1.simg"), "user.attr", buf)
		p.tell("get", n, sum(buf[:max(n, 0)]), err)
	}},
	{name: "Times", try: func(p *posix) {
		p.put("a:1.simg", []byte("hello"))
		ts := []unix.Timespec{{Sec: 1_500_000_000, Nsec: 123_456_789}, {Sec: 1_600_000_000, Nsec: 987_654_321}}
		p.tell("set", unix.UtimesNanoAt(unix.AT_FDCWD, p.path("a:1.simg"), ts, 0))
		info, err := os.Stat(p.path("a:1.simg"))
		p.must(err)
		p.tell("modified", info.ModTime().UnixNano())
	}},
	{name: "Mmap", try: func(p *posix) {
		p.put("a:1.simg", noise(1, 300_000))
		// While the daemon has not yet heard that the writer is gone, a shared
		// mapping is ENODEV.
		var m []byte
		err := syscall.ENODEV
		for end := time.Now().Add(10 * time.Second); errors.Is(err, syscall.ENODEV) && time.Now().Before(end); {
			f, openErr := os.Open(p.path("a:1.simg"))
			p.must(openErr)
			var mapErr error
			// Its pages are brought by the call: at a page fault the thread would
			// wait for a daemon that waits for the service in this very process,
			// which Go's collector may have stopped until that thread stops.
			m, mapErr = unix.Mmap(int(f.Fd()), 0, 300_000, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
			err, _ = mapErr.(syscall.Errno)
			p.must(f.Close()) // the mapping stays
			if mapErr != nil {
				time.Sleep(5 * time.Millisecond)
			}
		}
		if err != 0 {
			p.t.Fatal(err)
		}
		p.tell("mapped", sum(m))
		p.must(unix.Munmap(m))
	}},
	{name: "MmapWritable", try: func(p *posix) {
		p.put("a:1.simg", noise(1, 8192))
		f, err := os.OpenFile(p.path("a:1.simg"), os.O_RDWR, 0)
		p.must(err)
		defer f.Close()
		m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		p.tell("map", err)
		if err == nil {
			p.must(unix.Munmap(m))
		}
	}, differs: "map ENODEV", why: "what is written through a mapping reaches the daemon after close has returned"},
	{name: "Fallocate", try: func(p *posix) {
		f, err := os.Create(p.path("a:1.simg"))
		p.must(err)
		_, err = f.WriteString("hello")
		p.must(err)
		p.tell("keep size", unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 10_000))
		p.tell("grow", unix.Fallocate(int(f.Fd()), 0, 0, 10_000))
		p.must(f.Close())
	}, differs: "keep size <nil>\ngrow ENOTSUP", why: "room is reserved as it is written; libc falls back to writing zeros"},
	{name: "Link", try: func(p *posix) {
		p.put("a:1.simg", []byte("hello"))
		p.tell("link", os.Link(p.path("a:1.simg"), p.path("b:1.simg")))
		p.list()
	}, differs: "link ENOTSUP\nlist [a:1.simg] <nil>", why: "no store has links"},
	{name: "SymlinkReadlink", try: func(p *posix) {
		p.tell("symlink", os.Symlink("/foobar", p.path("link")))
	}, differs: "symlink ENOTSUP", why: "no store has links; LinkUnlinkRename, OpenSymlinkRace and SetattrSymlink need them too"},
	{name: "OtherNames", try: func(p *posix) {
		_, err := os.Create(p.path("readme.txt"))
		p.tell("create", err)
		p.tell("fifo", unix.Mkfifo(p.path("fifo"), 0o644))
	}, differs: "create EINVAL\nfifo ENOTSUP", why: "what stands in a collection are images"},
	{name: "Chmod", try: func(p *posix) {
		p.put("a:1.simg", []byte("hello"))
		p.tell("chmod", os.Chmod(p.path("a:1.simg"), 0o600))
		info, err := os.Stat(p.path("a:1.simg"))
		p.must(err)
		p.tell("mode", info.Mode())
	}, differs: "chmod <nil>\nmode -rwxr-xr-x", why: "no store keeps modes"},
}

func (p *posix) rename(exists bool) {
	p.must(os.Mkdir(p.path("d"), 0o755))
	p.put("a:1.simg", []byte("hello"))
	if exists {
		p.put("d/b:1.simg", []byte("other"))
	}
	f, err := os.Open(p.path("a:1.simg"))
	p.must(err)
	defer f.Close()
	p.tell("rename", os.Rename(p.path("a:1.simg"), p.path("d/b:1.simg")))
	p.get("d/b:1.simg")
	data, err := io.ReadAll(f)
	p.tell("open file", string(data), err)
	_, err = os.Stat(p.path("a:1.simg"))
	p.tell("old name", err)
	p.list()
}

// aligned is a buffer that O_DIRECT takes.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	off := int(-uintptr(unsafe.Pointer(&b[0])) & 4095)
	return b[off : off+n]
}

type dirent struct {
	name string
	off  int64
}

// dirents reads a directory to its end with small buffers; "." and ".." are
// left out.
func (p *posix) dirents(fd int) (list []dirent) {
	buf := make([]byte, 700)
	for {
		n, err := unix.Getdents(fd, buf)
		p.must(err)
		if n == 0 {
			return list
		}
		for b := buf[:n]; len(b) > 0; {
			e := (*unix.Dirent)(unsafe.Pointer(&b[0]))
			name, _, _ := bytes.Cut(b[unsafe.Offsetof(e.Name):e.Reclen], []byte{0})
			if s := string(name); s != "." && s != ".." {
				list = append(list, dirent{s, e.Off})
			}
			b = b[e.Reclen:]
		}
	}
}

// TestPosix compares a collection with a folder of the local disk.
func TestPosix(t *testing.T) {
	mnt, _ := mountStores(t, map[string]backends.Store{"mem": backendtest.Memory()})
	syscall.Umask(0o022)
	for _, c := range posixCases {
		t.Run(c.name, func(t *testing.T) {
			disk, tree := &posix{t: t, dir: t.TempDir()}, &posix{t: t, dir: filepath.Join(mnt, "mem", c.name)}
			if err := os.Mkdir(tree.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			c.try(disk)
			c.try(tree)
			want, got := strings.Join(disk.told, "\n"), strings.Join(tree.told, "\n")
			if c.differs != "" {
				if c.why == "" || want == c.differs {
					t.Errorf("a departure without need: %q", c.differs)
				}
				want = c.differs
			}
			if got != want {
				t.Errorf("the tree tells\n%s\nwant\n%s", got, want)
			}
		})
	}
}
