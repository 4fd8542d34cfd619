//go:build integration

package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

// account is a client with somewhere to keep images: a folder, or an emulated
// service.
type account struct {
	client string
	env    []string
	// put and get go behind sregfs's back; names are COLLECTION/IMAGE:TAG.
	put func(t *testing.T, name, file string)
	get func(name string) ([]byte, bool)
	// sent is how many bytes of content the service has sent; nil for local.
	sent func() int64
	// own makes a folder another user's; nil for a service.
	own func(uid int) error
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
		"dropbox": dropboxAccount,
	} {
		t.Run(name, func(t *testing.T) { f(t, open(t)) })
	}
}

func localAccount(t *testing.T) account {
	dir := t.TempDir()
	return account{
		client: "local",
		env:    []string{"SREGISTRY_STORAGE=" + dir},
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
		get:  func(name string) ([]byte, bool) { return s.Get("/" + name + ".simg") },
		sent: func() int64 { return s.Count("files/download").Out },
	}
}
