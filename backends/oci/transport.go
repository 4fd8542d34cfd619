package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/pacer"
)

// errPlain: something wanted to leave TLS.
var errPlain = fmt.Errorf("%w: it would go on without TLS", backends.ErrUnreachable)

// guard stands below what adds credentials, and above the pacer. It lets no
// request out that is not encrypted, unless the registry is one without TLS:
// the library goes by the host's name (an address of a private network, say),
// and redirects by what a server says.
type guard struct {
	plain bool
	host  string
	agent string
	next  http.RoundTripper
}

// RoundTrip is http.RoundTripper's.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	// A plain registry is not asked with TLS first: it would take its time to
	// fail.
	if tls := req.URL.Scheme == "https"; !tls && !g.plain || tls && g.plain && req.URL.Host == g.host {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, errPlain
	}
	req = req.Clone(req.Context())
	if g.agent != "" {
		req.Header.Set("User-Agent", g.agent)
	}
	if req.GetBody != nil {
		// What adds tokens sends a request again whose token has expired, with
		// the body that the first try has read.
		body, err := req.GetBody()
		if err != nil {
			return nil, err
		}
		if req.Body != nil {
			req.Body.Close()
		}
		req.Body = body
	}
	return g.next.RoundTrip(req)
}

// access is what a session may do.
type access int

const (
	pull access = iota
	push
	remove
	catalogue
)

// session names what one sign-in is for: registries give tokens for a
// repository and an act.
type session struct {
	repository string
	access     access
}

// maxSessions bounds how many sign-ins are remembered.
const maxSessions = 2000

// sign returns an HTTP client that is signed in for the session.
func (s *Store) sign(ctx context.Context, n session) (*http.Client, error) {
	s.mu.Lock()
	c := s.sessions[n]
	s.mu.Unlock()
	if c != nil {
		return c, nil
	}
	repo := s.registry.Repo(n.repository)
	var scopes []string
	switch n.access {
	case pull:
		scopes = []string{repo.Scope(transport.PullScope)}
	case push:
		scopes = []string{repo.Scope(transport.PushScope)}
	case remove:
		scopes = []string{repo.Scope(transport.PushScope + "," + transport.DeleteScope)}
	case catalogue:
		scopes = []string{s.registry.Scope(transport.CatalogScope)}
	}
	t, err := transport.NewWithContext(ctx, s.registry, s.creds, s.transport, scopes)
	if err != nil {
		if ctx.Err() != nil {
			return nil, pacer.Ended(ctx, err)
		}
		return nil, signIn(err)
	}
	c = &http.Client{Transport: t}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) >= maxSessions {
		clear(s.sessions)
	}
	s.sessions[n] = c
	return c, nil
}

// call is one request.
type call struct {
	session
	method string
	// url is absolute, or a path below /v2/.
	url    string
	header map[string]string
	accept []string
	// body has size bytes from off; nil for none.
	body io.ReaderAt
	off  int64
	size int64
}

// do sends the call and returns an answer whose status is among ok. The caller
// closes its body. Errors wrap a kind, and are refusals where the registry
// answered.
func (s *Store) do(ctx context.Context, c call, ok ...int) (*http.Response, error) {
	client, err := s.sign(ctx, c.session)
	if err != nil {
		return nil, err
	}
	url := c.url
	if !strings.Contains(url, "://") {
		url = s.base + "/v2/" + url
	}
	req, err := http.NewRequestWithContext(ctx, c.method, url, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: the registry gave an address that makes no sense", backends.ErrUnreachable)
	}
	for k, v := range c.header {
		req.Header.Set(k, v)
	}
	if len(c.accept) > 0 {
		req.Header.Set("Accept", strings.Join(c.accept, ", "))
	}
	if c.body != nil {
		req.ContentLength = c.size
		req.GetBody = func() (io.ReadCloser, error) {
			if c.size == 0 {
				return http.NoBody, nil
			}
			return io.NopCloser(io.NewSectionReader(c.body, c.off, c.size)), nil
		}
		req.Body, _ = req.GetBody()
	}
	resp, err := client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, pacer.Ended(ctx, err)
		}
		var refused *transport.Error
		if errors.As(err, &refused) { // a token that could not be renewed
			return nil, signIn(err)
		}
		return nil, lost(err)
	}
	if err := checkStatus(resp, ok...); err != nil {
		return nil, err
	}
	return resp, nil
}

// text is a short body.
func text(b []byte) (body io.ReaderAt, size int64) { return bytes.NewReader(b), int64(len(b)) }

// errBrokenOff: an answer ended in its middle.
var errBrokenOff = fmt.Errorf("%w: its answer breaks off", backends.ErrUnreachable)

// shortTries is how often a short answer is asked for that breaks off.
const shortTries = 3

// get sends a call whose answer is short, and reads it; again when it breaks
// off.
func (s *Store) get(ctx context.Context, c call, limit int64) (*http.Response, []byte, error) {
	for try := 1; ; try++ {
		resp, err := s.do(ctx, c, http.StatusOK)
		if err != nil {
			return nil, nil, err
		}
		body, err := readShort(ctx, resp, limit)
		if err == nil {
			return resp, body, nil
		}
		if try == shortTries || !errors.Is(err, errBrokenOff) {
			return nil, nil, err
		}
	}
}

// readShort reads an answer's body, which must not be longer than limit, and
// closes it. One that stands still has taken long enough to be no errBrokenOff.
func readShort(ctx context.Context, resp *http.Response, limit int64) ([]byte, error) {
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, backends.ErrUnreachable):
		return nil, lost(err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errBrokenOff, innermost(err))
	case int64(len(b)) > limit:
		return nil, fmt.Errorf("%w: an answer of more than %d bytes", backends.ErrCorrupt, limit)
	}
	return b, nil
}
