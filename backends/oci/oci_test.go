package oci_test

import (
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/backends/oci"
)

const partSize = 64 << 10

// serve starts a registry in memory.
func serve(t *testing.T) *httptest.Server {
	t.Helper()
	return serveHandler(t, registry.New(registry.Logger(log.New(io.Discard, "", 0))))
}

func serveHandler(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// open opens the registry at url; env are NAME=VALUE settings.
func open(t *testing.T, url string, env ...string) backends.Store {
	t.Helper()
	store, err := tryOpen(t, oci.Registry("mine", url), env...)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func tryOpen(t *testing.T, c backends.Client, env ...string) (backends.Store, error) {
	t.Helper()
	values := map[string]string{}
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		values[k] = v
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	return c.Open(t.Context(), backends.Settings{
		Client: c.Name, Getenv: func(k string) string { return values[k] },
		Log: slog.New(slog.DiscardHandler), Transport: transport, UserAgent: "sregfs-test",
	})
}

// odd are the suite's names that registries do not take.
func odd() map[string]string {
	without := map[string]string{}
	const why = "registries take lower-case letters, digits and single . _ - in names"
	for _, name := range []string{
		"Space", "Percent", "PercentEncoded", "Hash", "Question", "Plus", "Ampersand", "SingleQuote", "DoubleQuote",
		"Backslash", "Brackets", "Angle", "Dots", "TrailingDot", "LeadingDash", "At", "Dollar", "NFC", "NFD", "CJK",
		"Emoji", "Case", "Long", "OddTag", "OddCollection", "CaseMatters", "NormalizationMatters",
	} {
		without["Names/"+name] = why
	}
	for _, name := range []string{"OddName", "Case"} {
		without["Rename/"+name] = why
	}
	return without
}

func TestConformance(t *testing.T) {
	servers := map[backends.Store]*httptest.Server{}
	reopen := func(t *testing.T, s *httptest.Server) backends.Store {
		store := open(t, s.URL)
		oci.SetPartSize(store, partSize)
		servers[store] = s
		return store
	}
	backendtest.Run(t, func(t *testing.T) backends.Store { return reopen(t, serve(t)) }, backendtest.Opts{
		HasPush: true, HasRemove: true, HasRename: true, HasParts: true, ChecksReplaces: true, ChecksContent: true,
		FindsCollections: true,
		Reopen:           func(t *testing.T, s backends.Store) backends.Store { return reopen(t, servers[s]) },
		Without:          odd(),
	})
}
