package fs

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sregfs/sregfs/backends"
)

// heldElsewhere reports whether some process still has the file open, as far
// as /proc tells. close(2) takes the descriptor away before FUSE hears of it,
// so the one that is being closed does not count.
func (pf *pendingFile) heldElsewhere() bool {
	dir, name := pf.place()
	inTree := "/" + path.Join(pf.cl.Name, dir) + "/"
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return false
	}
	self := fmt.Sprintf("/proc/%d/", os.Getpid())
	for _, fd := range fds {
		if strings.HasPrefix(fd, self) {
			continue
		}
		target, err := os.Readlink(fd)
		if err != nil {
			continue
		}
		// So it reads once the kernel has been told to forget the name.
		d, leaf := path.Split(strings.TrimSuffix(target, " (deleted)"))
		if !strings.HasSuffix(d, inTree) {
			continue
		}
		if ref, _, ok := backends.ParseFile(leaf); leaf == name || ok && ref.File() == name {
			return true
		}
	}
	return false
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
