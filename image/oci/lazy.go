package oci

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// maxUnit is the most that one compressed stream of a lazy layer may take.
	maxUnit = 2 * maxChunk
	// maxRequest is how much is fetched by one request, unless one stream is
	// larger.
	maxRequest = 4 << 20
	// maxGap is how much that nobody wants may lie between two streams that are
	// fetched by one request: zstd:chunked has archive headers there.
	maxGap = 16 << 10
	// maxInflated is how much one request may become. All of it may be in
	// memory, for each of the transfers that run at the same time.
	maxInflated = 8 << 20
	// heldBytes is how much of what was inflated a Lazy keeps, so that a large
	// chunk that is read in small pieces is fetched once.
	heldBytes = 8 << 20
)

// Lazy is the data file of a layer whose Contents came from ScanTOC. It fetches
// the compressed ranges that a read needs, no more, and checks each chunk
// before it gives one byte of it out. It is safe for concurrent use; two reads
// of one chunk fetch it once. It keeps some megabytes in memory and nothing on
// disk: what is to be kept, the caller's cache keeps.
type Lazy struct {
	layer  Layer
	size   int64
	chunks []lazyChunk // by place in the data file
	units  []unit      // by place in the blob

	mu    sync.Mutex
	held  map[int]*inflated
	order []int // of held, the longest unused first
	bytes int64
}

// lazyChunk is a chunk and its place in the data file.
type lazyChunk struct {
	chunk
	at   int64
	unit int // -1: zeros
	// first of its file.
	first bool
}

// unit is one compressed stream, which holds one chunk or several small ones.
type unit struct {
	offset, end int64
	size        int64 // inflated, as far as it is chunks
	chunks      []int // in the order of the stream
}

// inflated is a unit that is in memory, or on its way.
type inflated struct {
	done    chan struct{}
	data    map[int][]byte // by chunk
	err     error
	givenUp bool // who fetched it wants it no more, which err is due to
}

// NewLazy returns the data file of the layer.
func NewLazy(layer Layer, c *Contents) (*Lazy, error) {
	if !c.Lazy || layer.ReadRange == nil {
		return nil, &LayerError{Layer: layer.Digest, Err: ErrNoTOC}
	}
	z := &Lazy{layer: layer, size: c.DataSize, held: map[int]*inflated{}}
	z.chunks = make([]lazyChunk, 0, min(c.Entries, len(c.list)))
	d := decoder{b: c.list}
	var e entry
	for d.entry(&e) {
		at := e.offset
		for i, k := range e.chunks {
			z.chunks = append(z.chunks, lazyChunk{chunk: k, at: at, unit: -1, first: i == 0})
			at += k.size
		}
	}
	if d.err != nil {
		return nil, &LayerError{Layer: layer.Digest, Err: d.err}
	}
	if err := z.index(c.payload); err != nil {
		return nil, &LayerError{Layer: layer.Digest, Err: err}
	}
	return z, nil
}

// index finds the compressed streams. One ends where the next begins, if the
// table does not say that it ends before: zstd:chunked gives a file's first
// chunk the end of the file.
func (z *Lazy) index(payload int64) error {
	byBlob := make([]int, 0, len(z.chunks))
	for i, c := range z.chunks {
		if !c.zeros {
			byBlob = append(byBlob, i)
		}
	}
	slices.SortFunc(byBlob, func(i, j int) int {
		a, b := z.chunks[i], z.chunks[j]
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.inner, b.inner), cmp.Compare(i, j))
	})
	for _, i := range byBlob {
		c := &z.chunks[i]
		if n := len(z.units); n == 0 || z.units[n-1].offset != c.offset {
			if n > 0 && (z.units[n-1].end == 0 || z.units[n-1].end > c.offset) {
				z.units[n-1].end = c.offset
			}
			z.units = append(z.units, unit{offset: c.offset, end: c.end})
		}
		u := len(z.units) - 1
		c.unit = u
		z.units[u].chunks = append(z.units[u].chunks, i)
		z.units[u].size += c.size
	}
	if n := len(z.units); n > 0 && z.units[n-1].end == 0 {
		z.units[n-1].end = payload
	}
	for _, u := range z.units {
		if u.end <= u.offset || u.end > payload {
			return corrupt("a chunk from %d to %d of the blob's %d", u.offset, u.end, payload)
		}
		if u.end-u.offset > maxUnit {
			return unsupported("a chunk of %d compressed bytes", u.end-u.offset)
		}
	}
	return nil
}

// Size is the data file's length.
func (z *Lazy) Size() int64 { return z.size }

// Extent returns where the file ends whose data hold off, or come next.
func (z *Lazy) Extent(off int64) int64 {
	i := z.find(off)
	if i == len(z.chunks) {
		return z.size
	}
	for i+1 < len(z.chunks) && !z.chunks[i+1].first {
		i++
	}
	return z.chunks[i].at + z.chunks[i].size
}

// find returns the first chunk that ends behind at.
func (z *Lazy) find(at int64) int {
	return sort.Search(len(z.chunks), func(i int) bool { return z.chunks[i].at+z.chunks[i].size > at })
}

// Fetch returns a reader of the n bytes from off. What it must fetch, it
// fetches as it is read; ctx holds until it is closed. Errors are *LayerError,
// those of chunks that do not match their checksums wrap ErrCorrupt.
func (z *Lazy) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > z.size || n > z.size-off {
		return nil, &LayerError{Layer: z.layer.Digest, Err: errors.New("range outside the data")}
	}
	return &lazyReader{z: z, ctx: ctx, at: off, end: off + n, next: z.find(off), unit: -1}, nil
}

// lazyReader reads a range in order.
type lazyReader struct {
	z       *Lazy
	ctx     context.Context
	at, end int64
	next    int // the chunk at or behind at
	unit    int // that data is of
	data    map[int][]byte

	// What the last request brings, or has brought: units from first on. They
	// are kept here because others may drive them out of what is held.
	batch []*inflated
	first int
	stop  context.CancelFunc
	work  sync.WaitGroup
}

// Close ends the request that may be on its way, and lets go of what the reader
// holds.
func (r *lazyReader) Close() error {
	if r.stop != nil {
		r.stop()
	}
	r.work.Wait()
	r.data, r.batch, r.at = nil, nil, r.end
	return nil
}

// Read gives bytes that were checked.
func (r *lazyReader) Read(p []byte) (int, error) {
	if r.at >= r.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.end-r.at)]
	z := r.z
	for r.next < len(z.chunks) && z.chunks[r.next].at+z.chunks[r.next].size <= r.at {
		r.next++
	}
	if r.next == len(z.chunks) {
		return r.zeros(p), nil
	}
	c := &z.chunks[r.next]
	switch {
	case r.at < c.at: // alignment
		return r.zeros(p[:min(int64(len(p)), c.at-r.at)]), nil
	case c.zeros:
		return r.zeros(p[:min(int64(len(p)), c.at+c.size-r.at)]), nil
	}
	if r.unit != c.unit {
		data, err := r.load(c.unit)
		if err != nil {
			if r.ctx.Err() != nil {
				err = context.Cause(r.ctx)
			}
			return 0, &LayerError{Layer: z.layer.Digest, Err: err}
		}
		r.unit, r.data = c.unit, data
	}
	n := copy(p, r.data[r.next][r.at-c.at:])
	r.at += int64(n)
	return n, nil
}

func (r *lazyReader) zeros(p []byte) int {
	clear(p)
	r.at += int64(len(p))
	return len(p)
}

// wanted is how many units in a row, from that of the chunk on, a read up to
// end needs, as far as one request may fetch.
func (z *Lazy) wanted(i int, end int64) int {
	first := z.chunks[i].unit
	last, size := first, z.units[first].size
	for ; i < len(z.chunks) && z.chunks[i].at < end; i++ {
		u := z.chunks[i].unit
		if u < 0 || u == last {
			continue
		}
		if u != last+1 || z.units[u].offset-z.units[last].end > maxGap || z.units[u].end-z.units[first].offset > maxRequest ||
			size+z.units[u].size > maxInflated {
			break
		}
		last, size = u, size+z.units[u].size
	}
	return last - first + 1
}

// load returns the chunks of unit u. What it has to fetch for that is what the
// rest of the range needs, by one request, whose later units are not waited for.
func (r *lazyReader) load(u int) (map[int][]byte, error) {
	z := r.z
	for {
		var h *inflated
		if k := u - r.first; k >= 0 && k < len(r.batch) {
			h = r.batch[k]
		} else {
			batch, mine := z.claim(u, z.wanted(r.next, r.end))
			if h = batch[0]; mine {
				if r.stop != nil {
					r.stop() // of a request that has ended
				}
				var ctx context.Context
				ctx, r.stop = context.WithCancel(r.ctx)
				r.first, r.batch = u, batch
				r.work.Go(func() { z.fetch(ctx, u, batch) })
			}
		}
		select {
		case <-h.done:
		case <-r.ctx.Done():
			return nil, context.Cause(r.ctx)
		}
		// Someone else's reader may have been given up; ours has not.
		if h.err == nil || r.ctx.Err() != nil || !h.givenUp {
			return h.data, h.err
		}
	}
}

// claim returns unit u where it is held or on its way. Otherwise it is the
// caller's (mine) to fetch, with up to n-1 units behind it that nobody has.
func (z *Lazy) claim(u, n int) (batch []*inflated, mine bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if h := z.held[u]; h != nil {
		if i := slices.Index(z.order, u); i >= 0 {
			z.order = append(slices.Delete(z.order, i, i+1), u)
		}
		return []*inflated{h}, false
	}
	for k := u; k < u+n && z.held[k] == nil; k++ {
		h := &inflated{done: make(chan struct{})}
		z.held[k] = h
		batch = append(batch, h)
	}
	return batch, true
}

// fetch fills in the units from u on, which nobody else works at, each as soon
// as it has come.
func (z *Lazy) fetch(ctx context.Context, u int, mine []*inflated) {
	off, n := z.units[u].offset, z.units[u+len(mine)-1].end-z.units[u].offset
	body, err := z.layer.ReadRange(ctx, off, n)
	if err == nil {
		defer body.Close()
	}
	var raw []byte
	at := off
	for i, h := range mine {
		unit := z.units[u+i]
		if err == nil {
			_, err = io.CopyN(io.Discard, body, unit.offset-at)
			at = unit.end
		}
		if err == nil {
			raw = slices.Grow(raw[:0], int(unit.end-unit.offset))[:unit.end-unit.offset]
			_, err = io.ReadFull(body, raw)
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err == nil {
			h.data, h.err = z.inflate(ctx, unit, raw)
			h.givenUp = h.err != nil && ctx.Err() != nil
		} else {
			h.err, h.givenUp = fmt.Errorf("reading %d bytes at %d: %w", n, off, err), ctx.Err() != nil
		}
		z.settle(u+i, h)
	}
}

// settle tells who waits for the unit, and makes room.
func (z *Lazy) settle(u int, h *inflated) {
	z.mu.Lock()
	if h.err != nil {
		delete(z.held, u)
	} else {
		z.order = append(z.order, u)
		z.bytes += h.bytes()
		for z.bytes > heldBytes && len(z.order) > 1 {
			old := z.order[0]
			z.order = z.order[1:]
			z.bytes -= z.held[old].bytes()
			delete(z.held, old)
		}
	}
	z.mu.Unlock()
	close(h.done)
}

func (h *inflated) bytes() (n int64) {
	for _, p := range h.data {
		n += int64(len(p))
	}
	return n
}

// Decompressors are costly to make for a file of some kilobytes. Those for zstd
// take windows up to commonWindow.
var (
	gzipPool sync.Pool // *gzip.Reader
	zstdPool sync.Pool // *zstd.Decoder
)

// inflate decompresses a unit and checks its chunks.
func (z *Lazy) inflate(ctx context.Context, u unit, raw []byte) (map[int][]byte, error) {
	if bytes.HasPrefix(raw, []byte{0x1f, 0x8b}) {
		g, _ := gzipPool.Get().(*gzip.Reader)
		if g == nil {
			g = new(gzip.Reader)
		}
		if err := g.Reset(bytes.NewReader(raw)); err != nil {
			return nil, decompressError(err)
		}
		defer gzipPool.Put(g)
		return z.cut(u, g)
	}
	d, _ := zstdPool.Get().(*zstd.Decoder)
	if d == nil {
		var err error
		if d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(commonWindow)); err != nil {
			return nil, err
		}
	}
	if err := d.Reset(bytes.NewReader(raw)); err != nil {
		return nil, decompressError(err)
	}
	defer zstdPool.Put(d)
	data, err := z.cut(u, d)
	if !errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return data, err
	}
	large, err := newZstd(ctx, bufio.NewReader(bytes.NewReader(raw)))
	if err != nil {
		return nil, err
	}
	defer large.Close()
	if data, err = z.cut(u, large); err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // while it waited for room
	}
	return data, err
}

// cut takes a unit's chunks out of what it was inflated to.
func (z *Lazy) cut(u unit, r io.Reader) (map[int][]byte, error) {
	out := make(map[int][]byte, len(u.chunks))
	at := int64(0)
	for _, i := range u.chunks {
		c := &z.chunks[i]
		if c.inner < at {
			return nil, corrupt("chunks that overlap")
		}
		if _, err := io.CopyN(io.Discard, r, c.inner-at); err != nil {
			return nil, decompressError(err)
		}
		p := make([]byte, c.size)
		if _, err := io.ReadFull(r, p); err != nil {
			return nil, decompressError(err)
		}
		if sha256.Sum256(p) != c.sum {
			return nil, corrupt("a chunk does not match its checksum")
		}
		out[i], at = p, c.inner+c.size
	}
	return out, nil
}
