package gdrive

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/backends/gdrive/gdrivetest"
)

// secrets are backends.Secrets in memory.
type secrets struct {
	mu sync.Mutex
	m  map[string]string
}

func (s *secrets) Secret(client, name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[client+"."+name]
}

func (s *secrets) SetSecrets(client string, values map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[string]string{}
	}
	for k, v := range values {
		s.m[client+"."+k] = v
	}
	return nil
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// account is an emulated Drive and what opens it.
type account struct {
	*gdrivetest.Server
	t   testing.TB
	env map[string]string
}

// newAccount starts a Drive whose user has logged in.
func newAccount(t testing.TB, opts gdrivetest.Options) *account {
	t.Helper()
	srv := gdrivetest.NewServer(opts)
	t.Cleanup(func() { check(t, srv.Close()) })
	a := &account{Server: srv, t: t, env: map[string]string{
		BaseSetting:                      srv.URL,
		"SREGISTRY_GDRIVE_REFRESH_TOKEN": srv.RefreshToken(),
	}}
	a.credentials(gdrivetest.ClientFile(srv.URL))
	return a
}

// credentials sets the credentials file.
func (a *account) credentials(data []byte) {
	a.t.Helper()
	name := filepath.Join(a.t.TempDir(), "credentials.json")
	check(a.t, os.WriteFile(name, data, 0o600))
	a.env[CredentialsSetting] = name
}

func (a *account) settings() backends.Settings {
	return backends.Settings{
		Client: "gdrive", Getenv: func(k string) string { return a.env[k] }, Secrets: &secrets{},
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), UserAgent: "sregfs-test",
	}
}

func (a *account) open() *Store {
	a.t.Helper()
	s, err := Open(context.Background(), a.settings())
	check(a.t, err)
	return s
}

var conformance = backendtest.Opts{
	HasPush: true, HasRemove: true, HasRename: true, HasCollections: true, HasShare: true, HasSearch: true,
	HasFind: true, HasVersions: true, HasWatch: true, HasUsage: true, HasAccount: true,
	HasIDs: true, HasParts: true, HasResume: true, HasShareEmail: true, ChecksReplaces: true, ChecksContent: true,
	PageSize: 10,
}

func TestConformance(t *testing.T) {
	for name, opts := range map[string]gdrivetest.Options{
		"plain": {},
		// A Drive that keeps to the letter of its documentation.
		"strict": {StrictRevisions: true, NoSHA256: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			accounts := sync.Map{} // by store
			o := conformance
			open := func(t *testing.T, a *account) backends.Store {
				s := a.open()
				s.page = int64(o.PageSize)
				accounts.Store(s, a)
				return s
			}
			o.Reopen = func(t *testing.T, s backends.Store) backends.Store {
				a, _ := accounts.Load(s)
				return open(t, a.(*account))
			}
			backendtest.Run(t, func(t *testing.T) backends.Store { return open(t, newAccount(t, opts)) }, o)
		})
	}
}
