package gdrive

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/gdrive/gdrivetest"
	"github.com/sregfs/sregfs/backends/login"
)

// TestLogin: a user logs in by the browser, and the store opens with what was
// stored.
func TestLogin(t *testing.T) {
	t.Parallel()
	for name, web := range map[string]bool{"desktop": false, "web": true} {
		t.Run(name, func(t *testing.T) {
			a := newAccount(t, gdrivetest.Options{})
			delete(a.env, "SREGISTRY_GDRIVE_REFRESH_TOKEN")
			if web {
				file := strings.Replace(string(gdrivetest.ClientFile(a.URL)), `"installed"`, `"web"`, 1)
				a.credentials([]byte(strings.Replace(file, `"http://localhost"`, `"https://example.com/", "http://localhost:0/callback"`, 1)))
			}
			st := a.settings()
			_, err := Open(t.Context(), st)
			wantKind(t, err, backends.ErrNotConfigured, "Open before the login")
			if hint := backends.Hint(err); !strings.Contains(hint, "sregfs login gdrive") {
				t.Errorf("hint %q", hint)
			}
			var out bytes.Buffer
			browser := func(page string) error {
				u, err := url.Parse(page)
				if err != nil {
					return err
				}
				q := u.Query()
				to, err := url.Parse(q.Get("redirect_uri"))
				if err != nil || q.Get("access_type") != "offline" || q.Get("code_challenge_method") != "S256" {
					t.Errorf("the page is %s", page)
				}
				if web != (to.Path == "/callback") {
					t.Errorf("redirect to %s", to)
				}
				resp, err := http.Get(page) // consents, and follows the redirect
				if err == nil {
					resp.Body.Close()
				}
				return err
			}
			check(t, Login(t.Context(), st, backends.Terminal{In: strings.NewReader(""), Out: &out, OpenURL: browser}))
			if tok := login.Load(st); tok == nil || tok.RefreshToken == "" {
				t.Fatalf("stored: %+v", tok)
			}
			s, err := Open(t.Context(), st)
			check(t, err)
			if name, err := s.Account(t.Context()); err != nil || name != "Vanessa S" {
				t.Errorf("Account = %q, %v", name, err)
			}
			for _, secret := range []string{gdrivetest.ClientSecret, login.Load(st).AccessToken, login.Load(st).RefreshToken} {
				if strings.Contains(out.String(), secret) {
					t.Error("a secret was printed")
				}
			}
		})
	}
}

func TestServiceAccount(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	delete(a.env, "SREGISTRY_GDRIVE_REFRESH_TOKEN")
	key, err := gdrivetest.ServiceAccountFile(a.URL)
	check(t, err)
	a.credentials(key)
	s := a.open()
	if n := a.Total().Requests; n != 0 {
		t.Errorf("opening took %d requests", n)
	}
	push(t, s, ref, []byte("x"), content([]byte("x"), nil))
	if n := a.Counts()["oauth.token"].Requests; n != 1 {
		t.Errorf("%d tokens were asked for", n)
	}
	a.ExpireTokens()
	stat(t, s, ref)
	err = Login(t.Context(), a.settings(), backends.Terminal{Out: io.Discard})
	wantKind(t, err, errors.ErrUnsupported, "Login")

	// A folder that its users share with it serves where it has none.
	b := newAccount(t, gdrivetest.Options{})
	key, err = gdrivetest.ServiceAccountFile(b.URL)
	check(t, err)
	b.credentials(key)
	shared, err := b.Add(gdrivetest.Seed{Name: "sregistry", MimeType: gdrivetest.FolderType, Shared: true})
	check(t, err)
	f := python(pancakes, []byte("x"))
	f.Parent = shared
	_, err = b.Add(f)
	check(t, err)
	if got := listed(t, b.open()); len(got) != 1 {
		t.Errorf("listed: %q", got)
	}

	// Refused for good, and not to be asked.
	other, err := parseCredentials(bytes.Replace(key, []byte(gdrivetest.ServiceAccount), []byte("other@example.com"), 1))
	check(t, err)
	other.service.http = http.DefaultClient
	_, err = other.service.TokenContext(t.Context())
	wantKind(t, err, backends.ErrAuth, "another account's token")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = other.service.TokenContext(ctx)
	wantKind(t, err, context.Canceled, "a token for nobody")
	b.on("oauth.token", 1, 99, gdrivetest.Fault{Status: 404})
	b.ExpireTokens()
	_, err = other.service.TokenContext(t.Context())
	if !errors.Is(err, backends.ErrAuth) && !errors.Is(err, backends.ErrUnreachable) {
		t.Errorf("a token endpoint that is none: %v", err)
	}
}

// TestBadCredentials: each gets a sentence that says what to do, and nothing of
// the file's content.
func TestBadCredentials(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, c := range map[string]struct {
		data string // "" for no file
		want string
	}{
		"missing":     {"", "cannot be read"},
		"garbled":     {`{"installed": planted-secret`, "not JSON"},
		"other":       {`{"planted-secret": 1}`, "neither an OAuth client nor a service account"},
		"empty":       {`{"installed": {"client_secret": "planted-secret"}}`, "neither"},
		"user":        {`{"type": "authorized_user", "refresh_token": "planted-secret"}`, `"authorized_user" are not supported`},
		"bad key":     {`{"type": "service_account", "client_email": "a@b", "private_key": "planted-secret"}`, "key in it cannot be read"},
		"no key":      {`{"type": "service_account", "client_email": "a@b"}`, "key in it cannot be read"},
		"a directory": {"dir", "cannot be read"},
	} {
		path := filepath.Join(dir, name)
		switch c.data {
		case "":
		case "dir":
			check(t, os.Mkdir(path, 0o700))
		default:
			check(t, os.WriteFile(path, []byte(c.data), 0o600))
		}
		env := map[string]string{CredentialsSetting: path}
		_, err := Open(t.Context(), backends.Settings{Client: "gdrive", Getenv: func(k string) string { return env[k] }})
		if !errors.Is(err, backends.ErrNotConfigured) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), CredentialsSetting) {
			t.Errorf("%s: %v; want %q in it", name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "planted") {
			t.Errorf("%s: the file's content is in %v", name, err)
		}
	}
	_, err := Open(t.Context(), backends.Settings{Client: "gdrive", Getenv: func(string) string { return "" }})
	if !errors.Is(err, backends.ErrNotConfigured) || !strings.Contains(err.Error(), "export "+CredentialsSetting) {
		t.Errorf("without credentials: %v", err)
	}
	for _, base := range []string{"ftp://x", "nonsense", "https://user:planted@x", "https://x/path", "https://x/?q"} {
		env := map[string]string{CredentialsSetting: "x", BaseSetting: base}
		_, err := Open(t.Context(), backends.Settings{Client: "gdrive", Getenv: func(k string) string { return env[k] }})
		if !errors.Is(err, backends.ErrNotConfigured) || strings.Contains(err.Error(), "planted") {
			t.Errorf("with the base %s: %v", base, err)
		}
	}
}

func FuzzCredentials(f *testing.F) {
	f.Add(gdrivetest.ClientFile("http://127.0.0.1:1"))
	f.Add([]byte(`{"type":"service_account","private_key":"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseCredentials(data)
		if err == nil && c.oauth.ClientID == "" && c.service == nil {
			t.Fatal("neither credentials nor an error")
		}
	})
}

// TestAccess: sharing goes by e-mail and by link, once each.
func TestAccess(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	s := a.open()
	img := push(t, s, ref, []byte("x"), content([]byte("x"), nil))
	for range 2 {
		share, err := s.Share(t.Context(), img, "v@example.com")
		check(t, err)
		if share.ID == "" || share.URL != "" {
			t.Errorf("shared %+v", share)
		}
		share, err = s.Share(t.Context(), img, "")
		check(t, err)
		if share.ID != "anyoneWithLink" || !strings.HasPrefix(share.URL, "https://drive.google.com/") {
			t.Errorf("shared %+v", share)
		}
	}
	if m := a.Mails(); len(m) != 1 || m[0].To != "v@example.com" {
		t.Errorf("mails: %v", m)
	}
	_, err := s.Share(t.Context(), img, "nobody")
	if err == nil || !strings.Contains(backends.Hint(err), "address") {
		t.Errorf("sharing with nobody: %v", err)
	}
	u, err := s.Usage(t.Context())
	if err != nil || u.Used != 1 || u.Total != 15<<30 {
		t.Errorf("Usage = %+v, %v", u, err)
	}
}
