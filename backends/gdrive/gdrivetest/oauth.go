package gdrivetest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// ClientID and ClientSecret are those of the OAuth client that the Drive
// knows.
const (
	ClientID     = "294329414046-emulated.apps.googleusercontent.com"
	ClientSecret = "GOCSPX-emulated"
)

// ServiceAccount is the address of the service account that the Drive knows.
const ServiceAccount = "robot@emulated.iam.gserviceaccount.com"

const driveScope = "https://www.googleapis.com/auth/drive"

// authState is what the token endpoint remembers. Drive.mu guards it.
type authState struct {
	access  map[string]time.Time // token, end of its life
	refresh map[string]bool
	codes   map[string]code
	denied  bool
}

// code is an authorization code that was not yet used.
type code struct{ redirect, challenge, method string }

// serviceKey is made once: it is slow.
var serviceKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func (a *authState) init() {
	a.access, a.refresh, a.codes = map[string]time.Time{}, map[string]bool{}, map[string]code{}
}

// authorize checks a request's bearer token.
func (d *Drive) authorize(r *http.Request) *apiError {
	header := r.Header.Get("Authorization")
	if header == "" {
		return errNoAuth
	}
	token, ok := strings.CutPrefix(header, "Bearer ")
	d.mu.Lock()
	defer d.mu.Unlock()
	switch end, known := d.auth.access[token]; {
	case !ok || d.auth.denied:
		return errAuth
	case d.opts.Token != "" && token == d.opts.Token:
		return nil
	case !known || time.Now().After(end):
		return errAuth
	}
	return nil
}

// AccessToken gives out a token that lives as those of the token endpoint do.
func (d *Drive) AccessToken() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.accessToken()
}

func (d *Drive) accessToken() string {
	t := "ya29.a0" + newID(60)
	d.auth.access[t] = time.Now().Add(d.opts.TokenLife)
	return t
}

// RefreshToken gives out a refresh token, as if the user had consented.
func (d *Drive) RefreshToken() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.refreshToken()
}

func (d *Drive) refreshToken() string {
	t := "1//0" + newID(60)
	d.auth.refresh[t] = true
	return t
}

// ExpireTokens ends the life of all access tokens; refresh tokens stay good.
func (d *Drive) ExpireTokens() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.auth.access)
}

// Revoke takes the user's consent back: no token is good any more.
func (d *Drive) Revoke() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.auth.access)
	clear(d.auth.refresh)
	d.auth.denied = d.opts.Token != ""
}

// oauthError is an answer of RFC 6749, section 5.2.
func oauthError(status int, kind, description string) (any, *apiError) {
	return nil, &apiError{code: status, reason: kind, message: description, oauth: true}
}

// oauthAuthorize consents at once and redirects with a code (RFC 6749, section
// 4.1; RFC 7636; loopback redirects as in RFC 8252, section 7.3).
func (d *Drive) oauthAuthorize(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	q := r.URL.Query()
	to, err := url.Parse(q.Get("redirect_uri"))
	switch {
	case q.Get("client_id") != ClientID:
		return oauthError(401, "invalid_client", "The OAuth client was not found.")
	case err != nil || to.Scheme != "http" || to.Hostname() != "127.0.0.1" && to.Hostname() != "localhost" && to.Hostname() != "::1":
		return oauthError(400, "redirect_uri_mismatch", "The redirect URI does not match those of the client.")
	case q.Get("response_type") != "code":
		return oauthError(400, "unsupported_response_type", "Only code is supported.")
	case !slices.Contains(strings.Fields(q.Get("scope")), driveScope):
		return oauthError(400, "invalid_scope", "Some requested scopes were invalid.")
	}
	c := code{redirect: q.Get("redirect_uri"), challenge: q.Get("code_challenge"), method: q.Get("code_challenge_method")}
	answer := to.Query()
	if m := c.method; c.challenge != "" && m != "S256" && m != "plain" && m != "" {
		return oauthError(400, "invalid_request", "Invalid code_challenge_method.")
	}
	key := "4/0A" + newID(60)
	d.mu.Lock()
	d.auth.codes[key] = c
	d.mu.Unlock()
	answer.Set("code", key)
	answer.Set("scope", q.Get("scope"))
	if s := q.Get("state"); s != "" {
		answer.Set("state", s)
	}
	to.RawQuery = answer.Encode()
	http.Redirect(w, r, to.String(), http.StatusFound)
	return nil, nil
}

// oauthToken is the token endpoint.
func (d *Drive) oauthToken(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	if err := r.ParseForm(); err != nil {
		return oauthError(400, "invalid_request", "Bad body.")
	}
	form := r.PostForm
	grant := form.Get("grant_type")
	if grant == "urn:ietf:params:oauth:grant-type:jwt-bearer" {
		return d.oauthJWT(w, r, form.Get("assertion"))
	}
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = form.Get("client_id"), form.Get("client_secret")
	}
	if id != ClientID || secret != ClientSecret {
		return oauthError(401, "invalid_client", "The OAuth client was not found.")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[string]any{"token_type": "Bearer", "expires_in": int(d.opts.TokenLife / time.Second), "scope": driveScope}
	switch grant {
	case "authorization_code":
		c, ok := d.auth.codes[form.Get("code")]
		delete(d.auth.codes, form.Get("code"))
		if !ok || c.redirect != form.Get("redirect_uri") || !c.verify(form.Get("code_verifier")) {
			return oauthError(400, "invalid_grant", "Malformed auth code.")
		}
		out["refresh_token"] = d.refreshToken()
	case "refresh_token":
		if !d.auth.refresh[form.Get("refresh_token")] {
			return oauthError(400, "invalid_grant", "Token has been expired or revoked.")
		}
	default:
		return oauthError(400, "unsupported_grant_type", "Invalid grant_type: "+grant)
	}
	out["access_token"] = d.accessToken()
	return out, nil
}

// verify checks a PKCE verifier (RFC 7636, section 4.6).
func (c code) verify(verifier string) bool {
	if c.challenge == "" {
		return verifier == ""
	}
	want := verifier
	if c.method == "S256" {
		sum := sha256.Sum256([]byte(verifier))
		want = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	return verifier != "" && subtle.ConstantTimeCompare([]byte(want), []byte(c.challenge)) == 1
}

// oauthJWT is the grant of RFC 7523 with a service account's key, as
// https://developers.google.com/identity/protocols/oauth2/service-account has it.
func (d *Drive) oauthJWT(w http.ResponseWriter, r *http.Request, assertion string) (any, *apiError) {
	key, err := serviceKey()
	if err != nil {
		return nil, &apiError{code: 500, reason: "internalError", message: err.Error()}
	}
	bad := func(why string) (any, *apiError) { return oauthError(400, "invalid_grant", why) }
	parts := strings.Split(assertion, ".")
	if len(parts) != 3 {
		return bad("Invalid JWT.")
	}
	var head struct{ Alg string }
	var claims struct {
		Iss, Scope, Aud string
		Iat, Exp        int64
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || decodePart(parts[0], &head) != nil || decodePart(parts[1], &claims) != nil || head.Alg != "RS256" {
		return bad("Invalid JWT.")
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if claims.Iss != ServiceAccount || rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, sum[:], sig) != nil {
		return bad("Invalid JWT Signature.")
	}
	now := time.Now().Add(d.opts.Skew).Unix()
	if claims.Iat > now+300 || claims.Exp < now || claims.Exp > claims.Iat+3600 {
		return bad("Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe.")
	}
	aud, err := url.Parse(claims.Aud)
	if err != nil || aud.Path != r.URL.Path || aud.Host != r.Host && aud.Host != "oauth2.googleapis.com" {
		return bad("Invalid JWT: the audience is another.")
	}
	if !slices.Contains(strings.Fields(claims.Scope), driveScope) {
		return oauthError(400, "invalid_scope", "Invalid OAuth scope or ID token audience provided.")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return map[string]any{
		"access_token": d.accessToken(), "token_type": "Bearer", "expires_in": int(d.opts.TokenLife / time.Second),
	}, nil
}

func decodePart(s string, v any) error {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

func (d *Drive) oauthRevoke(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	if err := r.ParseForm(); err != nil {
		return oauthError(400, "invalid_request", "Bad body.")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.auth.refresh, r.Form.Get("token"))
	delete(d.auth.access, r.Form.Get("token"))
	return map[string]any{}, nil
}

// ClientFile is the OAuth client file that Google's console gives for a
// desktop application, with the endpoints below base ("http://127.0.0.1:4711").
func ClientFile(base string) []byte {
	return mustJSON(map[string]any{"installed": map[string]any{
		"client_id": ClientID, "client_secret": ClientSecret, "project_id": "emulated",
		"auth_uri": base + "/o/oauth2/auth", "token_uri": base + "/token",
		"redirect_uris": []string{"http://localhost"},
	}})
}

// ServiceAccountFile is the service account's key file, with the token
// endpoint below base.
func ServiceAccountFile(base string) ([]byte, error) {
	key, err := serviceKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return mustJSON(map[string]any{
		"type": "service_account", "project_id": "emulated", "private_key_id": "1",
		"private_key":  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"client_email": ServiceAccount, "client_id": "1", "token_uri": base + "/token",
	}), nil
}

func mustJSON(v any) []byte {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic("gdrivetest: " + err.Error()) // plain maps and strings marshal
	}
	return b
}
