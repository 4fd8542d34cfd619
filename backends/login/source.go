package login

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"

	"github.com/sregfs/sregfs/backends"
)

// Names returns the settings under which a client's tokens are stored: the
// refresh token by itself, which a user may also give in the environment, and
// the whole token as JSON.
func Names(client string) (refresh, token string) {
	prefix := "SREGISTRY_" + strings.ToUpper(strings.ReplaceAll(client, "-", "_"))
	return prefix + "_REFRESH_TOKEN", prefix + "_OAUTH"
}

// Save stores a token for Load.
func Save(secrets backends.Secrets, client string, tok *oauth2.Token) error {
	data, err := json.Marshal(tok)
	if err != nil {
		return fmt.Errorf("store token of %s: %w", client, err)
	}
	refresh, token := Names(client)
	return secrets.SetSecrets(client, map[string]string{refresh: tok.RefreshToken, token: string(data)})
}

// Load returns the token that is set: a refresh token in the environment goes
// before what Save stored. It is nil when there is none.
func Load(s backends.Settings) *oauth2.Token {
	refresh, _ := Names(s.Client)
	// Lookup knows both places and asks the environment first.
	given := s.Lookup(refresh)
	if s.Secrets != nil {
		if tok := stored(s.Secrets, s.Client); tok != nil && (given == "" || given == tok.RefreshToken) {
			return tok
		}
	}
	if given == "" {
		return nil
	}
	return &oauth2.Token{RefreshToken: given}
}

func stored(secrets backends.Secrets, client string) *oauth2.Token {
	refresh, token := Names(client)
	tok := &oauth2.Token{}
	if json.Unmarshal([]byte(secrets.Secret(client, token)), tok) != nil {
		tok = &oauth2.Token{}
	}
	if r := secrets.Secret(client, refresh); r != "" && r != tok.RefreshToken {
		tok = &oauth2.Token{RefreshToken: r} // set by hand since
	}
	if tok.AccessToken == "" && tok.RefreshToken == "" {
		return nil
	}
	return tok
}

// refreshTimeout bounds one refresh. Everybody who waits shares it, so none of
// their contexts may end it.
const refreshTimeout = 30 * time.Second

// Source is an oauth2.TokenSource that stores what it refreshes. It is safe for
// concurrent use; many waiters share one refresh.
type Source struct {
	ctx     context.Context // carries the HTTP client; not anybody's request
	cfg     oauth2.Config
	secrets backends.Secrets
	client  string

	mu      sync.Mutex
	tok     *oauth2.Token
	refresh *refresh // under way, or nil
}

type refresh struct {
	done chan struct{}
	tok  *oauth2.Token
	err  error
}

var _ oauth2.TokenSource = (*Source)(nil)

// TokenSource returns a source that begins with tok, which may be expired or
// hold a refresh token alone. Refreshed and rotated tokens go into secrets,
// which may be nil; tokens that another process has put there meanwhile are
// used, when tok's own is refused. ctx gives the HTTP client (oauth2.HTTPClient), and ends refreshes when
// it is done.
//
// Its errors wrap backends.ErrAuth, with a hint to log in, only when the
// service refused the refresh token; backends.ErrUnreachable or ErrBusy when it
// could not be asked.
func TokenSource(ctx context.Context, cfg oauth2.Config, secrets backends.Secrets, client string, tok *oauth2.Token) *Source {
	return &Source{ctx: ctx, cfg: cfg, secrets: secrets, client: client, tok: tok}
}

// Token returns a token that is good for some seconds at least.
func (s *Source) Token() (*oauth2.Token, error) { return s.TokenContext(s.ctx) }

// TokenContext is Token, and stops waiting when ctx is done. The refresh goes
// on for the others.
func (s *Source) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	s.mu.Lock()
	if s.tok.Valid() {
		defer s.mu.Unlock()
		return s.tok, nil
	}
	r := s.refresh
	if r == nil {
		r = &refresh{done: make(chan struct{})}
		s.refresh = r
		old := s.tok
		go func() {
			r.tok, r.err = s.renew(old)
			s.mu.Lock()
			if r.err == nil {
				s.tok = r.tok
			}
			s.refresh = nil
			s.mu.Unlock()
			close(r.done)
		}()
	}
	s.mu.Unlock()
	select {
	case <-r.done:
		return r.tok, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Refused forgets tok, which the service refused before its time. It reports
// whether tok can be renewed.
func (s *Source) Refused(tok *oauth2.Token) bool {
	if tok.RefreshToken == "" {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tok != nil && s.tok.AccessToken == tok.AccessToken {
		old := *s.tok
		old.Expiry = time.Unix(1, 0)
		s.tok = &old
	}
	return true
}

// renew gets a new token for old.
func (s *Source) renew(old *oauth2.Token) (*oauth2.Token, error) {
	ctx, cancel := context.WithTimeout(s.ctx, refreshTimeout)
	defer cancel()
	used := ""
	if old != nil {
		used = old.RefreshToken
	}
	tok, err := s.exchange(ctx, used)
	if errors.Is(err, backends.ErrAuth) {
		// A service that rotates refresh tokens refuses one that another
		// process has used; what that process got is in the file. So is the
		// token of a login since.
		if now := s.another(old); now != nil {
			if now.Valid() {
				return now, nil
			}
			tok, err = s.exchange(ctx, now.RefreshToken)
		}
	}
	if err != nil {
		return nil, err
	}
	if s.keeps(used, tok) {
		if err := Save(s.secrets, s.client, tok); err != nil {
			// The token is good all the same, until the program ends.
			slog.Warn("a refreshed token could not be stored", "client", s.client, "err", err)
		}
	}
	return tok, nil
}

// keeps reports whether tok belongs into the file: when it follows one that is
// there, or when it holds the only copy of a rotated refresh token. One that
// the user gives in the environment is left there.
func (s *Source) keeps(used string, tok *oauth2.Token) bool {
	if s.secrets == nil {
		return false
	}
	now := stored(s.secrets, s.client)
	return tok.RefreshToken != used || now != nil && now.RefreshToken == used
}

// another returns the stored token when it is not old.
func (s *Source) another(old *oauth2.Token) *oauth2.Token {
	if s.secrets == nil {
		return nil
	}
	now := stored(s.secrets, s.client)
	if now == nil || old != nil && now.RefreshToken == old.RefreshToken && now.AccessToken == old.AccessToken {
		return nil
	}
	return now
}

func (s *Source) exchange(ctx context.Context, refreshToken string) (*oauth2.Token, error) {
	if refreshToken == "" {
		return nil, &backends.Error{Op: "refresh the token of", Client: s.client,
			Err: fmt.Errorf("%w: expired, and no refresh token is stored", backends.ErrAuth), Hint: hint(s.client)}
	}
	// The library keeps the old refresh token where the answer has none.
	tok, err := s.cfg.TokenSource(ctx, &oauth2.Token{RefreshToken: refreshToken}).Token()
	if err != nil {
		if s.ctx.Err() == nil && ctx.Err() != nil {
			return nil, &backends.Error{Op: "refresh the token of", Client: s.client,
				Err: fmt.Errorf("%w: no answer in %s", backends.ErrUnreachable, refreshTimeout)}
		}
		return nil, failure(ctx, "refresh the token of", s.client, err)
	}
	return tok, nil
}

// Tokens are where requests get their tokens from. Source is one.
type Tokens interface {
	// TokenContext returns a token that is good for some seconds at least.
	TokenContext(ctx context.Context) (*oauth2.Token, error)
	// Refused is told of a token that the service refused, and reports whether
	// TokenContext will give another one.
	Refused(tok *oauth2.Token) bool
}

// Transport returns a round tripper that authorizes requests to base with
// tokens. A request that is refused with 401 and can be sent again is sent once
// more with a fresh one. Unlike oauth2.Transport it stops waiting for a token
// when the request's context is done.
func Transport(tokens Tokens, base http.RoundTripper) http.RoundTripper {
	return &transport{tokens, base}
}

type transport struct {
	tokens Tokens
	base   http.RoundTripper
}

// RoundTrip is http.RoundTripper's.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	body := req.Body
	for again := false; ; again = true {
		tok, err := t.tokens.TokenContext(req.Context())
		if err != nil {
			if body != nil {
				body.Close()
			}
			return nil, err
		}
		out := req.Clone(req.Context())
		out.Body = body
		tok.SetAuthHeader(out)
		resp, err := t.base.RoundTrip(out)
		replay := body == nil || body == http.NoBody || req.GetBody != nil
		if err != nil || resp.StatusCode != http.StatusUnauthorized || again || !replay || !t.tokens.Refused(tok) {
			return resp, err
		}
		if body != nil && body != http.NoBody {
			if body, err = req.GetBody(); err != nil {
				return resp, nil
			}
		}
		resp.Body.Close()
	}
}
