//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// machine is a user's computer: a home of its own, and what is exported there.
type machine struct {
	t    *testing.T
	home string
	env  []string
	uid  int // 0 for root
}

func newMachine(t *testing.T, env ...string) *machine {
	t.Helper()
	home := t.TempDir()
	m := &machine{t: t, home: home}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if name != "HOME" && !strings.HasPrefix(name, "SREG") && !strings.HasPrefix(name, "SINGULARITY") && !strings.HasPrefix(name, "XDG_") {
			m.env = append(m.env, kv)
		}
	}
	m.env = append(m.env, "HOME="+home, "LC_ALL=C.UTF-8")
	m.env = append(m.env, env...)
	return m
}

// asUser makes the machine an ordinary user's.
func (m *machine) asUser(uid int) *machine {
	m.t.Helper()
	m.uid = uid
	for dir := m.home; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			m.t.Fatal(err)
		}
	}
	if err := filepath.WalkDir(m.home, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, uid, uid)
	}); err != nil {
		m.t.Fatal(err)
	}
	return m
}

// give puts a copy of a file into the home.
func (m *machine) give(file string) string {
	m.t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		m.t.Fatal(err)
	}
	to := filepath.Join(m.home, filepath.Base(file))
	if err := os.WriteFile(to, data, 0o755); err != nil {
		m.t.Fatal(err)
	}
	return to
}

func (m *machine) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = m.env, m.home
	if m.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(m.uid), Gid: uint32(m.uid)}}
	}
	return cmd
}

// mounted is a running sregfs.
type mounted struct {
	*machine
	dir string
	cmd *exec.Cmd
	log *logBuffer
	end chan error
}

// logBuffer takes a daemon's log, for the test to look into.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// mount starts the program on a new mount point and waits until it is ready.
// The test's end unmounts it and fails if it does not end well.
func (m *machine) mount(args ...string) *mounted {
	m.t.Helper()
	return m.mountAt(filepath.Join(m.home, "mnt"), args...)
}

func (m *machine) mountAt(dir string, args ...string) *mounted {
	m.t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil && !errors.Is(err, syscall.ENOTCONN) && !os.IsExist(err) {
		m.t.Fatal(err)
	}
	if m.uid != 0 {
		if err := os.Chown(dir, m.uid, m.uid); err != nil {
			m.t.Fatal(err)
		}
	}
	d := &mounted{machine: m, dir: dir, log: &logBuffer{}, end: make(chan error, 1)}
	d.cmd = m.command(context.Background(), program, append([]string{"mount", dir, "--log-level=debug"}, args...)...)
	d.cmd.Stderr = d.log
	if err := d.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	go func() { d.end <- d.cmd.Wait() }()
	m.t.Cleanup(d.cleanup)
	d.eventually("the mount to be ready", func() error {
		select {
		case err := <-d.end:
			d.end <- err
			m.t.Fatalf("sregfs mount ended: %v\n%s", err, d.log)
		default:
		}
		if !strings.Contains(d.log.String(), "is ready") {
			return errors.New("not ready")
		}
		return nil
	})
	return d
}

// cleanup unmounts, by force if need be, and shows the log of a failed test.
func (d *mounted) cleanup() {
	d.t.Helper()
	if d.cmd.ProcessState == nil {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
	}
	select {
	case err := <-d.end:
		if err != nil && !strings.Contains(err.Error(), "killed") {
			d.t.Errorf("sregfs ended badly: %v", err)
		}
	case <-time.After(20 * time.Second):
		d.t.Errorf("sregfs did not end; is the mount busy?")
		_ = d.cmd.Process.Kill()
		_ = syscall.Unmount(d.dir, 2)
	}
	if _, err := os.ReadDir(d.dir); errors.Is(err, syscall.ENOTCONN) {
		// Nobody has taken the place of one that was killed.
		if out, err := d.command(context.Background(), program, "unmount", d.dir).CombinedOutput(); err != nil {
			d.t.Errorf("unmount of a dead mount: %v\n%s", err, out)
		}
	}
	if d.t.Failed() {
		d.t.Logf("log of %s:\n%s", d.dir, d.log)
	}
}

// kill ends the daemon as a crash would.
func (d *mounted) kill() {
	d.t.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		d.t.Fatal(err)
	}
	d.dies()
}

// dies waits for a killed daemon's end, and helps where it must.
func (d *mounted) dies() {
	d.t.Helper()
	if !d.died(5 * time.Second) {
		// It waits in the kernel for itself: nobody but unmount, or the next
		// mount, ends that.
		if out, err := d.command(context.Background(), program, "unmount", d.dir).CombinedOutput(); err != nil {
			d.t.Errorf("unmount of a daemon that does not die: %v\n%s", err, out)
		}
		if !d.died(30 * time.Second) {
			_ = syscall.Unmount(d.dir, syscall.MNT_FORCE)
			d.t.Fatal("the killed daemon did not die")
		}
	}
}

// died waits for the daemon's end, for a while.
func (d *mounted) died(wait time.Duration) bool {
	select {
	case err := <-d.end:
		d.end <- err
		return true
	case <-time.After(wait):
		return false
	}
}

// unmount ends the daemon in the ordinary way and waits for it.
func (d *mounted) unmount() {
	d.t.Helper()
	d.run("cd / && %s unmount %s", program, d.dir)
	err := <-d.end
	d.end <- err
	if err != nil {
		d.t.Fatalf("sregfs ended badly: %v\n%s", err, d.log)
	}
}

// run runs a shell line in the mount and returns what it printed on standard
// output. It must succeed.
func (d *mounted) run(format string, args ...any) string {
	d.t.Helper()
	out, errOut, err := d.try(format, args...)
	if err != nil {
		d.t.Fatalf("$ %s\n%s%s%v", fmt.Sprintf(format, args...), out, errOut, err)
	}
	return out
}

// fails runs a shell line that must fail, and what it says must hold a text.
func (d *mounted) fails(text, format string, args ...any) {
	d.t.Helper()
	out, errOut, err := d.try(format, args...)
	if err == nil {
		d.t.Errorf("$ %s\n%s%ssucceeded, want it to fail with %q", fmt.Sprintf(format, args...), out, errOut, text)
	} else if !strings.Contains(errOut, text) {
		d.t.Errorf("$ %s\n%s%s%v, want %q", fmt.Sprintf(format, args...), out, errOut, err, text)
	}
}

// try runs a shell line in the mount.
func (d *mounted) try(format string, args ...any) (stdout, stderr string, err error) {
	return d.tryFor(120, format, args...)
}

// tryFor runs one that may take so many seconds.
func (d *mounted) tryFor(seconds int, format string, args ...any) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Duration(seconds)*time.Second)
	defer cancel()
	cmd := d.command(ctx, "bash", "-euo", "pipefail", "-c", fmt.Sprintf(format, args...))
	cmd.Dir = d.dir
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

// want runs a shell line and compares what it printed.
func (d *mounted) want(want, format string, args ...any) {
	d.t.Helper()
	if got := strings.TrimSpace(d.run(format, args...)); got != want {
		d.t.Errorf("$ %s\n%s\nwant %s", fmt.Sprintf(format, args...), got, want)
	}
}

// eventually waits for something that takes a while, a minute at most.
func (d *mounted) eventually(what string, check func() error) {
	d.t.Helper()
	var err error
	// Soon at first, then more seldom.
	pause := 5 * time.Millisecond
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(pause) {
		if err = check(); err == nil {
			return
		}
		pause = min(pause*5/4, 200*time.Millisecond)
	}
	d.t.Fatalf("waited in vain for %s: %v\n%s", what, err, d.log)
}
