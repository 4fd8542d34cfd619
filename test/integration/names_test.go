//go:build integration

package integration

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/backends/local"
)

// TestNamesRoundTrip makes, lists, finds, renames and removes what has an odd
// name; or is told that the name will not do.
func TestNamesRoundTrip(t *testing.T) {
	folder, err := local.New(t.TempDir(), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for client, store := range map[string]backends.Store{"memory": backendtest.Memory(), "local": folder} {
		t.Run(client, func(t *testing.T) {
			mnt, cat := mountStores(t, map[string]backends.Store{client: store})
			top := filepath.Join(mnt, client)
			for _, name := range []string{
				"plain", "with space", "100%", "100%25", "new\nline", "x%2Esimg", "ünï", "a:b", "@", "-rf", "%", "%2E.", "%2E", "%2E%2E",
				"a%2Fb", "a%2fb", "%00", "%0A", "x.simg", "x.json", ".hidden", "%2Ehidden", "name~",
			} {
				dir := filepath.Join(top, name)
				err := os.Mkdir(dir, 0o755)
				if errors.Is(err, syscall.EINVAL) {
					continue
				}
				if err != nil {
					t.Errorf("mkdir %q: %v", name, err)
					continue
				}
				if list := names(t, top); !slices.Equal(list, []string{name}) {
					t.Errorf("after mkdir %q: %q", name, list)
				}
				if err := os.Mkdir(dir, 0o755); !errors.Is(err, syscall.EEXIST) {
					t.Errorf("mkdir %q again: %v", name, err)
				}
				if _, err := os.Stat(dir); err != nil {
					t.Errorf("stat %q: %v", name, err)
				}
				if err := os.Remove(dir); err != nil {
					t.Errorf("rmdir %q: %v", name, err)
				}
				if list := names(t, top); len(list) > 0 {
					t.Fatalf("after rmdir %q: %q", name, list)
				}
			}
			dir := filepath.Join(top, "c")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if m, ok := store.(*backendtest.MemoryStore); ok {
				// Longer than the tree can show.
				m.Put(backends.Ref{Collection: "c", Name: strings.Repeat("n", 250), Tag: "1"}, []byte("long"), nil)
				if err := cat.Client(client).Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
				for _, name := range names(t, dir) {
					if data, err := os.ReadFile(filepath.Join(dir, name)); string(data) != "long" {
						t.Errorf("%q has %q, %v", name, data, err)
					}
					if err := os.Remove(filepath.Join(dir, name)); err != nil {
						t.Error(err)
					}
				}
				if list := names(t, dir); len(list) > 0 {
					t.Fatalf("after the removal of a long name: %q", list)
				}
			}
			for _, name := range []string{
				"plain:1.simg", "with space:1.simg", "100%:1.simg", "100%25:1.simg", "new\nline:1.simg", "a%2Fb:1.simg", "a:1%2F2.simg",
				"ünï:cødé.simg", "a%3Ab:1.simg", "%2E.:1.simg", "%2E%2E:1.simg", "a:%2E%2E.simg", "%2Ehidden:1.simg", "-rf:1.simg", "@:1.simg", "%00:1.simg",
			} {
				file := filepath.Join(dir, name)
				err := os.WriteFile(file, []byte("content of "+name), 0o755)
				if errors.Is(err, syscall.EINVAL) {
					if list := settled(t, dir, nil); len(list) > 0 {
						t.Fatalf("after the refusal of %q: %q", name, list)
					}
					continue
				}
				if err != nil {
					t.Errorf("create %q: %v", name, err)
					continue
				}
				list := names(t, dir)
				if len(list) != 1 {
					t.Fatalf("after the creation of %q: %q", name, list)
				}
				for _, name := range []string{name, list[0]} {
					if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || len(got) == 0 {
						t.Errorf("read %q: %q, %v", name, got, err)
					}
				}
				if err := os.Rename(file, filepath.Join(dir, "other:1.simg")); err != nil {
					t.Errorf("rename %q: %v", name, err)
				}
				if err := os.Rename(filepath.Join(dir, "other:1.simg"), file); err != nil {
					t.Errorf("rename to %q: %v", name, err)
				}
				if again := settled(t, dir, list); !slices.Equal(again, list) {
					t.Errorf("%q became %q", list, again)
				}
				if err := os.Remove(file); err != nil {
					t.Errorf("remove %q: %v", name, err)
				}
				if list := settled(t, dir, nil); len(list) > 0 {
					t.Fatalf("after the removal of %q: %q", name, list)
				}
			}
		})
	}
}

// settled lists a directory until it is as wanted, for a moment: a change feed
// may tell of one's own acts after the next one.
func settled(t *testing.T, dir string, want []string) []string {
	t.Helper()
	got := names(t, dir)
	for end := time.Now().Add(5 * time.Second); !slices.Equal(got, want) && time.Now().Before(end); got = names(t, dir) {
		time.Sleep(20 * time.Millisecond)
	}
	return got
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// TestCaseOfNames: where the store ignores case, so does every act.
func TestCaseOfNames(t *testing.T) {
	store := backendtest.Memory()
	store.FoldCase = true
	mnt, _ := mountStores(t, map[string]backends.Store{"mem": store})
	at := func(p string) string { return filepath.Join(mnt, "mem", p) }
	data := noise(1, 5000)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(at("Pusheen"), 0o755))
	must(os.WriteFile(at("Pusheen/A:1.simg"), data, 0o755))
	if err := unix.Rmdir(at("PUSHEEN")); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("rmdir of a collection that is not empty: %v", err)
	}
	f, err := os.OpenFile(at("pusheen/a:1.simg"), os.O_WRONLY|os.O_TRUNC, 0)
	must(err)
	_, err = f.Write(noise(2, 6000))
	must(err)
	if info, err := os.Stat(at("Pusheen/A:1.SIMG")); err == nil {
		t.Errorf("an extension in capitals: %v", info)
	}
	// The kernel is told of the first spelling's push a moment after its close.
	var info os.FileInfo
	for range 100 {
		if info, err = os.Stat(at("Pusheen/A:1.simg")); err == nil && info.Size() == 6000 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil || info.Size() != 6000 {
		t.Errorf("the other spelling of a file that is written: %v, %v", info, err)
	}
	if got := names(t, at("Pusheen")); len(got) != 1 {
		t.Errorf("listed while it is written: %q", got)
	}
	must(f.Close())
	if got := names(t, at("Pusheen")); len(got) != 1 {
		t.Errorf("listed: %q", got)
	}
	must(os.Remove(at("PUSHEEN/a:1.simg")))
	must(os.Remove(at("pusheen")))
	if got := names(t, at("")); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

// TestXattrFlags: setxattr(2) with XATTR_CREATE and XATTR_REPLACE, and sizes.
func TestXattrFlags(t *testing.T) {
	w := newWritten(t)
	for _, state := range []string{"open", "pushed"} {
		name := state + ":1.simg"
		f := w.write(name, noise(1, 1000))
		if state == "pushed" {
			w.must(f.Close())
		}
		file := w.path(name)
		check := func(what string, err, want error) {
			t.Helper()
			if !errors.Is(err, want) {
				t.Errorf("%s: %s: %v, want %v", state, what, err, want)
			}
		}
		check("replace what is not there", unix.Setxattr(file, "user.note", []byte("x"), unix.XATTR_REPLACE), syscall.ENODATA)
		check("create", unix.Setxattr(file, "user.note", []byte("first"), unix.XATTR_CREATE), nil)
		check("create again", unix.Setxattr(file, "user.note", []byte("x"), unix.XATTR_CREATE), syscall.EEXIST)
		check("replace", unix.Setxattr(file, "user.note", []byte("second"), unix.XATTR_REPLACE), nil)
		check("empty", unix.Setxattr(file, "user.empty", nil, 0), nil)
		buf := make([]byte, 4096)
		n, err := unix.Getxattr(file, "user.note", buf)
		check("get", err, nil)
		if got := string(buf[:max(n, 0)]); got != "second" {
			t.Errorf("%s: user.note is %q", state, got)
		}
		n, err = unix.Getxattr(file, "user.empty", buf)
		if n != 0 || err != nil {
			t.Errorf("%s: an empty attribute: %d, %v", state, n, err)
		}
		n, err = unix.Getxattr(file, "user.note", nil)
		if n != 6 || err != nil {
			t.Errorf("%s: the size of an attribute: %d, %v", state, n, err)
		}
		_, err = unix.Getxattr(file, "user.note", buf[:3])
		check("get into too little", err, syscall.ERANGE)
		_, err = unix.Listxattr(file, buf[:3])
		check("list into too little", err, syscall.ERANGE)
		check("remove", unix.Removexattr(file, "user.note"), nil)
		check("remove again", unix.Removexattr(file, "user.note"), syscall.ENODATA)
		check("another namespace", unix.Setxattr(file, "trusted.note", []byte("x"), 0), syscall.ENOTSUP)
		if state == "open" {
			w.must(f.Close())
		}
	}
}

// TestCommandsByOddNames: a command that is given a path does its work on that
// image, though no URI can say its name, and one that is given a client's other
// name finds the client, with a mount as without.
func TestCommandsByOddNames(t *testing.T) {
	a := dropboxAccount(t)
	image := smallImage(t, 1)
	a.put(t, "pusheen/:red", image)
	a.put(t, "pusheen/a:1", image)
	g := driveAccount(t)
	g.put(t, "vsoch/a:1", image)
	m := newMachine(t, append(a.env, g.env...)...)
	d := m.mount("--client=dropbox", "--client=gdrive")
	d.run("cmp %s dropbox/pusheen/%%3Ared:latest.simg; cat dropbox/pusheen/{%%3Ared:latest,a:1}.json google-drive/vsoch/a:1.json >/dev/null", image)
	d.eventually("three records", func() error {
		if out := d.run("%s images -q", program); strings.Count(out, "\n") != 3 {
			return errors.New(out)
		}
		return nil
	})
	d.run("%s rm dropbox/pusheen/%%3Ared:latest.simg && %[1]s rm Google_Drive://vsoch/a:1", program)
	if out := d.run("%s images -q", program); strings.Count(out, "\n") != 1 || !strings.Contains(out, "pusheen/a:1") {
		t.Errorf("after rm of the others the records are:\n%s", out)
	}
	d.run("cat google-drive/vsoch/a:1.json >/dev/null; %s share dropbox/pusheen/%%3Ared:latest.simg", program)
	d.unmount()
	d.run("%s rm google-drive://vsoch/a:1", program)
	a.mustHold(t, "pusheen/:red", image)
	g.mustHold(t, "vsoch/a:1", image)
}
