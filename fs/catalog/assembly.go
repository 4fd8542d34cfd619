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
	// layerTries is how often in a row the stream of a layer may break off
	// without a byte having come, and layerPatience for how long none may have
	// come then, before it is given up.
	layerTries    = 5
	layerPatience = 90 * time.Second
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

// layer is one layer of an assembly.
type layer struct {
	source   oci.Layer
	contents *oci.Contents
	lazy     *oci.Lazy // nil for a layer that was read whole
}

// key names the data file of a layer that was read whole in the cache.
func (l *layer) key() string { return "layer:" + l.contents.DataKey() }

// assemble finds out what there is to know of the layers, fetching those that
// have no table of contents, and lays them over each other.
func (cl *Client) assemble(ctx context.Context, img backends.Image, key string, codec oci.Codec) (*assembly, error) {
	store, m, err := cl.manifest(ctx, img)
	if err != nil {
		return nil, err
	}
	a := &assembly{cl: cl, img: img, layers: make([]*layer, len(m.Layers))}
	contents, crowded := make([]*oci.Contents, len(m.Layers)), make([]bool, len(m.Layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(layersAtOnce)
	for i, d := range m.Layers {
		if d.DiffID == "" {
			return nil, fmt.Errorf("its manifest is of the old schema 1, which does not tell its layers' contents; "+
				"push it again with a newer program: %w", errors.ErrUnsupported)
		}
		l := &layer{source: blobOf(store, img, d)}
		a.layers[i] = l
		g.Go(func() (err error) {
			contents[i], err = cl.learnLayer(gctx, l, codec)
			if crowded[i] = errors.Is(err, cache.ErrNoRoom); crowded[i] {
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, l := range a.layers {
		if !crowded[i] {
			continue
		}
		// Too little room for several at once; those that are ready can be
		// evicted, and what there is to know of them stays.
		if contents[i], err = cl.learnLayer(ctx, l, codec); err != nil {
			return nil, err
		}
	}
	if a.image, err = oci.Assemble(ctx, m.Config, contents, cl.layeredOptions(m)); err != nil {
		return nil, err
	}
	size := strconv.FormatInt(a.image.Size(), 10)
	return a, cl.cat.opts.Index.SetNote(ctx, noteSize, key, []byte(size))
}

// blobOf is the way to a layer's bytes.
func blobOf(store backends.Layered, img backends.Image, d backends.Layer) oci.Layer {
	l := oci.Layer{Digest: d.Digest, DiffID: d.DiffID, Size: d.Size, MediaType: d.MediaType, Annotations: d.Annotations}
	l.ReadRange = func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		return store.OpenBlob(ctx, img, d.Digest, off, n)
	}
	l.Open = func(ctx context.Context) (io.ReadCloser, error) {
		s := &stream{ctx: ctx, moved: time.Now(), open: func(off int64) (io.ReadCloser, error) { return store.OpenBlob(ctx, img, d.Digest, off, -1) }}
		return s, s.reopen()
	}
	return l
}

// stream reads a blob from its beginning, and goes on where it broke off.
type stream struct {
	ctx  context.Context
	open func(off int64) (io.ReadCloser, error)

	mu     sync.Mutex // body is closed by another goroutine than it is read by
	body   io.ReadCloser
	closed bool
	off    int64
	broken int       // how often since the last byte
	moved  time.Time // when that came
}

func (s *stream) reopen() error {
	body, err := s.open(s.off)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		body.Close()
		return io.ErrClosedPipe
	}
	s.body = body
	return nil
}

// Read is io.Reader's.
func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	body := s.body
	s.mu.Unlock()
	n, err := body.Read(p)
	s.off += int64(n)
	if n > 0 {
		s.broken, s.moved = 0, time.Now()
	}
	if err == nil || err == io.EOF || s.ctx.Err() != nil {
		return n, err
	}
	if s.broken++; s.broken == layerTries || s.broken > 1 && time.Since(s.moved) > layerPatience {
		if !errors.Is(err, backends.ErrUnreachable) {
			err = fmt.Errorf("%w: its answers break off: %w", backends.ErrUnreachable, err)
		}
		return n, err
	}
	body.Close()
	select {
	case <-s.ctx.Done():
		return n, context.Cause(s.ctx)
	case <-time.After(time.Duration(s.broken-1) * time.Second):
	}
	if again := s.reopen(); again != nil {
		return n, again
	}
	return n, nil
}

// Close is io.Closer's. It ends a Read.
func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.body == nil {
		return nil
	}
	return s.body.Close()
}

// learnLayer finds out what there is to know of a layer: what is noted, else
// its table of contents, else what a reading of the whole layer tells.
func (cl *Client) learnLayer(ctx context.Context, l *layer, codec oci.Codec) (*oci.Contents, error) {
	x := cl.cat.opts.Index
	opts := oci.ScanOptions{Codec: codec}
	recall := func(key string) bool {
		data, ok, err := x.Note(ctx, noteLayer, key)
		known := new(oci.Contents)
		if err != nil || !ok || known.UnmarshalBinary(data) != nil || known.DiffID != l.source.DiffID {
			return false
		}
		l.contents = known
		return true
	}
	remember := func(ctx context.Context, key string) error {
		data, err := l.contents.MarshalBinary()
		if err != nil {
			return err
		}
		return x.SetNote(ctx, noteLayer, key, data)
	}
	lazyKey, dataKey := "toc "+l.source.Digest, oci.DataKey(l.source.DiffID, opts.Codec)
	noted := recall(lazyKey)
	if noted || !recall(dataKey) && cl.readTOC(ctx, l) {
		lazy, err := oci.NewLazy(l.source, l.contents)
		if err == nil {
			l.lazy = lazy
			if !noted {
				// Nobody needs to wait for megabytes of it: the table is there to be
				// read again, and says the same.
				cl.cat.work.Go(func() {
					if err := remember(cl.cat.ctx, lazyKey); err != nil && cl.cat.ctx.Err() == nil {
						cl.log.Warn("what is known of a layer is not kept", "layer", l.source.Digest, "error", err)
					}
				})
			}
			return l.contents, nil
		}
		cl.log.Debug("a layer's table of contents is of no use", "layer", l.source.Digest, "error", err)
		l.contents = nil
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if l.contents != nil {
		return l.contents, nil // its data are fetched when they are read
	}
	read := func(ctx context.Context, w *cache.Writer) error {
		c, err := oci.Scan(ctx, l.source, opts, w)
		if err != nil {
			return err
		}
		l.contents = c
		if err := remember(ctx, dataKey); err != nil {
			return err
		}
		return w.Commit(c.DataSize)
	}
	obj, err := cl.cat.opts.Cache.Build(ctx, "layer:"+dataKey, read)
	if errors.Is(err, oci.ErrCorrupt) {
		// It may have been damaged on the way: once more.
		cl.log.Warn("a layer is fetched again", "layer", l.source.Digest, "error", err)
		obj, err = cl.cat.opts.Cache.Build(ctx, "layer:"+dataKey, read)
	}
	if err != nil {
		return nil, err
	}
	obj.Close()
	if l.contents == nil && !recall(dataKey) {
		// The data are here, but what was noted of them is lost: the layer is
		// read once more for that alone.
		if l.contents, err = oci.Scan(ctx, l.source, opts, io.Discard); err != nil {
			return nil, err
		}
		if err := remember(ctx, dataKey); err != nil {
			return nil, err
		}
	}
	return l.contents, nil
}

// readTOC reads the layer's table of contents, if it has one that can be
// trusted. A layer without is read whole.
func (cl *Client) readTOC(ctx context.Context, l *layer) bool {
	c, err := oci.ScanTOC(ctx, l.source, oci.Limits{})
	if err != nil {
		if !errors.Is(err, oci.ErrNoTOC) {
			cl.log.Info("a layer is read whole, for its table of contents is of no use", "layer", l.source.Digest, "error", err)
		}
		return false
	}
	l.contents = c
	return true
}

// Fetch is cache.Fetcher's, for the file.
func (a *assembly) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return &assemblyReader{a: a, ctx: ctx, off: off, end: off + n, open: make([]*cache.Object, len(a.layers))}, nil
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

// assemblyReader reads a range of the file in order. It is the oci.Data of its
// layers, and keeps open what it reads of them.
type assemblyReader struct {
	a        *assembly
	ctx      context.Context
	off, end int64
	open     []*cache.Object
	run      io.ReadCloser // of a lazy layer's data up to runEnd, or nil
	runEnd   int64
}

// Read is io.Reader's.
func (r *assemblyReader) Read(p []byte) (int, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.end-r.off)]
	n, err := r.readRun(&p)
	if n == 0 && err == nil {
		n, err = r.a.image.ReadAt(r.ctx, r, p, r.off)
	}
	r.off += int64(n)
	if err == io.EOF && n > 0 {
		err = nil
	}
	if err != nil {
		err = layeredKind(err)
	}
	return n, err
}

// readRun reads of a lazy layer, if its data come next: it is told of the whole
// range that is wanted, for it fetches by few large requests what it knows. Where
// other bytes come next, it cuts p before the next of such a layer and reads
// nothing.
func (r *assemblyReader) readRun(p *[]byte) (int, error) {
	if r.run != nil && r.off == r.runEnd {
		r.run.Close()
		r.run = nil
	}
	if r.run == nil {
		s, ok := r.a.image.Segment(r.off)
		if !ok || r.a.layers[s.Layer].lazy == nil {
			return 0, nil
		}
		if s.Offset > r.off {
			*p = (*p)[:min(int64(len(*p)), s.Offset-r.off)]
			return 0, nil
		}
		r.runEnd = min(s.Offset+s.Length, r.end)
		var err error
		if r.run, err = r.a.layers[s.Layer].lazy.Fetch(r.ctx, s.LayerOffset+r.off-s.Offset, r.runEnd-r.off); err != nil {
			return 0, err
		}
	}
	return r.run.Read(*p)
}

// Close lets go of the layers.
func (r *assemblyReader) Close() error {
	var err error
	if r.run != nil {
		err = r.run.Close()
		r.run = nil
	}
	for i, o := range r.open {
		if o != nil {
			err = errors.Join(err, o.Close())
			r.open[i] = nil
		}
	}
	return err
}

// ReadLayer is oci.Data's.
func (r *assemblyReader) ReadLayer(ctx context.Context, i int, p []byte, off int64) error {
	l := r.a.layers[i]
	if l.lazy != nil {
		body, err := l.lazy.Fetch(ctx, off, int64(len(p)))
		if err != nil {
			return err
		}
		defer body.Close()
		_, err = io.ReadFull(body, p)
		return err
	}
	if r.open[i] == nil {
		// The file has one layer's data after the other's, so that those read
		// before may be evicted again.
		if err := r.Close(); err != nil {
			return err
		}
		o, err := r.a.arrive(ctx, l, p, off)
		if o == nil {
			return err
		}
		r.open[i] = o
	}
	n, err := r.open[i].ReadAt(ctx, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// data opens the data file of a layer that was read whole; one that was evicted
// is fetched and checked again.
func (a *assembly) data(ctx context.Context, l *layer) (*cache.Object, error) {
	key, coming := l.key(), &a.cl.cat.arrivals
	return a.cl.cat.opts.Cache.Build(ctx, key, func(ctx context.Context, w *cache.Writer) error {
		v := &arrival{of: coming, w: w}
		coming.set(key, v)
		defer coming.set(key, nil)
		if err := oci.Rescan(ctx, l.source, l.contents, oci.Limits{}, v); err != nil {
			return err
		}
		return w.Commit(l.contents.DataSize)
	})
}

// arrive fills p from off of the layer's data file if it comes by while the
// layer is fetched again. Otherwise it returns the open data file, or an error.
func (a *assembly) arrive(ctx context.Context, l *layer, p []byte, off int64) (*cache.Object, error) {
	key, coming := l.key(), &a.cl.cat.arrivals
	if _, _, complete := a.cl.cat.opts.Cache.Stat(key); complete {
		return a.data(ctx, l)
	}
	type result struct {
		o   *cache.Object
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	whole := make(chan result, 1)
	go func() {
		o, err := a.data(ctx, l)
		whole <- result{o, err}
	}()
	// leave waits for the goroutine, which then has nobody to give a file to.
	leave := func() {
		cancel()
		if r := <-whole; r.o != nil {
			r.o.Close()
		}
	}
	for {
		v, changed := coming.get(key)
		if v != nil && v.holds(off+int64(len(p))) {
			if _, err := v.w.ReadAt(p, off); err == nil {
				leave()
				return nil, nil
			}
			changed = nil // it is whole, or has failed, any moment now
		}
		select {
		case r := <-whole:
			cancel()
			return r.o, r.err
		case <-changed:
		case <-ctx.Done():
			cause := context.Cause(ctx)
			leave()
			return nil, cause
		}
	}
}

// arrival is a layer's data file that is being fetched again, checked piece by
// piece, so that readers may have what has come.
type arrival struct {
	of   *arrivals
	w    *cache.Writer
	have int64 // guarded by of.mu
}

// Write is io.Writer's.
func (v *arrival) Write(p []byte) (int, error) {
	n, err := v.w.Write(p)
	v.of.mu.Lock()
	defer v.of.mu.Unlock()
	v.have += int64(n)
	v.of.tell()
	return n, err
}

// holds reports whether everything before end has come.
func (v *arrival) holds(end int64) bool {
	v.of.mu.Lock()
	defer v.of.mu.Unlock()
	return v.have >= end
}

// arrivals are all of them by key. Its zero value is empty.
type arrivals struct {
	mu      sync.Mutex
	byKey   map[string]*arrival
	changed chan struct{} // closed when there is more of any; nil while nobody waits
}

// set notes an arrival, nil for its end.
func (s *arrivals) set(key string, v *arrival) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byKey == nil {
		s.byKey = map[string]*arrival{}
	}
	if s.byKey[key] = v; v == nil {
		delete(s.byKey, key)
	}
	s.tell()
}

// tell wakes those who wait. s.mu is held.
func (s *arrivals) tell() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// get returns the arrival of that key, nil for none, and what tells of news.
func (s *arrivals) get(key string) (*arrival, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.byKey[key], s.changed
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

// complete writes the whole file into the cache in the background, so that the
// kernel can read it without this program; again when it was evicted, but not
// when there was no way to do it. An image with a lazy layer is left to what is
// read of it.
func (a *assembly) complete(obj *cache.Object) {
	if a.lazy() || !a.filling.CompareAndSwap(false, true) {
		return
	}
	cat := a.cl.cat
	again, err := cat.opts.Cache.Object(cache.Spec{Key: a.cl.CacheKey(a.img), Size: obj.Size(), Fetcher: a, Exact: true})
	if err != nil {
		return // the reader's own handle serves
	}
	cat.work.Go(func() {
		defer again.Close()
		err := a.fetchData(cat.ctx)
		if err == nil {
			err = again.Fill(cat.ctx)
		}
		if err == nil {
			a.filling.Store(false)
		} else if cat.ctx.Err() == nil {
			a.cl.log.Warn("a container image is not kept whole", "image", a.img.Ref.String(), "error", err)
		}
	})
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

// assemblies are the images that are ready, or are being made. Its zero value
// is empty.
type assemblies struct {
	mu     sync.Mutex
	making map[string]*making
	ready  map[string]*assembly
	order  []string // of ready, the longest unused first
}

const (
	// readyImages is how many are kept: some 70 bytes for each of their files.
	readyImages = 8
	// makeGrace is how long one that nobody waits for any more is still made: a
	// reader that was interrupted usually comes back.
	makeGrace = 30 * time.Second
)

// making is one that is being made. Guarded by assemblies.mu.
type making struct {
	waiting int
	cancel  context.CancelFunc
	idle    *time.Timer
	done    chan struct{}
	a       *assembly // set before done is closed, like err
	err     error
}

// assembled returns the image of that key, making it where it is not ready. However
// many ask at once, it is made once, on a context of its own. A caller whose
// ctx ends stops waiting. A failure goes to all who wait; the next caller tries
// anew.
func (c *Catalog) assembled(ctx context.Context, key string, assemble func(context.Context) (*assembly, error)) (*assembly, error) {
	s := &c.assemblies
	s.mu.Lock()
	if a := s.ready[key]; a != nil {
		s.use(key)
		s.mu.Unlock()
		return a, nil
	}
	m := s.making[key]
	if m == nil {
		m = c.startAssembly(key, assemble)
	}
	m.waiting++
	if m.idle != nil {
		m.idle.Stop()
		m.idle = nil
	}
	s.mu.Unlock()
	var err error
	select {
	case <-m.done:
		err = m.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.waiting--; m.waiting == 0 && s.making[key] == m {
		m.idle = time.AfterFunc(makeGrace, m.cancel)
	}
	if err != nil {
		return nil, err
	}
	return m.a, nil
}

// startAssembly begins to make an image. c.assemblies.mu is held.
func (c *Catalog) startAssembly(key string, assemble func(context.Context) (*assembly, error)) *making {
	s := &c.assemblies
	ctx, cancel := context.WithCancel(c.ctx)
	m := &making{cancel: cancel, done: make(chan struct{})}
	if s.making == nil {
		s.making, s.ready = map[string]*making{}, map[string]*assembly{}
	}
	s.making[key] = m
	c.work.Go(func() {
		defer cancel()
		m.a, m.err = assemble(ctx)
		s.mu.Lock()
		delete(s.making, key)
		if m.err == nil {
			s.ready[key] = m.a
			s.use(key)
		}
		if m.idle != nil {
			m.idle.Stop()
		}
		s.mu.Unlock()
		close(m.done)
	})
	return m
}

// use makes key the last to be dropped, and drops what is too much. s.mu is
// held.
func (s *assemblies) use(key string) {
	for i, k := range s.order {
		if k == key {
			s.order = append(s.order[:i], s.order[i+1:]...)
			break
		}
	}
	s.order = append(s.order, key)
	if len(s.order) > readyImages {
		delete(s.ready, s.order[0])
		s.order = s.order[1:]
	}
}
