package gdrive

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"google.golang.org/api/drive/v3"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/login"
)

// credentials are what the file of CredentialsSetting holds: an OAuth client,
// or a service account when service is set.
type credentials struct {
	file      []byte
	oauth     oauth2.Config
	redirects []string // of a web client
	service   *serviceAccount
}

// Google's own endpoints, for a client file that names none.
const (
	authURL  = "https://accounts.google.com/o/oauth2/auth"
	tokenURL = "https://oauth2.googleapis.com/token"
)

const consoleHint = "make an OAuth client of the type \"Desktop app\" or a service account at " +
	"https://console.cloud.google.com/apis/credentials, download its JSON file, and export " + CredentialsSetting + " with its path"

func readCredentials(s backends.Settings) (credentials, error) {
	name := s.Lookup(CredentialsSetting)
	if name == "" {
		return credentials{}, &backends.Error{Op: "open", Client: s.Client,
			Err: fmt.Errorf("%w: %s is not set", backends.ErrNotConfigured, CredentialsSetting), Hint: consoleHint}
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return credentials{}, &backends.Error{Op: "open", Client: s.Client,
			Err:  fmt.Errorf("%w: %s cannot be read: %w", backends.ErrNotConfigured, CredentialsSetting, err),
			Hint: "correct the path in " + CredentialsSetting}
	}
	c, err := parseCredentials(data)
	if err != nil {
		return credentials{}, &backends.Error{Op: "open", Client: s.Client,
			Err: fmt.Errorf("%w: %s: %w", backends.ErrNotConfigured, name, err), Hint: consoleHint}
	}
	return c, nil
}

// parseCredentials reads a client file as Google's console gives it ("web" or
// "installed"), or a service account's key. Its errors never quote the file.
func parseCredentials(data []byte) (credentials, error) {
	type client struct {
		ID        string   `json:"client_id"`
		Secret    string   `json:"client_secret"`
		AuthURI   string   `json:"auth_uri"`
		TokenURI  string   `json:"token_uri"`
		Redirects []string `json:"redirect_uris"`
	}
	var file struct {
		Web       *client `json:"web"`
		Installed *client `json:"installed"`
		Type      string  `json:"type"`
		Email     string  `json:"client_email"`
		Key       string  `json:"private_key"`
		KeyID     string  `json:"private_key_id"`
		TokenURI  string  `json:"token_uri"`
	}
	if json.Unmarshal(data, &file) != nil {
		return credentials{}, errors.New("the file is no credentials file: it is not JSON of the expected form")
	}
	c := credentials{file: data}
	app := file.Installed
	if file.Web != nil {
		app, c.redirects = file.Web, file.Web.Redirects
	}
	switch {
	case app != nil && app.ID != "":
		c.oauth = oauth2.Config{
			ClientID: app.ID, ClientSecret: app.Secret, Scopes: []string{drive.DriveScope},
			Endpoint: oauth2.Endpoint{
				AuthURL: or(app.AuthURI, authURL), TokenURL: or(app.TokenURI, tokenURL), AuthStyle: oauth2.AuthStyleInParams,
			},
		}
		return c, nil
	case file.Type == "service_account":
		key, err := parseKey(file.Key)
		if err != nil || file.Email == "" {
			return credentials{}, errors.New("the service account's key in it cannot be read")
		}
		c.service = &serviceAccount{
			email: file.Email, keyID: file.KeyID, key: key, url: or(file.TokenURI, tokenURL), turn: make(chan struct{}, 1),
		}
		return c, nil
	case file.Type != "":
		return credentials{}, fmt.Errorf("credentials of the type %q are not supported", file.Type)
	}
	return credentials{}, errors.New("the file holds neither an OAuth client nor a service account")
}

func or(v, def string) string {
	if v == "" {
		return def
	}
	return v
}

func parseKey(text string) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return x509.ParsePKCS1PrivateKey(block.Bytes)
	}
	k, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("no RSA key")
	}
	return k, nil
}

// redirect sets where a login's answer goes: a web client has its redirect
// URIs registered, any loopback port will do for others.
func (c credentials) redirect(o *login.Options) {
	for _, r := range c.redirects {
		u, err := url.Parse(r)
		if err != nil || u.Scheme != "http" || u.Hostname() != "localhost" && u.Hostname() != "127.0.0.1" {
			continue
		}
		port, err := strconv.Atoi(u.Port())
		if err != nil {
			port = 80
		}
		o.Host, o.Path, o.Ports = u.Hostname(), u.Path, []int{port}
		return
	}
}

// transport authorizes requests to next.
func (c credentials) transport(ctx context.Context, s backends.Settings, next http.RoundTripper) (http.RoundTripper, error) {
	if c.service != nil {
		c.service.client, c.service.http = s.Client, &http.Client{Transport: next}
		return login.Transport(c.service, next), nil
	}
	tok := login.Load(s)
	if tok == nil {
		return nil, &backends.Error{Op: "open", Client: s.Client,
			Err:  fmt.Errorf("%w: nobody has logged in yet", backends.ErrNotConfigured),
			Hint: fmt.Sprintf("run %q", "sregfs login "+s.Client)}
	}
	// Refreshes are paced with the account's other requests.
	refreshing := context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: next})
	return login.Transport(login.TokenSource(refreshing, c.oauth, s.Secrets, s.Client, tok), next), nil
}

// sealingKey is a key that only who has the account's credentials can make.
func (c credentials) sealingKey(s backends.Settings) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte("sregfs: state of uploads\x00"))
	h.Write(c.file)
	if c.service == nil {
		if tok := login.Load(s); tok != nil {
			h.Write([]byte("\x00" + tok.RefreshToken))
		}
	}
	var key [sha256.Size]byte
	h.Sum(key[:0])
	return key
}

// serviceAccount gets tokens with a key instead of a user's consent
// (https://developers.google.com/identity/protocols/oauth2/service-account,
// RFC 7523 section 2.1).
type serviceAccount struct {
	client, email, keyID, url string
	key                       *rsa.PrivateKey
	http                      *http.Client
	turn                      chan struct{} // held by who asks for a token

	// ahead is how far Google's clock was found to be ahead of this machine's;
	// for who has the turn.
	ahead time.Duration

	mu  sync.Mutex
	tok *oauth2.Token
}

func (a *serviceAccount) current() *oauth2.Token {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tok.Valid() {
		return a.tok
	}
	return nil
}

// TokenContext returns a token that is good for some seconds at least. Many waiters
// share one request.
func (a *serviceAccount) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	if tok := a.current(); tok != nil {
		return tok, nil
	}
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if tok := a.current(); tok != nil {
		return tok, nil
	}
	tok, err := a.request(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		e := &backends.Error{Op: "get a token for", Client: a.client, Err: err}
		if inner := (*backends.Error)(nil); errors.As(err, &inner) && inner.Client == "" {
			e.Err, e.Hint = inner.Err, inner.Hint // one sentence, not two
		}
		return nil, e
	}
	a.mu.Lock()
	a.tok = tok
	a.mu.Unlock()
	return tok, nil
}

// Refused forgets tok, which Drive refused before its time.
func (a *serviceAccount) Refused(tok *oauth2.Token) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tok != nil && a.tok.AccessToken == tok.AccessToken {
		a.tok = nil
	}
	return true
}

// maxSkew is how wrong a clock may be before it is taken to be wrong.
const maxSkew = time.Minute

// request asks for a token. Google takes no assertion from a clock that is more
// than some minutes off, so that one which is refused is made once more by the
// time that the refusal says it is.
func (a *serviceAccount) request(ctx context.Context) (*oauth2.Token, error) {
	for again := false; ; again = true {
		tok, date, err := a.ask(ctx, time.Now().Add(a.ahead))
		if err == nil || date.IsZero() || !errors.Is(err, backends.ErrAuth) {
			return tok, err
		}
		ahead := time.Until(date)
		if again || (ahead-a.ahead).Abs() < maxSkew {
			return nil, err
		}
		a.ahead = ahead
	}
}

// ask asks once, as if it were now; date is what time Google says that it is.
func (a *serviceAccount) ask(ctx context.Context, now time.Time) (tok *oauth2.Token, date time.Time, err error) {
	assertion, err := a.assertion(now)
	if err != nil {
		return nil, date, fmt.Errorf("%w: sign with the service account's key: %w", backends.ErrAuth, err)
	}
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {assertion}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, date, fmt.Errorf("%w: the token's address in %s: %w", backends.ErrNotConfigured, CredentialsSetting, err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, date, lost(err)
	}
	defer resp.Body.Close()
	date, _ = http.ParseTime(resp.Header.Get("Date")) // zero if it says nothing
	var answer struct {
		Token     string `json:"access_token"`
		ExpiresIn int64  `json:"expires_in"`
		Error     string `json:"error"`
	}
	derr := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 1<<20)).Decode(&answer)
	switch {
	case resp.StatusCode == http.StatusOK && derr == nil && answer.Token != "":
		return &oauth2.Token{AccessToken: answer.Token, TokenType: "Bearer", Expiry: time.Now().Add(time.Duration(answer.ExpiresIn) * time.Second)}, date, nil
	case backends.Code(answer.Error) != "":
		return nil, date, &backends.Error{Op: "get a token", Err: fmt.Errorf("%w: Google refuses the service account: %s", backends.ErrAuth, answer.Error),
			Hint: "look in the Google Cloud console whether its key is still valid"}
	}
	return nil, date, fmt.Errorf("%w: the token endpoint answers HTTP %d", backends.ErrUnreachable, resp.StatusCode)
}

// assertion is a signed JWT, good for an hour from a moment ago, so that a
// clock that is a little fast does no harm.
func (a *serviceAccount) assertion(now time.Time) (string, error) {
	at := now.Add(-10 * time.Second).Unix()
	part := func(v any) string {
		b, _ := json.Marshal(v) // maps of strings and numbers
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := part(map[string]string{"alg": "RS256", "typ": "JWT", "kid": a.keyID}) + "." +
		part(map[string]any{"iss": a.email, "scope": drive.DriveScope, "aud": a.url, "iat": at, "exp": at + 3600})
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, a.key, crypto.SHA256, sum[:])
	return text + "." + base64.RawURLEncoding.EncodeToString(sig), err
}
