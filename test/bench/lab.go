package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lab is where the work is done: a folder on the local disk, the programs, and
// what has to be undone.
type lab struct {
	repo string // the checkout
	data string // generated images, kept between runs
	tmp  string // everything else, deleted at the end
	// rclone is the newest that could be had (test/setup/rclone.sh), else the
	// machine's own.
	rclone string
	undo   []func()
	seq    int
}

func newLab(data string) (*lab, error) {
	repo, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if data, err = filepath.Abs(data); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(data, 0o755); err != nil {
		return nil, err
	}
	// Beside the data: one disk for all.
	tmp, err := os.MkdirTemp(filepath.Dir(data), "tmp")
	if err != nil {
		return nil, err
	}
	for _, program := range []string{"bin/sregfs", "bin/emulator"} {
		if _, err := os.Stat(filepath.Join(repo, program)); err != nil {
			return nil, fmt.Errorf("%w; run it by \"make bench\"", err)
		}
	}
	l := &lab{repo: repo, data: data, tmp: tmp, rclone: "rclone"}
	if built := filepath.Join(data, "rclone/rclone"); exec.Command(built, "version").Run() == nil {
		l.rclone = built
	}
	return l, nil
}

func (l *lab) close() {
	l.reset()
	os.RemoveAll(l.tmp)
}

// later has f called when the row is over, last in first out.
func (l *lab) later(f func()) { l.undo = append(l.undo, f) }

// reset undoes what the row has set up.
func (l *lab) reset() {
	for len(l.undo) > 0 {
		f := l.undo[len(l.undo)-1]
		l.undo = l.undo[:len(l.undo)-1]
		f()
	}
}

// folder makes an empty folder that goes with the row.
func (l *lab) folder(name string) (string, error) {
	l.seq++
	dir := filepath.Join(l.tmp, fmt.Sprintf("%03d-%s", l.seq, name))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	l.later(func() { os.RemoveAll(dir) })
	return dir, nil
}

func (l *lab) version(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, filepath.Join(l.repo, "bin/sregfs"), "--version").Output()
	if err != nil {
		return "of unknown version"
	}
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "sregfs ")
}

// rivals are the programs that sregfs is measured against, with their versions.
func (l *lab) rivals(ctx context.Context) map[string]string {
	out := map[string]string{}
	for name, cmd := range map[string][]string{
		"rclone": {l.rclone, "version"}, "apptainer": {"apptainer", "--version"}, "curl": {"curl", "--version"}} {
		said, err := exec.CommandContext(ctx, cmd[0], cmd[1:]...).Output()
		if err == nil {
			out[name] = versionIn(string(said))
		}
	}
	return out
}

// versionIn is the first word of a program's answer that looks like a version,
// without a leading v.
func versionIn(said string) string {
	for word := range strings.FieldsSeq(said) {
		if v := strings.TrimPrefix(word, "v"); v != "" && v[0] >= '0' && v[0] <= '9' {
			return v
		}
	}
	return ""
}

// command runs a program to its end. A failure carries what it said.
func command(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail(said.Bytes()))
	}
	return nil
}

// tail is the end of what a program said.
func tail(b []byte) []byte {
	if len(b) > 2000 {
		b = b[len(b)-2000:]
	}
	return bytes.TrimSpace(b)
}

// daemon is a program that serves a mount or an address until it is stopped.
type daemon struct {
	cmd  *exec.Cmd
	said *os.File
	gone chan struct{} // closed when it has ended
}

func (l *lab) start(env []string, name string, args ...string) (*daemon, error) {
	said, err := os.CreateTemp(l.tmp, "log")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &daemon{cmd: cmd, said: said, gone: make(chan struct{})}
	go func() {
		cmd.Wait()
		close(d.gone)
	}()
	return d, nil
}

// stop asks the daemon to end and waits; one that does not is killed.
func (d *daemon) stop() {
	d.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-d.gone:
	case <-time.After(20 * time.Second):
		d.cmd.Process.Kill()
		<-d.gone
	}
	d.said.Close()
	os.Remove(d.said.Name())
}

// until polls ready; it fails when the daemon ends, or after a minute.
func (d *daemon) until(ctx context.Context, ready func() bool) error {
	deadline := time.After(time.Minute)
	for !ready() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.gone:
			return fmt.Errorf("%s ended: %s", filepath.Base(d.cmd.Path), d.log())
		case <-deadline:
			return fmt.Errorf("%s did not become ready: %s", filepath.Base(d.cmd.Path), d.log())
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

func (d *daemon) log() []byte {
	b, err := os.ReadFile(d.said.Name())
	if err != nil {
		return []byte(err.Error())
	}
	return tail(b)
}

// peak is the daemon's peak resident memory so far, in bytes.
func (d *daemon) peak() int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if kb, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(kb), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}

// mount is a daemon with a tree.
type mount struct {
	*daemon
	dir string
}

// close unmounts. The row's end does so in any case; a second call does
// nothing.
func (m *mount) close() {
	m.stop()
	unix.Unmount(m.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

// mounted reports whether something is mounted on dir.
func mounted(dir string) bool {
	var here, above unix.Stat_t
	return unix.Stat(dir, &here) == nil && unix.Stat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev
}

// sregfs mounts the tree with a home of its own; what lies in home is what a
// user's earlier runs have left.
func (l *lab) sregfs(ctx context.Context, home string, env []string, args ...string) (*mount, error) {
	dir, err := l.folder("sregfs")
	if err != nil {
		return nil, err
	}
	env = append([]string{"HOME=" + home, "XDG_CONFIG_HOME=" + home + "/config", "XDG_RUNTIME_DIR=" + home}, env...)
	d, err := l.start(env, filepath.Join(l.repo, "bin/sregfs"), append([]string{"mount", dir}, args...)...)
	if err != nil {
		return nil, err
	}
	m := &mount{d, dir}
	l.later(m.close)
	return m, d.until(ctx, func() bool { return mounted(dir) })
}

// rcloneMount mounts remote with the full VFS cache in cache.
func (l *lab) rcloneMount(ctx context.Context, e *emulator, cache string) (*mount, error) {
	dir, err := l.folder("rclone")
	if err != nil {
		return nil, err
	}
	d, err := l.start(e.rcloneEnv(), l.rclone, "mount", "dropbox:"+filepath.Dir(remoteName), dir,
		"--vfs-cache-mode", "full", "--cache-dir", cache, "--allow-other", "--allow-non-empty")
	if err != nil {
		return nil, err
	}
	m := &mount{d, dir}
	l.later(m.close)
	return m, d.until(ctx, func() bool { return mounted(dir) })
}

// dropCaches empties the page cache, so that the next read meets the disk.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0)
}

// apptainer is the program's path.
func apptainer() (string, error) {
	for _, name := range []string{"apptainer", "singularity"} {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", errors.New("no Apptainer on this machine; test/setup/apptainer.sh gets one")
}
