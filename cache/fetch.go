package cache

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"syscall"
	"time"
)

const (
	// fetchTries is how often in a row a transfer may break off without
	// having brought a block.
	fetchTries = 3
	// fetchCuts is how often it may break off in all.
	fetchCuts = 32
	// roomStep is how much room a transfer takes at a time.
	roomStep = 1 << 20
)

// transfer brings the blocks [next, end) of one object, in order, in one
// request (more when it breaks off).
type transfer struct {
	live       *live
	background bool
	// whole: it is part of fetching everything.
	whole bool
	// started: it has its slot. Guarded by live.mu.
	started bool
	// yields: it gives its slot up for demand. Guarded by scheduler.mu.
	yields bool

	// next and end are guarded by live.mu; end may be lowered while it runs.
	next, end int
	// first and limit are what next and end were at the start.
	first, limit int
	// ahead is how many blocks from next on others may wait for instead of
	// asking for them themselves; for a demand transfer all of them.
	ahead int
	// awaited is where the blocks end that others wait for in it. What follows
	// them is waited for too: it is the same reader's, and comes next.
	awaited int

	room int64 // charged and not yet written; used by run alone
}

// brings reports whether a reader of block b should wait for t.
func (t *transfer) brings(b int) bool {
	return t.next <= b && b < t.end && (!t.background || b < t.next+t.ahead || b <= t.awaited)
}

// bringing reports whether a transfer brings b soon. The caller holds l.mu.
func (l *live) bringing(b int) bool {
	for _, t := range l.transfers {
		if t.brings(b) {
			return true
		}
	}
	return false
}

// await reports whether a transfer brings b soon, for one who will wait for it.
// The caller holds l.mu.
func (l *live) await(b int) bool {
	for _, t := range l.transfers {
		if t.brings(b) {
			t.awaited = max(t.awaited, b+1)
			return true
		}
	}
	return false
}

// demand queues the transfer of the blocks [first, end), which readers wait
// for. The caller holds l.mu.
func (l *live) demand(first, end int) error {
	if l.fetcher == nil {
		return fmt.Errorf("read %s at %d: %w, and it cannot be fetched now", l.key, int64(first)*blockSize, ErrNotCached)
	}
	first, end = l.around(first, end)
	t := &transfer{live: l, next: first, end: end, first: first, limit: end}
	if !l.c.sched.want(t) {
		return fmt.Errorf("read %s: %w", l.key, ErrClosed)
	}
	l.transfers = append(l.transfers, t)
	return nil
}

// run does a transfer and sees to the readers that it leaves without their
// bytes.
func (l *live) run(t *transfer) {
	if !l.c.hold(l) {
		return // everybody left before it began
	}
	defer l.c.letGo(l)
	l.mu.Lock()
	ctx := l.ctx
	t.started = true
	l.mu.Unlock()
	err := l.transfer(ctx, t)
	if t.room > 0 {
		l.c.uncharge(l, t.room)
		t.room = 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case ctx.Err() == nil:
	case l.ctx.Err() == nil:
		err = nil // it was ended for those who left; others have come since
	default:
		err = fmt.Errorf("fetch %s: %w", l.key, context.Cause(l.ctx))
	}
	l.transfers = slices.DeleteFunc(l.transfers, func(o *transfer) bool { return o == t })
	for w := range l.waiters {
		if w.first >= t.limit || w.first+len(w.state) <= t.first {
			continue
		}
		werr := err
		if err == nil || !l.left(t, w) {
			// A transfer that ended early on purpose: those who waited for
			// it ask for themselves.
			werr = l.demandFor(w)
		}
		if werr != nil {
			w.fail(werr)
			delete(l.waiters, w)
		}
	}
	l.afterTransfer(t, err)
}

// left reports whether w awaits a block that t should have brought and nobody
// else brings. The caller holds l.mu.
func (l *live) left(t *transfer, w *waiter) bool {
	for b := max(t.next, w.first); b < min(t.end, w.first+len(w.state)); b++ {
		if w.wants(b) && !l.bringing(b) {
			return true
		}
	}
	return false
}

// transfer asks for [t.next, t.end), again from where it stopped when the body
// breaks off.
func (l *live) transfer(ctx context.Context, t *transfer) error {
	for cuts, fails := 0, 0; ; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		l.mu.Lock()
		first, end, f := t.next, t.end, l.fetcher
		l.mu.Unlock()
		if first >= end {
			return nil
		}
		if f == nil {
			return ErrNotCached
		}
		err := l.request(ctx, t, f, first, end)
		if err == nil {
			return nil
		}
		var cut *cutError
		if !errors.As(err, &cut) {
			return err
		}
		if context.Cause(ctx) != nil {
			return context.Cause(ctx)
		}
		fails++
		if l.progress(t) > first {
			fails = 1
		}
		if cuts++; fails >= fetchTries || cuts >= fetchCuts {
			return fmt.Errorf("%w (tried %d times)", cut.error, cuts)
		}
		l.c.stats.retries.Add(1)
		l.c.log.Debug("a transfer broke off and goes on", "key", l.key, "error", cut.error)
		if err := sleep(ctx, time.Duration(fails*fails)*100*time.Millisecond); err != nil {
			return err
		}
	}
}

func (l *live) progress(t *transfer) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return t.next
}

// cutError is a body that broke off: worth another request.
type cutError struct{ error }

func (e *cutError) Unwrap() error { return e.error }

// request makes one request for the blocks [first, end) and takes in its body.
func (l *live) request(ctx context.Context, t *transfer, f Fetcher, first, end int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timeout := l.c.opts.FetchTimeout
	l.mu.Lock()
	if l.exact {
		timeout = math.MaxInt64
	}
	l.mu.Unlock()
	watch := time.AfterFunc(timeout, func() { cancel(ErrStalled) })
	defer watch.Stop()

	off, n := int64(first)*blockSize, l.bytesIn(first, end)
	began := time.Now()
	l.c.stats.requests.Add(1)
	body, err := f.Fetch(ctx, off, n)
	if err != nil {
		if errors.Is(context.Cause(ctx), ErrStalled) {
			return &cutError{fmt.Errorf("fetch %d bytes at %d: %w", n, off, ErrStalled)}
		}
		return fmt.Errorf("fetch %d bytes at %d: %w", n, off, err)
	}
	defer body.Close()
	buf := blockPool.Get().(*[blockSize]byte)
	defer blockPool.Put(buf)
	last := began
	for b := first; b < end; b++ {
		data := buf[:l.blockLen(b)]
		k, err := io.ReadFull(body, data)
		l.c.stats.fetched.Add(int64(k))
		if err != nil {
			at := int64(b)*blockSize + int64(k)
			if cause := context.Cause(ctx); errors.Is(cause, ErrStalled) {
				err = cause
			} else if err == io.EOF || err == io.ErrUnexpectedEOF {
				err = fmt.Errorf("%w: the body ended %d bytes early: %w", ErrLength, off+n-at, io.ErrUnexpectedEOF)
			}
			return &cutError{fmt.Errorf("fetch, broken off at %d: %w", at, err)}
		}
		watch.Reset(timeout)
		now := time.Now()
		l.link.saw(b == first, now.Sub(last), k, now)
		last = now
		if b == end-1 {
			// A body longer than asked for is not what was asked for.
			var one [1]byte
			if k, _ := io.ReadFull(body, one[:]); k > 0 {
				l.unsure(first, end)
				return fmt.Errorf("fetch %d bytes at %d: %w: the body is longer", n, off, ErrLength)
			}
		}
		if !l.arrived(t, b, data) {
			return nil // the rest is not wanted from this request
		}
	}
	return nil
}

// unsure drops blocks that came in a body which turned out to be wrong. Unlike a
// damaged block's, their checksums are those of the bytes, so the map must not keep
// them.
func (l *live) unsure(first, end int) {
	defer l.c.markDirty(l)
	defer l.c.stats.revoked.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	for b := first; b < end; b++ {
		l.c.spill.drop(l, b)
		if l.recorded.has(b) {
			l.forgetBlock(b)
			l.unsaved = append(l.unsaved, b)
		}
	}
}

// arrived takes in block b: to the readers that wait, to disk, into the map of
// what is present. It reports whether the transfer should go on.
func (l *live) arrived(t *transfer, b int, data []byte) bool {
	l.mu.Lock()
	known, nonce := l.recorded.has(b), l.nonce
	l.serve(b, data)
	l.mu.Unlock()

	if !known {
		err := l.store(t, b, data)
		l.mu.Lock()
		l.pump.full = err
		switch {
		case err != nil:
			l.c.spill.put(l, b, data)
			if l.pump.fills > 0 {
				l.tell() // Fill has failed
			}
		case l.nonce != nonce:
			// All was dropped meanwhile, and this may lie in the old file.
		case !l.recorded.has(b): // else another transfer was faster
			l.crc[b].Store(crc32.Checksum(data, castagnoli))
			l.recorded.set(b)
			l.ready.set(b)
			l.present++
			l.unsaved = append(l.unsaved, b)
		}
		// Those who came while the block was being written.
		l.serve(b, data)
		l.mu.Unlock()
		if err == nil {
			l.c.markDirty(l)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t.next = b + 1
	l.afterBlock(b)
	return l.goOn(t)
}

// serve hands block b to those who wait for it. The caller holds l.mu.
func (l *live) serve(b int, data []byte) {
	for w := range l.waiters {
		if w.wants(b) {
			w.fill(b, data)
			if w.left == 0 {
				delete(l.waiters, w)
			}
		}
	}
}

// store writes block b to disk. When there is no room or the disk fails, the
// block is served all the same, but not kept.
func (l *live) store(t *transfer, b int, data []byte) error {
	n := int64(len(data))
	if l.paid.has(b) {
		n = 0
	}
	if t.room < n {
		l.mu.Lock()
		prepaid := min(l.prepaid, n-t.room)
		l.prepaid -= prepaid
		t.room += prepaid
		l.mu.Unlock()
	}
	if t.room < n {
		l.mu.Lock()
		step := max(n, min(roomStep, l.bytesIn(b, max(t.end, b+1))))
		l.mu.Unlock()
		if l.c.chargeObject(l, step-t.room) == nil {
			t.room = step
		} else if err := l.c.chargeObject(l, n-t.room); err == nil {
			t.room = n
		} else {
			l.c.stats.uncached.Add(1)
			return err
		}
	}
	write := func(f file) error {
		_, err := f.WriteAt(data, int64(b)*blockSize)
		return err
	}
	err := l.withData(write)
	if errors.Is(err, syscall.ENOSPC) && l.c.evictOne() {
		// Others use this disk too, so it can be full below the limit.
		err = l.withData(write)
	}
	if err != nil {
		l.c.stats.uncached.Add(1)
		l.c.diskTrouble(l.key, err)
		return fmt.Errorf("keep %d bytes at %d of %s: %w", len(data), int64(b)*blockSize, l.key, err)
	}
	if l.paid.set(b) {
		t.room -= n
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
