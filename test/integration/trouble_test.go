//go:build integration

package integration

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

// TestOffline: with the network gone, at mount time too, what was listed stays
// listed and what was fetched stays readable; nothing hangs.
func TestOffline(t *testing.T) {
	s := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second})
	a := dropboxAt(s)
	red, green := smallImage(t, 1), smallImage(t, 2)
	a.put(t, "pusheen/a:red", red)
	a.put(t, "pusheen/a:green", green)
	m := newMachine(t, a.env...)
	d := m.mount("--client=dropbox")
	d.run("cmp %s dropbox/pusheen/a:red.simg; stat dropbox/pusheen/a:green.simg; df dropbox", red)
	s.Close()
	check := func(d *mounted) {
		t.Helper()
		d.want("a:green.simg\na:red.simg", "ls dropbox/pusheen")
		d.run("ls -l dropbox/pusheen; df dropbox; stat dropbox/pusheen/a:green.simg")
		d.run("cmp %s dropbox/pusheen/a:red.simg", red)
		d.run("cat dropbox/pusheen/a:red.json")
		d.want("dropbox-pusheen-a:red.simg", "ls .search/red")
		// What is not here cannot be read; whoever waits for it can be stopped.
		start := time.Now()
		if out, _, err := d.try("timeout -s INT 3 cmp %s dropbox/pusheen/a:green.simg", green); err == nil {
			t.Errorf("read what nobody has: %s", out)
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("a reader could not be stopped for %v", took)
		}
	}
	check(d)
	d.unmount()
	check(m.mount("--client=dropbox"))
}

// TestNeverListed: a remote that cannot be reached and was never listed is
// unknown, not empty.
func TestNeverListed(t *testing.T) {
	s := dropboxtest.New(dropboxtest.Options{})
	a := dropboxAt(s)
	s.Close()
	d := newMachine(t, a.env...).mount("--client=dropbox")
	if out, _, err := d.try("timeout -s INT 5 ls dropbox"); err == nil {
		t.Errorf("an unreachable account was listed as %q", out)
	}
	if _, errOut, err := d.try("timeout -s INT 20 stat dropbox/pusheen/a:red.simg"); err == nil || strings.Contains(errOut, "No such file") {
		t.Errorf("an unknown image was %v: %s", err, errOut)
	}
	d.want("dropbox", "ls")
	d.run("df . dropbox")
}

// TestFirstListing: an image can be used by its name while the account is being
// listed for the first time, however long that takes.
func TestFirstListing(t *testing.T) {
	s := dropboxService(t)
	image, other := smallImage(t, 1), smallImage(t, 2)
	s.put(t, "Pusheen/nested/a:1", image)
	p := s.through(t, nil)
	p.troubled(func(r *http.Request) *trouble {
		if strings.HasSuffix(r.URL.Path, "/list_folder") {
			return &trouble{silent: true}
		}
		return nil
	})
	d := newMachine(t, s.env...).mount("--client=dropbox")
	d.run("cmp %s dropbox/pusheen/nested/a:1.simg; cp %s dropbox/Pusheen/new:1.simg; mkdir dropbox/made", image, other)
	s.mustHold(t, "Pusheen/new:1", other)
	d.fails("No such file", "stat dropbox/nobody")
	d.fails("No such file", "stat dropbox/Pusheen/nested/nobody:1.simg")
	p.troubled(nil)
	p.CloseClientConnections()
	d.eventually("the listing", func() error {
		if out, _, err := d.try("ls dropbox dropbox/Pusheen"); err != nil || out != "dropbox:\nPusheen\nmade\n\ndropbox/Pusheen:\nnested\nnew:1.simg\n" {
			return fmt.Errorf("%q, %v", out, err)
		}
		return nil
	})
}

// TestHostileNames: whatever a remote calls its images, they are listed, they
// can be read, and they lead nowhere else.
func TestHostileNames(t *testing.T) {
	s := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second})
	defer s.Close()
	image := smallImage(t, 1)
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{
		"/pusheen/with space:1.simg", "/pusheen/new\nline:1.simg", "/pusheen/tab\t:1.simg", "/pusheen/bell\a:1.simg",
		"/pusheen/:x.simg", "/pusheen/.hidden:1.simg", "/pusheen/a%2Fb:1.simg", "/pusheen/100%:1.simg", "/pusheen/ünï:cødé.simg",
		"/pusheen/" + strings.Repeat("n", 240) + ":1.simg", "/pusheen/quote'\"$(id)`:1.simg", "/pusheen/-rf:1.simg",
		"/folder.simg/a:1.simg", "/.search/a:1.simg", "/.by-id/a:1.simg", "/root:1.simg", "/a/b/c/d/e:1.simg", "/pusheen/two:colons:1.simg",
	}
	for i, name := range names {
		s.Put(name, append(data[:len(data):len(data)], byte(i)))
	}
	s.Put("/pusheen/readme.txt", []byte("no image"))
	a := dropboxAt(s)
	d := newMachine(t, a.env...).mount("--client=dropbox")
	var found []string
	err = filepath.WalkDir(filepath.Join(d.dir, "dropbox"), func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Type().IsRegular() {
			got, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if len(got) != len(data)+1 {
				return fmt.Errorf("%q has %d bytes", p, len(got))
			}
			found = append(found, names[got[len(got)-1]])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != len(names) {
		t.Errorf("found %d of %d: %q", len(found), len(names), found)
	}
	d.run("test -d dropbox/.search && test -d dropbox/.by-id")
	d.run("rm dropbox/pusheen/new*line:1.simg && ! ls dropbox/pusheen | grep -q line")
	// Dropbox ignores case, and so does the look-up.
	d.run("cmp dropbox/PUSHEEN/With\\ Space:1.simg dropbox/pusheen/with\\ space:1.simg")
}

// TestRefusedToken: credentials that are refused are EACCES, with a sentence.
func TestRefusedToken(t *testing.T) {
	s := dropboxtest.New(dropboxtest.Options{})
	defer s.Close()
	d := newMachine(t, "SREGISTRY_DROPBOX_TOKEN=wrong-secret-token", "SREGISTRY_DROPBOX_BASE="+s.URL).mount("--client=dropbox")
	d.fails("Permission denied", "ls dropbox")
	d.fails("Permission denied", "cat dropbox/pusheen/a:red.simg")
	out := d.run("%s status", program)
	if !strings.Contains(out, "sregfs login dropbox") {
		t.Errorf("status does not say what to do:\n%s", out)
	}
	clients := d.run("%s clients", program)
	if !strings.Contains(clients, "set up, but ") {
		t.Errorf("clients does not say that the token was refused:\n%s", clients)
	}
	for what, text := range map[string]string{"the log": d.log.String(), "status": out, "clients": clients} {
		if strings.Contains(text, "wrong-secret-token") {
			t.Errorf("the token is in %s:\n%s", what, text)
		}
	}
}

// TestCommandElsewhere: a command that is given other credentials than the mount
// beside it leaves the mount's listing alone.
func TestCommandElsewhere(t *testing.T) {
	s := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second})
	defer s.Close()
	a, image := dropboxAt(s), smallImage(t, 1)
	a.put(t, "pusheen/a:red", image)
	d := newMachine(t, a.env...).mount("--client=dropbox")
	d.run("ls dropbox/pusheen && cmp %s dropbox/pusheen/a:red.simg", image)
	for _, command := range []string{"share", "get", "rmi"} {
		_, errOut, err := d.try("SREGISTRY_DROPBOX_TOKEN=another %s %s dropbox://pusheen/a:blue", program, command)
		if err == nil || strings.Contains(errOut, "listed anew") {
			t.Errorf("%s: %v, %q", command, err, errOut)
		}
		if out := d.run("ls dropbox/pusheen && cmp %s dropbox/pusheen/a:red.simg && %s status", image, program); !strings.Contains(out, "a:red.simg") || !strings.Contains(out, "1 image in 1 collection") {
			t.Errorf("after %s:\n%s", command, out)
		}
	}
	if out := d.run("%s share dropbox://pusheen/a:red", program); !strings.Contains(out, "http") {
		t.Errorf("share with the mount's own:\n%s", out)
	}
}

// TestFixedDirectories: what stands in the root and among searches cannot be
// removed, and is there afterwards though somebody is in it.
func TestFixedDirectories(t *testing.T) {
	s := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second})
	defer s.Close()
	a, image := dropboxAt(s), smallImage(t, 1)
	a.put(t, "pusheen/a:red", image)
	d := newMachine(t, a.env...).mount("--client=dropbox", "--client=dockerhub")
	d.run("ls .search/red dropbox/.search/red dropbox/.by-id")
	for _, line := range []string{"rmdir dropbox", "rmdir .search", "rmdir .search/red", "rm .search/red/*", "rm dropbox/.search/red/*",
		"rm dropbox/.by-id/*", "rm docker", "mkdir other", "touch other"} {
		d.fails("Operation not permitted", "exec 3<dropbox; %s", line)
	}
	d.run("cmp %s dropbox/pusheen/a:red.simg && ls .search/red/* docker dropbox", image)
}

// TestFailedPush: an upload that fails is an error of cp, and nothing shows.
func TestFailedPush(t *testing.T) {
	for name, c := range map[string]struct {
		fault *dropboxtest.Fault // nil: the account is full
		want  string
	}{
		"no space":   {nil, "No space left"},
		"forbidden":  {dropboxtest.Unauthorized("invalid_access_token"), "Permission denied"},
		"bad answer": {dropboxtest.Failed(http.StatusBadRequest), "Input/output error"},
	} {
		t.Run(name, func(t *testing.T) {
			s := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second})
			defer s.Close()
			a := dropboxAt(s)
			d := newMachine(t, a.env...).mount("--client=dropbox")
			image := smallImage(t, 1)
			d.run("mkdir dropbox/pusheen")
			if c.fault == nil {
				s.SetSpace(1)
			}
			s.SetHook(func(r *http.Request) *dropboxtest.Fault {
				if route := dropboxtest.Route(r); strings.HasPrefix(route, "files/upload") {
					return c.fault
				}
				return nil
			})
			d.fails(c.want, "cp %s dropbox/pusheen/a:1.simg", image)
			d.fails(c.want, "mv %s dropbox/pusheen/a:1.simg", d.give(image))
			d.run("test -e %s", filepath.Join(d.home, filepath.Base(image)))
			a.mustLack(t, "pusheen/a:1")
			if out := d.run("%s status", program); !strings.Contains(out, "pusheen/a:1") || !strings.Contains(out, "copy the file to its place") {
				t.Errorf("status says nothing of it, or not what to do:\n%s", out)
			}
			s.SetHook(nil)
			s.SetSpace(1 << 30)
			// What status says to do.
			held := d.settled()
			if len(held) == 0 {
				t.Fatal("nothing is held")
			}
			d.run("cp %s dropbox/pusheen/a:1.simg", held[0].File)
			a.mustHold(t, "pusheen/a:1", image)
			for _, h := range held {
				d.run("rm -f %s %s", h.File, strings.TrimSuffix(h.File, "data")+"json")
			}
			if out := d.run("%s status", program); !strings.Contains(out, "nothing waits") {
				t.Errorf("status after that:\n%s", out)
			}
		})
	}
}

// TestDeadMount: a mount that a crash left is replaced, and what was pushed
// and read before is there.
func TestDeadMount(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		m := newMachine(t, a.env...)
		d := m.mount("--client=" + a.client)
		image := smallImage(t, 1)
		d.run("mkdir %s/pusheen && cp %s %s/pusheen/a:1.simg", a.client, image, a.client)
		d.kill()
		for _, command := range []string{"status", "doctor --offline"} {
			out, _ := m.command(t.Context(), program, strings.Fields(command)...).Output()
			if want := d.dir + " is dead: its daemon is gone"; !strings.Contains(string(out), want) || strings.Contains(string(out), "another cache") {
				t.Errorf("%s beside a dead mount:\n%swant %q", command, out, want)
			}
		}
		d = m.mount("--client=" + a.client)
		d.run("cmp %s %s/pusheen/a:1.simg", image, a.client)
		if out := d.run("%s status", program); !strings.Contains(out, "nothing waits") {
			t.Errorf("status after a crash:\n%s", out)
		}
	})
}

// TestMountedElsewhere: unmount says what keeps a daemon that goes on, since it
// keeps the cache from the next mount.
func TestMountedElsewhere(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a mount namespace needs root")
	}
	d := newMachine(t, localAccount(t).env...).mount("--client=local")
	other := exec.Command("unshare", "--mount", "--propagation", "private", "cat")
	in, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		if err := other.Wait(); err != nil {
			t.Error(err)
		}
	}()
	d.eventually("a mount namespace", func() error {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", other.Process.Pid))
		if err == nil && string(name) != "cat\n" {
			err = fmt.Errorf("the process is %s", name)
		}
		return err
	})
	_, errOut, err := d.try("cd / && %s unmount %s", program, d.dir)
	want := fmt.Sprintf("unmounted here, but process %d still serves it to process %d", d.cmd.Process.Pid, other.Process.Pid)
	if err != nil || !strings.Contains(errOut, want) {
		t.Errorf("unmount: %v %q, want %q", err, errOut, want)
	}
}

// TestMountOptions: what is asked of mount(8) holds.
func TestMountOptions(t *testing.T) {
	for _, uid := range []int{0, 1000} {
		if os.Getuid() != 0 && uid != os.Getuid() {
			continue // an ordinary user tries it as himself
		}
		m := newMachine(t, localAccount(t).env...)
		if uid != 0 {
			m.asUser(uid)
		}
		d := m.mount("--client=local", "--option=noexec", "--option=noatime")
		got := strings.Split(strings.TrimSpace(d.run("findmnt -no OPTIONS %s", d.dir)), ",")
		for _, want := range []string{"noexec", "noatime", "nosuid", "nodev"} {
			if !slices.Contains(got, want) {
				t.Errorf("the mount of user %d has %q, without %q", uid, got, want)
			}
		}
	}
}

// TestSecondDaemon: one cache serves one daemon; the second is told so.
func TestSecondDaemon(t *testing.T) {
	a := localAccount(t)
	d := newMachine(t, a.env...).mount("--client=local")
	_, errOut, err := d.try("mkdir -p %s/other && %s mount %s/other", d.home, program, d.home)
	if err == nil || !strings.Contains(errOut, "in use by another process") {
		t.Errorf("a second daemon on one cache: %v %s", err, errOut)
	}
	_, errOut, err = d.try("%s mount %s --cache-dir %s/c2", program, d.dir, d.home)
	if err == nil || !strings.Contains(errOut, "already a mount") {
		t.Errorf("a second mount at one place: %v %s", err, errOut)
	}
}
