//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

// TestCommandsOnPaths: a command that is given a path acts on what the path shows,
// whatever it would be set to itself, or says why it cannot.
func TestCommandsOnPaths(t *testing.T) {
	m := newMachine(t)
	a := m.mount("--client=local")
	elsewhere := *m
	elsewhere.env = append(m.env[:len(m.env):len(m.env)], "SREGISTRY_STORAGE="+t.TempDir())
	cache := filepath.Join(m.home, "other")
	b := elsewhere.mountAt(filepath.Join(m.home, "b"), "--client=local", "--cache-dir="+cache)
	one, two := smallImage(t, 1), smallImage(t, 2)
	for d, file := range map[*mounted]string{a: one, b: two} {
		d.run("mkdir -p local/me && cp %s local/me/img:v1.simg", file)
	}
	for _, command := range []string{"rm", "rmi", "share"} {
		a.fails("name the right cache with --cache-dir", "%s %s %s/local/me/img:v1.simg", program, command, b.dir)
	}
	a.want(b.dir+"/local/me/img:v1.simg", "%s get %s/local/me/img:v1.simg", program, b.dir)
	a.run("%s rmi --cache-dir=%s %s/local/me/img:v1.simg", program, cache, b.dir)
	b.run("! ls local/me/img:v1.simg 2>/dev/null")
	a.run("cmp %s local/me/img:v1.simg", one)

	// The mount's account shares, not the command's, which has none.
	acc := dropboxAccount(t)
	acc.put(t, "pusheen/a:1", one)
	d := newMachine(t, acc.env...).mount("--client=dropbox")
	link := d.run("%s share --quiet dropbox/pusheen/a:1.simg", program)
	d.want(strings.TrimSpace(link), "env -u SREGISTRY_DROPBOX_TOKEN %s share --quiet $PWD/dropbox/pusheen/a:1.simg", program)
	// How another client is set up does not matter to a URI.
	d.want(strings.TrimSpace(link), "SREGISTRY_NVIDIA_TOKEN=new %s share --quiet dropbox://pusheen/a:1", program)
	// What is not in the mount has no path there.
	d.run("mkdir -p ~/.singularity/shub/me && cp %s ~/.singularity/shub/me/b:1.simg", one)
	d.want(m.storage(d.home, "me/b:1"), "%s get local://me/b:1", program)
}

// storage is where an image lies in a home's local storage.
func (m *machine) storage(home, name string) string {
	return filepath.Join(home, ".singularity/shub", name+".simg")
}

// hangUpCounts has the programs that a test starts heed SIGHUP, also where the tests
// themselves were started by nohup(1): a program that is executed goes on ignoring
// what is ignored, and not what is caught.
func hangUpCounts(t *testing.T) {
	t.Helper()
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(caught) })
}

// TestSignalWhileStarting: a mount that is told to stop before it is ready does not
// stay.
func TestSignalWhileStarting(t *testing.T) {
	hangUpCounts(t)
	m := newMachine(t)
	dir := filepath.Join(m.home, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT, syscall.SIGTERM, syscall.SIGTERM, syscall.SIGTERM} {
		delay := time.Duration(i+1) * 8 * time.Millisecond
		t.Run(fmt.Sprint(sig, " after ", delay), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			cmd := m.command(ctx, program, "mount", "--client=local", dir)
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(delay)
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if ctx.Err() != nil {
				t.Error("it went on")
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
				t.Errorf("it left a mount: %v, %v", entries, err)
			}
		})
	}
}

// TestGoesOnAfterSignal: a mount that was too busy to be taken down is as good as
// before, also where a token has to be fetched; the end of its terminal, and of who
// reads its log, leaves no dead mount.
func TestGoesOnAfterSignal(t *testing.T) {
	hangUpCounts(t)
	s := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second})
	t.Cleanup(s.Close)
	a := dropboxAt(s)
	a.put(t, "pusheen/a:1", smallImage(t, 1))
	d := newMachine(t, "SREGISTRY_DROPBOX_BASE="+s.URL, "SREGISTRY_DROPBOX_APP_KEY="+s.AppKey(), "SREGISTRY_DROPBOX_REFRESH_TOKEN="+s.IssueRefreshToken()).mount("--client=dropbox")
	in, err := os.Open(filepath.Join(d.dir, "dropbox"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.eventually("the sentence", func() error {
		if !strings.Contains(d.log.String(), "the mount is busy") {
			return errors.New("not said")
		}
		return nil
	})
	s.ExpireTokens()
	d.run("cat dropbox/pusheen/a:1.simg >/dev/null && (ls dropbox/pusheen/unknown:1.simg 2>&1 || true) | grep -q 'No such file'")
	in.Close()
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if !d.died(30 * time.Second) {
		t.Error("the end of the terminal was not heeded")
	}
	if entries, err := os.ReadDir(d.dir); err != nil || len(entries) > 0 {
		t.Errorf("after the end of the terminal: %v, %v", entries, err)
	}

	m := newMachine(t)
	x := m.mount("--client=local")
	x.run("mkdir %s/quiet && (%s mount --client=local --cache-dir=%[1]s/c --log-level=debug %[1]s/quiet 2>&1 & echo $! >%[1]s/pid) | head -n 1", m.home, program)
	x.run("cd %s/quiet && for i in 1 2 3; do mkdir -p local/c$i && ls local/c$i && ! cat local/c$i/none:1.simg 2>/dev/null; done", m.home)
	x.run("%s unmount --cache-dir=%s/c %[2]s/quiet && tail --pid=$(cat %[2]s/pid) -f /dev/null", program, m.home)
}

// TestMountPoints: mount and unmount know a mount point by any of its names, and
// take down nothing else.
func TestMountPoints(t *testing.T) {
	needRoot(t)
	m := newMachine(t)
	real := filepath.Join(m.home, "real")
	if err := errors.Join(os.MkdirAll(filepath.Join(real, "mnt"), 0o755), os.Symlink(real, filepath.Join(m.home, "link"))); err != nil {
		t.Fatal(err)
	}
	in := newMachine(t).mount("--client=local") // a place to run commands in
	sh := func(line string) string { return fmt.Sprintf("export HOME=%s; cd %[1]s && %s", m.home, line) }
	in.run("%s", sh(program+" mount --daemon --client=local link/mnt 2>/dev/null && ls real/mnt | grep -q local"))
	in.fails("already a mount of sregfs", "%s", sh(program+" mount --daemon link/mnt"))
	in.run("%s", sh("kill -9 $("+program+" status --json | sed -n 's/.*\"pid\": \\([0-9]*\\).*/\\1/p') && sleep 1; "+program+" mount --daemon --client=local link/mnt 2>/dev/null && ls real/mnt | grep -q local"))
	in.run("%s", sh("mount -t tmpfs over real/mnt"))
	in.fails("a file system of type tmpfs is mounted over the tree", "%s", sh(program+" unmount link/mnt"))
	in.run("%s", sh("umount real/mnt && cd link && "+program+" unmount mnt && ! ls mnt | grep ."))
	in.fails("would be hidden by the mount", "%s", sh(program+" mount --cache-dir=link/mnt/c real/mnt"))
	// The folder that it was started in can be unmounted.
	in.run("%s", sh("mkdir t && mount -t tmpfs t t && cd t && mkdir cache && SINGULARITY_CACHEDIR=../c2 "+program+" mount --daemon --client=local ../real/mnt 2>/dev/null && cd .. && umount t && SINGULARITY_CACHEDIR=c2 "+program+" unmount real/mnt"))
}

// TestStoppedDaemon: commands say of a daemon that does not answer who it is.
func TestStoppedDaemon(t *testing.T) {
	d := newMachine(t).mount("--client=local")
	if err := d.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer d.cmd.Process.Signal(syscall.SIGCONT)
	cmd := d.command(t.Context(), program, "status")
	out, err := cmd.CombinedOutput()
	if want := fmt.Sprintf("process %d, does not answer", d.cmd.Process.Pid); err == nil || !strings.Contains(string(out), want) {
		t.Errorf("status: %v: %s, want %q", err, out, want)
	}
}

// TestForgottenRecord: a record that was forgotten comes back with the next look at
// its image, as it came at first.
func TestForgottenRecord(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		a.put(t, "pusheen/a:1", smallImage(t, 1))
		d := newMachine(t, a.env...).mount("--client=" + a.client)
		file := a.client + "/pusheen/a:1.simg"
		looked := func(look string) { d.soon(look+" && %[2]s images -q | grep -q pusheen/a:1", file, program) }
		looked("stat %[1]s")
		d.run(`test "$(getfattr --only-values -n user.sregistry.created_at %s)" = "$(python3 -c 'import json, sys; print(json.load(sys.stdin)["created_at"])' <%s/pusheen/a:1.json)"`,
			file, a.client)
		for _, look := range []string{"stat %[1]s", "getfattr -d %[1]s", "cat %[1]s >/dev/null"} {
			d.run("%s rm %s && ! %[1]s images -q | grep pusheen/a:1", program, file)
			looked(look)
		}
	})
}
