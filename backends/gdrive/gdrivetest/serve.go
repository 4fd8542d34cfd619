package gdrivetest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Hosts are the names under which Google serves what the emulator does; a TLS
// server's certificate covers them.
var Hosts = []string{"www.googleapis.com", "oauth2.googleapis.com", "accounts.google.com"}

// Server is a Drive that listens on the loopback interface.
type Server struct {
	*Drive
	// URL is the server's, without a slash at its end: "http://127.0.0.1:4711".
	URL string

	http   *http.Server
	ca     []byte
	cancel context.CancelFunc // ends every request's context
	served sync.WaitGroup
}

// NewServer is Start for tests: it panics when that fails.
func NewServer(opts Options) *Server {
	s, err := Start(opts)
	if err != nil {
		panic("gdrivetest: " + err.Error())
	}
	return s
}

// Start starts a Drive. The caller closes it.
func Start(opts Options) (*Server, error) {
	d, err := New(opts)
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", or(opts.Addr, "127.0.0.1:0"))
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{Drive: d, URL: "http://" + ln.Addr().String(), cancel: cancel}
	s.http = &http.Server{
		Handler:           d,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: time.Minute,
		// Answers that are cut on purpose are no news.
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	far := &farListener{ln, &d.link}
	serve := func() error { return s.http.Serve(far) }
	if opts.Certificate != nil {
		ca, cert, err := opts.Certificate(Hosts, ln.Addr().(*net.TCPAddr).IP)
		if err != nil {
			cancel()
			return nil, errors.Join(fmt.Errorf("make a certificate: %w", err), ln.Close(), d.Close())
		}
		s.ca, s.URL = ca, "https://"+ln.Addr().String()
		s.http.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		serve = func() error { return s.http.ServeTLS(far, "", "") }
	}
	s.served.Go(func() {
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("gdrivetest: serve", "err", err)
		}
	})
	return s, nil
}

func or(v, def string) string {
	if v == "" {
		return def
	}
	return v
}

// Endpoint is the API's base, for option.WithEndpoint.
func (s *Server) Endpoint() string { return s.URL + "/drive/v3/" }

// CA is the PEM certificate of the authority behind a TLS server, for
// SSL_CERT_FILE; nil without TLS.
func (s *Server) CA() []byte { return s.ca }

// Close stops the server and frees what the Drive holds. Connections that are
// under way are cut.
func (s *Server) Close() error {
	s.cancel()
	err := s.http.Close()
	s.served.Wait()
	return errors.Join(err, s.Drive.Close())
}

// handler answers one method of the API. What it returns is told as JSON; nil
// means that it has answered itself.
type handler func(w http.ResponseWriter, r *http.Request) (any, *apiError)

// routing finds the handler and the name of a request's method.
type routing struct {
	mux *http.ServeMux
}

// route is what a pattern leads to.
type route struct {
	name   string
	open   bool // needs no token
	handle handler
}

// ServeHTTP is reached through Drive.ServeHTTP alone; a route in the mux is
// only looked up there.
func (route) ServeHTTP(w http.ResponseWriter, _ *http.Request) { http.NotFound(w, nil) }

func (d *Drive) routes() routing {
	mux := http.NewServeMux()
	add := func(pattern, name string, open bool, h handler) {
		mux.Handle(pattern, route{name, open, h})
	}
	const files, upload = "/drive/v3/files", "/upload/drive/v3/files"
	add("GET /drive/v3/about", "about.get", false, d.aboutGet)
	add("GET /drive/v3/drives", "drives.list", false, d.drivesList)
	add("GET /drive/v3/changes/startPageToken", "changes.getStartPageToken", false, d.changesStart)
	add("GET /drive/v3/changes", "changes.list", false, d.changesList)
	add("GET "+files, "files.list", false, d.filesList)
	add("POST "+files, "files.create", false, d.filesCreate)
	add("DELETE "+files+"/trash", "files.emptyTrash", false, d.filesEmptyTrash)
	add("GET "+files+"/generateIds", "files.generateIds", false, d.filesGenerateIDs)
	add("GET "+files+"/{id}", "files.get", false, d.filesGet)
	add("PATCH "+files+"/{id}", "files.update", false, d.filesUpdate)
	add("DELETE "+files+"/{id}", "files.delete", false, d.filesDelete)
	add("POST "+files+"/{id}/copy", "files.copy", false, d.filesCopy)
	add("GET "+files+"/{id}/revisions", "revisions.list", false, d.revisionsList)
	add("GET "+files+"/{id}/revisions/{rev}", "revisions.get", false, d.revisionsGet)
	add("PATCH "+files+"/{id}/revisions/{rev}", "revisions.update", false, d.revisionsUpdate)
	add("DELETE "+files+"/{id}/revisions/{rev}", "revisions.delete", false, d.revisionsDelete)
	add("GET "+files+"/{id}/permissions", "permissions.list", false, d.permissionsList)
	add("POST "+files+"/{id}/permissions", "permissions.create", false, d.permissionsCreate)
	add("DELETE "+files+"/{id}/permissions/{perm}", "permissions.delete", false, d.permissionsDelete)
	add("POST "+upload, "files.create", false, d.uploadStart)
	add("PATCH "+upload+"/{id}", "files.update", false, d.uploadStart)
	// A session's URI is a secret of its own: it needs no token.
	for _, path := range []string{upload, upload + "/{id}"} {
		add("PUT "+path, "upload", true, d.uploadPut)
		add("DELETE "+path, "upload.cancel", true, d.uploadCancel)
	}
	add("POST "+upload+"/{id}", "upload", true, d.uploadPut)
	for _, path := range []string{"/token", "/oauth2/v4/token", "/o/oauth2/token"} {
		add("POST "+path, "oauth.token", true, d.oauthToken)
	}
	for _, path := range []string{"/o/oauth2/auth", "/o/oauth2/v2/auth"} {
		add("GET "+path, "oauth.authorize", true, d.oauthAuthorize)
	}
	add("POST /revoke", "oauth.revoke", true, d.oauthRevoke)
	return routing{mux}
}

// lookup finds a request's route and fills its path values in.
func (rt routing) lookup(r *http.Request) (route, bool) {
	h, pattern := rt.mux.Handler(r)
	found, ok := h.(route)
	if !ok {
		return route{name: "unknown"}, false
	}
	// Handler does not set path values; the patterns are few and plain.
	_, path, _ := strings.Cut(pattern, " ")
	want, have := strings.Split(path, "/"), strings.Split(r.URL.Path, "/")
	for i, w := range want {
		if strings.HasPrefix(w, "{") && i < len(have) {
			r.SetPathValue(strings.Trim(w, "{}"), have[i])
		}
	}
	if r.URL.Query().Get("upload_id") != "" && r.Method == http.MethodPost {
		// The client library sends an upload's parts by POST.
		found = route{"upload", true, nil}
	}
	if r.URL.Query().Get("alt") == "media" && r.Method == http.MethodGet {
		found.name += ".media"
	}
	return found, true
}

// ServeHTTP answers as Drive does, after the link's delays and with the faults
// that were asked for.
func (d *Drive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Date", time.Now().Add(d.opts.Skew).UTC().Format(http.TimeFormat))
	rt, ok := d.lookup(r)
	w, fault, done := d.begin(rt.name, w, r)
	defer done()
	if !d.inject(fault, w, r) {
		return
	}
	if !ok {
		writeError(w, &apiError{code: 404, reason: "notFound", message: "Not Found"})
		return
	}
	handle := rt.handle
	if handle == nil {
		handle = d.uploadPut
	}
	var err *apiError
	if !rt.open {
		err = d.authorize(r)
	}
	var answer any
	if err == nil {
		answer, err = handle(w, r)
	}
	switch {
	case err != nil:
		writeError(w, err)
	case answer != nil:
		writeJSON(w, http.StatusOK, answer)
	}
}
