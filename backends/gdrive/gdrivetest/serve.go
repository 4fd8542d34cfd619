package gdrivetest

import (
	"net/http"
	"net/http/httptest"
	"strings"
)

// Server is a Drive that listens on the loopback interface.
type Server struct {
	*Drive
	// URL is the server's, without a slash at its end: "http://127.0.0.1:4711".
	URL  string
	http *httptest.Server
}

// NewServer starts a Drive. It panics where httptest.NewServer does: when
// there is no loopback interface, or no temporary directory. The caller closes
// it.
func NewServer(opts Options) *Server {
	d, err := New(opts)
	if err != nil {
		panic(err)
	}
	s := httptest.NewServer(d)
	return &Server{Drive: d, URL: s.URL, http: s}
}

// Endpoint is the API's base, for option.WithEndpoint.
func (s *Server) Endpoint() string { return s.URL + "/drive/v3/" }

// TokenURL is the OAuth token endpoint.
func (s *Server) TokenURL() string { return s.URL + "/token" }

// AuthURL is the page that asks the user for consent.
func (s *Server) AuthURL() string { return s.URL + "/o/oauth2/auth" }

// Close stops the server and frees what the Drive holds. Connections that are
// under way are cut.
func (s *Server) Close() error {
	s.http.CloseClientConnections()
	s.http.Close()
	return s.Drive.Close()
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
