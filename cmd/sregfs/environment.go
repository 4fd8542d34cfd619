package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/all"
	"github.com/sregfs/sregfs/backends/secrets"
	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/cache/staging"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/index"
)

// environment is what a command runs in: where things are, and how to make
// them.
type environment struct {
	settings
	stdout, stderr io.Writer
	log            *slog.Logger
	transport      http.RoundTripper // of all clients
	// temporary is where fetched bytes lie while the mount lasts, "" for the
	// cache folder.
	temporary string
}

// getenv reads a variable as Settings.Lookup does, without quotes and spaces.
func getenv(name string) string {
	return backends.Settings{Getenv: os.Getenv}.Lookup(name)
}

func yes(name string) bool { return backends.Settings{Getenv: os.Getenv}.Bool(name) }

// singularityHome is $HOME/.singularity, the home of the seeds' files.
func singularityHome() string {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root"
	}
	return filepath.Join(home, ".singularity")
}

// cacheDir is where the cache, the staged pushes and our own state lie.
func (e *environment) cacheDir() string {
	if e.CacheDir != "" {
		return e.CacheDir
	}
	for _, name := range []string{"SINGULARITY_CACHEDIR", "APPTAINER_CACHEDIR"} {
		if dir := getenv(name); dir != "" {
			return filepath.Join(dir, "sregfs")
		}
	}
	return filepath.Join(singularityHome(), "sregfs")
}

// makeCacheDir makes sure that there is a cache folder to write to.
func (e *environment) makeCacheDir() error {
	dir := e.cacheDir()
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		if err = unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			err = &os.PathError{Op: "write to", Path: dir, Err: err}
		}
	}
	if err != nil {
		return fmt.Errorf("use the cache folder: %w; make it writable, or name another one with --cache-dir", err)
	}
	return nil
}

// database is the path of the seeds' database, "" when it is disabled.
func database() string {
	if yes("SREGISTRY_DISABLE") {
		return ""
	}
	path := getenv("SREGISTRY_DATABASE")
	if path == "" {
		return filepath.Join(singularityHome(), "sregistry.db")
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, "sregistry.db")
	}
	return path
}

// secretsPath is the file that holds clients' credentials.
func secretsPath() string {
	if path := getenv("SREGISTRY_CLIENT_SECRETS"); path != "" {
		return path
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root"
	}
	return filepath.Join(home, ".sregistry")
}

func (e *environment) openSecrets() (*secrets.File, error) {
	return secrets.Open(secretsPath())
}

func (e *environment) openIndex(ctx context.Context) (*index.Index, error) {
	if err := e.makeCacheDir(); err != nil {
		return nil, err
	}
	return e.openIndexIn(ctx, e.cacheDir())
}

// openIndexIn opens the index with its listings in dir.
func (e *environment) openIndexIn(ctx context.Context, dir string) (*index.Index, error) {
	return index.Open(ctx, index.Options{Database: database(), State: filepath.Join(dir, "state.db"), Log: e.log})
}

// openIndexBeside is openIndex for a command beside which there may be a mount.
// That lives on the listings: a command that is set to another account has its own
// for as long as it runs.
func (e *environment) openIndexBeside(ctx context.Context, stores map[string]backends.Store) (*index.Index, closer, error) {
	x, err := e.openIndex(ctx)
	if err != nil {
		return nil, nil, err
	}
	elsewhere, err := catalog.Elsewhere(ctx, x, stores)
	if err != nil || !elsewhere {
		return x, closer{func() { _ = x.Close() }}, err
	}
	_ = x.Close()
	dir, err := os.MkdirTemp("", "sregfs-state-")
	if err != nil {
		return nil, nil, err
	}
	done := closer{func() { _ = os.RemoveAll(dir) }}
	if x, err = e.openIndexIn(ctx, dir); err != nil {
		done.Close()
		return nil, nil, err
	}
	done.add(func() { _ = x.Close() })
	return x, done, nil
}

// clientSettings are what a client is opened with.
func (e *environment) clientSettings(name string, s backends.Secrets) backends.Settings {
	threads, err := strconv.Atoi(getenv("SREGISTRY_PYTHON_THREADS"))
	if err != nil || threads < 1 {
		threads = defaultThreads
	}
	return backends.Settings{
		Client: name, Getenv: os.Getenv, Secrets: s, Log: e.log.With("client", name),
		Parallel: threads, UserAgent: "sregfs/" + version, Transport: e.transport,
	}
}

// defaultThreads is the seeds' default of SREGISTRY_PYTHON_THREADS.
const defaultThreads = 9

// opened is one client with its store, or why there is none.
type opened struct {
	client backends.Client
	store  backends.Store
	err    error
}

// openClients opens every client that is wanted and set up. One that was asked
// for by name and cannot be opened is an error.
func (e *environment) openClients(ctx context.Context) ([]opened, error) {
	list, err := e.openEach(ctx)
	if err != nil {
		return nil, err
	}
	for _, o := range list {
		if o.err != nil && len(e.Client) > 0 {
			closeStores(list)
			return nil, o.err
		}
	}
	return list, nil
}

// closeStores closes what openEach opened.
func closeStores(list []opened) {
	for _, o := range list {
		if c, ok := o.store.(io.Closer); ok {
			_ = c.Close()
		}
	}
}

// openEach opens every client that is wanted, with an error beside each one
// that cannot be opened.
func (e *environment) openEach(ctx context.Context) ([]opened, error) {
	s, err := e.openSecrets()
	if err != nil {
		return nil, err
	}
	if v := getenv("SREGISTRY_PYTHON_THREADS"); v != "" {
		if n, err := strconv.Atoi(v); err != nil || n < 1 {
			e.log.Warn(fmt.Sprintf("SREGISTRY_PYTHON_THREADS is no number of transfers: %q; %d are taken", v, defaultThreads))
		}
	}
	known, err := all.Clients(e.Registry)
	if err != nil {
		return nil, err
	}
	wanted, err := e.wanted(known)
	if err != nil {
		return nil, err
	}
	var list []opened
	for _, c := range wanted {
		store, err := c.Open(ctx, e.clientSettings(c.Name, s))
		if err != nil {
			store = nil // some return a nil pointer, which is no nil interface
		}
		list = append(list, opened{c, store, err})
	}
	return list, nil
}

// wanted are the clients that --client names, or all.
func (e *environment) wanted(known []backends.Client) ([]backends.Client, error) {
	if len(e.Client) == 0 {
		return known, nil
	}
	named := map[string]bool{}
	for _, name := range e.Client {
		c, err := lookup(known, name)
		if err != nil {
			return nil, err
		}
		named[c.Name] = true
	}
	return slices.DeleteFunc(slices.Clone(known), func(c backends.Client) bool { return !named[c.Name] }), nil
}

// lookup finds a client by a name that a user gave.
func lookup(known []backends.Client, name string) (backends.Client, error) {
	c, ok := all.Lookup(known, name)
	switch {
	case ok:
		return c, nil
	case slices.Contains([]string{"hub", "shub", "registry", "google-storage"}, strings.ReplaceAll(strings.ToLower(name), "_", "-")):
		return c, fmt.Errorf("sregfs has no client %q, which the Python client has; \"sregfs clients\" lists those that there are", name)
	}
	return c, fmt.Errorf("there is no client %q; \"sregfs clients\" lists them", name)
}

// closer ends what a command opened, in reverse order.
type closer []func()

func (c *closer) add(f func()) { *c = append(*c, f) }

func (c closer) Close() {
	for i := len(c) - 1; i >= 0; i-- {
		c[i]()
	}
}

// openCatalog opens all stores over the index. With bytes it also opens the
// cache and the staging area, which one process at a time may hold.
func (e *environment) openCatalog(ctx context.Context, bytes, readOnly bool) (*catalog.Catalog, map[string]string, closer, error) {
	var done closer
	fail := func(err error) (*catalog.Catalog, map[string]string, closer, error) {
		done.Close()
		return nil, nil, nil, err
	}
	list, err := e.openClients(ctx)
	if err != nil {
		return fail(err)
	}
	stores, aliases, recordNames := map[string]backends.Store{}, map[string]string{}, map[string]string{}
	for _, o := range list {
		if o.err != nil {
			// Who names a registry expects to see it.
			if _, named := e.Registry[o.client.Name]; named || !errors.Is(o.err, backends.ErrNotConfigured) {
				e.log.Error("a client is left out", "client", o.client.Name, "error", o.err)
			}
			continue
		}
		stores[o.client.Name] = o.store
		if c, ok := o.store.(io.Closer); ok {
			done.add(func() { _ = c.Close() })
		}
		if o.client.RecordName != "" {
			recordNames[o.client.Name] = o.client.RecordName
		}
		for _, a := range o.client.Aliases {
			aliases[a] = o.client.Name
		}
	}
	var x *index.Index
	if bytes {
		if x, err = e.openIndex(ctx); err == nil {
			done.add(func() { _ = x.Close() })
		}
	} else {
		var closeIndex closer
		x, closeIndex, err = e.openIndexBeside(ctx, stores)
		done.add(closeIndex.Close)
	}
	if err != nil {
		return fail(err)
	}
	o := catalog.Options{Index: x, ReadOnly: readOnly, Log: e.log, RecordNames: recordNames, DockerCmd: yes("SREGISTRY_DOCKER_CMD"),
		Compress: e.ImageData == "zstd", Profiles: profiles()}
	var cat *catalog.Catalog
	var told atomic.Pointer[catalog.Catalog]
	if bytes {
		objects := filepath.Join(e.cacheDir(), "objects")
		if yes("SINGULARITY_DISABLE_CACHE") {
			if objects, err = os.MkdirTemp("", "sregfs-cache-"); err != nil {
				return fail(err)
			}
			e.temporary = objects
			done.add(func() { _ = os.RemoveAll(objects) })
		}
		limit, err := cacheLimit(e.CacheSize, objects)
		if err != nil {
			return fail(err)
		}
		c, err := cache.Open(objects, cache.Options{
			Limit: limit, Parallel: e.clientSettings("", nil).Parallel, Log: e.log,
			OnComplete: func(done cache.Completed) { cat.Learnt(done.Key, done.MD5) },
			OnDiskTrouble: func(err error) {
				if cat := told.Load(); cat != nil {
					cat.Fail(fmt.Sprintf("keep what was read: %s; reads go on without the cache: look after the disk of %s", err, objects))
				}
			},
		})
		if err != nil {
			return fail(err)
		}
		done.add(func() { _ = c.Close() })
		o.Cache = c
		if o.Staging, err = staging.Open(filepath.Join(e.cacheDir(), "staging"), staging.Options{Reserve: c.Reserve, Log: e.log}); err != nil {
			return fail(err)
		}
		done.add(func() { _ = o.Staging.Close() })
	}
	if cat, err = catalog.New(stores, o); err != nil {
		return fail(err)
	}
	told.Store(cat)
	done.add(cat.Close)
	return cat, aliases, done, nil
}

// cacheLimit parses a size in bytes, with a suffix K, M, G or T of 1024, or a
// share of the disk that dir is on.
func cacheLimit(s, dir string) (int64, error) {
	bad := fmt.Errorf("cache size %q: write it as 50G or 20%%", s)
	if share, ok := strings.CutSuffix(s, "%"); ok {
		p, err := strconv.ParseFloat(share, 64)
		if err != nil || !(p > 0 && p <= 100) {
			return 0, bad
		}
		var st syscall.Statfs_t
		for d := dir; ; d = filepath.Dir(d) {
			err := syscall.Statfs(d, &st)
			if err == nil {
				break
			}
			if d == filepath.Dir(d) {
				return 0, fmt.Errorf("ask for the cache disk's size: %w", err)
			}
		}
		return max(1, int64(float64(st.Blocks)*float64(st.Bsize)*p/100)), nil
	}
	num, unit := strings.TrimRight(strings.ToUpper(s), "IB"), int64(1)
	for i, suffix := range []string{"K", "M", "G", "T"} {
		if n, ok := strings.CutSuffix(num, suffix); ok {
			num, unit = n, 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseFloat(num, 64)
	if n *= float64(unit); err != nil || !(n >= 1 && n < math.MaxInt64) { // NaN is neither
		return 0, bad
	}
	if unit == 1 && n < 1<<20 {
		return 0, fmt.Errorf("a cache of %s bytes holds nothing; write its size as 50G or 20%%", s)
	}
	return int64(n), nil
}

// profiles is the folder of access profiles: state that outlives caches, where
// the XDG Base Directory Specification puts such things.
func profiles() string {
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		state = filepath.Join(home, ".local/state")
	}
	return filepath.Join(state, "sregfs/profiles")
}
