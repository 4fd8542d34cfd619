//go:build integration

package integration

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
	"github.com/sregfs/sregfs/backends/gdrive/gdrivetest"
)

// account is a client with somewhere to keep images: a folder, or an emulated
// service.
type account struct {
	client string
	env    []string
	// put and get go behind sregfs's back; names are COLLECTION/IMAGE:TAG.
	put func(t *testing.T, name, file string)
	get func(name string) ([]byte, bool)
	// names are those of all images; one that is there twice comes twice.
	names func() []string
	// sent is how many bytes of content the service has sent; nil for local.
	sent func() int64
	// own makes a folder another user's; nil for a service.
	own func(uid int) error
	// registry is the address of a registry, for the flag of that name; "" for
	// other clients. args are further flags.
	registry string
	args     []string
	// retags: a rename is a copy and a deletion, and a crash leaves both.
	retags bool
}

// recorded is the client's name in the Python client's database.
func (a account) recorded() string {
	if a.client == "gdrive" {
		return "google-drive"
	}
	return a.client
}

// mustHold checks that the remote has the bytes of a file under a name.
func (a account) mustHold(t *testing.T, name, file string) {
	t.Helper()
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := a.get(name); !ok {
		t.Fatalf("%s does not have %s", a.client, name)
	} else if !bytes.Equal(got, want) {
		t.Fatalf("%s has other bytes as %s: %d of them, want %d", a.client, name, len(got), len(want))
	}
}

func (a account) mustLack(t *testing.T, name string) {
	t.Helper()
	if _, ok := a.get(name); ok {
		t.Errorf("%s still has %s", a.client, name)
	}
}

// chown makes the account an ordinary user's.
func (a account) chown(t *testing.T, uid int) {
	t.Helper()
	if a.own == nil {
		return
	}
	if err := a.own(uid); err != nil {
		t.Fatal(err)
	}
}

// eachClient runs a test for every client with an account of its own.
func eachClient(t *testing.T, f func(t *testing.T, a account)) {
	t.Helper()
	for name, open := range map[string]func(t *testing.T) account{
		"local":   localAccount,
		"dropbox": dropboxAccount,
		"gdrive":  driveAccount,
	} {
		t.Run(name, func(t *testing.T) { f(t, open(t)) })
	}
}

// openDir is a temporary folder that other users can get to, unlike those of
// the testing package.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sregfs-account-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func localAccount(t *testing.T) account {
	dir := openDir(t)
	return account{
		client: "local",
		env:    []string{"SREGISTRY_STORAGE=" + dir},
		own: func(uid int) error {
			return filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
				return errors.Join(err, os.Lchown(p, uid, uid))
			})
		},
		put: func(t *testing.T, name, file string) {
			t.Helper()
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			to := filepath.Join(dir, name+".simg")
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(to, data, 0o755); err != nil {
				t.Fatal(err)
			}
		},
		get: func(name string) ([]byte, bool) {
			data, err := os.ReadFile(filepath.Join(dir, name+".simg"))
			return data, err == nil
		},
		names: func() []string {
			files, _ := filepath.Glob(filepath.Join(dir, "*/*.simg")) // the pattern is good
			for i, f := range files {
				rel, _ := filepath.Rel(dir, f)
				files[i] = strings.TrimSuffix(rel, ".simg")
			}
			return files
		},
	}
}

func dropboxAccount(t *testing.T) account {
	s := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second})
	t.Cleanup(s.Close)
	return dropboxAt(s)
}

func dropboxAt(s *dropboxtest.Server) account {
	return account{
		client: "dropbox",
		env:    []string{"SREGISTRY_DROPBOX_TOKEN=" + s.Token(), "SREGISTRY_DROPBOX_BASE=" + s.URL},
		put: func(t *testing.T, name, file string) {
			t.Helper()
			if _, err := s.PutFile("/"+name+".simg", file); err != nil {
				t.Fatal(err)
			}
		},
		get: func(name string) ([]byte, bool) { return s.Get("/" + name + ".simg") },
		names: func() []string {
			paths := s.Paths()
			for i, p := range paths {
				paths[i] = strings.TrimSuffix(strings.TrimPrefix(p, "/"), ".simg")
			}
			return paths
		},
		sent: func() int64 { return s.Count("files/download").Out },
	}
}

func driveAccount(t *testing.T) account {
	s := gdrivetest.NewServer(gdrivetest.Options{})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return gdriveAt(t, s)
}

// gdriveAt is an account with images of ours and of the Python client's, both
// of which keep them in one folder under their whole names.
func gdriveAt(t *testing.T, s *gdrivetest.Server) account {
	t.Helper()
	key, err := gdrivetest.ServiceAccountFile(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	dir := openDir(t)
	credentials := filepath.Join(dir, "credentials.json")
	if err := os.WriteFile(credentials, key, 0o600); err != nil {
		t.Fatal(err)
	}
	root := ""
	return account{
		client: "gdrive",
		env:    []string{"SREGISTRY_GOOGLE_DRIVE_CREDENTIALS=" + credentials, "SREGISTRY_GOOGLE_DRIVE_BASE=" + s.URL},
		own:    func(uid int) error { return errors.Join(os.Chmod(dir, 0o755), os.Chown(credentials, uid, uid)) },
		put: func(t *testing.T, name, file string) {
			t.Helper()
			var err error
			if root == "" {
				root, err = s.Add(gdrivetest.Seed{Name: "sregistry", MimeType: gdrivetest.FolderType})
			}
			if err == nil {
				collection, rest, _ := strings.Cut(name, "/")
				image, tag, _ := strings.Cut(rest, ":")
				_, err = s.Add(gdrivetest.Seed{Name: name + ".simg", Parent: root, File: file, Properties: map[string]string{
					"type": "container", "uri": name, "collection": collection, "image": image, "tag": tag, "storage": name + ".simg",
				}})
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		get: func(name string) ([]byte, bool) {
			var found []gdrivetest.File
			for _, f := range s.Files() {
				p := f.Properties // uri has the version behind it
				if p["type"] == "container" && p["collection"]+"/"+p["image"]+":"+p["tag"] == name && !f.Trashed {
					found = append(found, f)
				}
			}
			if len(found) == 0 {
				return nil, false
			}
			newest := slices.MaxFunc(found, func(a, b gdrivetest.File) int { return a.Modified.Compare(b.Modified) })
			data, err := s.Content(newest.ID)
			return data, err == nil
		},
		names: func() []string {
			var names []string
			for _, f := range s.Files() {
				if p := f.Properties; p["type"] == "container" && !f.Trashed {
					names = append(names, p["collection"]+"/"+p["image"]+":"+p["tag"])
				}
			}
			return names
		},
		sent: func() int64 { return s.Counts()["files.get.media"].Out + s.Counts()["revisions.get.media"].Out },
	}
}
