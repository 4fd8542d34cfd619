package dropbox_test

import (
	"bytes"
	"crypto/rand"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/backends/dropbox"
	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

// settings lead to the server, with its static token.
func settings(s *dropboxtest.Server) backends.Settings {
	env := map[string]string{dropbox.TokenSetting: " \"" + s.Token() + "\" ", dropbox.BaseSetting: s.URL + "/"}
	return backends.Settings{
		Client:    "dropbox",
		Getenv:    func(name string) string { return env[name] },
		Log:       slog.New(slog.DiscardHandler),
		Transport: &http.Transport{MaxIdleConnsPerHost: 16},
		UserAgent: "sregfs-test",
	}
}

func open(t *testing.T, s *dropboxtest.Server) *dropbox.Store {
	t.Helper()
	set := settings(s)
	t.Cleanup(set.Transport.(*http.Transport).CloseIdleConnections)
	store, err := dropbox.Open(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func serve(t *testing.T, o dropboxtest.Options) *dropboxtest.Server {
	t.Helper()
	if o.LongpollMax == 0 {
		o.LongpollMax = 100 * time.Millisecond
	}
	s := dropboxtest.New(o)
	t.Cleanup(s.Close)
	return s
}

func TestConformance(t *testing.T) {
	const page = 5
	servers := make(map[backends.Store]*dropboxtest.Server)
	backendtest.Run(t, func(t *testing.T) backends.Store {
		s := serve(t, dropboxtest.Options{PageMax: page})
		store := open(t, s)
		servers[store] = s
		return store
	}, backendtest.Opts{
		HasPush: true, HasRemove: true, HasRename: true, HasCollections: true, HasShare: true, HasSearch: true,
		HasFind: true, HasVersions: true, HasWatch: true, HasUsage: true, HasAccount: true, FindsCollections: true,
		HasIDs: true, HasParts: true, HasResume: true, ChecksReplaces: true, FoldsCase: true,
		PageSize: page,
		Reopen: func(t *testing.T, s backends.Store) backends.Store {
			return open(t, servers[s])
		},
		Without: map[string]string{
			"Names/Backslash": "Dropbox takes a path with a backslash for malformed",
		},
	})
}

// push puts data in place as ref, upon what the store says is there.
func push(t *testing.T, store *dropbox.Store, ref backends.Ref, data []byte) (backends.Image, error) {
	t.Helper()
	u, err := store.Begin(t.Context(), ref, "")
	if err != nil {
		return backends.Image{}, err
	}
	var content backends.Content
	if old, err := store.Stat(t.Context(), ref); err == nil {
		content.Replaces = &old
	}
	return u.Commit(t.Context(), bytes.NewReader(data), int64(len(data)), content)
}

func mustPush(t *testing.T, store *dropbox.Store, ref backends.Ref, data []byte) backends.Image {
	t.Helper()
	img, err := push(t, store, ref, data)
	if err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
	return img
}

func read(t *testing.T, store *dropbox.Store, img backends.Image, off, n int64) ([]byte, error) {
	t.Helper()
	body, err := store.OpenRange(t.Context(), img, off, n)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// list returns a listing's references with versions, and collections with a
// slash behind, sorted.
func list(t *testing.T, store *dropbox.Store) []string {
	t.Helper()
	var all []string
	for e, err := range store.List(t.Context()) {
		switch {
		case err != nil:
			t.Fatalf("List: %v", err)
		case e.Collection != "":
			all = append(all, e.Collection+"/")
		default:
			all = append(all, e.Image.Ref.String())
		}
	}
	slices.Sort(all)
	return all
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

var red = backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "red"}
