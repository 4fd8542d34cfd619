package oci

import (
	"context"
	"errors"
	"hash"
	"io"
	"sync"
)

const (
	streamBuffer = 256 << 10
	streamDepth  = 4
)

// errStopped is the error of a stream that its reader wanted no more of.
var errStopped = errors.New("stopped")

// readAhead reads from another reader in a goroutine of its own, so that the
// stages of a scan (fetch, decompress, parse, store) work at the same time. It
// hashes what it reads in one more goroutine: to decompress is the longest of the
// stages, and must not wait for that. Its owner must call stop.
type readAhead struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	full   chan []byte
	free   chan []byte
	// hash takes each buffer that full takes, and hashed gives it back; nil
	// without a sum.
	hash, hashed chan []byte
	done         sync.WaitGroup

	cur, rest []byte // the buffer that is being read from, and what is left of it

	// Valid after stop: the source's error, nil if it was read to its end,
	// errStopped if it was not; and how many bytes were read.
	err error
	n   int64
}

// newReadAhead starts to read r, at most limit bytes and one more, by which a
// caller can tell that there were more. sum may be nil.
func newReadAhead(ctx context.Context, r io.Reader, limit int64, sum hash.Hash) *readAhead {
	a := &readAhead{
		full: make(chan []byte, streamDepth),
		free: make(chan []byte, streamDepth),
	}
	a.ctx, a.cancel = context.WithCancelCause(ctx)
	for range streamDepth {
		a.free <- nil // allocated when it is first needed: many layers are small
	}
	if sum != nil {
		// Room for all buffers, so that nobody waits to hand one over.
		a.hash, a.hashed = make(chan []byte, streamDepth), make(chan []byte, streamDepth)
		a.done.Go(func() {
			for buf := range a.hash {
				sum.Write(buf)
				a.hashed <- buf
			}
		})
	}
	a.done.Go(func() { a.run(io.LimitReader(r, limit+1)) })
	return a
}

// run is the goroutine.
func (a *readAhead) run(r io.Reader) {
	defer close(a.full)
	if a.hash != nil {
		defer close(a.hash)
	}
	for {
		var buf []byte
		select {
		case <-a.ctx.Done():
			a.err = context.Cause(a.ctx)
			return
		case buf = <-a.free:
		}
		if buf == nil {
			buf = make([]byte, streamBuffer)
		}
		buf = buf[:streamBuffer]
		n, err := 0, error(nil)
		for n < len(buf) && err == nil {
			var k int
			k, err = r.Read(buf[n:])
			n += k
		}
		if n > 0 {
			a.n += int64(n)
			if a.hash != nil {
				a.hash <- buf[:n]
			}
			select {
			case <-a.ctx.Done():
				a.err = context.Cause(a.ctx)
				return
			case a.full <- buf[:n]:
			}
		}
		if err != nil {
			switch {
			case a.ctx.Err() != nil:
				a.err = context.Cause(a.ctx)
			case err != io.EOF:
				a.err = err
			}
			return
		}
	}
}

// Read gives what was read, then the source's error.
func (a *readAhead) Read(p []byte) (int, error) {
	if len(a.rest) == 0 {
		if a.cur != nil {
			if a.hashed != nil {
				<-a.hashed // the same one: both go in order
			}
			a.free <- a.cur
			a.cur = nil
		}
		buf, ok := <-a.full
		if !ok {
			if a.err != nil {
				return 0, a.err
			}
			return 0, io.EOF
		}
		a.cur, a.rest = buf, buf
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// stop makes the goroutine end once the Read that is under way returns, and
// waits for that; cancel alone does not wait.
func (a *readAhead) stop() {
	a.cancel(errStopped)
	a.done.Wait()
}
