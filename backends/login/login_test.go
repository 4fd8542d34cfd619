package login

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/sregfs/sregfs/backends"
)

// service is an authorization server as RFC 6749 and RFC 7636 have it.
type service struct {
	*httptest.Server
	mu        sync.Mutex
	challenge map[string]string // by code
	redirect  map[string]string // by code
	refuse    string            // an error code that the token end point answers
	status    int               // with that
	rotate    bool
	good      map[string]bool // refresh tokens
	n         int
	params    url.Values // of the last authorization request
}

func newService(t *testing.T) *service {
	s := &service{challenge: map[string]string{}, redirect: map[string]string{}, good: map[string]bool{"R0": true}, status: 400}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

func (s *service) config() oauth2.Config {
	return oauth2.Config{ClientID: "app", Scopes: []string{"files"},
		Endpoint: oauth2.Endpoint{AuthURL: s.URL + "/authorize", TokenURL: s.URL + "/token", AuthStyle: oauth2.AuthStyleInParams}}
}

// authorize is what the user's consent leads to: a code.
func (s *service) authorize(page string) (code string, q url.Values) {
	u, _ := url.Parse(page)
	q = u.Query()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	code = fmt.Sprintf("4/code%d", s.n)
	s.params = q
	if q.Get("code_challenge_method") == "S256" {
		s.challenge[code] = q.Get("code_challenge")
	}
	s.redirect[code] = q.Get("redirect_uri")
	return code, q
}

func (s *service) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	fail := func(status int, code string) {
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]string{"error": code})
	}
	r.ParseForm()
	if s.refuse != "" {
		fail(s.status, s.refuse)
		return
	}
	refresh := r.Form.Get("refresh_token")
	switch r.Form.Get("grant_type") {
	case "authorization_code":
		code := r.Form.Get("code")
		want, ok := s.challenge[code]
		delete(s.challenge, code)
		if !ok || oauth2.S256ChallengeFromVerifier(r.Form.Get("code_verifier")) != want ||
			r.Form.Get("redirect_uri") != s.redirect[code] {
			fail(400, "invalid_grant")
			return
		}
		refresh = "R0"
	case "refresh_token":
		if !s.good[refresh] {
			fail(400, "invalid_grant")
			return
		}
		if s.rotate {
			delete(s.good, refresh)
			refresh += "+"
			s.good[refresh] = true
		}
	}
	s.n++
	json.NewEncoder(w).Encode(map[string]any{"access_token": fmt.Sprintf("access-token-%d", s.n), "token_type": "bearer",
		"expires_in": 3600, "refresh_token": refresh})
}

// browse is a browser that follows the redirect with the given answer.
func browse(t *testing.T, redirect string, q url.Values) (int, string) {
	t.Helper()
	resp, err := http.Get(redirect + "?" + q.Encode())
	if err != nil {
		t.Errorf("the redirect cannot be opened: %v", err)
		return 0, ""
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func TestBrowser(t *testing.T) {
	s := newService(t)
	var out strings.Builder
	tok, err := Run(t.Context(), s.config(), Options{Client: "dropbox", Service: "Dropbox", Path: "/done",
		ExtraParams: map[string]string{"token_access_type": "offline"},
		Terminal: backends.Terminal{Out: &out, OpenURL: func(page string) error {
			code, q := s.authorize(page)
			redirect := q.Get("redirect_uri")
			// None of these may end or disturb the login.
			for _, bad := range []url.Values{
				{"code": {"4/evil"}},
				{"code": {"4/evil"}, "state": {"guess"}},
				{"error": {"access_denied"}, "state": {""}},
				{"state": q["state"]},
			} {
				if status, _ := browse(t, redirect, bad); status != http.StatusBadRequest {
					t.Errorf("GET %v = %d, want 400", bad, status)
				}
			}
			good := url.Values{"code": {code}, "state": q["state"]}
			if status, _ := browse(t, redirect+"/x", good); status != http.StatusNotFound {
				t.Errorf("another path = %d, want 404", status)
			}
			if status, _ := browse(t, strings.Replace(redirect, "127.0.0.1", "localhost", 1), good); status != http.StatusNotFound {
				t.Errorf("another host = %d, want 404", status)
			}
			if status, page := browse(t, redirect, good); status != 200 || !strings.Contains(page, "may close") {
				t.Errorf("the answer = %d %q", status, page)
			}
			return nil
		}}})
	if err != nil {
		t.Fatal(err)
	}
	if tok.RefreshToken != "R0" || !tok.Valid() {
		t.Errorf("token = %+v", tok)
	}
	if s.params.Get("token_access_type") != "offline" || s.params.Get("scope") != "files" {
		t.Errorf("the request had %v", s.params)
	}
	if !regexp.MustCompile(`^http://127\.0\.0\.1:\d+/done$`).MatchString(s.params.Get("redirect_uri")) {
		t.Errorf("redirect_uri = %q", s.params.Get("redirect_uri"))
	}
	if strings.Contains(out.String(), tok.AccessToken) {
		t.Error("the terminal shows the token")
	}
}

// TestTyped enters what a browser on another machine shows.
func TestTyped(t *testing.T) {
	for name, c := range map[string]struct {
		codeOnPage bool
		enter      func(code string, q url.Values) string
		err        error
	}{
		"code":            {true, func(code string, _ url.Values) string { return "  " + code + " \n" }, nil},
		"address":         {false, func(code string, q url.Values) string { return address(code, q) + "\n" }, nil},
		"code of address": {false, func(code string, q url.Values) string { return url.QueryEscape(code) + "\n" }, nil},
		"third time": {false, func(code string, q url.Values) string {
			return "\nwhat is this\n" + strings.Replace(address(code, q), "state=", "state=x", 1) + "\n" + address(code, q) + "\n"
		}, nil},
		"wrong code": {true, func(string, url.Values) string { return "guess\n" }, backends.ErrAuth},
		"nothing":    {true, func(string, url.Values) string { return "" }, backends.ErrAuth},
		"denied": {false, func(_ string, q url.Values) string {
			return q.Get("redirect_uri") + "?error=access_denied&state=" + q.Get("state") + "\n"
		}, backends.ErrAuth},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t)
			inR, inW := io.Pipe()
			outR, outW := io.Pipe()
			go func() { // the user
				lines := bufio.NewScanner(outR)
				for lines.Scan() {
					if page := strings.TrimSpace(lines.Text()); strings.HasPrefix(page, "http") {
						code, q := s.authorize(page)
						if c.codeOnPage != (q.Get("redirect_uri") == "") {
							t.Errorf("redirect_uri = %q", q.Get("redirect_uri"))
						}
						go func() {
							io.WriteString(inW, c.enter(code, q))
							inW.Close()
						}()
					}
				}
			}()
			defer outW.Close()
			tok, err := Run(t.Context(), s.config(), Options{Client: "gdrive", Service: "Drive", CodeOnPage: c.codeOnPage,
				Terminal: backends.Terminal{In: inR, Out: outW}})
			if !errors.Is(err, c.err) || (err == nil) != (tok != nil) {
				t.Fatalf("Run = %v, %v; want error %v", tok, err, c.err)
			}
			if err != nil && !strings.Contains(backends.Hint(err), "sregfs login gdrive") {
				t.Errorf("hint %q of %v", backends.Hint(err), err)
			}
		})
	}
}

func address(code string, q url.Values) string {
	return q.Get("redirect_uri") + "?" + url.Values{"code": {code}, "state": q["state"], "scope": {"files"}}.Encode()
}

// TestNoBrowser: where none can be started, the page is shown and the redirect
// still served.
func TestNoBrowser(t *testing.T) {
	s := newService(t)
	var out strings.Builder
	in, inW := io.Pipe()
	defer inW.Close()
	tok, err := Run(t.Context(), s.config(), Options{Client: "dropbox", Service: "Dropbox", Terminal: backends.Terminal{
		In: in, Out: &out, OpenURL: func(page string) error {
			code, q := s.authorize(page)
			browse(t, q.Get("redirect_uri"), url.Values{"code": {code}, "state": q["state"]})
			return errors.New("no display")
		}}})
	if err != nil || !tok.Valid() || !strings.Contains(out.String(), s.URL+"/authorize") {
		t.Errorf("Run = %v, %v; terminal:\n%s", tok, err, out.String())
	}
}

func TestRunFails(t *testing.T) {
	t.Run("the user waits too long", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := Run(ctx, newService(t).config(), Options{Client: "dropbox", Terminal: backends.Terminal{
			Out: io.Discard, OpenURL: func(string) error { cancel(); return nil }}})
		if !errors.Is(err, context.Canceled) || errors.Is(err, backends.ErrAuth) {
			t.Errorf("Run = %v", err)
		}
	})
	t.Run("all ports are taken", func(t *testing.T) {
		s := newService(t)
		u, _ := url.Parse(s.URL)
		var port int
		fmt.Sscan(u.Port(), &port)
		_, err := Run(t.Context(), s.config(), Options{Client: "dropbox", Ports: []int{port}, Terminal: backends.Terminal{
			Out: io.Discard, OpenURL: func(string) error { return nil }}})
		if err == nil || !strings.Contains(backends.Hint(err), "--no-browser") {
			t.Errorf("Run = %v", err)
		}
	})
}

// memory is secrets without a file.
type memory struct {
	mu sync.Mutex
	m  map[string]string
}

func (m *memory) Secret(client, name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.m[client+"/"+name]
}

func (m *memory) SetSecrets(client string, values map[string]string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m == nil {
		m.m = map[string]string{}
	}
	for k, v := range values {
		m.m[client+"/"+k] = v
	}
	return nil
}

func expired(refresh string) *oauth2.Token {
	return &oauth2.Token{AccessToken: "old", RefreshToken: refresh, Expiry: time.Unix(1, 0)}
}

func TestRefreshIsStored(t *testing.T) {
	for _, rotate := range []bool{false, true} {
		s := newService(t)
		s.rotate = rotate
		secrets := &memory{}
		Save(secrets, "dropbox", expired("R0"))
		src := TokenSource(t.Context(), s.config(), secrets, "dropbox", expired("R0"))
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if tok, err := src.Token(); err != nil || tok.AccessToken != "access-token-1" {
					t.Errorf("Token = %+v, %v", tok, err)
				}
			})
		}
		wg.Wait()
		tok := Load(backends.Settings{Client: "dropbox", Getenv: func(string) string { return "" }, Secrets: secrets})
		want := "R0"
		if rotate {
			want = "R0+"
		}
		if tok == nil || tok.RefreshToken != want || tok.AccessToken != "access-token-1" || !tok.Valid() {
			t.Errorf("rotate %v: stored %+v", rotate, tok)
		}
	}
}

// TestEnvironmentIsNotWrittenDown: a refresh token from there stays there.
func TestEnvironmentIsNotWrittenDown(t *testing.T) {
	s := newService(t)
	secrets := &memory{}
	tok := Load(backends.Settings{Client: "dropbox", Secrets: secrets, Getenv: func(k string) string {
		return map[string]string{"SREGISTRY_DROPBOX_REFRESH_TOKEN": "R0"}[k]
	}})
	if _, err := TokenSource(t.Context(), s.config(), secrets, "dropbox", tok).Token(); err != nil {
		t.Fatal(err)
	}
	if len(secrets.m) != 0 {
		t.Errorf("stored %v", secrets.m)
	}
}

// TestAnotherProcessRotated: the token that we hold was used up by another
// process, which stored what it got for it.
func TestAnotherProcessRotated(t *testing.T) {
	s := newService(t)
	s.rotate = true
	secrets := &memory{}
	Save(secrets, "dropbox", expired("R0"))
	one := TokenSource(t.Context(), s.config(), secrets, "dropbox", expired("R0"))
	two := TokenSource(t.Context(), s.config(), secrets, "dropbox", expired("R0"))
	a, err := one.Token()
	if err != nil {
		t.Fatal(err)
	}
	b, err := two.Token()
	if err != nil || a.AccessToken != b.AccessToken {
		t.Errorf("the second process got %+v, %v", b, err)
	}
}

func TestRefreshFails(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(*service)
		tok  *oauth2.Token
		kind error
		hint bool
	}{
		"refused":              {func(s *service) { s.good = nil }, expired("R0"), backends.ErrAuth, true},
		"no refresh token":     {func(*service) {}, expired(""), backends.ErrAuth, true},
		"the application":      {func(s *service) { s.refuse, s.status = "invalid_client", 401 }, expired("R0"), backends.ErrAuth, true},
		"service fails":        {func(s *service) { s.refuse, s.status = "server_error", 503 }, expired("R0"), backends.ErrUnreachable, false},
		"service busy":         {func(s *service) { s.refuse, s.status = "slow_down", 429 }, expired("R0"), backends.ErrBusy, false},
		"network":              {func(s *service) { s.Close() }, expired("R0"), backends.ErrUnreachable, false},
		"a proxy's login page": {func(s *service) { s.Config.Handler = http.NotFoundHandler() }, expired("R0"), backends.ErrUnreachable, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t)
			c.set(s)
			secrets := &memory{}
			Save(secrets, "dropbox", c.tok)
			_, err := TokenSource(t.Context(), s.config(), secrets, "dropbox", c.tok).Token()
			if !errors.Is(err, c.kind) {
				t.Fatalf("Token = %v, want %v", err, c.kind)
			}
			if got := strings.Contains(backends.Hint(err), `"sregfs login dropbox"`); got != c.hint {
				t.Errorf("hint %q", backends.Hint(err))
			}
			if strings.Contains(err.Error(), "R0") || strings.Contains(err.Error(), s.URL) {
				t.Errorf("the error tells too much: %v", err)
			}
		})
	}
}

func TestTransport(t *testing.T) {
	s := newService(t)
	var mu sync.Mutex
	var seen []string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		seen = append(seen, r.Header.Get("Authorization")+" "+string(b))
		mu.Unlock()
		if r.Header.Get("Authorization") == "Bearer revoked" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer api.Close()
	src := TokenSource(t.Context(), s.config(), nil, "dropbox", &oauth2.Token{AccessToken: "revoked", RefreshToken: "R0"})
	client := &http.Client{Transport: Transport(src, http.DefaultTransport)}
	for range 2 {
		resp, err := client.Post(api.URL, "text/plain", strings.NewReader("body"))
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("POST = %v, %v", resp, err)
		}
		resp.Body.Close()
	}
	if got := strings.Join(seen, ", "); got != "Bearer revoked body, Bearer access-token-1 body, Bearer access-token-1 body" {
		t.Errorf("requests: %s", got)
	}
}

// TestWaitForTokenEndsWithTheRequest: a refresh that hangs holds nobody up who
// has given up.
func TestWaitForTokenEndsWithTheRequest(t *testing.T) {
	release := make(chan struct{})
	hung := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer hung.Close()
	defer close(release)
	cfg := oauth2.Config{Endpoint: oauth2.Endpoint{TokenURL: hung.URL}}
	src := TokenSource(t.Context(), cfg, nil, "dropbox", expired("R0"))
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := src.TokenContext(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("TokenContext = %v", err)
	}
}

func FuzzParseLine(f *testing.F) {
	for _, s := range []string{"4/abc", "http://127.0.0.1:1/?code=x&state=s", "?", "%zz", "http://[::1"} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, line string, redirected bool) {
		a, why := parseLine(line, "s", redirected)
		if why == "" && a.code == "" && a.err == nil {
			t.Errorf("parseLine(%q) is neither a code nor a reason", line)
		}
	})
}
