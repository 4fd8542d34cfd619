// Package gdrive keeps images in Google Drive, through the Drive API v3 and its
// Go library, in the layout of the Python client: one folder, in which each
// image is a file named COLLECTION/NAME:TAG@VERSION.simg (the slash is part of
// the name) whose public properties say that it is a container and which.
//
// It knows nothing of FUSE, caches or databases, and keeps no listing: every
// method asks Drive. What is peculiar to Drive: names are not unique, so that
// an image is known by its file's id and several files may have one name;
// every change of content has a revision, which OpenRange pins; what is
// deleted goes to the bin.
//
// Start at Client and Store. names.go says how files and images correspond,
// upload.go how an image gets there whole or not at all, read.go why an open
// image is one version. backends/gdrive/gdrivetest is the account that the
// tests run against.
package gdrive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/api/drive/v3"
	"google.golang.org/api/option"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/login"
	"github.com/sregfs/sregfs/backends/pacer"
)

// The settings that the client reads, from the environment or from what is
// stored for it.
const (
	// CredentialsSetting is the path of the file that Google's console gives:
	// an OAuth client's, which `sregfs login gdrive` then uses, or a service
	// account's key.
	CredentialsSetting = "SREGISTRY_GOOGLE_DRIVE_CREDENTIALS"
	// RootSetting is the name of the folder in My Drive that holds the images.
	RootSetting = "SREGISTRY_GOOGLE_DRIVE_ROOT"
	// rootMisspelt is how the Python client's documentation spells it.
	rootMisspelt = "SREGISTRT_GOOGLE_DRIVE_ROOT"
	// UntypedSetting, set to yes, shows files with an image's extension that
	// lack the property type=container, as those that were put into the folder
	// by hand do.
	UntypedSetting = "SREGISTRY_GOOGLE_DRIVE_UNTYPED"
	// ThumbnailSetting is the path of a PNG that pushed images get as their
	// picture, instead of the robot.
	ThumbnailSetting = "SREGISTRY_THUMBNAIL"
	// BaseSetting replaces https://www.googleapis.com, for proxies and tests.
	BaseSetting = "SREGISTRY_GOOGLE_DRIVE_BASE"
)

const (
	defaultRoot     = "sregistry"
	defaultBase     = "https://www.googleapis.com"
	defaultParallel = 9
	// page is how many files a listing asks for at once, the most that Drive
	// gives.
	page = 1000
	// partSize is a multiple of 256 KiB, as all requests of a session but the
	// last must be: a larger one costs memory, a smaller one a round trip more
	// often.
	partSize = 8 << 20
)

// Client is Google Drive as the program knows it.
var Client = backends.Client{
	Name:       "gdrive",
	RecordName: "google-drive",
	Aliases:    []string{"google-drive", "drive"},
	About:      "Google Drive",
	Open: func(ctx context.Context, s backends.Settings) (backends.Store, error) {
		store, err := Open(ctx, s)
		if err != nil {
			return nil, err
		}
		return store, nil
	},
	Login: Login,
}

// Store is a folder in one account's Drive. It fulfils every optional
// interface of backends but those for container images and local files.
type Store struct {
	client  string // its name in the tree
	log     *slog.Logger
	paced   *pacer.Pacer
	connect func() // makes a connection ready
	base    string // "https://www.googleapis.com", without a slash at the end
	http    *http.Client
	svc     *drive.Service
	root    string // the folder's name
	shared  bool   // the folder may be one that was shared with the account
	untyped bool
	page    int64         // files in an answer to a listing
	part    int64         // bytes in a request of an upload
	poll    time.Duration // between two looks at the change feed
	picture func() []byte // the thumbnail
	seal    [sha256.Size]byte

	// unpinned is set once Drive has refused to give a head revision by its id
	// that it then gave as the file's content; see read.go.
	unpinned atomic.Bool
	swept    sync.Once // leftovers of earlier uploads

	mu       sync.Mutex // guards all below
	rootID   string
	rootSeen time.Time                      // when rootID was looked up
	folders  map[string]bool                // that lie or have lain below the root
	watched  bool                           // since a cursor was taken, folders lacks none
	pushing  map[backends.Ref]chan struct{} // names being committed
}

var (
	_ backends.Store     = (*Store)(nil)
	_ backends.Pusher    = (*Store)(nil)
	_ backends.Remover   = (*Store)(nil)
	_ backends.Renamer   = (*Store)(nil)
	_ backends.Collector = (*Store)(nil)
	_ backends.Sharer    = (*Store)(nil)
	_ backends.Searcher  = (*Store)(nil)
	_ backends.Finder    = (*Store)(nil)
	_ backends.Versioner = (*Store)(nil)
	_ backends.Watcher   = (*Store)(nil)
	_ backends.Usager    = (*Store)(nil)
	_ backends.Accounter = (*Store)(nil)
	_ backends.Placer    = (*Store)(nil)
	_ backends.Preparer  = (*Store)(nil)
	_ backends.Reacher   = (*Store)(nil)

	_ backends.CollectionFinder = (*Store)(nil)
)

// Open makes the store from the file that CredentialsSetting names and, for an
// OAuth client, the token that a login has stored. When one is lacking or
// cannot be read it fails with backends.ErrNotConfigured. It asks nothing of
// the network. ctx ends refreshes of the token.
func Open(ctx context.Context, s backends.Settings) (*Store, error) {
	base, err := parseBase(s.Lookup(BaseSetting))
	if err != nil {
		return nil, &backends.Error{Op: "open", Client: s.Client, Err: err, Hint: "correct " + BaseSetting}
	}
	creds, err := readCredentials(s)
	if err != nil {
		return nil, err
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
	authorized, err := creds.transport(ctx, s, paced)
	if err != nil {
		return nil, err
	}
	hc := &http.Client{
		Transport: agent{s.UserAgent, authorized},
		// The transport would give the token to wherever a redirect leads.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	svc, err := drive.NewService(ctx, option.WithHTTPClient(hc), option.WithEndpoint(base+"/drive/v3/"))
	if err != nil {
		return nil, &backends.Error{Op: "open", Client: s.Client, Err: err}
	}
	st := &Store{
		paced:   paced,
		client:  s.Client,
		log:     s.Log,
		connect: func() { s.Connect(base) },
		base:    base,
		http:    hc,
		svc:     svc,
		root:    s.Lookup(RootSetting),
		shared:  creds.service != nil,
		untyped: s.Bool(UntypedSetting),
		page:    page,
		part:    partSize,
		poll:    3 * time.Second,
		picture: sync.OnceValue(func() []byte { return thumbnail(s.Lookup(ThumbnailSetting), s.Log) }),
		folders: map[string]bool{},
		pushing: map[backends.Ref]chan struct{}{},
	}
	st.seal = creds.sealingKey(s)
	if st.root == "" {
		if st.root = s.Lookup(rootMisspelt); st.root != "" {
			s.Log.Info("the folder's name is taken from a misspelt variable; rename it", "is", rootMisspelt, "should be", RootSetting)
		}
	}
	if st.root == "" {
		st.root = defaultRoot
	}
	return st, nil
}

// Prepare makes a connection ready for a download.
func (s *Store) Prepare() { s.connect() }

// Unreachable is what the last requests met, if Drive has stopped to answer.
func (s *Store) Unreachable() error { return s.paced.Unreachable(s.base) }

// Place tells accounts, folders and services apart.
func (s *Store) Place() string {
	untyped := ""
	if s.untyped {
		untyped = UntypedSetting // shows other files
	}
	return backends.Fingerprint(s.base, s.root, untyped, string(s.seal[:]))
}

// agent names the program to the service, and makes requests repeatable: the
// library takes GetBody away from those that have no content.
type agent struct {
	name string
	next http.RoundTripper
}

// RoundTrip is http.RoundTripper's.
func (a agent) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	if a.name != "" {
		req.Header.Set("User-Agent", a.name)
	}
	if req.Body != nil && req.Body != http.NoBody && req.GetBody == nil {
		// A file's description; content goes through session.go.
		data, err := io.ReadAll(req.Body)
		req.Body.Close()
		if err != nil {
			return nil, fmt.Errorf("read the request's body: %w", err)
		}
		req.ContentLength = int64(len(data))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
		req.Body, _ = req.GetBody()
	}
	return a.next.RoundTrip(req)
}

func parseBase(base string) (string, error) {
	base = strings.TrimRight(base, "/")
	if base == "" {
		return defaultBase, nil
	}
	u, err := url.Parse(base)
	// The library puts uploads at the host's root, so that a path before
	// /drive/v3 could not work for them.
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Path != "" {
		return "", fmt.Errorf("%w: %s is not of the form https://HOST[:PORT]", backends.ErrNotConfigured, BaseSetting)
	}
	return base, nil
}

// Login logs the user in to the OAuth client of CredentialsSetting and stores
// the token. A service account needs no login: that is an error with a
// sentence that says so.
func Login(ctx context.Context, s backends.Settings, term backends.Terminal) error {
	refuse := func(err error, hint string) error {
		return &backends.Error{Op: "log in", Client: s.Client, Err: err, Hint: hint}
	}
	if s.Secrets == nil {
		return refuse(errors.New("there is nowhere to store the token"), "")
	}
	creds, err := readCredentials(s)
	if err != nil {
		return err
	}
	if creds.service != nil {
		return refuse(fmt.Errorf("%w: %s names a service account, which needs no login", errors.ErrUnsupported, CredentialsSetting), "just mount it")
	}
	o := login.Options{
		Client:   s.Client,
		Service:  "Google Drive",
		Terminal: term,
		// Without these Google gives no refresh token, or only the first time
		// (https://developers.google.com/identity/protocols/oauth2/web-server#offline).
		ExtraParams: map[string]string{"access_type": "offline", "prompt": "consent"},
		HTTPClient:  &http.Client{Transport: s.Transport},
	}
	creds.redirect(&o)
	tok, err := login.Run(ctx, creds.oauth, o)
	if err != nil {
		return err
	}
	if err := login.Save(s.Secrets, s.Client, tok); err != nil {
		return refuse(err, "")
	}
	return nil
}
