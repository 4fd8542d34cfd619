package catalog

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/image/oci"
)

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
