package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
)

// Range is N bytes from Off.
type Range struct{ Off, N int64 }

// Object is a handle of an object. Handles of one key share what is fetched;
// each has its own read-ahead. Methods are safe for concurrent use.
type Object struct {
	l      *live
	closed atomic.Bool

	mu      sync.Mutex
	streams streams
}

// Object opens the object that spec describes. It touches the disk, never the
// network. Of several handles of a key, the newest Fetcher that is not nil
// serves all. It fails with ErrNotCached when nothing is known of the key and
// there is no Fetcher, with ErrCorrupt when its content failed its check
// twice in this run. The caller closes the handle.
func (c *Cache) Object(spec Spec) (*Object, error) {
	if spec.Key == "" {
		return nil, errors.New("open a cached object: no key")
	}
	o, err := c.open(spec)
	if err != nil {
		return nil, fmt.Errorf("open the cached object %s: %w", spec.Key, err)
	}
	return o, nil
}

// ReadAt reads len(p) bytes at off, waiting only for those bytes. It has the
// semantics of io.ReaderAt, io.EOF included. When ctx ends, the wait ends with
// ctx's error; what was being fetched goes on, for whoever asks next.
func (o *Object) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	l := o.l
	if off < 0 {
		return 0, fmt.Errorf("read %s at %d: negative offset", l.key, off)
	}
	if o.closed.Load() {
		return 0, fmt.Errorf("read %s: %w", l.key, ErrClosed)
	}
	if off >= l.size {
		return 0, io.EOF
	}
	var eof error
	if rest := l.size - off; int64(len(p)) > rest {
		p, eof = p[:rest], io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if l.readHit(p, off) {
		l.hits.Add(1)
		o.note(off, int64(len(p)))
		return len(p), eof
	}
	if err := o.read(ctx, p, off); err != nil {
		return 0, err
	}
	return len(p), eof
}

// Size is the object's length in bytes.
func (o *Object) Size() int64 { return o.l.size }

// Cached is how many of its bytes are on disk.
func (o *Object) Cached() int64 { return o.l.cachedBytes() }

// Complete reports whether all bytes are here and were checked.
func (o *Object) Complete() bool { return o.l.complete.Load() }

// File returns the file that holds the object's bytes, when it is complete, so
// that the kernel can read it without us. The file belongs to the object: it
// must not be written to or closed, and is good until the last handle of the
// object closes.
func (o *Object) File() (*os.File, bool) {
	l := o.l
	if !l.complete.Load() || o.closed.Load() {
		return nil, false
	}
	l.c.fds.keep(l)
	f, err := l.data()
	if err != nil {
		return nil, false
	}
	return f.OS(), true
}

// Close ends the handle. What only it wanted is fetched no further. Closing
// twice is harmless.
func (o *Object) Close() error {
	if o.closed.Swap(true) {
		return nil
	}
	o.l.c.release(o)
	return nil
}
