package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/image/oci"
)

const (
	// layersAtOnce is how many layers are fetched and unpacked at a time. More
	// would wait for processors, each with some megabytes in hand.
	layersAtOnce = 4
	// completeAfter is how long an image's file is not written out for: whoever has
	// waited for the image is starting now, and has the processors.
	completeAfter = 2 * time.Second
)

// assembly is a container image that is ready to be read: the map of the file,
// and where its layers' data come from. It is a cache.Fetcher of the file.
type assembly struct {
	cl     *Client
	img    backends.Image
	image  *oci.Image
	layers []*layer

	// filling is set while the file is written out, and after that has failed.
	filling atomic.Bool
}

// assemble finds out what there is to know of the layers, fetching those that
// have no table of contents, and lays them over each other.
func (cl *Client) assemble(ctx context.Context, img backends.Image, key string, codec oci.Codec) (*assembly, error) {
	store, m, err := cl.manifest(ctx, img)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(m.Layers, func(l backends.Layer) bool { return l.DiffID == "" }) {
		return nil, fmt.Errorf("its manifest is of the old schema 1, which does not tell its layers' contents; "+
			"push it again with a newer program: %w", errors.ErrUnsupported)
	}
	a := &assembly{cl: cl, img: img, layers: make([]*layer, len(m.Layers))}
	opts := cl.layeredOptions(m)
	contents, crowded := make([]*oci.Contents, len(m.Layers)), make([]bool, len(m.Layers))
	var mu sync.Mutex // of contents
	learn := func(ctx context.Context, i int) error {
		c, err := cl.learnLayer(ctx, a.layers[i], codec)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		contents[i] = c
		// A layer that is within the limits says nothing of a thousand of them.
		return opts.Limits.CheckAll(contents)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(layersAtOnce)
	for i, d := range m.Layers {
		a.layers[i] = &layer{source: blobOf(store, img, d)}
		g.Go(func() error {
			err := learn(gctx, i)
			if crowded[i] = errors.Is(err, cache.ErrNoRoom); crowded[i] {
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i := range a.layers {
		if !crowded[i] {
			continue
		}
		// Too little room for several at once; those that are ready can be
		// evicted, and what there is to know of them stays.
		if err := learn(ctx, i); err != nil {
			return nil, err
		}
	}
	if a.image, err = oci.Assemble(ctx, m.Config, contents, opts); err != nil {
		return nil, err
	}
	size := strconv.FormatInt(a.image.Size(), 10)
	return a, cl.cat.opts.Index.SetNote(ctx, noteSize, key, []byte(size))
}

// crowds reports whether the cache cannot hold the whole file beside its layers.
// Then the file is not kept in it: an open file's blocks are not evicted, and
// would leave no room for the layers that the next ones are read from.
func (a *assembly) crowds() bool {
	limit := a.cl.cat.opts.Cache.Stats().Limit
	return !a.lazy() && limit > 0 && a.image.Size() > limit/2
}

// lazy reports whether a layer is read lazily.
func (a *assembly) lazy() bool {
	return slices.ContainsFunc(a.layers, func(l *layer) bool { return l.lazy != nil })
}

// readAt reads the file from its layers.
func (a *assembly) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	r := &assemblyReader{a: a, ctx: ctx, open: make([]*cache.Object, len(a.layers))}
	defer r.Close()
	n, err := a.image.ReadAt(ctx, r, p, off)
	if err != nil && err != io.EOF {
		err = layeredKind(err)
	}
	return n, err
}

// complete writes the whole file into the cache in the background, a while after it
// was opened, so that the kernel can read it without this program; again when it
// was evicted, but not when there was no way to do it, or when it was removed
// meanwhile. An image with a lazy layer is left to what is read of it.
func (a *assembly) complete() {
	if a.lazy() || !a.filling.CompareAndSwap(false, true) {
		return
	}
	cat := a.cl.cat
	cat.work.Go(func() {
		select {
		case <-time.After(completeAfter):
		case <-cat.ctx.Done():
			return
		}
		err := a.writeOut(cat.ctx)
		if err == nil {
			a.filling.Store(false)
		} else if cat.ctx.Err() == nil {
			a.cl.log.Warn("a container image is not kept whole", "image", a.img.Ref.String(), "error", err)
		}
	})
}

// writeOut is complete's work.
func (a *assembly) writeOut(ctx context.Context) error {
	c, key := a.cl.cat.opts.Cache, a.cl.CacheKey(a.img)
	if _, size, complete := c.Stat(key); size < 0 || complete {
		return nil
	}
	obj, err := c.Object(cache.Spec{Key: key, Size: a.image.Size(), Fetcher: a, Exact: true})
	if err != nil {
		return err
	}
	defer obj.Close()
	if err := a.fetchData(ctx); err != nil {
		return err
	}
	return obj.Fill(ctx)
}

// fetchData brings the layers' data here, those that were evicted too, several
// at a time.
func (a *assembly) fetchData(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(layersAtOnce)
	for _, l := range a.layers {
		g.Go(func() error {
			o, err := a.data(ctx, l)
			if err != nil {
				return err
			}
			return o.Close()
		})
	}
	return g.Wait()
}

// extent is cache.Spec's: a file of a lazy layer is what its reader is taken to
// want, for the next one's data lie anywhere and cost a request.
func (a *assembly) extent(off int64) int64 {
	s, ok := a.image.Segment(off)
	if !ok || s.Offset > off || a.layers[s.Layer].lazy == nil {
		return a.image.Size()
	}
	return min(s.Offset+a.layers[s.Layer].lazy.Extent(s.LayerOffset+off-s.Offset)-s.LayerOffset, s.Offset+s.Length)
}

// Fetch is cache.Fetcher's, for the file.
func (a *assembly) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return &assemblyReader{a: a, ctx: ctx, off: off, end: off + n, open: make([]*cache.Object, len(a.layers))}, nil
}
