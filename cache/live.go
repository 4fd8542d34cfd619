package cache

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// live is the state of an object while it is open or being worked on. All
// handles of one key share it.
type live struct {
	c      *Cache
	e      *entry
	key    string
	size   int64
	blocks int
	nonce  uint32

	// refs counts handles, busy the work that outlives them (flushing,
	// sealing). Guarded by Cache.mu.
	refs, busy int

	// recorded has the blocks that are on disk, ready those of them that were
	// checked in this run and may be read without further ado, asked those
	// that any reader wanted. Bits of ready are set under mu, and cleared
	// only after gen was raised, so that a reader that looks at gen before and
	// after its read never returns bytes that were dropped meanwhile.
	// paid has those whose bytes are charged.
	recorded, ready, asked, paid bitmap
	gen                          atomic.Uint64
	complete                     atomic.Bool
	// crc has the checksum of each recorded block, written before its bit, unless
	// unread is set, under mu: then the map is still to be read, by learn.
	crc    []atomic.Uint32
	unread atomic.Bool
	// learning serializes learn, which does I/O.
	learning sync.Mutex

	hits       atomic.Int64
	waited     atomic.Int64 // how long readers waited for transfers, in nanoseconds
	file       atomic.Pointer[dataFile]
	pinnedFile bool        // guarded by fdTable.mu
	shut       atomic.Bool // unloaded, or the cache is closed
	doomed     atomic.Bool // being removed: no need to finish anything

	// flushing serializes flush, which does I/O.
	flushing sync.Mutex

	mu sync.Mutex
	// ctx is what transfers run on; it ends when the last handle closes.
	ctx       context.Context
	cancel    context.CancelCauseFunc
	fetcher   Fetcher
	exact     bool // see Spec, as extent
	extent    func(off int64) (end int64)
	sum       Sum
	present   int // blocks in recorded
	transfers []*transfer
	waiters   map[*waiter]struct{}
	unsaved   []int // the map does not say yet what became of them
	prepaid   int64 // charged for blocks that are not known any more
	unsealed  bool  // the description says complete, and it is not
	err       error // ErrCorrupt, for good
	handles   map[*Object]struct{}
	foretold  bitmap        // what Replay named; nil for nothing
	changed   chan struct{} // closed and replaced when Fill should look again
	trace     trace
	guess     guess
	seal      seal
	pump      pump
	link      link
}

// span is the block range that holds [off, off+n).
func span(off, n int64) (first, end int) {
	return int(off / blockSize), int((off + n + blockSize - 1) / blockSize)
}

// blockLen is the length of block b, the last one's being what is left.
func (l *live) blockLen(b int) int {
	return int(min(blockSize, l.size-int64(b)*blockSize))
}

// bytesIn is the length of blocks [first, end).
func (l *live) bytesIn(first, end int) int64 {
	return min(int64(end)*blockSize, l.size) - int64(first)*blockSize
}

// cached is how many bytes are present.
func (l *live) cachedBytes() int64 {
	if l.complete.Load() {
		return l.size
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cachedLocked()
}

func (l *live) cachedLocked() int64 {
	n := int64(l.present) * blockSize
	if l.blocks > 0 && l.recorded.has(l.blocks-1) {
		n -= blockSize - int64(l.blockLen(l.blocks-1))
	}
	return n
}

// readHit reads p at off when all of it is on disk and was checked. It takes
// no lock; ok is false when the long way has to be taken.
func (l *live) readHit(p []byte, off int64) (ok bool) {
	gen := l.gen.Load()
	first, end := span(off, int64(len(p)))
	if !l.ready.hasAll(first, end) {
		return false
	}
	for {
		f, err := l.data()
		if err != nil {
			return false
		}
		_, err = f.ReadAt(p, off)
		if err == nil {
			return l.gen.Load() == gen
		}
		if !errors.Is(err, os.ErrClosed) || l.shut.Load() {
			// A file cut short, or a broken disk: what cannot be read is
			// not here any more.
			l.distrust(first, end)
			return false
		}
	}
}

// distrust makes the next reader of these blocks check them against their
// checksums, which drops those that are lost.
func (l *live) distrust(first, end int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gen.Add(1)
	for b := first; b < end; b++ {
		l.ready.clear(b)
	}
}

var blockPool = sync.Pool{New: func() any { return new([blockSize]byte) }}

// readBlock reads recorded block b into buf and checks it. A block that does
// not check out is forgotten, and ok is false.
func (l *live) readBlock(b int, buf []byte) (ok bool) {
	buf = buf[:l.blockLen(b)]
	l.learn()
	if !l.recorded.has(b) {
		return false
	}
	want, gen := l.crc[b].Load(), l.gen.Load()
	err := l.withData(func(f file) error {
		_, err := f.ReadAt(buf, int64(b)*blockSize)
		return err
	})
	if err == nil && crc32.Checksum(buf, castagnoli) == want {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.recorded.has(b) || l.crc[b].Load() != want {
			return false
		}
		l.ready.set(b)
		return true
	}
	if errors.Is(err, ErrClosed) {
		return false
	}
	if err == nil {
		err = errors.New("checksum differs")
	}
	defer l.c.markDirty(l)
	l.mu.Lock()
	defer l.mu.Unlock()
	// When anything was dropped meanwhile, this block may have been, and been
	// fetched again: look again before dropping what is good.
	if l.gen.Load() == gen && l.recorded.has(b) {
		l.c.stats.badBlocks.Add(1)
		l.c.log.Warn("a cached block is damaged and will be fetched again", "key", l.key, "offset", int64(b)*blockSize, "error", err)
		l.forgetBlock(b)
	}
	return false
}

// forgetBlock makes b absent. The caller holds l.mu and calls markDirty after
// releasing it. The map may keep saying
// that b is there: its checksum will tell again.
func (l *live) forgetBlock(b int) {
	l.gen.Add(1)
	l.ready.clear(b)
	l.recorded.clear(b)
	l.present--
	if l.complete.Swap(false) {
		l.unsealed = true
	}
	l.seal.done = false
	l.seal.restart = l.seal.restart || b < l.seal.next
	if l.pump.fills > 0 || l.pump.bulk {
		// Whoever wants the whole wants this again, or learns that it is gone.
		l.tell()
		l.pumpOn()
	}
}

// waiter is a reader on the long way. Its buffer is filled as blocks arrive,
// straight from the transfer's. Guarded by live.mu while it is in
// live.waiters, by its reader otherwise.
type waiter struct {
	p     []byte
	off   int64
	first int
	state []waitState // by block, from first
	left  int         // how many are awaited
	err   error
	done  chan struct{} // closed when left comes to 0
}

type waitState uint8

const (
	onDisk  waitState = iota // to be read from disk
	awaited                  // a transfer brings it
	got                      // is in p
)

func (w *waiter) wants(b int) bool {
	i := b - w.first
	return i >= 0 && i < len(w.state) && w.state[i] == awaited
}

// fill copies from block b, whose bytes are in data, what the waiter wants.
func (w *waiter) fill(b int, data []byte) {
	copyBlock(w.p, w.off, b, data)
	w.state[b-w.first] = got
	if w.left--; w.left == 0 {
		close(w.done)
	}
}

func (w *waiter) fail(err error) {
	if w.left > 0 {
		w.left, w.err = 0, err
		close(w.done)
	}
}

// copyBlock copies the part of block b that [off, off+len(p)) covers into p.
func copyBlock(p []byte, off int64, b int, data []byte) {
	start := int64(b) * blockSize
	if start < off {
		copy(p, data[off-start:])
	} else {
		copy(p[start-off:], data)
	}
}

// read is the long way: it fetches what is missing and checks what was not
// checked yet.
func (o *Object) read(ctx context.Context, p []byte, off int64) error {
	l := o.l
	first, end := span(off, int64(len(p)))
	w := &waiter{p: p, off: off, first: first, state: make([]waitState, end-first)}
	missed, noted := false, false
	// Each round either ends the read, or found damaged blocks and forgot
	// them. That can happen a few times, not for ever.
	for range 64 {
		if l.shut.Load() {
			return fmt.Errorf("read %s: %w", l.key, ErrClosed)
		}
		if err := l.join(w); err != nil {
			return err
		}
		if !noted {
			noted = true
			o.note(off, int64(len(p))) // what this leads to comes after what was asked for
		}
		if w.done != nil {
			missed = true
			began := time.Now()
			select {
			case <-w.done:
				l.waited.Add(int64(time.Since(began)))
			case <-ctx.Done():
				l.leave(w)
				return context.Cause(ctx)
			}
			if w.err != nil {
				return w.err
			}
		}
		if l.readRecorded(w) {
			if !missed {
				l.hits.Add(1)
			} else {
				l.c.stats.misses.Add(1)
			}
			return nil
		}
	}
	return fmt.Errorf("read %d bytes at %d: the cache disk does not keep what it is given: %w", len(p), off, ErrCorrupt)
}

// join makes w wait for its absent blocks, starting demand transfers for those
// that none is bringing. w.done stays nil when none is absent.
func (l *live) join(w *waiter) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	w.done, w.left = nil, 0
	for i := range w.state {
		b := w.first + i
		if w.state[i] == got || l.recorded.has(b) {
			continue
		}
		if data := l.c.spill.get(l, b); data != nil {
			copyBlock(w.p, w.off, b, data)
			w.state[i] = got
			continue
		}
		w.state[i] = awaited
		w.left++
	}
	if w.left == 0 {
		return nil
	}
	w.done = make(chan struct{})
	l.waiters[w] = struct{}{}
	return l.demandFor(w)
}

// demandFor starts demand transfers for those blocks that w awaits and that
// none is bringing, one for each stretch of them. When that is impossible, w
// waits no longer. The caller holds l.mu.
func (l *live) demandFor(w *waiter) error {
	for i := 0; i < len(w.state); {
		run := i
		for run < len(w.state) && w.state[run] == awaited && !l.await(w.first+run) {
			run++
		}
		if run == i {
			i++
			continue
		}
		if err := l.demand(w.first+i, w.first+run); err != nil {
			delete(l.waiters, w)
			return err
		}
		i = run
	}
	return nil
}

// leave takes a waiter that gave up out, so that nothing writes to its buffer
// any more. What was being fetched for it goes on, for others and the disk.
func (l *live) leave(w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiters, w)
}

// readRecorded reads the blocks that w did not get in memory. It reports
// whether all could be read.
func (l *live) readRecorded(w *waiter) (all bool) {
	all = true
	var buf *[blockSize]byte
	for i, s := range w.state {
		if s == got {
			continue
		}
		if buf == nil {
			buf = blockPool.Get().(*[blockSize]byte)
			defer blockPool.Put(buf)
		}
		b := w.first + i
		if !l.readBlock(b, buf[:]) {
			all = false
			continue
		}
		copyBlock(w.p, w.off, b, buf[:l.blockLen(b)])
		w.state[i] = got
	}
	return all
}

// allocatedBytes is what the file takes on disk.
func allocatedBytes(f file) int64 {
	fi, err := f.Stat()
	if err != nil {
		return 0
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return min(st.Blocks*512, fi.Size())
	}
	return 0
}
