package gdrive

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// open opens the store, with small parts.
func (a *account) open() *Store {
	a.t.Helper()
	s, err := Open(context.Background(), a.settings())
	check(a.t, err)
	s.part = 256 << 10
	return s
}

// add puts a file into the root folder, which it makes.
func (a *account) add(f gdrivetest.Seed) string {
	a.t.Helper()
	if f.Parent == "" {
		f.Parent = a.root()
	}
	id, err := a.Add(f)
	check(a.t, err)
	return id
}

// root is the root folder's id.
func (a *account) root() string {
	a.t.Helper()
	for _, f := range a.Files() {
		if f.Name == defaultRoot && f.MimeType == gdrivetest.FolderType && f.Parent == a.Root() && !f.Trashed {
			return f.ID
		}
	}
	id, err := a.Add(gdrivetest.Seed{Name: defaultRoot, MimeType: gdrivetest.FolderType})
	check(a.t, err)
	return id
}

// python is a file as the Python client leaves it.
func python(name string, data []byte) gdrivetest.Seed {
	uri := strings.TrimSuffix(name, ".simg")
	collection, rest, _ := strings.Cut(uri, "/")
	rest, version, _ := strings.Cut(rest, "@")
	img, tag, _ := strings.Cut(rest, ":")
	p := map[string]string{
		"type": "container", "uri": uri, "collection": collection, "image": img, "tag": tag, "storage": name,
		"org.label-schema.build-size": "544MB",
	}
	if version != "" {
		p["version"] = version
	}
	return gdrivetest.Seed{Name: name, Content: data, Properties: p}
}

var ref = backends.Ref{Collection: "vsoch", Name: "hello-world", Tag: "pancakes"}

func sum(data []byte) string { return fmt.Sprintf("%x", md5.Sum(data)) }

func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

// content is what a pusher says of data.
func content(data []byte, replaces *backends.Image) backends.Content {
	return backends.Content{MD5: sum(data), Replaces: replaces}
}

func push(t testing.TB, s *Store, ref backends.Ref, data []byte, c backends.Content) backends.Image {
	t.Helper()
	u, err := s.Begin(t.Context(), ref, "")
	check(t, err)
	img, err := u.Commit(t.Context(), bytes.NewReader(data), int64(len(data)), c)
	check(t, err)
	return img
}

func stat(t testing.TB, s *Store, ref backends.Ref) backends.Image {
	t.Helper()
	img, err := s.Stat(t.Context(), ref)
	check(t, err)
	return img
}

func read(s *Store, ctx context.Context, img backends.Image, off, n int64) ([]byte, error) {
	r, err := s.OpenRange(ctx, img, off, n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// listed are the images of a listing, sorted, with their sizes, and the
// collections with a slash at their end.
func listed(t testing.TB, s *Store) []string {
	t.Helper()
	got := []string{}
	for e, err := range s.List(t.Context()) {
		check(t, err)
		if e.Collection != "" {
			got = append(got, e.Collection+"/")
		} else {
			got = append(got, fmt.Sprintf("%s %d", e.Image.Ref, e.Image.Size))
		}
	}
	slices.Sort(got)
	return got
}

func wantKind(t testing.TB, err, kind error, what string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: got %v, want %v", what, err, kind)
	}
}

// on makes every request of an API method, from the n-th on until the m-th,
// have a fault.
func (a *account) on(method string, n, m int, f gdrivetest.Fault) {
	a.ResetCounts()
	a.SetFaults(func(r gdrivetest.Request) gdrivetest.Fault {
		if r.Method == method && r.N >= n && r.N <= m {
			return f
		}
		return gdrivetest.Fault{}
	})
}

var conformance = backendtest.Opts{
	HasPush: true, HasRemove: true, HasRename: true, HasCollections: true, HasShare: true, HasSearch: true,
	HasFind: true, HasVersions: true, HasWatch: true, HasUsage: true, HasAccount: true, FindsCollections: true,
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
				s.page, s.part = int64(o.PageSize), 1<<20
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
