package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/image/oci"
)

const (
	// layerTries is how often in a row the stream of a layer may break off
	// without a byte having come, and layerPatience for how long none may have
	// come then, before it is given up.
	layerTries    = 5
	layerPatience = 90 * time.Second
)

// layer is one layer of an assembly.
type layer struct {
	source   oci.Layer
	contents *oci.Contents
	lazy     *oci.Lazy // nil for a layer that was read whole
}

// key names the data file of a layer that was read whole in the cache.
func (l *layer) key() string { return "layer:" + l.contents.DataKey() }

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
	lazyKey, dataKey := "toc "+l.source.TOCKey(), oci.DataKey(l.source.DiffID, opts.Codec)
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
