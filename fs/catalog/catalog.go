// Package catalog knows what images there are and does what can be done with
// them: it joins the stores (backends), the record of what was seen (index)
// and the bytes that are here (cache) into one collection of clients, each of
// which can be listed, looked up, opened, pushed to, shared and so on.
//
// It knows nothing of FUSE: the tree in fs/ shows a Catalog as files, and the
// commands use it without a mount. Start at Catalog and Client.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/cache/staging"
	"github.com/sregfs/sregfs/image/oci"
	"github.com/sregfs/sregfs/index"
)

// Options are what a Catalog is made of. Index and Cache belong to the caller,
// who closes them after Close.
type Options struct {
	Index *index.Index
	// Cache may be nil: then nothing can be opened from a remote, for commands
	// that run beside a daemon which holds the cache.
	Cache *cache.Cache
	// Staging is where pushes wait; nil makes every client read-only.
	Staging *staging.Dir
	// ReadOnly refuses every change.
	ReadOnly bool
	// RecordNames are clients' names in the seeds' database, where they differ
	// from their own.
	RecordNames map[string]string
	// TTL is how long the listing of a store without a change feed is taken
	// for fresh; 0 for one minute.
	TTL time.Duration
	// DockerCmd makes runscripts of container images use Cmd in place of
	// Entrypoint (SREGISTRY_DOCKER_CMD).
	DockerCmd bool
	// Compress keeps the files of container images compressed (oci.Zstd):
	// less room for more time. An image for which there is no room otherwise is
	// kept so anyway.
	Compress bool
	// Profiles is the folder where it is remembered what the first start of an
	// image read, a file for each, outside of any cache: so it serves all caches
	// of a user, and a copy of the folder serves another machine. Empty for none.
	Profiles string
	Log      *slog.Logger
}

// Catalog is a set of clients. It is safe for concurrent use.
type Catalog struct {
	opts       Options
	log        *slog.Logger
	clients    []*Client // sorted by name; fixed after New
	records    chan recordJob
	failures   failures
	times      times
	assemblies assemblies // container images that are open, or were a moment ago
	arrivals   arrivals   // layers that are fetched again
	limits     oci.Limits // of all layers of a container image; tests have lower ones
	squeezed   sync.Map   // bareKey of images that are compressed for want of room
	started    bool       // listings are followed; set before the first question

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// New makes a catalog of stores by client name. It touches no network.
func New(stores map[string]backends.Store, o Options) (*Catalog, error) {
	if o.TTL == 0 {
		o.TTL = time.Minute
	}
	c := &Catalog{opts: o, log: o.Log, records: make(chan recordJob, 1024)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if err := c.times.load(c.ctx, o.Index); err != nil {
		return nil, err
	}
	for n, err := range o.Index.Notes(c.ctx, noteSqueezed) {
		if err != nil {
			return nil, err
		}
		c.squeezed.Store(n.Key, true)
	}
	for name, store := range stores {
		cl := newClient(c, name, store)
		if err := cl.arrive(c.ctx); err != nil {
			return nil, err
		}
		if err := cl.recall(c.ctx); err != nil {
			return nil, err
		}
		c.clients = append(c.clients, cl)
	}
	slices.SortFunc(c.clients, func(a, b *Client) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return c, nil
}

// Start begins to follow the stores' listings and to write records; it is
// called before anything is asked. A catalog that is not started answers from
// what is known and asks stores on demand.
func (c *Catalog) Start() {
	c.started = true
	c.work.Go(c.writeRecords)
	for _, cl := range c.clients {
		c.work.Go(func() { cl.follow(c.ctx) })
	}
}

// Close stops all background work and waits for it.
func (c *Catalog) Close() {
	c.cancel()
	c.work.Wait()
}

// Clients returns all clients, by name.
func (c *Catalog) Clients() []*Client { return c.clients }

// Client returns the client of that name, nil when there is none.
func (c *Catalog) Client(name string) *Client {
	for _, cl := range c.clients {
		if cl.Name == name {
			return cl
		}
	}
	return nil
}

// Index is the record of what was seen.
func (c *Catalog) Index() *index.Index { return c.opts.Index }

// Cache holds the bytes that are here; nil where the catalog has none.
func (c *Catalog) Cache() *cache.Cache { return c.opts.Cache }

// Log is where the catalog writes what a user may want to know.
func (c *Catalog) Log() *slog.Logger { return c.log }

// Resolve finds the image ref of the client name or, where name is "", of the one
// client that has such an image; if several have it, the error names them.
func (c *Catalog) Resolve(ctx context.Context, name string, ref backends.Ref) (*Client, backends.Image, error) {
	if name != "" {
		cl := c.Client(name)
		if cl == nil {
			return nil, backends.Image{}, c.unknownClient(name)
		}
		img, err := cl.Find(ctx, ref)
		return cl, img, err
	}
	images, errs := make([]backends.Image, len(c.clients)), make([]error, len(c.clients))
	var asked sync.WaitGroup
	for i, cl := range c.clients {
		asked.Go(func() { images[i], errs[i] = cl.Find(ctx, ref) })
	}
	asked.Wait()
	var found []*Client
	var names []string
	var img backends.Image
	var firstErr error
	for i, cl := range c.clients {
		switch err := errs[i]; {
		case err == nil:
			found, names, img = append(found, cl), append(names, cl.Name), images[i]
		case !isNotExist(err) && firstErr == nil:
			firstErr = err
		}
	}
	switch {
	case len(found) == 1:
		return found[0], img, nil
	case len(found) > 1:
		return nil, img, severalHave("find", names, ref)
	case firstErr != nil:
		return nil, img, firstErr
	}
	return nil, img, backends.NotExist("find", "", ref)
}

// severalHave is the error for a name without a client that several have.
func severalHave(op string, names []string, ref backends.Ref) error {
	uris := make([]string, len(names))
	for i, name := range names {
		uris[i] = name + "://" + ref.String()
	}
	return &backends.Error{Op: op, Ref: ref,
		Err:  fmt.Errorf("several clients have it: %s", strings.Join(uris, ", ")),
		Hint: "name the client, or set SREGISTRY_CLIENT"}
}

func (c *Catalog) unknownClient(name string) error {
	names := make([]string, len(c.clients))
	for i, cl := range c.clients {
		names[i] = cl.Name
	}
	return &backends.Error{Op: "find", Client: name,
		Err:  fmt.Errorf("no such client, or it is not set up (there are %s)", strings.Join(names, ", ")),
		Hint: `"sregfs clients" says what each one lacks`}
}

// errNoCache is why nothing can be read through a catalog without a cache.
var errNoCache = errors.New("this process holds no cache")
