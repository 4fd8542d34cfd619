//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// moment is a step of the daemon's: a change of the disk that is about to be
// made, or a request to the service before it arrives, half-way or before its
// answer arrives. nth counts the steps of that name.
type moment struct {
	name string
	nth  int
}

func (m moment) String() string { return fmt.Sprintf("%s #%d", m.name, m.nth) }

// tripwire counts a daemon's steps and kills it at one of them. Nothing of it
// is in the daemon: the kernel asks before each system call that matters
// (seccomp_unotify(2)), and requests go through a proxy.
type tripwire struct {
	roots []root
	// tripped is called before the daemon is killed.
	tripped func()

	mu    sync.Mutex // guards what follows
	d     *mounted
	armed bool
	at    moment
	hits  int // of at, so far
	fired bool
	seen  []string // names of steps, in their order
}

// root is a folder whose changes count, and what files there are called.
type root struct {
	path string
	kind func(rel string) string // "" for what does not count
}

// arm begins to count, and has the daemon killed at a moment; a zero one never
// comes.
func (w *tripwire) arm(at moment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed, w.at, w.hits, w.fired, w.seen = true, at, 0, false, nil
}

// disarm ends counting. It reports whether the moment came.
func (w *tripwire) disarm() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed = false
	return w.fired
}

func (w *tripwire) hasFired() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fired
}

// step counts a step. When it is the one, the daemon gets SIGKILL.
func (w *tripwire) step(name string) (killed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.armed || w.d == nil {
		return false
	}
	w.seen = append(w.seen, name)
	if name != w.at.name {
		return false
	}
	if w.hits++; w.hits != w.at.nth {
		return false
	}
	w.armed, w.fired = false, true
	if w.tripped != nil {
		w.tripped()
	}
	_ = w.d.cmd.Process.Kill() // one that has ended by itself is found out by who waits
	return true
}

// start starts the program with its system calls watched.
func (w *tripwire) start(d *mounted, args ...string) error {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	d.cmd = d.helper("watched", append([]string{program}, args...)...)
	d.cmd.Stderr, d.cmd.ExtraFiles = d.log, []*os.File{theirs}
	w.mu.Lock()
	w.d = d
	w.mu.Unlock()
	err = d.cmd.Start()
	theirs.Close()
	if err != nil {
		return err
	}
	go func() { d.end <- d.cmd.Wait() }()
	conn, err := net.FileConn(ours)
	if err != nil {
		return err
	}
	defer conn.Close()
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return fmt.Errorf("take the listener: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return fmt.Errorf("take the listener: %w\n%s", err, d.log)
	}
	listener, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return fmt.Errorf("take the listener: %w", err)
	}
	go w.listen(listener[0])
	return nil
}

// watchedCalls are the system calls that change a disk.
var watchedCalls = map[uint32]string{
	unix.SYS_OPENAT: "create", unix.SYS_RENAMEAT: "rename", unix.SYS_RENAMEAT2: "rename", unix.SYS_UNLINKAT: "remove",
	unix.SYS_PWRITE64: "write", unix.SYS_FTRUNCATE: "truncate", unix.SYS_FSYNC: "sync", unix.SYS_FDATASYNC: "sync",
	unix.SYS_LINKAT: "link", unix.SYS_MKDIRAT: "mkdir", unix.SYS_COPY_FILE_RANGE: "copy", unix.SYS_UTIMENSAT: "touch",
}

// runWatched runs args with a filter that asks the test before each of the
// watched calls, by the descriptor that it sends through descriptor 3.
func runWatched(args []string) error {
	runtime.LockOSThread() // the filter is a thread's, and goes along with exec
	const ld, jeq, jset, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	filter := []unix.SockFilter{{Code: ld, K: 0}} // seccomp_data.nr
	for nr := range watchedCalls {
		if nr == unix.SYS_OPENAT {
			continue
		}
		filter = append(filter, unix.SockFilter{Code: jeq, K: nr, Jf: 1}, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_USER_NOTIF})
	}
	filter = append(filter,
		unix.SockFilter{Code: jeq, K: unix.SYS_OPENAT, Jf: 3},
		unix.SockFilter{Code: ld, K: 16 + 2*8}, // the low half of the third argument: the flags
		unix.SockFilter{Code: jset, K: unix.O_CREAT, Jf: 1},
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_USER_NOTIF},
		unix.SockFilter{Code: ret, K: 0x7fff0000}) // SECCOMP_RET_ALLOW
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("watch system calls: %w", errno)
	}
	unix.CloseOnExec(3)
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(fd)), nil, 0); err != nil {
		return fmt.Errorf("hand over the listener: %w", err)
	}
	return syscall.Exec(args[0], args, os.Environ())
}

// The structures of seccomp_unotify(2).
type (
	seccompNotif struct {
		id         uint64
		pid, flags uint32
		nr, arch   uint32
		ip         uint64
		args       [6]uint64
	}
	seccompResp struct {
		id    uint64
		val   int64
		err   int32
		flags uint32
	}
)

// listen lets the calls pass, one after the other, until the daemon has ended.
func (w *tripwire) listen(fd int) {
	defer unix.Close(fd)
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err != nil && err != unix.EINTR {
			return
		}
		if p[0].Revents&unix.POLLIN == 0 {
			if p[0].Revents != 0 {
				return // all have ended
			}
			continue
		}
		var n seccompNotif
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
			continue // its caller has ended meanwhile
		}
		if name := w.name(n); name != "" && w.step(name) {
			continue // it stays where it is, until SIGKILL has come to it
		}
		r := seccompResp{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	}
}

// name is what a call does to which kind of file; "" for what does not count.
func (w *tripwire) name(n seccompNotif) string {
	var path string
	switch n.nr {
	case unix.SYS_OPENAT, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT:
		path = pathOf(n.pid, n.args[0], n.args[1])
	case unix.SYS_UTIMENSAT:
		if path = fdOf(n.pid, n.args[0]); n.args[1] != 0 {
			path = pathOf(n.pid, n.args[0], n.args[1])
		}
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT:
		path = pathOf(n.pid, n.args[2], n.args[3])
	case unix.SYS_COPY_FILE_RANGE:
		path = fdOf(n.pid, n.args[2])
	default:
		path = fdOf(n.pid, n.args[0])
	}
	path = strings.TrimSuffix(path, " (deleted)")
	for _, r := range w.roots {
		if rel, ok := strings.CutPrefix(path, r.path); ok && (rel == "" || rel[0] == '/') {
			if kind := r.kind(strings.TrimPrefix(rel, "/")); kind != "" {
				return watchedCalls[n.nr] + " " + kind
			}
		}
	}
	return ""
}

func fdOf(pid uint32, fd uint64) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, int32(fd)))
	if err != nil {
		return ""
	}
	return path
}

// pathOf is the path that a call names, whose arguments are a folder's
// descriptor and an address.
func pathOf(pid uint32, dir, at uint64) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, unix.PathMax)
	n, _ := f.ReadAt(buf, int64(at)) // what follows may not be mapped
	end := bytes.IndexByte(buf[:n], 0)
	if end < 0 {
		return ""
	}
	path := string(buf[:end])
	switch {
	case filepath.IsAbs(path):
		return path
	case int32(dir) == unix.AT_FDCWD:
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if err != nil {
			return ""
		}
		return filepath.Join(cwd, path)
	}
	return filepath.Join(fdOf(pid, dir), path)
}

// kindInHome is what files of the daemon's are called in moments.
func kindInHome(rel string) string {
	dir, file := filepath.Split(rel)
	ext := filepath.Ext(file)
	switch {
	case rel == "sregfs/objects/objects":
		return "the cache's folder"
	case rel == "sregfs/staging":
		return "the staging folder"
	case dir == "sregfs/objects/objects/" && strings.HasPrefix(file, "tmp."):
		return "a temporary file of the cache"
	case dir == "sregfs/objects/objects/" && ext == ".data":
		return "cached bytes"
	case dir == "sregfs/objects/objects/" && ext == ".map":
		return "a cache map"
	case dir == "sregfs/objects/objects/" && ext == ".json":
		return "a cache description"
	case dir == "sregfs/staging/" && strings.HasPrefix(file, "tmp."):
		return "a temporary journal"
	case dir == "sregfs/staging/" && ext == ".data":
		return "staged bytes"
	case dir == "sregfs/staging/" && ext == ".json":
		return "a journal"
	case strings.HasPrefix(rel, "sregistry.db"):
		return "the seeds' database" + strings.TrimPrefix(rel, "sregistry.db")
	case strings.HasPrefix(rel, "sregfs/state.db"):
		return "the index" + strings.TrimPrefix(rel, "sregfs/state.db")
	}
	return ""
}

// kindInStorage is what files of the local storage are called.
func kindInStorage(rel string) string {
	switch {
	case rel == "":
		return "the storage's folder"
	case strings.HasSuffix(rel, ".simg"):
		return "a stored image"
	case strings.HasPrefix(filepath.Base(rel), "."):
		return "a temporary file of the storage"
	}
	return "a collection's folder"
}

// mountTripped starts the program so that w sees its steps. Unlike mount it
// gives back the error of a daemon that ended before it was ready.
func (m *machine) mountTripped(w *tripwire, args ...string) (*mounted, error) {
	m.t.Helper()
	dir := filepath.Join(m.home, "mnt")
	if err := os.MkdirAll(dir, 0o755); err != nil && !errors.Is(err, syscall.ENOTCONN) && !os.IsExist(err) {
		m.t.Fatal(err)
	}
	d := &mounted{machine: m, dir: dir, log: &logBuffer{}, end: make(chan error, 1)}
	m.t.Cleanup(d.cleanup)
	if err := w.start(d, append([]string{"mount", dir, "--log-level=debug"}, args...)...); err != nil {
		m.t.Fatal(err)
	}
	var ended error
	d.eventually("the mount to be ready or the daemon's end", func() error {
		if w.hasFired() {
			d.dies()
		}
		select {
		case ended = <-d.end:
			d.end <- ended
			if ended == nil {
				ended = errors.New("it ended")
			}
			return nil
		default:
		}
		if !strings.Contains(d.log.String(), "is ready") {
			return errors.New("not ready")
		}
		return nil
	})
	if ended != nil && !w.hasFired() {
		m.t.Fatalf("sregfs mount ended: %v\n%s", ended, d.log)
	}
	return d, ended
}

// TestTripwire: the kill comes before the step, and at the very one.
func TestTripwire(t *testing.T) {
	needRoot(t)
	a := localAccount(t)
	m := newMachine(t, a.env...)
	w := &tripwire{roots: []root{{filepath.Join(m.home, ".singularity"), kindInHome}}}
	w.arm(moment{"rename a journal", 2})
	d, err := m.mountTripped(w, "--client=local")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.try("mkdir local/a && cp %s local/a/b:c.simg", smallImage(t, 1)); err == nil {
		t.Error("a copy was acknowledged by a dead daemon")
	}
	if !w.disarm() {
		t.Fatalf("the moment did not come; there were %q", w.seen)
	}
	if !d.died(30 * time.Second) {
		t.Fatal("the daemon did not die")
	}
	if temps, err := filepath.Glob(filepath.Join(m.stateDir(), "staging/tmp.*.json.*")); err != nil || len(temps) != 1 {
		t.Errorf("the second journal was not just about to be put in place: %q, %v", temps, err)
	}
}

// needRoot ends a test that an ordinary user cannot run.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("watching a program's system calls needs root, or fusermount3 could not mount")
	}
}
