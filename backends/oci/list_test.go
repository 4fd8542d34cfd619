package oci_test

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"log"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/sregfs/sregfs/backends"
)

// TestFindCollection: what the catalogue has below a name makes it a collection,
// if there is anything in it, and a no is never taken from the catalogue alone.
func TestFindCollection(t *testing.T) {
	// By the path's parts, as the distribution registry sorts them.
	repositories := []string{"alone", "empty/gone", "mixed/gone", "mixed/kept", "mixed-up/x", "private/x", "team/deep/tool", "zoo/x"}
	var heeds bool // last
	var asked []string
	s := serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		switch path := r.URL.Path; {
		case path == "/v2/":
		case path == "/v2/_catalog":
			list := repositories
			if last := r.URL.Query().Get("last"); heeds && last != "" {
				part := func(s string) string { return strings.ReplaceAll(s, "/", "\x00") }
				list = list[slices.IndexFunc(list, func(s string) bool { return part(s) > part(last) }):]
			}
			fmt.Fprintf(w, `{"repositories":["%s"]}`, strings.Join(list[:min(len(list), 3)], `","`))
		case path == "/v2/private/x/tags/list":
			w.WriteHeader(http.StatusForbidden)
		case strings.HasSuffix(path, "/gone/tags/list"):
			w.WriteHeader(http.StatusNotFound)
		case strings.HasSuffix(path, "/tags/list"):
			fmt.Fprint(w, `{"tags":["1"]}`)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	f, ok := backends.As[backends.CollectionFinder](open(t, s.URL))
	if !ok {
		t.Fatal("a registry finds no collections")
	}
	find := func(name string, want error) {
		t.Helper()
		asked = nil
		got, err := f.FindCollection(t.Context(), name)
		if !errors.Is(err, want) || err == nil && got != name {
			t.Errorf("FindCollection(%q) = %q, %v; want %v", name, got, err, want)
		}
	}
	heeds = true
	for _, name := range []string{"mixed", "mixed-up", "private", "team", "team/deep", "zoo"} {
		find(name, nil)
	}
	for _, name := range []string{"alone", "empty", "mix", "mixed/kept", "team/deep/tool"} {
		find(name, errors.ErrUnsupported)
	}
	for _, name := range []string{"", "..", "Upper", "a b", ".git", "a//b"} {
		find(name, iofs.ErrNotExist)
		if len(asked) > 0 {
			t.Errorf("FindCollection(%q) asks for %q", name, asked)
		}
	}
	heeds = false
	find("zoo", errors.ErrUnsupported)
}

// TestSeveralLinks: the next page is that of any Link header, not only the first.
func TestSeveralLinks(t *testing.T) {
	s := serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/v2/c/i/tags/list":
		case r.URL.Query().Get("last") == "2":
			fmt.Fprint(w, `{"tags":["3"]}`)
		default:
			w.Header().Add("Link", `<https://status.example>; rel="help"`)
			w.Header().Add("Link", `</v2/c/i/tags/list?last=2&n=2>; rel="next"`)
			fmt.Fprint(w, `{"tags":["1","2"]}`)
		}
	}))
	tagger, _ := backends.As[backends.Tagger](open(t, s.URL))
	tags, err := tagger.Tags(t.Context(), "c", "i")
	if want := []string{"1", "2", "3"}; err != nil || !slices.Equal(tags, want) {
		t.Errorf("Tags = %q, %v; want %q", tags, err, want)
	}
}

// TestRevokedWhileListing: a list that is short because the registry takes the
// credentials no more is not passed off as all there is.
func TestRevokedWhileListing(t *testing.T) {
	var revoked atomic.Bool
	s := serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok || revoked.Load() {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.URL.Path == "/v2/_catalog" {
			fmt.Fprint(w, `{"repositories":["a/x","a/y","b/z"]}`)
			revoked.Store(true)
		}
	}))
	var last error
	for _, err := range open(t, s.URL, "SREGISTRY_MINE_USERNAME=u", "SREGISTRY_MINE_PASSWORD=p").List(t.Context()) {
		last = err
	}
	if !errors.Is(last, backends.ErrAuth) {
		t.Errorf("List ends with %v, want %v", last, backends.ErrAuth)
	}
}

// TestListWithPrivate: a repository for which this account gets no token is left
// out, and the listing is whole all the same.
func TestListWithPrivate(t *testing.T) {
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			if strings.Contains(r.URL.Query().Get("scope"), "private/x") {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			fmt.Fprint(w, `{"token":"t"}`)
		case r.Header.Get("Authorization") != "Bearer t":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="registry"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/v2/_catalog":
			fmt.Fprint(w, `{"repositories":["a/x","private/x"]}`)
		default:
			h.ServeHTTP(w, r)
		}
	}))
	store := open(t, s.URL, "SREGISTRY_MINE_USERNAME=u", "SREGISTRY_MINE_PASSWORD=p")
	p, _ := backends.As[backends.Pusher](store)
	u, err := p.Begin(t.Context(), backends.Ref{Collection: "a", Name: "x", Tag: "1"}, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(t.Context(), strings.NewReader("image"), 5, backends.Content{}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for e, err := range store.List(t.Context()) {
		if err != nil {
			t.Errorf("List: %v", err)
			continue
		}
		got = append(got, e.Collection+e.Image.Ref.String())
	}
	slices.Sort(got)
	if want := []string{"a/x:1", "private"}; !slices.Equal(got, want) {
		t.Errorf("List = %q, want %q", got, want)
	}
}
