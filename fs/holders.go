package fs

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
)

// heldElsewhere reports whether some process still has the file open for
// writing, as far as /proc tells. close(2) takes the descriptor away before FUSE
// hears of it, so the one that is being closed does not count.
func (pf *pendingFile) heldElsewhere() bool {
	pf.mu.Lock()
	name, inos := pf.name, slices.Clone(pf.inos)
	pf.mu.Unlock()
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return false
	}
	self := fmt.Sprintf("/proc/%d/", os.Getpid())
	for _, fd := range fds {
		if strings.HasPrefix(fd, self) {
			continue
		}
		// The name alone proves nothing: the source of a copy has the same. But
		// it spares looking at files of others, whose servers may not answer.
		target, err := os.Readlink(fd)
		if err != nil {
			continue
		}
		// So it reads once the kernel has been told to forget the name.
		leaf := path.Base(strings.TrimSuffix(target, " (deleted)"))
		if ref, _, ok := backends.ParseFile(leaf); leaf != name && (!ok || ref.File() != name) {
			continue
		}
		// The link's mode is how the descriptor was opened.
		if info, err := os.Lstat(fd); err != nil || info.Mode()&0o200 == 0 {
			continue
		}
		if dev, ino, ok := known(fd); ok && dev == pf.tree.dev && slices.Contains(inos, ino) {
			return true
		}
	}
	return false
}

// known is the device and the number of the file that a path leads to, as the
// kernel knows them without asking who serves it: that may be this program. All
// mount namespaces see one device. It is false for a file that was removed, unless
// the kernel has asked for its attributes at the wrong moment: then its writers
// count, and what they hold up is pushed, or told of, when they are done.
func known(path string) (dev, ino uint64, ok bool) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_NLINK, &st); err != nil || st.Nlink == 0 {
		return 0, 0, false
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino, true
}

// exiting reports whether a process or thread is on its way out, so that the
// kernel and not the program closes its files (PF_EXITING in the flags, ninth
// field of /proc/PID/stat).
func exiting(pid uint32) bool {
	const pfExiting = 0x4
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return pid != 0
	}
	// The command's name, in parentheses, may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	return err == nil && flags&pfExiting != 0
}
