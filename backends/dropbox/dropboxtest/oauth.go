package dropboxtest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// oauth is the authorization server
// (https://developers.dropbox.com/oauth-guide): code flow with PKCE, for public
// clients without a secret, and refresh tokens for offline access.
type oauth struct {
	appKey string
	ttl    time.Duration

	mu      sync.Mutex
	access  map[string]time.Time // token to its end; zero for never
	refresh map[string]bool
	codes   map[string]grant
	deny    bool
}

// grant is an authorization that waits to be exchanged, once.
type grant struct {
	redirect, challenge, method string
	offline                     bool
	until                       time.Time
}

func newOAuth(o Options) *oauth {
	return &oauth{
		appKey: o.AppKey, ttl: o.TokenTTL,
		access:  map[string]time.Time{o.Token: {}},
		refresh: make(map[string]bool),
		codes:   make(map[string]grant),
	}
}

// check accepts an Authorization header or says what is wrong with it.
func (o *oauth) check(route, header string) *apiError {
	token, ok := strings.CutPrefix(header, "Bearer ")
	if !ok {
		return badRequest(route, `Must provide HTTP header "Authorization" or URL parameter "authorization".`)
	}
	if token == "" || strings.ContainsFunc(token, func(c rune) bool {
		return !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/=", c)
	}) {
		return badRequest(route, "The given OAuth 2 access token is malformed.")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	until, ok := o.access[token]
	switch {
	case !ok:
		return refuseAuth("invalid_access_token")
	case !until.IsZero() && time.Now().After(until):
		return refuseAuth("expired_access_token")
	}
	return nil
}

// authorize is the page on which the user agrees; this user always does,
// unless DenyLogin was called. Without a redirect_uri the page shows the code.
func (o *oauth) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("client_id") != o.appKey || q.Get("response_type") != "code" {
		http.Error(w, "Invalid client_id or response_type", http.StatusBadRequest)
		return
	}
	method := or(q.Get("code_challenge_method"), "plain")
	if q.Get("code_challenge") != "" && !slices.Contains([]string{"plain", "S256"}, method) {
		http.Error(w, "Invalid code_challenge_method", http.StatusBadRequest)
		return
	}
	o.mu.Lock()
	deny := o.deny
	code := rand.Text()
	if !deny {
		o.codes[code] = grant{
			redirect: q.Get("redirect_uri"), challenge: q.Get("code_challenge"), method: method,
			offline: q.Get("token_access_type") == "offline",
			until:   time.Now().Add(10 * time.Minute),
		}
	}
	o.mu.Unlock()

	back := url.Values{"state": {q.Get("state")}}
	if deny {
		back.Set("error", "access_denied")
		back.Set("error_description", "The user chose not to give your app access to their Dropbox account.")
	} else {
		back.Set("code", code)
	}
	if q.Get("redirect_uri") == "" {
		fmt.Fprintf(w, "<html><body>Access code: <code>%s</code></body></html>", back.Get("code"))
		return
	}
	u, err := url.Parse(q.Get("redirect_uri"))
	if err != nil {
		http.Error(w, "Invalid redirect_uri", http.StatusBadRequest)
		return
	}
	u.RawQuery = back.Encode()
	http.Redirect(w, r, u.String(), http.StatusFound)
}

func (o *oauth) token(w http.ResponseWriter, r *http.Request) {
	fail := func(code, why string) {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": code, "error_description": why})
	}
	if r.Method != http.MethodPost || r.ParseForm() != nil {
		fail("invalid_request", "POST a form")
		return
	}
	f := r.PostForm
	client := f.Get("client_id")
	if user, _, ok := r.BasicAuth(); ok {
		client = user
	}
	if client != o.appKey {
		fail("invalid_client_id", "Invalid client_id")
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	res := map[string]any{
		"token_type": "bearer", "uid": "1", "account_id": accountID,
		"scope": "account_info.read files.content.read files.content.write files.metadata.read sharing.read sharing.write",
	}
	switch f.Get("grant_type") {
	case "authorization_code":
		g, ok := o.codes[f.Get("code")]
		delete(o.codes, f.Get("code"))
		switch {
		case !ok || time.Now().After(g.until):
			fail("invalid_grant", "code doesn't exist or has expired")
			return
		case g.redirect != f.Get("redirect_uri"):
			fail("invalid_grant", "redirect_uri mismatch")
			return
		case !verified(g, f.Get("code_verifier")):
			fail("invalid_grant", "invalid code verifier")
			return
		}
		if g.offline {
			token := rand.Text()
			o.refresh[token] = true
			res["refresh_token"] = token
		}
	case "refresh_token":
		if !o.refresh[f.Get("refresh_token")] {
			fail("invalid_grant", "refresh token is invalid or revoked")
			return
		}
	default:
		fail("unsupported_grant_type", "grant_type must be authorization_code or refresh_token")
		return
	}
	token := "sl." + rand.Text()
	o.access[token] = time.Now().Add(o.ttl)
	res["access_token"] = token
	res["expires_in"] = max(int(o.ttl/time.Second), 1)
	writeJSON(w, http.StatusOK, res)
}

// verified checks the proof of RFC 7636, section 4.6.
func verified(g grant, verifier string) bool {
	switch {
	case g.challenge == "":
		return false // a public client has no secret; PKCE is its only proof
	case g.method == "S256":
		sum := sha256.Sum256([]byte(verifier))
		verifier = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	return verifier == g.challenge
}

// ExpireTokens makes every access token that was issued by /oauth2/token
// expired. Refresh tokens stay good.
func (s *Server) ExpireTokens() {
	s.oauth.mu.Lock()
	defer s.oauth.mu.Unlock()
	for t, until := range s.oauth.access {
		if !until.IsZero() {
			s.oauth.access[t] = time.Unix(1, 0)
		}
	}
}

// RevokeAll makes every access and refresh token invalid, as when the user
// unlinks the app.
func (s *Server) RevokeAll() {
	s.oauth.mu.Lock()
	defer s.oauth.mu.Unlock()
	clear(s.oauth.access)
	clear(s.oauth.refresh)
}

// IssueRefreshToken returns a refresh token as a login would have obtained it.
func (s *Server) IssueRefreshToken() string {
	s.oauth.mu.Lock()
	defer s.oauth.mu.Unlock()
	t := rand.Text()
	s.oauth.refresh[t] = true
	return t
}

// DenyLogin has the user refuse every authorization from now on.
func (s *Server) DenyLogin() {
	s.oauth.mu.Lock()
	defer s.oauth.mu.Unlock()
	s.oauth.deny = true
}
