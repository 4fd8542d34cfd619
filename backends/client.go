package backends

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
)

// Client is a kind of store that the program knows how to open. The list of
// all of them is in backends/all.
type Client struct {
	// Name is the directory's name in the tree, and the client's in URIs.
	Name string
	// Aliases are further names that are accepted for it.
	Aliases []string
	// RecordName is what the Python client calls it in the database; Name when
	// empty.
	RecordName string
	// About says in a few words what it is.
	About string
	// Open makes the store from what is set. It fails with ErrNotConfigured,
	// hinting at what is lacking, when credentials are absent. It must not wait
	// for the network: a store whose service is down opens all the same.
	Open func(ctx context.Context, s Settings) (Store, error)
	// Login gets credentials from the user and stores them in s.Secrets; nil
	// for clients that need none. It says on term.Out what the user must do.
	Login func(ctx context.Context, s Settings, term Terminal) error
}

// Terminal is how a login talks with its user.
type Terminal struct {
	In  io.Reader
	Out io.Writer
	// OpenURL shows a page in the user's browser; nil with --no-browser, when
	// the URL is printed and the code is read from In.
	OpenURL func(url string) error
}

// Secrets are the stored settings of clients, kept between runs in the file
// that SREGISTRY_CLIENT_SECRETS names. Safe for concurrent use.
type Secrets interface {
	// Secret returns a client's stored setting, "" when there is none.
	Secret(client, name string) string
	// SetSecrets stores settings of a client, all or none of them, and leaves
	// everything else in the file as it is; an empty value deletes.
	SetSecrets(client string, values map[string]string) error
}

// Settings is what a client is opened with.
type Settings struct {
	// Client is the name under which it is opened (a configured registry's own
	// name, else Client.Name).
	Client string
	// Getenv is os.Getenv, or a test's.
	Getenv func(string) string
	// Secrets may be nil.
	Secrets Secrets
	// Transport is what every request of the client goes through; nil for
	// http.DefaultTransport. Retries and pacing are put around it by the
	// client.
	Transport http.RoundTripper
	// Log gets what a user may want to know; never nil, never a secret in it.
	Log *slog.Logger
	// Parallel is the number of transfers that may run at once
	// (SREGISTRY_PYTHON_THREADS).
	Parallel int
	// UserAgent is sent with every request.
	UserAgent string
}

// Connector is a Transport that can make a connection ahead of the request for
// it.
type Connector interface {
	// Connect makes a connection to the host of an address ready, if there is
	// none. It returns at once; failure is told to nobody.
	Connect(address string)
}

// Connect makes a connection ready where the Transport can.
func (s Settings) Connect(address string) {
	if c, ok := s.Transport.(Connector); ok {
		c.Connect(address)
	}
}

// Lookup returns the value of the first of the variables names that is set: in
// the environment, then in the client's stored settings. White space and
// quotes around a value, which a shell line with spaces round its "=" leaves
// there, are cut off.
func (s Settings) Lookup(names ...string) string {
	for _, n := range names {
		if v := clean(s.Getenv(n)); v != "" {
			return v
		}
	}
	if s.Secrets != nil {
		for _, n := range names {
			if v := clean(s.Secrets.Secret(s.Client, n)); v != "" {
				return v
			}
		}
	}
	return ""
}

// Bool reports whether the first of the variables names that is set means yes.
func (s Settings) Bool(names ...string) bool {
	return IsYes(s.Lookup(names...))
}

// IsYes reports whether s is a yes: yes, y, true, t, on or 1, in any case.
func IsYes(s string) bool {
	switch strings.ToLower(s) {
	case "yes", "y", "true", "t", "on", "1":
		return true
	}
	return false
}

func clean(v string) string {
	v = strings.TrimSpace(v)
	if len(v) >= 2 && (v[0] == '"' || v[0] == '\'') && v[len(v)-1] == v[0] {
		v = strings.TrimSpace(v[1 : len(v)-1])
	}
	return v
}
