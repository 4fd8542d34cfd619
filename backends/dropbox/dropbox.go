// Package dropbox keeps images in a Dropbox account, as files named
// COLLECTION/NAME:TAG.simg in the app's folder, through the Dropbox API v2 and
// its Go SDK.
//
// It knows nothing of FUSE, caches or databases, and keeps no listing: every
// method asks Dropbox. What is peculiar to Dropbox: paths ignore case
// (Image.Key is path_lower); every change of a file has a revision, which
// OpenRange pins; the change feed is a cursor with longpoll. Start at Client
// and Store; names.go says how paths and images correspond, push.go how an
// image gets there whole or not at all.
//
// backends/dropbox/dropboxtest is the account that the tests run against.
package dropbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	sdk "github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/sharing"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/users"
	"golang.org/x/oauth2"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/login"
	"github.com/sregfs/sregfs/backends/pacer"
)

// The settings that the client reads, from the environment or from what is
// stored for it.
const (
	// TokenSetting is an access token, as Dropbox's page of the app generates
	// it. It goes before what a login has stored.
	TokenSetting = "SREGISTRY_DROPBOX_TOKEN"
	// AppKeySetting is the key of the app that `sregfs login dropbox` logs in
	// to: one that the user makes with access to an app folder. There is no
	// secret; the login proves itself with PKCE.
	AppKeySetting = "SREGISTRY_DROPBOX_APP_KEY"
	// BaseSetting replaces Dropbox's hosts, for proxies and tests: with BASE,
	// https://{api,content,notify}.dropboxapi.com/2/ROUTE is BASE/2/ROUTE, and
	// authorization lies at BASE/oauth2/authorize and BASE/oauth2/token.
	BaseSetting = "SREGISTRY_DROPBOX_BASE"
)

// Client is Dropbox as the program knows it.
var Client = backends.Client{
	Name:  "dropbox",
	About: "the app's folder in a Dropbox account",
	Open: func(ctx context.Context, s backends.Settings) (backends.Store, error) {
		return Open(ctx, s)
	},
	Login: Login,
}

// Store is the app's folder of one account. It fulfils every optional
// interface of backends but those for container images.
type Store struct {
	client   string // its name in the tree
	log      *slog.Logger
	paced    *pacer.Pacer
	api      string // the address of its calls
	files    files.ContextClient
	sharing  sharing.ContextClient
	users    users.ContextClient
	parallel int
	spelling spelling
	place    string
	// connect makes a connection to where content comes from.
	connect func()

	mu         sync.Mutex
	pollNotYet time.Time // Dropbox asked for no longpoll before; guarded by mu
}

var (
	_ backends.Store      = (*Store)(nil)
	_ backends.Pusher     = (*Store)(nil)
	_ backends.Remover    = (*Store)(nil)
	_ backends.Renamer    = (*Store)(nil)
	_ backends.Collector  = (*Store)(nil)
	_ backends.Sharer     = (*Store)(nil)
	_ backends.Searcher   = (*Store)(nil)
	_ backends.Finder     = (*Store)(nil)
	_ backends.Versioner  = (*Store)(nil)
	_ backends.Namer      = (*Store)(nil)
	_ backends.Watcher    = (*Store)(nil)
	_ backends.Usager     = (*Store)(nil)
	_ backends.Accounter  = (*Store)(nil)
	_ backends.CaseFolder = (*Store)(nil)
	_ backends.Placer     = (*Store)(nil)
	_ backends.Preparer   = (*Store)(nil)
	_ backends.Reacher    = (*Store)(nil)

	_ backends.CollectionFinder = (*Store)(nil)
)

// Open makes the store from a token in TokenSetting or, without one, from what
// a login has stored. With neither it fails with backends.ErrNotConfigured. It
// asks nothing of the network. ctx ends refreshes of the token.
func Open(ctx context.Context, s backends.Settings) (*Store, error) {
	hosts, err := parseBase(s.Lookup(BaseSetting))
	if err != nil {
		return nil, &backends.Error{Op: "open", Client: s.Client, Err: err, Hint: "correct " + BaseSetting}
	}
	parallel := s.Parallel
	if parallel <= 0 {
		parallel = defaultParallel
	}
	paced := pacer.New(s.Transport, pacer.Options{
		// Parts of uploads run as background requests, which get three
		// quarters of the slots: room for parallel of them, and reads never
		// queue behind them.
		Concurrency: (parallel*4 + 2) / 3,
		Classify:    classify,
		Log:         s.Log,
	})
	t := &transport{plain: counted{paced}, agent: s.UserAgent}
	var place string
	if token := s.Lookup(TokenSetting); token != "" {
		t.authorized = staticToken{token, t.plain}
		place = backends.Fingerprint(hosts.base, token)
	} else if tok := login.Load(s); tok != nil {
		cfg, err := oauthConfig(s, hosts)
		if err != nil {
			return nil, err
		}
		place = backends.Fingerprint(hosts.base, tok.RefreshToken)
		// Refreshes are paced with the account's other requests.
		refreshing := context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: paced})
		t.authorized = login.Transport(login.TokenSource(refreshing, cfg, s.Secrets, s.Client, tok), t.plain)
	} else {
		return nil, &backends.Error{Op: "open", Client: s.Client, Err: backends.ErrNotConfigured,
			Hint: fmt.Sprintf("set %s to an access token, or run %q", TokenSetting, "sregfs login "+s.Client)}
	}
	conf := sdk.Config{
		Client: &http.Client{
			Transport: t,
			// The transport would give the token to wherever a redirect leads.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		URLGenerator: hosts.route,
	}
	return &Store{
		paced:    paced,
		api:      hosts.route("api", "", ""),
		client:   s.Client,
		log:      s.Log,
		files:    files.NewContext(conf),
		sharing:  sharing.NewContext(conf),
		users:    users.NewContext(conf),
		parallel: parallel,
		place:    place,
		connect:  func() { s.Connect(hosts.route("content", "files", "download")) },
	}, nil
}

// Prepare makes a connection ready for a download.
func (s *Store) Prepare() { s.connect() }

// Unreachable is what the last requests met, if Dropbox has stopped to answer.
func (s *Store) Unreachable() error { return s.paced.Unreachable(s.api) }

// Place tells accounts and services apart.
func (s *Store) Place() string { return s.place }

const defaultParallel = 9

// FoldsCase reports that names which differ only by case are one.
func (s *Store) FoldsCase() bool { return true }

// hosts are the addresses of the API.
type hosts struct {
	base string // "" for Dropbox's own hosts
}

func parseBase(base string) (hosts, error) {
	base = strings.TrimRight(base, "/")
	if base == "" {
		return hosts{}, nil
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" {
		return hosts{}, fmt.Errorf("%w: %s is no http or https address", backends.ErrNotConfigured, BaseSetting)
	}
	return hosts{base}, nil
}

// route is where a route of the API lies. Routes are unique across hosts, so
// one base serves all of them.
func (h hosts) route(host, namespace, route string) string {
	if h.base != "" {
		return h.base + "/2/" + namespace + "/" + route
	}
	return "https://" + host + ".dropboxapi.com/2/" + namespace + "/" + route
}

func (h hosts) endpoint() oauth2.Endpoint {
	e := oauth2.Endpoint{
		AuthURL:   "https://www.dropbox.com/oauth2/authorize",
		TokenURL:  "https://api.dropboxapi.com/oauth2/token",
		AuthStyle: oauth2.AuthStyleInParams,
	}
	if h.base != "" {
		e.AuthURL, e.TokenURL = h.base+"/oauth2/authorize", h.base+"/oauth2/token"
	}
	return e
}

func oauthConfig(s backends.Settings, h hosts) (oauth2.Config, error) {
	key := s.Lookup(AppKeySetting)
	if key == "" {
		return oauth2.Config{}, &backends.Error{Op: "open", Client: s.Client,
			Err: fmt.Errorf("%w: no app key", backends.ErrNotConfigured),
			Hint: "make an app of the kind \"App folder\" at https://www.dropbox.com/developers/apps and set " +
				AppKeySetting + " to its key"}
	}
	return oauth2.Config{ClientID: key, Endpoint: h.endpoint(), Scopes: scopes}, nil
}

// scopes are what the client needs; the app must have them ticked.
var scopes = []string{
	"account_info.read", "files.metadata.read", "files.metadata.write",
	"files.content.read", "files.content.write", "sharing.read", "sharing.write",
}

// redirectPort is that of the redirect URI, http://localhost:53682/, which the
// app must have registered: Dropbox compares it as a whole. A login without a
// browser here needs none.
const redirectPort = 53682

// Login logs the user in to the app that AppKeySetting names and stores the
// tokens, with the app's key, which refreshing them needs.
func Login(ctx context.Context, s backends.Settings, term backends.Terminal) error {
	if s.Secrets == nil {
		return &backends.Error{Op: "log in", Client: s.Client, Err: errors.New("there is nowhere to store the token")}
	}
	h, err := parseBase(s.Lookup(BaseSetting))
	if err != nil {
		return &backends.Error{Op: "log in", Client: s.Client, Err: err, Hint: "correct " + BaseSetting}
	}
	cfg, err := oauthConfig(s, h)
	if err != nil {
		return err
	}
	tok, err := login.Run(ctx, cfg, login.Options{
		Client:      s.Client,
		Service:     "Dropbox",
		Terminal:    term,
		ExtraParams: map[string]string{"token_access_type": "offline"},
		Ports:       []int{redirectPort},
		Host:        "localhost",
		CodeOnPage:  true,
		HTTPClient:  &http.Client{Transport: s.Transport},
	})
	if err != nil {
		return err
	}
	if err := s.Secrets.SetSecrets(s.Client, map[string]string{AppKeySetting: cfg.ClientID}); err != nil {
		return &backends.Error{Op: "log in", Client: s.Client, Err: err}
	}
	return login.Save(s.Secrets, s.Client, tok)
}
