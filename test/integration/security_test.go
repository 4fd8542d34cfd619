//go:build integration

package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
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
		said.WriteString(d.run("curl -sf http://127.0.0.1:19105/metrics | grep -B99 -A99 sregfs_cache_used_bytes"))
	}
	do("timeout -s INT 2 cat dockerhub/library/busybox:latest.simg")
	visit()
	// Settings that hold a secret and are of no use.
	spoilt := t.TempDir()
	for name, text := range map[string]string{"config.json": `{"auths": {"x": {"auth": "` + password + `"}}`,
		"key.json": `{"type": "service_account", "private_key": "` + key.PrivateKey[200:240] + `"}`, "secrets": `{"dropbox": "` + token + `"`} {
		if err := os.WriteFile(filepath.Join(spoilt, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, setting := range []string{"DOCKER_CONFIG=%[1]s", "SREGISTRY_DOCKERHUB_SECRETS=%[1]s/config.json", "SREGISTRY_GOOGLE_DRIVE_CREDENTIALS=%[1]s/key.json",
		"SREGISTRY_CLIENT_SECRETS=%[1]s/secrets", "SREGISTRY_DROPBOX_BASE=https://x:%[2]s@x", "SREGISTRY_GOOGLE_DRIVE_BASE=https://x:%[2]s@x",
		"SREGISTRY_DOCKERHUB_BASE=https://x:%[2]s@x", "SREGISTRY_DOCKERHUB_BASE=ftp://x:%[2]s@", "SREGISTRY_DOCKERHUB_PASSWORD=Bearer\\ %[2]s"} {
		for _, command := range []string{"clients", "doctor", "status"} {
			do("env "+setting+" %[3]s %[4]s", spoilt, password, program, command)
		}
	}
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

// quoting is the answer of a service that repeats what it was sent, its secrets
// among it, in each place where an answer can have a text.
func quoting(r *http.Request, status int, oauth bool) *trouble {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 4096)) // what there is of it will do
	q := r.Header.Get("Authorization") + " " + string(body)
	detail := map[string]any{".tag": q, "reason": q, "code": q, "message": q, "location": q, "domain": q, "detail": q}
	answer := map[string]any{"error_summary": q, "error_description": q, "user_message": map[string]any{"text": q},
		"error": q, "errors": []any{detail}, "access_token": 5}
	if !oauth {
		e := maps.Clone(detail)
		maps.Copy(e, map[string]any{"code": status, "status": q, "errors": []any{detail}, "path": detail,
			"required_scope": q, "retry_after": 0})
		answer["error"] = e
	}
	text, err := json.Marshal(answer)
	if err != nil {
		panic(err)
	}
	header := http.Header{"Content-Type": {"application/json"}, "Location": {"http://127.0.0.1:9/?token=" + url.QueryEscape(q)}}
	line := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' || c == '"' {
			return '_'
		}
		return c
	}, q)
	for _, name := range []string{"Content-Range", "Docker-Content-Digest", "Etag", "X-Request-Id", "Warning", "Range"} {
		header.Set(name, line)
	}
	header.Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=\"http://127.0.0.1:9/%s\",service=\"%[1]s\",error=\"%[1]s\"", line))
	return &trouble{status: status, header: header, body: string(text)}
}

// TestQuotedSecrets: a service that quotes the credentials in its answers, of
// whatever kind, does not have them printed, logged or told by the metrics.
func TestQuotedSecrets(t *testing.T) {
	const token = "planted-access-token-4711"
	s := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second, Token: token})
	t.Cleanup(s.Close)
	g := gdrivetest.NewServer(gdrivetest.Options{})
	t.Cleanup(func() { _ = g.Close() })
	login := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second, TokenTTL: 2 * time.Second})
	t.Cleanup(login.Close)
	refresh := login.IssueRefreshToken()
	loggedIn := dropboxAt(login)
	loggedIn.env = []string{"SREGISTRY_DROPBOX_BASE=" + login.URL, "SREGISTRY_DROPBOX_APP_KEY=" + login.AppKey(), "SREGISTRY_DROPBOX_REFRESH_TOKEN=" + refresh}
	r := startRegistry(t, registryOptions{auth: true})
	for name, c := range map[string]struct {
		account
		secrets []string
	}{
		"dropbox":          {dropboxAt(s), []string{token}},
		"dropbox by login": {loggedIn, []string{refresh}},
		"gdrive":           {gdriveAt(t, g), []string{g.AccessToken(), "assertion", "eyJ"}},
		"registry":         {r.account(t), []string{r.pass, url.QueryEscape(r.pass), base64.StdEncoding.EncodeToString([]byte(r.user + ":" + r.pass))}},
	} {
		t.Run(name, func(t *testing.T) {
			s := service{account: c.account}
			image := smallImage(t, 1)
			for _, name := range []string{"pusheen/a:1", "pusheen/a:2"} {
				s.put(t, name, image)
			}
			p := s.through(t, nil)
			d := newMachine(t, s.env...).mount("--client="+s.client, "--metrics=127.0.0.1:19106")
			d.run("cmp %s %s/pusheen/a:1.simg", image, s.client)
			quoted := atomic.Int64{}
			statuses := []int{206, 400, 401, 403, 409}
			if long() {
				statuses = []int{200, 206, 307, 400, 401, 403, 404, 409, 429, 500, 503}
			}
			for _, oauth := range []bool{true, false} {
				for _, status := range statuses {
					if oauth && status != http.StatusBadRequest && !long() {
						continue // OAuth has its errors there (RFC 6749 section 5.2)
					}
					p.troubled(func(r *http.Request) *trouble {
						if r.Header.Get("Authorization") != "" || strings.HasSuffix(r.URL.Path, "token") {
							quoted.Add(1)
						}
						return quoting(r, status, oauth)
					})
					var said strings.Builder
					for _, line := range []string{
						"ls -lR %[1]s", "cat %[1]s/pusheen/a:2.simg >/dev/null", "cat %[1]s/pusheen/new:2.simg", "cp %[2]s %[1]s/pusheen/a:3.simg",
						"mkdir %[1]s/made", "getfattr -n user.sregistry.json %[1]s/pusheen/a:2.simg", "mv %[1]s/pusheen/a:2.simg %[1]s/pusheen/a:4.simg",
						"%[3]s share %[1]s/pusheen/a:2.simg", "%[3]s get %[1]s://pusheen/x:1", "%[3]s clients", "%[3]s doctor", "%[3]s status", "%[3]s status --json",
						"curl -sf http://127.0.0.1:19106/metrics",
					} {
						// Most answers are final; of those that are not, a little will do.
						out, errOut, _ := d.try("timeout -s INT 2 "+line, s.client, image, program)
						said.WriteString("$ " + line + "\n" + out + errOut)
					}
					for _, secret := range append(c.secrets, "Bearer ", "Basic ", "earer%20", "grant_type") {
						for where, text := range map[string]string{"the log": d.log.String(), "what commands print": said.String()} {
							if at := strings.Index(text, secret); at >= 0 {
								t.Errorf("HTTP %d, OAuth's form %v: %q is in %s: …%s…", status, oauth, secret, where,
									text[max(0, at-300):min(len(text), at+100)])
							}
						}
					}
				}
			}
			if quoted.Load() < 20 {
				t.Errorf("%d requests had something to quote", quoted.Load())
			}
			p.troubled(nil)
			d.soon("cmp %s %s/pusheen/a:1.simg", image, s.client)
		})
	}
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

// TestNoCoreFile: a crash leaves no core file, in which the tokens would be; the
// kernel asks nobody whether it should pipe one to a collector (core(5)) where
// it may not write one.
func TestNoCoreFile(t *testing.T) {
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: old.Max, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_CORE, &old) })
	// crash reports whether a core was written of a program that dies.
	crash := func(cmd *exec.Cmd, wait func() error) bool {
		t.Helper()
		if err := cmd.Process.Signal(syscall.SIGABRT); err != nil {
			t.Fatal(err)
		}
		_ = wait()
		end, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !ok || end.Signal() != syscall.SIGABRT {
			t.Fatalf("it ended with %v, not of the signal", cmd.ProcessState)
		}
		return end.CoreDump()
	}
	a := dropboxAccount(t)
	m := newMachine(t, append(a.env, "GOTRACEBACK=crash")...)
	other := m.command(t.Context(), "sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if !crash(other, other.Wait) {
		t.Log("this system writes no core files anyway")
	}
	d := m.mount("--client=dropbox")
	d.run("ls dropbox")
	if crash(d.cmd, func() error { return <-d.end }) {
		t.Error("a core was written of the daemon")
	}
	d.end <- nil // cleanup takes no offence
	if token := strings.TrimPrefix(a.env[0], "SREGISTRY_DROPBOX_TOKEN="); strings.Contains(d.log.String(), token) {
		t.Error("the token is in what the crash left in the log")
	}
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
