package main

import (
	"bytes"
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A daemon that was killed while it told the kernel of a change may wait in the
// kernel for a directory whose lock is held by a program that waits for the
// daemon. Neither can go on, not even SIGKILL ends it, and whoever looks into
// the mount joins them. The end of the connection frees them all. It is brought
// about here, and only where it is certain that nobody serves that connection
// any more: a daemon that is slow, stopped or busy must never lose its mount.

// abortDead ends the connection of the mount m if the daemon that served it was
// killed and cannot die. It reports whether it did.
func abortDead(m mountEntry, log *slog.Logger) bool {
	if m.dir == "" || !deadlocked(os.DirFS("/proc"), m) {
		return false
	}
	if err := abortConnection(m); err != nil {
		log.Warn("the daemon of a mount was killed and cannot die, and its connection cannot be ended; root can, by writing 1 to the file",
			"mount", m.dir, "file", m.abortFile(), "error", err)
		return false
	}
	log.Warn("ended the connection of a mount whose daemon was killed and could not die", "mount", m.dir)
	return true
}

// abortFile is where a mount's owner can end its connection, if the system
// shows connections (fusectl).
func (m mountEntry) abortFile() string {
	return fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", m.minor)
}

func abortConnection(m mountEntry) error {
	err := os.WriteFile(m.abortFile(), []byte("1"), 0o200)
	if err == nil || os.Geteuid() != 0 {
		return err
	}
	// Forced unmounting ends the connection first, whether or not the unmounting
	// succeeds. The path has to mean that very mount.
	if now := findMount(m.dir); now.dir != m.dir || now.minor != m.minor {
		return errors.New("something else is mounted there by now")
	}
	if err := unix.Unmount(m.dir, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EBUSY) {
		return err
	}
	return nil
}

// deadlocked reports whether processes hold the connection of the mount, and
// all of them were killed. p is /proc (proc(5)).
//
// One that is ending shows its files no more, though it has them: a daemon that
// was killed while it had a file of its own mount open, as it has for a moment
// when it begins, waits in the close of that file, before it closes the
// connection. It counts when nobody else can be who serves the mount, for which
// the caller has to see what everybody has open.
func deadlocked(p iofs.FS, m mountEntry) bool {
	list, err := iofs.ReadDir(p, ".")
	if err != nil {
		return false
	}
	held, ending, hidden := false, false, false
	for _, e := range list {
		pid := e.Name()
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		switch dead := killed(p, pid); {
		case holds(p, pid, m):
			if !dead {
				return false
			}
			held = true
		case dead:
			ending = ending || named(p, pid, "sregfs") && waits(p, pid)
		case !shown(p, pid):
			hidden = true // it may be who serves the mount, whatever it is called
		}
	}
	return held || ending && !hidden
}

// named reports whether a process has that name.
func named(p iofs.FS, pid, name string) bool {
	stat, err := iofs.ReadFile(p, pid+"/stat")
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	return err == nil && open >= 0 && open < end && string(stat[open+1:end]) == name
}

// waits reports whether a thread of a process waits and cannot be interrupted.
func waits(p iofs.FS, pid string) bool {
	return slices.ContainsFunc(tasks(p, pid), func(task string) bool {
		f := statFields(p, task)
		return len(f) > 0 && f[0] == "D"
	})
}

// shown reports whether this user may see which files a process has open.
func shown(p iofs.FS, pid string) bool {
	return slices.ContainsFunc(tasks(p, pid), func(task string) bool {
		_, err := iofs.ReadDir(p, task+"/fd")
		return err == nil
	})
}

// statFields are what a thread's stat file has behind its name, which is in
// parentheses and may hold anything; nil without one.
func statFields(p iofs.FS, task string) []string {
	stat, err := iofs.ReadFile(p, task+"/stat")
	if err != nil {
		return nil
	}
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
}

// tasks are the folders of a process's threads. A process whose first thread
// has ended shows nothing in its own folder.
func tasks(p iofs.FS, pid string) []string {
	list, err := iofs.ReadDir(p, pid+"/task")
	if err != nil {
		return nil
	}
	dirs := make([]string, len(list))
	for i, e := range list {
		dirs[i] = pid + "/task/" + e.Name()
	}
	return dirs
}

// holds reports whether a process has the connection of the mount open.
func holds(p iofs.FS, pid string, m mountEntry) bool {
	for _, task := range tasks(p, pid) {
		fds, err := iofs.ReadDir(p, task+"/fd")
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if to, err := iofs.ReadLink(p, task+"/fd/"+fd.Name()); err != nil || to != "/dev/fuse" {
				continue
			}
			info, err := iofs.ReadFile(p, task+"/fdinfo/"+fd.Name())
			if err != nil {
				continue
			}
			if n, known := connection(info); known {
				if n == m.minor {
					return true
				}
			} else if names(p, task, m.dir) {
				return true // Linux before 6.18 does not tell the number
			}
		}
	}
	return false
}

// connection is the number that the kernel gives a FUSE connection, which is
// the minor device number of its mount.
func connection(fdinfo []byte) (n int, known bool) {
	for line := range strings.Lines(string(fdinfo)) {
		if v, ok := strings.CutPrefix(line, "fuse_connection:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			return n, err == nil
		}
	}
	return 0, false
}

// names reports whether the command line of a process is one of sregfs that
// names dir.
func names(p iofs.FS, task, dir string) bool {
	line, err := iofs.ReadFile(p, task+"/cmdline")
	if err != nil {
		return false
	}
	args := bytes.Split(bytes.TrimSuffix(line, []byte{0}), []byte{0})
	if !strings.Contains(filepath.Base(string(args[0])), "sregfs") {
		return false
	}
	cwd, err := iofs.ReadLink(p, task+"/cwd")
	return slices.ContainsFunc(args[1:], func(arg []byte) bool {
		a := string(arg)
		return a != "" && (filepath.IsAbs(a) && filepath.Clean(a) == dir || err == nil && filepath.Join(cwd, a) == dir)
	})
}

// killed reports whether no thread of a process will ever run its program
// again: each one has ended, is ending, or has SIGKILL waiting.
func killed(p iofs.FS, pid string) bool {
	list := tasks(p, pid)
	for _, task := range list {
		if !taskKilled(p, task) {
			return false
		}
	}
	return len(list) > 0
}

func taskKilled(p iofs.FS, task string) bool {
	const exiting = 0x4 // PF_EXITING, include/linux/sched.h
	if f := statFields(p, task); len(f) > 6 {
		if f[0] == "Z" || f[0] == "X" {
			return true
		}
		if flags, err := strconv.ParseUint(f[6], 10, 64); err == nil && flags&exiting != 0 {
			return true
		}
	}
	status, err := iofs.ReadFile(p, task+"/status")
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "SigPnd:"); ok {
			pending, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && pending&(1<<(unix.SIGKILL-1)) != 0
		}
	}
	return false
}
