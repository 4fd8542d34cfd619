package dropbox_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/dropbox"
	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

// memory is a secrets file in memory.
type memory struct {
	mu sync.Mutex
	m  map[string]string
}

func (m *memory) Secret(client, name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.m[client+" "+name]
}

func (m *memory) SetSecrets(client string, values map[string]string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m == nil {
		m.m = make(map[string]string)
	}
	for k, v := range values {
		m.m[client+" "+k] = v
	}
	return nil
}

// loggedIn are settings after a login without a browser on this machine: the
// page shows a code, which the user enters.
func loggedIn(t *testing.T, s *dropboxtest.Server) backends.Settings {
	t.Helper()
	set := settings(s)
	t.Cleanup(set.Transport.(*http.Transport).CloseIdleConnections)
	env := map[string]string{dropbox.BaseSetting: s.URL, dropbox.AppKeySetting: s.AppKey()}
	set.Getenv = func(name string) string { return env[name] }
	set.Secrets = new(memory)
	in, typed := io.Pipe()
	out := &page{url: make(chan string, 1)}
	go func() {
		resp, err := http.Get(<-out.url)
		if err != nil {
			typed.CloseWithError(err)
			return
		}
		defer resp.Body.Close()
		html, err := io.ReadAll(resp.Body)
		if err != nil {
			typed.CloseWithError(err)
			return
		}
		code := regexp.MustCompile(`<code>(\w+)</code>`).FindSubmatch(html)
		if code == nil {
			typed.CloseWithError(errors.New("the page shows no code"))
			return
		}
		typed.Write(append(code[1], '\n'))
	}()
	if err := dropbox.Login(t.Context(), set, backends.Terminal{In: in, Out: out}); err != nil {
		t.Fatal(err)
	}
	delete(env, dropbox.AppKeySetting) // it was stored
	return set
}

// page finds the address of the page in what a login prints.
type page struct {
	buf bytes.Buffer
	url chan string
}

func (p *page) Write(b []byte) (int, error) {
	p.buf.Write(b)
	if u := regexp.MustCompile(`http://\S+/oauth2/authorize\?\S+`).FindString(p.buf.String()); u != "" {
		p.buf.Reset()
		p.url <- u
	}
	return len(b), nil
}

func TestLoginAndRefresh(t *testing.T) {
	s := serve(t, dropboxtest.Options{})
	set := loggedIn(t, s)
	store, err := dropbox.Open(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	data := random(9 << 20)
	img := mustPush(t, store, red, data)
	// The token expires before its time, also between parts.
	s.ExpireTokens()
	if got, err := read(t, store, img, 100, 50); err != nil || !bytes.Equal(got, data[100:150]) {
		t.Errorf("a read with an expired token: %d bytes, %v", len(got), err)
	}
	s.SetHook(func(r *http.Request) *dropboxtest.Fault {
		if dropboxtest.Route(r) == "files/upload_session/append_v2" {
			s.SetHook(nil)
			s.ExpireTokens()
		}
		return nil
	})
	mustPush(t, store, backends.Ref{Collection: "c", Name: "i", Tag: "x"}, data)
	if n := s.Count("oauth2/token").Requests; n != 3 {
		t.Errorf("%d requests for tokens, want 3", n)
	}
	// What was stored serves the next start.
	again, err := dropbox.Open(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	if name, err := again.Account(t.Context()); err != nil || name != "Vanessa S" {
		t.Errorf("Account = %q, %v", name, err)
	}
	s.RevokeAll()
	_, err = again.Stat(t.Context(), red)
	if !errors.Is(err, backends.ErrAuth) || !strings.Contains(backends.Hint(err), "sregfs login dropbox") {
		t.Errorf("Stat with access revoked = %v, want ErrAuth and what to do", err)
	}
}

func TestLoginRefused(t *testing.T) {
	s := serve(t, dropboxtest.Options{})
	set := settings(s)
	defer set.Transport.(*http.Transport).CloseIdleConnections()
	set.Secrets = new(memory)
	if err := dropbox.Login(t.Context(), set, backends.Terminal{}); !errors.Is(err, backends.ErrNotConfigured) ||
		!strings.Contains(backends.Hint(err), dropbox.AppKeySetting) {
		t.Errorf("Login without an app key = %v", err)
	}
	getenv := set.Getenv
	set.Getenv = func(name string) string {
		if name == dropbox.AppKeySetting {
			return s.AppKey()
		}
		return getenv(name)
	}
	s.DenyLogin()
	err := dropbox.Login(t.Context(), set, backends.Terminal{Out: io.Discard, In: strings.NewReader(""), OpenURL: func(u string) error {
		resp, err := http.Get(u)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}})
	if !errors.Is(err, backends.ErrAuth) {
		t.Errorf("Login that the user refuses = %v, want ErrAuth", err)
	}
}

func TestOpen(t *testing.T) {
	for name, c := range map[string]struct {
		env  map[string]string
		hint string // "" for success
	}{
		"Nothing":      {nil, dropbox.TokenSetting},
		"Blank":        {map[string]string{dropbox.TokenSetting: ` " " `}, "sregfs login box"},
		"Token":        {map[string]string{dropbox.TokenSetting: "x"}, ""},
		"RefreshNoKey": {map[string]string{"SREGISTRY_BOX_REFRESH_TOKEN": "x"}, dropbox.AppKeySetting},
		"BadBase":      {map[string]string{dropbox.TokenSetting: "x", dropbox.BaseSetting: "localhost:80"}, dropbox.BaseSetting},
	} {
		_, err := dropbox.Open(t.Context(), backends.Settings{Client: "box", Log: slog.New(slog.DiscardHandler),
			Getenv: func(k string) string { return c.env[k] }})
		switch {
		case c.hint == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.hint != "" && (!errors.Is(err, backends.ErrNotConfigured) || !strings.Contains(backends.Hint(err), c.hint)):
			t.Errorf("%s: %v, want ErrNotConfigured and %q in the hint", name, err, c.hint)
		}
	}
}

// TestHeaders: arguments in headers are ASCII, and every request says who
// sends it; the longpoll has no token.
func TestHeaders(t *testing.T) {
	s := serve(t, dropboxtest.Options{})
	store := open(t, s)
	odd := backends.Ref{Collection: "my café", Name: "octo\U0001F419pus", Tag: "\u007f is not allowed"}
	if _, err := store.Begin(t.Context(), odd, ""); !errors.Is(err, backends.ErrInvalidName) {
		t.Errorf("Begin with a control character: %v", err)
	}
	odd.Tag = "é"
	var mu sync.Mutex
	seen := map[string]bool{}
	s.SetHook(func(r *http.Request) *dropboxtest.Fault {
		mu.Lock()
		defer mu.Unlock()
		route := dropboxtest.Route(r)
		seen[route] = true
		if arg := r.Header.Get("Dropbox-API-Arg"); strings.ContainsFunc(arg, func(c rune) bool { return c < 0x20 || c > 0x7e }) {
			t.Errorf("%s: argument %q", route, arg)
		}
		if r.UserAgent() != "sregfs-test" {
			t.Errorf("%s: User-Agent %q", route, r.UserAgent())
		}
		if got, want := r.Header.Get("Authorization") != "", route != "files/list_folder/longpoll"; got != want {
			t.Errorf("%s: has a token: %v, want %v", route, got, want)
		}
		return nil
	})
	img := mustPush(t, store, odd, []byte("x"))
	if img.Ref != odd {
		t.Errorf("pushed as %q", img.Ref)
	}
	if _, err := read(t, store, img, 0, -1); err != nil {
		t.Error(err)
	}
	cursor, err := store.Cursor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Changes(t.Context(), cursor, 20*time.Millisecond); err != nil {
		t.Error(err)
	}
	for _, route := range []string{"files/upload", "files/download", "files/list_folder/longpoll"} {
		if !seen[route] {
			t.Errorf("%s was not used", route)
		}
	}
}

// TestBackoff: after Dropbox asks for a pause of the feed, changes are fetched
// without a longpoll until it is over.
func TestBackoff(t *testing.T) {
	s := serve(t, dropboxtest.Options{LongpollMax: time.Millisecond})
	store := open(t, s)
	cursor, err := store.Cursor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.SetBackoff(time.Hour)
	for range 3 {
		ch, err := store.Changes(t.Context(), cursor, 10*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		cursor = ch.Cursor
	}
	if n := s.Count("files/list_folder/longpoll").Requests; n != 1 {
		t.Errorf("%d longpolls in spite of the pause, want 1", n)
	}
	s.Put("/c/i:x.simg", nil)
	if ch, err := store.Changes(t.Context(), cursor, 0); err != nil || len(ch.List) != 2 {
		t.Errorf("Changes = %+v, %v", ch, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := store.Changes(ctx, cursor, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled wait for the pause's end: %v", err)
	}
}

func TestChanges(t *testing.T) {
	s := serve(t, dropboxtest.Options{PageMax: 2})
	store := open(t, s)
	cursor, err := store.Cursor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Put("/c/one.simg", nil)
	s.Put("/c/one:latest.simg", nil) // goes before the other
	s.Put("/c/note.txt", nil)
	s.Mkdir("/d")
	s.Delete("/d")
	ch, err := store.Changes(t.Context(), cursor, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range ch.List {
		switch img := c.Entry.Image; {
		case c.Deleted:
			got = append(got, "-"+img.Key)
		case c.Entry.Collection != "":
			got = append(got, c.Entry.Collection+"/")
		case img.Ref.Version != "":
			got = append(got, img.Ref.Latest().String()+"@")
		default:
			got = append(got, img.Ref.String())
		}
	}
	if want := "c/ c/one:latest@ c/one:latest -/c/note.txt -/d"; strings.Join(got, " ") != want {
		t.Errorf("changes %q, want %q", got, want)
	}
	s.ResetCursors()
	for _, wait := range []time.Duration{0, time.Minute} {
		if _, err := store.Changes(t.Context(), ch.Cursor, wait); !errors.Is(err, backends.ErrCursorReset) {
			t.Errorf("Changes after a reset = %v, want ErrCursorReset", err)
		}
	}
}
