package dropbox_test

import (
	"log/slog"
	"net/http"
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
	for name, o := range map[string]dropboxtest.Options{
		"Usual":        {},
		"LossyDisplay": {LossyDisplay: true},
	} {
		t.Run(name, func(t *testing.T) {
			o.PageMax = 5
			servers := make(map[backends.Store]*dropboxtest.Server)
			backendtest.Run(t, func(t *testing.T) backends.Store {
				s := serve(t, o)
				store := open(t, s)
				servers[store] = s
				return store
			}, backendtest.Opts{
				HasPush: true, HasRemove: true, HasRename: true, HasCollections: true, HasShare: true, HasSearch: true,
				HasFind: true, HasVersions: true, HasWatch: true, HasUsage: true, HasAccount: true,
				HasIDs: true, HasParts: true, HasResume: true, ChecksReplaces: true, FoldsCase: true,
				PageSize: o.PageMax,
				Reopen: func(t *testing.T, s backends.Store) backends.Store {
					return open(t, servers[s])
				},
				Without: map[string]string{
					"Names/Backslash": "Dropbox takes a path with a backslash for malformed",
				},
			})
		})
	}
}
