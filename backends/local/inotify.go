package local

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// inotify tells which directories something has moved in; inotify(7). One
// goroutine has it, but for interrupt.
type inotify struct {
	file  *os.File
	paths map[int32]string
	wds   map[string]int32
	buf   []byte
}

// watchMask is what makes a directory worth a look. Writing alone is not among
// it: a look comes when the writer closes the file.
const watchMask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE |
	unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

func newInotify() (*inotify, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	return &inotify{file: os.NewFile(uintptr(fd), "inotify"), paths: map[int32]string{}, wds: map[string]int32{},
		buf: make([]byte, 64<<10)}, nil
}

// watch watches the open directory d, which is called path from now on. same
// says that it was called so before.
func (n *inotify) watch(d *os.File, path string) (same bool, err error) {
	// By way of the descriptor: the path could lead elsewhere by now.
	var wd int
	if closed := n.control(func(fd int) {
		wd, err = unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", d.Fd()), watchMask)
	}); closed != nil {
		return false, closed
	}
	if err != nil {
		return false, os.NewSyscallError("inotify_add_watch", err)
	}
	id := int32(wd)
	if old, ok := n.paths[id]; ok && old != path {
		delete(n.wds, old) // the directory was renamed
	}
	old, had := n.wds[path]
	if had && old != id {
		delete(n.paths, old) // another directory has taken the name
		n.remove(old)
	}
	n.paths[id], n.wds[path] = path, id
	return had && old == id, nil
}

// forget ends the watching of a path.
func (n *inotify) forget(path string) {
	if wd, ok := n.wds[path]; ok {
		delete(n.wds, path)
		delete(n.paths, wd)
		n.remove(wd)
	}
}

// remove ends a watch. That it is gone already, with its directory, is fine.
func (n *inotify) remove(wd int32) {
	n.control(func(fd int) { unix.InotifyRmWatch(fd, uint32(wd)) })
}

// control hands out the descriptor, which File.Fd would make a blocking one,
// for as long as f runs. It fails when the descriptor is closed.
func (n *inotify) control(f func(fd int)) error {
	c, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	return c.Control(func(fd uintptr) { f(int(fd)) })
}

// read calls tell for what has moved, as soon as something has; with overflow
// set, for anything. timeout says that nothing did until the deadline, if that
// is not zero.
func (n *inotify) read(deadline time.Time, tell func(dir string, overflow bool)) (timeout bool, err error) {
	if err := n.file.SetReadDeadline(deadline); err != nil {
		return false, err
	}
	k, err := n.file.Read(n.buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	parseEvents(n.buf[:k], func(wd int32, mask uint32, name string) {
		if mask&unix.IN_Q_OVERFLOW != 0 {
			tell("", true)
			return
		}
		path, ok := n.paths[wd]
		if !ok || strings.HasPrefix(name, ".") {
			return
		}
		if mask&unix.IN_IGNORED != 0 { // the kernel has dropped the watch
			delete(n.paths, wd)
			delete(n.wds, path)
		}
		tell(path, false)
	})
	return false, nil
}

// parseEvents takes apart what an inotify descriptor gives: struct
// inotify_event, that is wd, mask, cookie and the length of the name in 32 bits
// each, then the name, padded with NULs.
func parseEvents(b []byte, event func(wd int32, mask uint32, name string)) {
	for len(b) >= unix.SizeofInotifyEvent {
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		if size > len(b) {
			return
		}
		name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:size], []byte{0})
		event(int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:]), string(name))
		b = b[size:]
	}
}

// interrupt makes a read that is under way, and all later ones, fail.
func (n *inotify) interrupt() { n.file.Close() }

func (n *inotify) close() { n.file.Close() }

// onNetwork reports whether dir lies on a file system that other machines
// change as well, of which inotify knows nothing; statfs(2), magic(h).
func onNetwork(dir string) bool {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return false
	}
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC,
		unix.FUSE_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC,
		unix.CODA_SUPER_MAGIC, unix.V9FS_MAGIC,
		0x0BD00BD0, // Lustre
		0x47504653, // GPFS
		0x19830326, // BeeGFS
		0x7461636f: // OCFS2
		return true
	}
	return false
}
