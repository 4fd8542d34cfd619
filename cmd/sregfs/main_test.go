package main

import (
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/fs/control"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sregfs": main})
}

// TestScripts tries the commands as users type them. Each script has a home of
// its own and no client but the local one.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			home := filepath.Join(e.WorkDir, "home")
			e.Setenv("HOME", home)
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(home, ".config"))
			return errors.Join(os.MkdirAll(home, 0o755))
		},
	})
}

func TestCacheLimit(t *testing.T) {
	for in, want := range map[string]int64{
		"1048576": 1 << 20, "10K": 10 << 10, "1.5M": 3 << 19, "50G": 50 << 30, "50GiB": 50 << 30, "2T": 2 << 40, "7gb": 7 << 30,
	} {
		if got, err := cacheLimit(in, "/"); err != nil || got != want {
			t.Errorf("cacheLimit(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "-1G", "0", "120%", "0%", "G", "20"} {
		if got, err := cacheLimit(in, "/"); err == nil {
			t.Errorf("cacheLimit(%q) = %d, want an error", in, got)
		}
	}
	all, err := cacheLimit("100%", "/")
	tenth, err2 := cacheLimit("10%", "/no/such/folder")
	if err != nil || err2 != nil || tenth < all/10-1 || tenth > all/10+1 {
		t.Errorf("10%% is %d of %d (%v, %v)", tenth, all, err, err2)
	}
}

func TestFromMountHelper(t *testing.T) {
	for _, c := range []struct{ args, want []string }{
		{[]string{"/sbin/mount.fuse.sregfs", "none", "/mnt", "-s", "-o", "rw,wat=1"}, []string{"mount", "--daemon", "/mnt"}},
		{[]string{"/sbin/mount.fuse.sregfs", "none", "/mnt", "-t", "fuse.sregfs", "-v", "-o", "rw,user,noexec,nofail,x-systemd.automount"},
			[]string{"mount", "--daemon", "/mnt", "--option=noexec"}},
		{[]string{"/sbin/mount.fuse.sregfs", "none", "/mnt", "-o", "noatime,noexec,nodev,suid,nodiratime,exec,relatime"},
			[]string{"mount", "--daemon", "/mnt", "--option=noatime"}},
		{[]string{"/sbin/mount.fuse.sregfs", "none", "/mnt", "-fv", "-o", "rw"}, []string{}},
		{[]string{"sregfs", "sregfs", "/mnt", "-o", "rw,nosuid,allow_other,client=dropbox,cache_size=5G"},
			[]string{"mount", "--daemon", "/mnt", "--allow-other", "--client=dropbox", "--cache-size=5G"}},
		{[]string{"/sbin/mount.fuse.sregfs", "none", "/mnt"}, []string{"mount", "--daemon", "/mnt"}},
		{[]string{"/sbin/mount.fuse.sregfs", "none", "/mnt", "-o", "ro,_netdev,registry=lab=http://r:5000"},
			[]string{"mount", "--daemon", "/mnt", "--read-only", "--registry=lab=http://r:5000"}},
		{[]string{"sregfs", "mount", "/mnt", "-o", "x"}, nil},
		{[]string{"sregfs", "images", "red"}, nil},
		{[]string{"sregfs"}, nil},
	} {
		got, ok, err := fromMountHelper(c.args)
		if ok != (c.want != nil) || !slices.Equal(got, c.want) || err != nil {
			t.Errorf("fromMountHelper(%q) = %q, %v, %v; want %q", c.args, got, ok, err, c.want)
		}
	}
	for _, option := range []string{"cachesize=5G", "read_only", "cache_dir"} {
		if got, ok, err := fromMountHelper([]string{"mount.fuse.sregfs", "none", "/mnt", "-o", "rw," + option}); err == nil || !ok {
			t.Errorf("option %q gives %q, %v; want an error", option, got, ok)
		}
	}
}

func TestUnescapeMount(t *testing.T) {
	if got := unescapeMount(`/mnt/a\040b\011c\134d`); got != "/mnt/a b\tc\\d" {
		t.Errorf("got %q", got)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 5 << 30: "5.0 GiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}

// TestPlain: no name from a remote moves the cursor or makes a line of its own.
func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "pusheen/asaurus:red": "pusheen/asaurus:red", "ü/日本 🐱\u200d": "ü/日本 🐱\u200d", "\ufffd": "\ufffd",
		"a\x1b[2Jb\nc\td\x7f": `a\x1b[2Jb\x0ac\x09d\x7f`, "a\u009bb": `a\u009bb`, "a\x9bb\xff": `a\x9bb\xff`,
	} {
		if got := plain(in); got != want {
			t.Errorf("plain(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestPlainStatus: what status tells of remotes is plain.
func TestPlainStatus(t *testing.T) {
	const bad = "a\x1b[2J\nfailed\tb"
	var out strings.Builder
	(&statusCmd{}).print(&environment{stdout: &out, settings: settings{CacheDir: bad}}, control.Status{
		Clients:  []control.ClientStatus{{Name: "local", Error: bad}},
		Held:     []catalog.Held{{Client: "local", Image: bad, File: bad, Error: bad}},
		Failures: []catalog.Failure{{What: bad}},
	})
	if n := strings.Count(out.String(), plain(bad)); n != 6 || strings.ContainsAny(out.String(), "\x1b\t") {
		t.Errorf("status prints %d of 6 values plainly:\n%q", n, out.String())
	}
}

func TestSetHome(t *testing.T) {
	t.Setenv("HOME", "/elsewhere")
	setHome()
	if got := os.Getenv("HOME"); got != "/elsewhere" {
		t.Errorf("HOME was set to /elsewhere and is now %q", got)
	}
	u, err := user.Current()
	if err != nil {
		t.Skipf("this user has no entry in /etc/passwd: %v", err)
	}
	t.Setenv("HOME", "")
	setHome()
	if got := os.Getenv("HOME"); got == "" || got == "/elsewhere" {
		t.Errorf("without HOME, %s gets %q", u.Username, got)
	}
}

// FuzzInTree: a path below a mount names the image that the tree shows there, in
// the spelling that the tree gives it.
func FuzzInTree(f *testing.F) {
	f.Add("dropbox/pusheen/asaurus:red.simg")
	f.Add("dropbox/pusheen/%3Aa:red@sha256:00.json")
	f.Add("dropbox/a:1.simg")
	f.Add("gdrive/%/%2E%2E/..%2Fx:1.sif")
	f.Add("a:1.simg")
	f.Add("//a.img")
	f.Fuzz(func(t *testing.T, rel string) {
		client, ref, ok := inTree(rel)
		if !ok || strings.Contains(rel, "%~") || strings.ContainsAny(ref.Tag, ":@") || strings.ContainsAny(ref.Version, ":@") || strings.Contains(ref.Name, "@") {
			return // cut names, and those that are ambiguous by nature, go by the index
		}
		shown := client + "/" + ref.File()
		if ref.Collection != "" {
			shown = client + "/" + ref.Dir() + "/" + ref.File()
		}
		if strings.Contains(shown, "%~") {
			return
		}
		if c, again, ok := inTree(shown); !ok || c != client || again != ref {
			t.Errorf("%q is %s and %+v, shown as %q, which is %s and %+v", rel, client, ref, shown, c, again)
		}
	})
}

// FuzzMounts: no line of the mount table, and no escape in it, upsets who looks for
// our mounts.
func FuzzMounts(f *testing.F) {
	f.Add("36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - fuse.sregfs sregfs rw,user_id=1000")
	f.Add("1 2 :x / \\777 - fuse.sregfs")
	f.Add(" - ")
	f.Add("\\")
	f.Fuzz(func(t *testing.T, line string) {
		m, ok := parseMount(line)
		if ok && (m.fsType == "" || m.minor < -1) {
			t.Errorf("%q is %+v", line, m)
		}
	})
}

// FuzzCacheLimit: a size is positive or refused.
func FuzzCacheLimit(f *testing.F) {
	for _, s := range []string{"50G", "1.5MiB", "20%", "1e400T", "NaN", "-0", "9e9T", "infinity%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := cacheLimit(s, "/"); err == nil && n <= 0 {
			t.Errorf("cacheLimit(%q) = %d", s, n)
		}
	})
}
