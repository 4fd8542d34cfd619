// Package oci keeps images in container registries, through the API of the OCI
// distribution specification (https://github.com/opencontainers/distribution-spec)
// and the library github.com/google/go-containerregistry.
//
// A repository holds two kinds of image. Container images are lists of layers,
// which somebody else makes into one file (see backends.Layered); this package
// gives their manifests, configurations and blobs. Singularity images are
// stored as `apptainer push oras://` stores them, one blob in a manifest, and
// are read, pushed, renamed and deleted here.
//
// The package knows nothing of FUSE, caches or databases, and keeps no listing:
// what a tag means is asked each time. It remembers manifests by their digest,
// which no registry can change. Start at DockerHub, Nvidia and Registry, then
// Store; manifest.go says what a manifest is taken for, push.go how an image
// gets there, remove.go how a tag goes without taking others along.
package oci

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/pacer"
)

// The settings that all registries share.
const (
	// OSSetting and ArchitectureSetting choose among the platforms of an
	// image: linux and amd64 when they are not set.
	OSSetting           = "SREGISTRY_DOCKER_OS"
	ArchitectureSetting = "SREGISTRY_DOCKER_ARCHITECTURE"
)

// DockerHub is Docker Hub as the program knows it: the settings begin with
// SREGISTRY_DOCKERHUB_, see service.
var DockerHub = service{
	name: "dockerhub", aliases: []string{"docker"}, about: "Docker Hub", prefix: "SREGISTRY_DOCKERHUB_",
	base: "https://index.docker.io", unlisted: []string{"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"},
}.client()

// Nvidia is NVIDIA's registry; SREGISTRY_NVIDIA_TOKEN is an API key of
// https://ngc.nvidia.com.
var Nvidia = service{
	name: "nvidia", about: "the NVIDIA GPU Cloud", prefix: "SREGISTRY_NVIDIA_",
	base: "https://nvcr.io", user: "$oauthtoken", unlisted: []string{"nvcr.io"},
}.client()

// Registry is one more registry of the user's, at an http (plain) or https
// address. Its settings begin with SREGISTRY_NAME_, in capitals and with "_"
// for what is no letter or digit.
func Registry(name, address string) backends.Client {
	return service{
		name: name, about: "the registry " + hostOf(address), prefix: settingPrefix(name), base: address, open: true,
	}.client()
}

// service is a registry that can be configured. Its settings are PREFIX
// followed by
//
//	BASE      its address, in place of the usual one
//	USERNAME  and PASSWORD
//	TOKEN     a password for a service that has a user's name of its own
//	SECRETS   the path of a Docker credential file, in place of Docker's own
//	NOHTTPS   yes: without TLS
//	VERSION   of the API; there is but v2
type service struct {
	name    string
	aliases []string
	about   string
	prefix  string
	base    string
	user    string
	// unlisted are hosts that are known to give no catalogue.
	unlisted []string
	// open: pushing may be possible without credentials.
	open bool
}

func (v service) client() backends.Client {
	return backends.Client{
		Name: v.name, Aliases: v.aliases, About: v.about,
		Open: func(_ context.Context, s backends.Settings) (backends.Store, error) { return v.openStore(s) },
	}
}

func settingPrefix(name string) string {
	return "SREGISTRY_" + strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToUpper(name)) + "_"
}

func hostOf(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		return u.Host
	}
	return address
}

// Store is one registry, as one user of it sees it. It can be read. Open gives
// a Writer where images may be put there as well.
type Store struct {
	client    string // its name in the tree
	log       *slog.Logger
	registry  name.Registry
	base      string // SCHEME://HOST
	connect   func() // makes a connection ready
	creds     *credentials
	transport http.RoundTripper
	paced     *pacer.Pacer
	platform  platform
	unlisted  bool
	parallel  int

	mu       sync.Mutex
	sessions map[session]*http.Client // guarded by mu
	memory   memory
}

// Writer is a Store to which images can be pushed, if the registry lets its
// user.
type Writer struct {
	*Store
	partSize int64
}

var (
	_ backends.Store    = (*Store)(nil)
	_ backends.Layered  = (*Store)(nil)
	_ backends.Tagger   = (*Store)(nil)
	_ backends.Placer   = (*Store)(nil)
	_ backends.Preparer = (*Store)(nil)
	_ backends.Reacher  = (*Store)(nil)
	_ backends.Store    = (*Writer)(nil)
	_ backends.Pusher   = (*Writer)(nil)
	_ backends.Remover  = (*Writer)(nil)
	_ backends.Renamer  = (*Writer)(nil)
	_ backends.Namer    = (*Writer)(nil)

	_ backends.Deduplicator = (*Writer)(nil)
)

// Place tells registries and their users apart.
func (s *Store) Place() string {
	return backends.Fingerprint(s.base, s.creds.user, s.platform.String())
}

const (
	defaultParallel = 9
	// defaultPartSize is the size of chunks: more than any registry's least
	// (5 MiB, where storage is S3), and few enough bytes to be sent again.
	defaultPartSize = 16 << 20
)

// openStore makes the store. It asks nothing of the network.
func (v service) openStore(s backends.Settings) (backends.Store, error) {
	fail := func(err error, hint string) (backends.Store, error) {
		return nil, &backends.Error{Op: "open", Client: s.Client, Err: err, Hint: hint}
	}
	if version := strings.ToLower(s.Lookup(v.prefix + "VERSION")); version != "" && strings.TrimPrefix(version, "v") != "2" {
		return fail(fmt.Errorf("%w: there is no version %q of the registry API any more", backends.ErrNotConfigured, version),
			"set "+v.prefix+"VERSION to v2")
	}
	address := v.base
	if set := s.Lookup(v.prefix + "BASE"); set != "" {
		address = set
	}
	host, plain, err := parseAddress(address)
	if err != nil {
		return fail(err, "write its address as https://HOST or http://HOST")
	}
	plain = plain || s.Bool(v.prefix+"NOHTTPS")
	creds, err := newCredentials(v, s, host)
	if err != nil {
		return fail(err, "correct "+v.prefix+"SECRETS")
	}
	opts, scheme := []name.Option{name.StrictValidation}, "https"
	if plain {
		opts, scheme = append(opts, name.Insecure), "http"
	}
	registry, err := name.NewRegistry(host, opts...)
	if err != nil {
		return fail(fmt.Errorf("%w: %q is no registry's address", backends.ErrNotConfigured, host), "")
	}
	parallel := s.Parallel
	if parallel <= 0 {
		parallel = defaultParallel
	}
	// Parts of uploads run as background requests: see package dropbox.
	paced := pacer.New(s.Transport, pacer.Options{Concurrency: (parallel*4 + 2) / 3, Log: s.Log})
	st := &Store{
		paced:  paced,
		client: s.Client, log: s.Log, registry: registry, base: scheme + "://" + host, creds: creds,
		connect: func() { s.Connect(scheme + "://" + host) },
		transport: &guard{
			plain: plain, host: host, agent: s.UserAgent, next: paced,
		},
		platform: newPlatform(s.Lookup(OSSetting), s.Lookup(ArchitectureSetting)),
		parallel: parallel,
		sessions: make(map[session]*http.Client),
	}
	for _, u := range v.unlisted {
		st.unlisted = st.unlisted || u == host
	}
	if v.open || creds.any() || address != v.base {
		return &Writer{Store: st, partSize: defaultPartSize}, nil
	}
	return st, nil
}

// Prepare makes a connection to the registry ready. Where it sends its readers
// for blobs is not known in advance.
func (s *Store) Prepare() { s.connect() }

// Unreachable is what the last requests met, if the registry has stopped to answer.
func (s *Store) Unreachable() error { return s.paced.Unreachable(s.base) }

// parseAddress splits a registry's address, which may be a host alone.
func parseAddress(address string) (host string, plain bool, err error) {
	bad := fmt.Errorf("%w: %q is no address of a registry", backends.ErrNotConfigured, redactUser(address))
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		u.Scheme != "https" && u.Scheme != "http" {
		return "", false, bad
	}
	if p := strings.Trim(u.Path, "/"); p != "" && p != "v2" {
		return "", false, bad // the API lies at the root
	}
	host = u.Host
	if host == "docker.io" {
		host = name.DefaultRegistry
	}
	return host, u.Scheme == "http", nil
}

// redactUser cuts a user and password off an address that is to be shown.
func redactUser(address string) string {
	if i := strings.LastIndex(address, "@"); i >= 0 {
		return "…" + address[i:]
	}
	return address
}

// errNotImage: there is such a tag, but what it names is no image.
var errNotImage = errors.New("not an image")
