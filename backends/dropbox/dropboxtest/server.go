// Package dropboxtest is a Dropbox account behind an HTTP server on this
// machine, in the manner of net/http/httptest: the part of the Dropbox API v2
// that stores and file managers use, with the documented answers, limits,
// typed errors, paging and cursors, so that the unmodified SDK, or rclone, can
// be driven against it. What it does follows the HTTP documentation
// (https://www.dropbox.com/developers/documentation/http/documentation) and the
// comments of the official SDK.
//
// Besides, it does on demand what a real service does at the worst moment:
// faults (SetHook), latency and bandwidth (Options), expiring tokens, a full
// account, forgotten revisions and cursors. It counts requests and bytes by
// route. It is for tests and benchmarks alone.
//
// It knows nothing of images; every path is a file or a folder. Start at New.
package dropboxtest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// Options is how a Server begins. The zero value is a plain HTTP server on a
// free loopback port with an empty account of 2 GB and no delays.
type Options struct {
	// Addr is the address to listen on, "127.0.0.1:0" when empty.
	Addr string
	// TLS serves HTTPS, with a certificate from the server's own authority
	// (Server.CA) for Dropbox's host names and the listening address.
	TLS bool
	// Token is the access token that is accepted from the start and never
	// expires, DefaultToken when empty.
	Token string
	// AppKey is the client_id that authorization accepts, DefaultAppKey when
	// empty.
	AppKey string
	// TokenTTL is how long tokens that /oauth2/token issues are good for, four
	// hours when 0, as Dropbox has it.
	TokenTTL time.Duration
	// Space is the account's size in bytes, 2 GB when 0.
	Space int64
	// Latency is waited before each answer, and once more when a connection is
	// made: the round trip.
	Latency time.Duration
	// Bandwidth in bytes a second is what all connections share, in each
	// direction; 0 for no limit.
	Bandwidth int64
	// PageSize is the number of entries of a listing whose limit was not
	// given, 500 when 0.
	PageSize int
	// PageMax makes pages shorter than their limit, which is "an approximate
	// number"; 0 for not.
	PageMax int
	// LongpollMax cuts every longpoll short, so that a test need not wait the
	// 30 seconds that a caller must at least ask for; 0 for no cut.
	LongpollMax time.Duration
	// LossyDisplay makes path_display right in its last component alone and
	// lower case in the others, which Dropbox documents as possible.
	LossyDisplay bool
	// Skew is how far its clock is ahead of this machine's.
	Skew time.Duration
	// DisplayName is the account holder's, "Vanessa S" when empty.
	DisplayName string
}

// What New fills in for the fields of Options that are empty.
const (
	DefaultToken  = "dropboxtest-token"
	DefaultAppKey = "dropboxtestkey"
)

// Server is a running emulator. Methods are safe for concurrent use.
type Server struct {
	// URL is the server's base, "http://127.0.0.1:4711", without a slash at
	// the end. API routes lie at URL/2/…, authorization at URL/oauth2/….
	URL string

	opts   Options
	http   *http.Server
	ca     []byte
	dir    string // of the files that hold uploaded content
	link   *link
	counts counters
	served sync.WaitGroup
	cancel context.CancelFunc // ends every request's context

	acct  *account
	oauth *oauth

	mu       sync.Mutex // guards what follows
	hook     func(*http.Request) *Fault
	backoff  time.Duration
	sessions map[string]*session
}

// New starts a server. Close ends it. It panics when it cannot listen, as
// httptest does.
func New(opts Options) *Server {
	s, err := Start(opts)
	if err != nil {
		panic("dropboxtest: " + err.Error())
	}
	return s
}

// Start is New for programs: it returns what New panics with.
func Start(opts Options) (*Server, error) {
	opts.Addr = or(opts.Addr, "127.0.0.1:0")
	opts.Token = or(opts.Token, DefaultToken)
	opts.AppKey = or(opts.AppKey, DefaultAppKey)
	opts.TokenTTL = or(opts.TokenTTL, 4*time.Hour)
	opts.Space = or(opts.Space, 2<<30)
	opts.PageSize = or(opts.PageSize, 500)
	opts.DisplayName = or(opts.DisplayName, "Vanessa S")

	dir, err := os.MkdirTemp("", "dropboxtest")
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", opts.Addr)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	s := &Server{
		opts:     opts,
		dir:      dir,
		link:     new(link),
		acct:     newAccount(opts.Space, opts.Skew),
		oauth:    newOAuth(opts),
		sessions: make(map[string]*session),
	}
	s.link.set(opts.Latency, opts.Bandwidth)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.http = &http.Server{
		Handler:           s,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: time.Minute,
		// Aborted answers are this server's business, not the test log's.
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	s.URL = "http://" + ln.Addr().String()
	slow := &slowListener{Listener: ln, link: s.link}
	serve := func() error { return s.http.Serve(slow) }
	if opts.TLS {
		s.URL = "https://" + ln.Addr().String()
		ca, cert, err := Certificate(Hosts, ln.Addr().(*net.TCPAddr).IP)
		if err != nil {
			cancel()
			ln.Close()
			os.RemoveAll(dir)
			return nil, fmt.Errorf("make certificate: %w", err)
		}
		s.ca = ca
		s.http.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		serve = func() error { return s.http.ServeTLS(slow, "", "") }
	}
	s.served.Go(func() {
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("dropboxtest: serve", "err", err)
		}
	})
	return s, nil
}

// Close ends the server, its connections and waits, and deletes its files. A
// second call does nothing.
func (s *Server) Close() {
	s.cancel()
	s.http.Close()
	s.served.Wait()
	s.acct.close()
	s.dropSessions()
	os.RemoveAll(s.dir)
}

// Token is the access token that never expires.
func (s *Server) Token() string { return s.opts.Token }

// AppKey is the client_id that authorization accepts.
func (s *Server) AppKey() string { return s.opts.AppKey }

// CA is the PEM certificate of the authority behind a TLS server, for
// SSL_CERT_FILE; nil without TLS.
func (s *Server) CA() []byte { return s.ca }

// Hosts are Dropbox's host names, which a TLS server's certificate covers.
var Hosts = []string{"api.dropboxapi.com", "content.dropboxapi.com", "notify.dropboxapi.com", "www.dropbox.com"}

// SetHook has f called with each request before it is handled; f returns what
// is to go wrong with it, or nil. A nil f takes the hook away. f must not read
// the body. Route gives the request's route.
func (s *Server) SetHook(f func(*http.Request) *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = f
}

// Route is a request's route, "files/list_folder" or "oauth2/token".
func Route(r *http.Request) string {
	p := strings.TrimPrefix(r.URL.Path, "/")
	return strings.TrimPrefix(p, "2/")
}

// ServeHTTP is how the emulator answers; exported so that it can stand behind
// another server.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	route := Route(r)
	count := s.counts.of(route)
	count.requests.Add(1)
	r.Body = &meteredBody{ReadCloser: r.Body, ctx: ctx, link: s.link, count: count}
	out := &wire{ResponseWriter: w, ctx: ctx, link: s.link, count: count, flip: -1, end: -1}
	w.Header().Set("Date", time.Now().Add(s.opts.Skew).UTC().Format(http.TimeFormat))
	if s.link.wait(ctx) != nil {
		panic(http.ErrAbortHandler)
	}

	s.mu.Lock()
	hook := s.hook
	s.mu.Unlock()
	if hook != nil {
		if f := hook(r); f != nil {
			f.apply(ctx, out, r, func(w http.ResponseWriter) { s.dispatch(w, r, route) })
			return
		}
	}
	s.dispatch(out, r, route)
}

func (s *Server) dispatch(w http.ResponseWriter, r *http.Request, route string) {
	switch {
	case route == "oauth2/authorize":
		s.oauth.authorize(w, r)
		return
	case route == "oauth2/token":
		s.oauth.token(w, r)
		return
	case strings.HasPrefix(route, "s/"):
		s.openLink(w, r)
		return
	}
	e, ok := endpoints[route]
	if !ok || !strings.HasPrefix(r.URL.Path, "/2/") {
		http.Error(w, fmt.Sprintf("Unknown API function: %q", route), http.StatusNotFound)
		return
	}
	if err := s.admit(r, route, e); err != nil {
		err.write(w)
		return
	}
	if err := e.handle(s, w, r); err != nil {
		err.write(w)
	}
}

// admit checks what is common to all routes: host, method, token, headers.
func (s *Server) admit(r *http.Request, route string, e endpoint) *apiError {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	if strings.HasSuffix(host, ".dropboxapi.com") && host != e.host() {
		return badRequest(route, "This API function operates on the hostname %q (got %q).", e.host(), host)
	}
	if r.Method != http.MethodPost && (e.style != download || r.Method != http.MethodGet) {
		return badRequest(route, "Your request method is %q. This API function supports POST.", r.Method)
	}
	auth := r.Header.Get("Authorization")
	if e.style == notify {
		if auth != "" {
			return badRequest(route, `Bad HTTP "Authorization" header: this API function takes none.`)
		}
	} else if err := s.oauth.check(route, auth); err != nil {
		return err
	}
	if root := r.Header.Get("Dropbox-API-Path-Root"); root != "" {
		if err := checkPathRoot(route, root); err != nil {
			return err
		}
	}
	return nil
}

func or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}
