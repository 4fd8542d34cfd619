package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/fs/control"
)

// fsType is the tree's type in the mount table.
const fsType = "fuse.sregfs"

// mountEntry is one line of the mount table. user is the number of who mounted
// a FUSE file system, "" for others; minor is the minor number of its device.
type mountEntry struct {
	dir, fsType, user string
	minor             int
}

// mountTable reads /proc/self/mountinfo (proc_pid_mountinfo(5)).
func mountTable() ([]mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []mountEntry
	for s := bufio.NewScanner(f); s.Scan(); {
		if m, ok := parseMount(s.Text()); ok {
			list = append(list, m)
		}
	}
	return list, nil
}

func parseMount(line string) (m mountEntry, ok bool) {
	before, after, ok := strings.Cut(line, " - ")
	left, right := strings.Fields(before), strings.Fields(after)
	if !ok || len(left) < 5 || len(right) == 0 {
		return m, false
	}
	m = mountEntry{dir: unescapeMount(left[4]), fsType: right[0], minor: -1}
	if _, minor, ok := strings.Cut(left[2], ":"); ok {
		if n, err := strconv.ParseUint(minor, 10, 31); err == nil {
			m.minor = int(n)
		}
	}
	for o := range strings.SplitSeq(right[len(right)-1], ",") {
		if id, ok := strings.CutPrefix(o, "user_id="); ok {
			m.user = id
		}
	}
	return m, true
}

// unescapeMount undoes the octal escapes of spaces and the like.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// ourMount is the sregfs mount that path lies in, "" when there is none.
func ourMount(path string) string { return findMount(path).dir }

func findMount(path string) mountEntry {
	var best mountEntry
	table, err := mountTable()
	if err != nil {
		return best
	}
	for _, m := range table {
		if m.fsType == fsType && (path == m.dir || strings.HasPrefix(path, m.dir+"/")) && len(m.dir) >= len(best.dir) {
			best = m
		}
	}
	return best
}

// topMount is the mount that is seen at dir, of those that are mounted there one
// over the other.
func topMount(dir string) (top mountEntry) {
	table, err := mountTable()
	if err != nil {
		return top
	}
	for _, m := range table {
		if m.dir == dir {
			top = m
		}
	}
	return top
}

// realDir is dir without symbolic links, as the mount table has it. A mount that is
// at the end of it may be dead, and is not looked at.
func realDir(dir string) string {
	const most = 40 // links, as path_resolution(7) has it
	for range most {
		parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
		if err != nil {
			return dir
		}
		dir = filepath.Join(parent, filepath.Base(dir))
		if ourMount(dir) == dir {
			return dir
		}
		target, err := os.Readlink(dir)
		if err != nil {
			return dir
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(parent, target)
		}
		dir = target
	}
	return dir
}

// checkMountPoint says in one sentence why dir cannot be mounted on. A dead
// mount that a crash left there is taken away.
func checkMountPoint(dir string, log *slog.Logger) error {
	// Before anything looks into it, and waits for what cannot come.
	if m := findMount(dir); m.dir == dir {
		abortDead(m, log)
	}
	if unserved(dir) {
		log.Warn("replacing a dead mount", "mount", dir)
		if err := detach(dir); err != nil {
			return fmt.Errorf("take away the dead mount at %s: %w", dir, err)
		}
	}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("mount point %s does not exist; make it with: mkdir -p %s", dir, dir)
	case err != nil:
		return fmt.Errorf("mount point: %w", err)
	case !info.IsDir():
		return fmt.Errorf("mount point %s is not a directory", dir)
	case ourMount(dir) == dir:
		return fmt.Errorf("%s is already a mount of sregfs; take it down with: sregfs unmount %s", dir, dir)
	}
	if err := unix.Access(dir, unix.W_OK); err != nil && os.Geteuid() != 0 {
		return fmt.Errorf("mount point %s: %w; an ordinary user can mount only on a folder that they may write to", dir, err)
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		return fmt.Errorf("mount point %s is not empty; what is in it would be hidden", dir)
	}
	return nil
}

// unserved reports whether dir is in a mount that nobody serves any more. It
// waits for who does.
func unserved(dir string) bool {
	// Attributes may still be cached; only reading asks whoever serves it.
	_, err := os.ReadDir(dir)
	return errors.Is(err, syscall.ENOTCONN)
}

// dead reports whether the daemon of a mount is gone, or was killed and waits
// for itself. Of one that does not answer soon it says no.
func (m mountEntry) dead() bool {
	if deadlocked(os.DirFS("/proc"), m) {
		return true // who looked into it would wait, too
	}
	answer := make(chan bool, 1)
	go func() { answer <- unserved(m.dir) }()
	select {
	case dead := <-answer:
		return dead
	case <-time.After(2 * time.Second):
		return false
	}
}

// ownMounts are the trees that this user has mounted.
func ownMounts() []mountEntry {
	table, err := mountTable()
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(table, func(m mountEntry) bool {
		return m.fsType != fsType || m.user != strconv.Itoa(os.Geteuid())
	})
}

// detach takes a mount out of the tree even while it is in use.
func detach(dir string) error {
	if os.Geteuid() == 0 {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err == nil {
			return nil
		}
	}
	out, err := exec.Command("fusermount3", "-u", "-z", dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3: %s", strings.TrimSpace(string(out)))
	}
	return nil
}

// mayAllowOther reports whether fusermount3 lets this user open a mount to
// others.
func mayAllowOther() bool {
	if os.Geteuid() == 0 {
		return true
	}
	data, err := os.ReadFile("/etc/fuse.conf")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}

// onOverlay reports whether the nearest existing folder of path is on an
// overlay file system, which counts as one level of stacking.
func onOverlay(path string) bool {
	const overlayMagic = 0x794c7630 // OVERLAYFS_SUPER_MAGIC of linux/magic.h
	for {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err == nil {
			return st.Type == overlayMagic
		}
		if path == filepath.Dir(path) {
			return false
		}
		path = filepath.Dir(path)
	}
}

// raiseReadAhead lets the kernel ask for more than 128 KiB at once, where root
// may set that: fewer requests for who reads in order. It is no more than twice
// that, because the kernel reads as much around each page of a mapped file that
// is touched, also where the daemon knows better. Errors are of no consequence.
func raiseReadAhead(dir string) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return
	}
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	_ = os.WriteFile(path, []byte("256"), 0o644)
}

type unmountCmd struct {
	Dir  string `arg:"" help:"Where it is mounted." type:"path"`
	Lazy bool   `help:"Detach even while files are open; they go on until they are closed."`
}

// Run unmounts and waits until the daemon is gone, so that a new one may take
// the cache.
func (c *unmountCmd) Run(ctx context.Context, e *environment) error {
	c.Dir = realDir(c.Dir)
	m := findMount(c.Dir)
	if m.dir != c.Dir {
		return fmt.Errorf("%s is not a mount of sregfs", c.Dir)
	}
	if over := topMount(c.Dir); over.fsType != fsType {
		return fmt.Errorf("a file system of type %s is mounted over the tree at %s; unmount that first", over.fsType, c.Dir)
	}
	if uid := os.Geteuid(); uid != 0 && m.user != strconv.Itoa(uid) {
		who := "the user with the number " + m.user
		if u, err := user.LookupId(m.user); err == nil {
			who = u.Username
		}
		return fmt.Errorf("%s was mounted by %s; only they and root can unmount it", c.Dir, who)
	}
	// Nobody serves the files that are open in a dead mount, so that there is
	// nothing to wait for.
	if dead := abortDead(m, e.log); c.Lazy || dead {
		return detach(c.Dir)
	}
	_, ours := e.serves(ctx, m)
	if os.Geteuid() != 0 || unix.Unmount(c.Dir, 0) != nil {
		out, err := exec.CommandContext(ctx, "fusermount3", "-u", c.Dir).CombinedOutput()
		if err != nil {
			return fmt.Errorf("unmount %s: %s; stop what uses it, or add --lazy", c.Dir, strings.TrimSpace(string(out)))
		}
	}
	if !ours {
		return nil // it has another cache
	}
	return e.waitReleased(ctx, m)
}

// serves asks the daemon that has this command's cache for its process, if it is that
// of the mount m.
func (e *environment) serves(ctx context.Context, m mountEntry) (pid int, ok bool) {
	ask, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	d, err := control.Dial(ask, e.cacheDir())
	if err != nil {
		return 0, false
	}
	st, err := d.Status(ask)
	return st.PID, err == nil && st.Mount == m.dir
}

// waitReleased returns when the daemon of the mount m, which was just taken down,
// holds the cache no more, or soon in any case; then it says what keeps it.
func (e *environment) waitReleased(ctx context.Context, m mountEntry) error {
	for range 100 {
		if _, err := control.Dial(ctx, e.cacheDir()); err != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	pid, serves := e.serves(ctx, m)
	if !serves || ourMount(m.dir) == m.dir {
		return nil
	}
	why := "has not ended yet and keeps the cache until it has"
	if who := mountedFor(os.DirFS("/proc"), m); who != "" {
		why = fmt.Sprintf("still serves it to process %s, which has it in another mount namespace or place, and keeps the cache until that ends", who)
	}
	fmt.Fprintf(e.stderr, "sregfs: %s is unmounted here, but process %d %s\n", m.dir, pid, why)
	return nil
}

// mountedFor is the number of a process that sees the mount m, wherever it has
// it, and "" without one. p is /proc.
func mountedFor(p iofs.FS, m mountEntry) (pid string) {
	list, err := iofs.ReadDir(p, ".")
	if err != nil {
		return ""
	}
	for _, e := range list {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		table, err := iofs.ReadFile(p, e.Name()+"/mountinfo")
		if err != nil {
			continue // it has ended, or is not shown to this user
		}
		for line := range strings.Lines(string(table)) {
			if seen, ok := parseMount(line); ok && seen.fsType == m.fsType && seen.minor == m.minor {
				return e.Name()
			}
		}
	}
	return ""
}
