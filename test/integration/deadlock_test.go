//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// helpers are what this test program can be instead: programs of the tests'
// own, picked by helperEnv.
var helpers = map[string]func(args []string) error{"clumsy": clumsyDaemon, "watched": runWatched}

const helperEnv = "SREGFS_TEST_HELPER"

// helper is a command that runs one of the helpers.
func (m *machine) helper(name string, args ...string) *exec.Cmd {
	m.t.Helper()
	// Beside the program, where ordinary users may run it: "go test" builds
	// this one in a folder that is its user's alone.
	path := filepath.Join(filepath.Dir(program), "helpers")
	if _, err := os.Stat(path); err != nil {
		self, err := os.Executable()
		if err != nil {
			m.t.Fatal(err)
		}
		data, err := os.ReadFile(self)
		if err != nil {
			m.t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o755); err != nil {
			m.t.Fatal(err)
		}
	}
	cmd := m.command(context.Background(), path, args...)
	cmd.Env = append(cmd.Env, helperEnv+"="+name)
	return cmd
}

// clumsyDaemon mounts something that looks like sregfs at args[0] and serves
// it. Its one file cannot be renamed before there is a file args[1]. With
// "notify" as args[2] it does what sregfs takes care not to do: it tells the
// kernel of a change in a directory in the middle of a rename there, and waits
// for itself for ever.
func clumsyDaemon(args []string) error {
	root := &clumsyDir{release: args[1], notify: args[2] == "notify"}
	server, err := fusefs.Mount(args[0], root, &fusefs.Options{MountOptions: fuse.MountOptions{FsName: "sregfs", Name: "sregfs"}})
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "is ready")
	server.Wait()
	return nil
}

type clumsyDir struct {
	fusefs.Inode
	release string
	notify  bool
}

func (d *clumsyDir) OnAdd(ctx context.Context) {
	d.AddChild("a", d.NewPersistentInode(ctx, &fusefs.MemRegularFile{}, fusefs.StableAttr{}), false)
}

func (d *clumsyDir) Rename(ctx context.Context, _ string, _ fusefs.InodeEmbedder, _ string, _ uint32) syscall.Errno {
	fmt.Fprintln(os.Stderr, "renaming")
	if d.notify {
		d.NotifyEntry("a")
	}
	for ctx.Err() == nil {
		if _, err := os.Stat(d.release); err == nil {
			return 0
		}
		time.Sleep(time.Millisecond)
	}
	return syscall.EINTR
}

// TestDeadlockedMount: the mount of a daemon that was killed while it waited
// for itself in the kernel is freed by the next mount and by unmount, and with
// it who waited there; the mount of one that is merely slow is left alone.
func TestDeadlockedMount(t *testing.T) {
	for _, uid := range []int{0, 1000} {
		if os.Getuid() != 0 && uid != os.Getuid() {
			continue // an ordinary user tries it as himself
		}
		if uid != 0 && os.Getuid() == 0 {
			if err := fusectl(); err != nil {
				t.Fatalf("show FUSE connections: %v", err)
			}
		}
		for _, way := range []string{"mount", "unmount", "slow"} {
			t.Run(fmt.Sprintf("%s/uid%d", way, uid), func(t *testing.T) {
				m := newMachine(t)
				dir, release := filepath.Join(m.home, "mnt"), filepath.Join(m.home, "release")
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if uid != 0 {
					m.asUser(uid)
				}
				do := "notify"
				if way == "slow" {
					do = "wait"
				}
				d := &mounted{machine: m, dir: dir, log: &logBuffer{}, end: make(chan error, 1)}
				d.cmd = m.helper("clumsy", dir, release, do)
				d.cmd.Stderr = d.log
				if err := d.cmd.Start(); err != nil {
					t.Fatal(err)
				}
				go func() { d.end <- d.cmd.Wait() }()
				t.Cleanup(func() {
					_ = d.cmd.Process.Kill()
					_ = syscall.Unmount(dir, syscall.MNT_FORCE)
					_ = syscall.Unmount(dir, syscall.MNT_DETACH)
				})
				said := func(what string) {
					t.Helper()
					d.eventually(what, func() error {
						if !strings.Contains(d.log.String(), what) {
							return errors.New("not yet")
						}
						return nil
					})
				}
				said("is ready")
				move := m.command(t.Context(), "mv", filepath.Join(dir, "a"), filepath.Join(dir, "b"))
				if err := move.Start(); err != nil {
					t.Fatal(err)
				}
				said("renaming")
				// Where it hangs, it hangs for good.
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				program := m.command(ctx, program, "unmount", dir)
				if way == "slow" {
					if out, err := program.CombinedOutput(); err == nil || !strings.Contains(string(out), "--lazy") {
						t.Errorf("unmount of a busy mount: %v, %s", err, out)
					}
					if err := os.WriteFile(release, nil, 0o644); err != nil {
						t.Fatal(err)
					}
					if err := move.Wait(); err != nil {
						t.Errorf("a rename that was slow: %v", err)
					}
					d.unmount()
					return
				}
				d.eventually("the daemon to wait for itself", func() error { return waitsInKernel(d.cmd.Process.Pid) })
				if err := d.cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				if way == "mount" {
					// In the background: the test must not look into it before.
					program = m.command(ctx, program.Path, "mount", dir, "--client=local", "--daemon")
				}
				out, err := program.CombinedOutput()
				if err != nil || !strings.Contains(string(out), "could not die") {
					t.Fatalf("%s: %v, %s", way, err, out)
				}
				if way == "mount" {
					d.want("local", "ls")
					d.run("cd / && %s unmount %s", program.Path, dir)
				}
				if err := move.Wait(); err == nil {
					t.Error("a rename that nobody did succeeded")
				}
				<-d.end // it dies
			})
		}
	}
}

// waitsInKernel: a thread of the process is in an uninterruptible sleep.
func waitsInKernel(pid int) error {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return err
	}
	for _, file := range stats {
		if stat, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " D ") {
			return nil
		}
	}
	return errors.New("it does not")
}

// fusectl has the system show FUSE connections, as most do.
func fusectl() error {
	const at = "/sys/fs/fuse/connections"
	if list, err := os.ReadDir(at); err != nil || len(list) > 0 {
		return err
	}
	return syscall.Mount("none", at, "fusectl", 0, "")
}
