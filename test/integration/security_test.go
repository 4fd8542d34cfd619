//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
	"github.com/sregfs/sregfs/backends/gdrive/gdrivetest"
)

// TestNoSecretLeaks plants secrets where users keep them, has everything go
// wrong and right at the most talkative log level, and looks for them wherever
// they do not belong.
func TestNoSecretLeaks(t *testing.T) {
	const token, password = "planted-access-token-4711", "planted-password-4711"
	s := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second, Token: token})
	t.Cleanup(s.Close)
	g := gdrivetest.NewServer(gdrivetest.Options{})
	t.Cleanup(func() { _ = g.Close() })
	drive := gdriveAt(t, g)
	_, credentials, _ := strings.Cut(drive.env[0], "=")
	var key struct {
		PrivateKey string `json:"private_key"`
	}
	data, err := os.ReadFile(credentials)
	if err == nil {
		err = json.Unmarshal(data, &key)
	}
	if err != nil || len(key.PrivateKey) < 400 {
		t.Fatalf("no private key: %v", err)
	}
	secrets := map[string]string{
		"the token": token, "the password": password, "the private key": key.PrivateKey[200:240],
		"Drive's token": g.AccessToken(), "a bearer header": "Bearer ",
	}
	a := dropboxAt(s)
	image, large := smallImage(t, 1), bigImage(t, 2)
	a.put(t, "pusheen/a:1", image)
	drive.put(t, "pusheen/a:1", image)
	env := append(append(a.env, drive.env...), "SREGISTRY_DOCKERHUB_USERNAME=vanessa", "SREGISTRY_DOCKERHUB_PASSWORD="+password,
		"SREGISTRY_DOCKERHUB_BASE=http://127.0.0.1:9", "TMPDIR="+t.TempDir())
	m := newMachine(t, env...)
	d := m.mount("--client=dropbox", "--client=gdrive", "--client=dockerhub", "--metrics=127.0.0.1:19105")
	var said strings.Builder
	do := func(line string, args ...any) {
		out, errOut, _ := d.try(line, args...)
		said.WriteString(out + errOut)
	}
	visit := func() {
		for _, c := range []string{"dropbox", "gdrive"} {
			do("ls -lR %s; cmp %s %[1]s/pusheen/a:1.simg; cat %[1]s/pusheen/*.json; getfattr -d -m - %[1]s/pusheen/*.simg; getfattr -n user.sregistry.json %[1]s/pusheen/a:1.simg", c, image)
			do("cp %s %s/pusheen/a:2.simg; cp %s %[2]s/pusheen/a:3.simg", image, c, large)
		}
		for _, command := range []string{"status", "status --json", "clients", "images", "share dropbox://pusheen/a:1", "get dropbox://pusheen/a:1"} {
			do("%s %s", program, command)
		}
		do("curl -s http://127.0.0.1:19105/metrics")
	}
	do("timeout -s INT 2 cat dockerhub/library/busybox:latest.simg")
	visit()
	for _, f := range []*dropboxtest.Fault{
		dropboxtest.Unauthorized("invalid_access_token"), dropboxtest.Failed(http.StatusBadRequest),
		// Services do quote what they were sent.
		{Status: 400, Body: `Invalid authorization value in HTTP header "Authorization": "Bearer ` + token + `"`},
	} {
		s.SetHook(func(*http.Request) *dropboxtest.Fault { return f })
		visit()
	}
	s.SetHook(nil)
	// Something is in the middle of everything when it is looked at.
	s.SetLink(0, 1<<20)
	copying := make(chan struct{})
	go func() {
		defer close(copying)
		_, _, _ = d.try("cp %s dropbox/pusheen/a:4.simg", large)
	}()
	d.eventually("an upload", func() error {
		if len(d.status().Held) == 0 {
			return fmt.Errorf("nothing is held")
		}
		return nil
	})
	for _, file := range []string{"cmdline", "comm"} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", d.cmd.Process.Pid, file))
		if err != nil {
			t.Error(err)
		}
		said.Write(data)
	}
	d.kill()
	<-copying
	if strings.Contains(said.String(), "bytes") && !strings.Contains(said.String(), "sregfs_cache_used_bytes") {
		t.Error("the metrics were not answered")
	}
	look := func(where string, data []byte) {
		for what, secret := range secrets {
			if bytes.Contains(data, []byte(secret)) {
				t.Errorf("%s is in %s", what, where)
			}
		}
	}
	look("the log", []byte(d.log.String()))
	look("what commands print", []byte(said.String()))
	for _, dir := range []string{m.home, strings.TrimPrefix(env[len(env)-1], "TMPDIR=")} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if path == d.dir {
				return filepath.SkipDir
			}
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			look(path, data)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	_ = syscall.Unmount(d.dir, syscall.MNT_DETACH)
}

// TestClosedMemory: none of its user's other programs can look into the daemon,
// and no core file is written of it: the kernel does the one where it does the
// other (prctl(2), PR_SET_DUMPABLE).
func TestClosedMemory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("becoming an ordinary user needs root")
	}
	a := dropboxAccount(t)
	d := newMachine(t, a.env...).asUser(65534).mount("--client=dropbox")
	d.run("sleep 60 & pid=$!; head -c 1 /proc/$pid/environ >/dev/null; kill $pid") // what there is to see elsewhere
	for _, file := range []string{"environ", "mem", "maps", "auxv"} {
		d.fails("Permission denied", "head -c 1 /proc/%d/%s", d.cmd.Process.Pid, file)
	}
	d.run("ls dropbox; %s status", program)
}

// TestPrivateFiles: nobody else can read what is kept.
func TestPrivateFiles(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	a := dropboxAccount(t)
	image := bigImage(t, 1)
	a.put(t, "pusheen/a:1", image)
	m := newMachine(t, a.env...)
	d := m.mount("--client=dropbox")
	d.run("cmp %s dropbox/pusheen/a:1.simg; cat dropbox/pusheen/a:1.json; cp %s dropbox/pusheen/a:2.simg", image, smallImage(t, 2))
	// One that stays: a temporary name that nobody renames.
	d.run("cp %s dropbox/pusheen/.a:3.simg.x1y2z3", image)
	seen := 0
	err := filepath.WalkDir(m.stateDir(), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		seen++
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil || seen < 10 {
		t.Errorf("%d files, %v", seen, err)
	}
	d.run("rm dropbox/pusheen/.a:3.simg.x1y2z3")
}

// TestPlantedLinks: symbolic links in the cache and the staging area are not
// followed, neither to read nor to write.
func TestPlantedLinks(t *testing.T) {
	a := dropboxAccount(t)
	image := bigImage(t, 1)
	a.put(t, "pusheen/a:1", image)
	m := newMachine(t, a.env...)
	d := m.mount("--client=dropbox")
	d.run("cmp %s dropbox/pusheen/a:1.simg", image)
	d.unmount()
	victim := filepath.Join(t.TempDir(), "victim")
	content := bytes.Repeat([]byte("do not touch\n"), 2_000_000)
	if err := os.WriteFile(victim, content, 0o644); err != nil {
		t.Fatal(err)
	}
	planted := 0
	for _, pattern := range []string{"objects/objects/*", "staging/version"} {
		files, err := filepath.Glob(filepath.Join(m.stateDir(), pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if info, err := os.Lstat(f); err != nil || !info.Mode().IsRegular() || !strings.HasSuffix(f, ".data") && !strings.HasSuffix(f, ".map") {
				continue
			}
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(victim, f); err != nil {
				t.Fatal(err)
			}
			planted++
		}
	}
	for _, name := range []string{"AAAAAAAAAAAAAAAAAAAAAAAAAA.data", "AAAAAAAAAAAAAAAAAAAAAAAAAA.json", "tmp.x"} {
		if err := os.Symlink(victim, filepath.Join(m.stateDir(), "staging", name)); err != nil {
			t.Fatal(err)
		}
		planted++
	}
	if planted < 5 {
		t.Fatalf("planted %d links", planted)
	}
	d = m.mount("--client=dropbox")
	d.run("cmp %s dropbox/pusheen/a:1.simg && cp %[1]s dropbox/pusheen/a:2.simg && cmp %[1]s dropbox/pusheen/a:2.simg", image)
	d.run("rm dropbox/pusheen/a:2.simg; %s rmi dropbox://pusheen/a:1 || true", program)
	if got, err := os.ReadFile(victim); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the file that the links lead to was changed: %v", err)
	}
	if info, err := os.Stat(victim); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("its mode was changed: %v %v", info, err)
	}
}

// TestOtherUsers: without --allow-other nobody else gets in; with it they may
// read what the modes say, and change nothing.
func TestOtherUsers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("acting as another user needs root")
	}
	a := dropboxAccount(t)
	image := smallImage(t, 1)
	a.put(t, "pusheen/a:1", image)
	const as = "setpriv --reuid=12345 --regid=12345 --clear-groups"
	m := newMachine(t, a.env...)
	for dir := m.home; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := m.mount("--client=dropbox")
	d.fails("Permission denied", "cd / && %s ls %s", as, d.dir)
	d.unmount()
	d = m.mount("--client=dropbox", "--allow-other")
	d.run("cd / && %s md5sum %s/dropbox/pusheen/a:1.simg", as, d.dir)
	d.fails("Permission denied", "cd / && %s rm -f %s/dropbox/pusheen/a:1.simg", as, d.dir)
	d.fails("Permission denied", "cd / && %s touch %s/dropbox/pusheen/b:1.simg", as, d.dir)
	d.fails("Permission denied", "cd / && echo x | %s tee -a %s/dropbox/pusheen/a:1.simg", as, d.dir)
	d.fails("Permission denied", "cd / && %s mkdir %s/dropbox/mine", as, d.dir)
	d.fails("Permission denied", "cd / && %s ls %s", as, m.stateDir())
	a.mustHold(t, "pusheen/a:1", image)
}
