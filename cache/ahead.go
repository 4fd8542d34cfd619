package cache

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// firstWindow is the read-ahead of a reader that was seen to go on once.
	firstWindow = 256 << 10
	// maxStreams is how many sequential readers one handle is watched for.
	maxStreams = 8
	// minChunk and maxChunk bound a read-ahead request, maxStretch one of
	// those that fetch all the rest.
	minChunk   = 256 << 10
	maxChunk   = 8 << 20
	maxStretch = 64 << 20
	// bulkShare: when one part in so many was asked for, the rest is fetched.
	bulkShare = 3
	// maxPrefetch bounds the hints that wait.
	maxPrefetch = 4096
	// pauseAfterError is how long background work rests after it failed.
	pauseAfterError = 5 * time.Second
)

// streams finds the sequential readers in one handle's reads.
type streams struct {
	s    [maxStreams]stream
	tick int
}

// stream is one sequential reader.
type stream struct {
	next   int64 // where it is expected to read on
	ahead  int64 // up to where it is read ahead
	window int64 // 0 until it was seen to go on
	used   int   // tick of the last read
}

// saw takes note of a read of [off, end). It returns what should be there
// soon: [from, to), empty for nothing new.
func (ss *streams) saw(off, end, limit int64) (from, to int64) {
	ss.tick++
	var s, oldest *stream
	for i := range ss.s {
		c := &ss.s[i]
		// The kernel sends its read-ahead in several requests at once, which
		// may overtake each other.
		slack := max(c.window/2, 128<<10)
		if c.used > 0 && off >= c.next-slack && off <= c.next+slack/2 {
			s = c
			break
		}
		if oldest == nil || c.used < oldest.used {
			oldest = c
		}
	}
	if s == nil {
		*oldest = stream{next: end, ahead: end, used: ss.tick}
		return 0, 0
	}
	s.used = ss.tick
	if end <= s.next {
		return 0, 0 // overtaken, or read again
	}
	s.next = end
	s.ahead = max(s.ahead, end)
	if s.window > 0 && s.ahead-s.next > s.window/2 {
		return 0, 0
	}
	if s.window == 0 {
		s.window = max(firstWindow, 2*(end-off))
	} else {
		s.window *= 2
	}
	s.window = min(s.window, limit)
	from, to = s.ahead, s.next+s.window
	if to <= from {
		return 0, 0
	}
	s.ahead = to
	return from, to
}

// note takes notice of a read: for the trace, for read-ahead and for the
// decision to fetch everything.
func (o *Object) note(off, n int64) {
	l := o.l
	first, end := span(off, n)
	fresh := !l.asked.hasAll(first, end)
	if fresh {
		l.mu.Lock()
		for b := first; b < end; b++ {
			if l.asked.set(b) {
				l.trace.add(b)
			}
		}
		if l.trace.count >= (l.blocks+bulkShare-1)/bulkShare && l.blocks > 1 && !l.pump.bulk && !l.complete.Load() {
			l.pump.bulk = true
			l.pumpOn()
		}
		l.mu.Unlock()
	}
	if l.complete.Load() || l.c.opts.ReadAhead == 0 {
		return
	}
	o.mu.Lock()
	from, to := o.streams.saw(off, off+n, l.c.opts.ReadAhead)
	o.mu.Unlock()
	if to = min(to, l.size); from < to {
		l.mu.Lock()
		first, end := span(from, to-from)
		l.pump.ahead = append(l.pump.ahead, want{first, end})
		l.pumpOn()
		l.mu.Unlock()
	}
}

// trace is the order in which blocks were first asked for.
type trace struct {
	count  int
	ranges []want
}

// maxTrace bounds a trace. The first accesses are the ones that matter to the
// next start; what comes later is dropped.
const maxTrace = 1024

func (t *trace) add(b int) {
	t.count++
	for i := len(t.ranges) - 1; i >= 0 && i >= len(t.ranges)-16; i-- {
		r := &t.ranges[i]
		switch b {
		case r.end:
			r.end++
			return
		case r.first - 1:
			r.first--
			return
		}
	}
	if len(t.ranges) < maxTrace {
		t.ranges = append(t.ranges, want{b, b + 1})
	}
}

// Trace is what was asked for since the object was opened, by all handles, in
// order of first access, in blocks, neighbours joined, at most about a
// thousand ranges: what Prefetch wants to be told at the next first start.
func (o *Object) Trace() []Range {
	l := o.l
	l.mu.Lock()
	defer l.mu.Unlock()
	rs := make([]Range, len(l.trace.ranges))
	for i, r := range l.trace.ranges {
		rs[i] = Range{int64(r.first) * blockSize, l.bytesIn(r.first, r.end)}
	}
	return rs
}

// want is the blocks [first, end), wanted in the background.
type want struct{ first, end int }

// pump is what should be fetched of an object when nobody waits for more
// urgent things. Guarded by live.mu.
type pump struct {
	ahead    []want // for sequential readers
	prefetch []want // hints
	bulk     bool   // so much was read that the rest is fetched too
	fills    int    // callers of Fill
	err      error  // what the last background transfer failed with
	failed   time.Time
}

func (p *pump) reset() { *p = pump{fills: p.fills} }

// idle reports whether there is nothing to do.
func (p *pump) idle() bool {
	return len(p.ahead) == 0 && len(p.prefetch) == 0 && !p.bulk && p.fills == 0
}

// pumpOn asks for a slot when there is background work. The caller holds l.mu.
func (l *live) pumpOn() {
	p := &l.pump
	if p.idle() || l.fetcher == nil || l.err != nil || l.present == l.blocks || len(l.handles) == 0 {
		return
	}
	if p.err != nil && p.fills == 0 && time.Since(p.failed) < pauseAfterError {
		return
	}
	l.c.sched.offer(l)
}

// nextBackground names the blocks to fetch next in the background. The caller
// holds l.mu.
func (l *live) nextBackground() (w want, ok bool) {
	p := &l.pump
	if len(l.handles) == 0 || l.err != nil || l.fetcher == nil {
		return want{}, false
	}
	if w, ok := l.takeMissing(&p.ahead, l.chunk(maxChunk)); ok {
		return w, true
	}
	if w, ok := l.takeMissing(&p.prefetch, maxChunk/blockSize); ok {
		return w, true
	}
	if !p.bulk && p.fills == 0 {
		return want{}, false
	}
	all := []want{{0, l.blocks}}
	w, ok = l.takeMissing(&all, l.stretch())
	if !ok && l.present < l.blocks && len(l.transfers) == 0 {
		p.bulk = false // what is left cannot be kept
	}
	return w, ok
}

// takeMissing takes the first stretch of at most limit blocks out of ws that is
// neither here nor on its way, and drops from ws what is.
func (l *live) takeMissing(ws *[]want, limit int) (want, bool) {
	for len(*ws) > 0 {
		w := &(*ws)[0]
		first := w.first
		for first < w.end && l.covered(first) {
			first++
		}
		if first == w.end {
			*ws = (*ws)[1:]
			continue
		}
		end := first + 1
		for end < w.end && end < first+limit && !l.covered(end) {
			end++
		}
		w.first = end
		return want{first, end}, true
	}
	return want{}, false
}

// covered reports whether b is here or part of any transfer.
func (l *live) covered(b int) bool {
	if l.recorded.has(b) {
		return true
	}
	for _, t := range l.transfers {
		if t.next <= b && b < t.end {
			return true
		}
	}
	return l.c.spill.has(l, b)
}

// chunk is how many blocks one read-ahead request takes: long enough that
// its round trip does not count, short enough that several share the window.
func (l *live) chunk(most int64) int {
	n := min(max(minChunk, 2*l.link.product()), most)
	return int(n / blockSize)
}

// stretch is how many blocks one request takes when everything is fetched.
func (l *live) stretch() int {
	slots := l.c.sched.backgroundSlots()
	share := (l.blocks - l.present + slots - 1) / slots
	return min(max(share, minChunk*4/blockSize), maxStretch/blockSize)
}

// runBackground does one background transfer in the slot that it was given.
func (l *live) runBackground(t *transfer) {
	l.mu.Lock()
	w, ok := l.nextBackground()
	if !ok {
		l.mu.Unlock()
		return
	}
	t.next, t.end, t.started = w.first, w.end, true
	t.ahead = max(4, int(l.link.product()/blockSize))
	l.transfers = append(l.transfers, t)
	l.pumpOn() // the other slots may help
	l.mu.Unlock()
	l.run(t)
}

// afterBlock looks at what block b changes. The caller holds l.mu.
func (l *live) afterBlock(b int) {
	if b == l.seal.next || l.present == l.blocks {
		l.hashOn()
	}
}

// goOn reports whether t should take in its next block. The caller holds l.mu.
func (l *live) goOn(t *transfer) bool {
	if !t.background {
		return true
	}
	if t.yield.Load() {
		t.end = t.next
		return false
	}
	// Where much of what lies ahead came by other ways, stop here.
	const hole = 512 << 10 / blockSize
	if stop := min(t.next+hole, t.end); t.next < t.end && l.recorded.hasAll(t.next, stop) {
		t.end = t.next
		return false
	}
	return true
}

// afterTransfer looks at what is to be done next. The caller holds l.mu.
func (l *live) afterTransfer(t *transfer, err error) {
	if err != nil && l.ctx.Err() == nil {
		if t.background {
			l.pump.err, l.pump.failed = err, time.Now()
			l.pump.ahead, l.pump.prefetch = nil, nil
			l.tell()
		}
	} else if err == nil {
		l.pump.err = nil
	}
	l.pumpOn()
}

// Fill fetches everything that is missing, in parallel, and returns when the
// object is complete and checked. It fails with the error of a transfer, with
// ErrCorrupt, with ErrNoRoom when the cache cannot keep all of it, or when ctx
// ends; then fetching stops unless somebody else wants it.
func (o *Object) Fill(ctx context.Context) error {
	l := o.l
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pump.fills++
	defer func() { l.pump.fills-- }()
	l.pump.err = nil
	for {
		switch {
		case l.complete.Load():
			return nil
		case l.err != nil:
			return l.err
		case o.closed.Load():
			return fmt.Errorf("fill %s: %w", l.key, ErrClosed)
		case l.pump.err != nil:
			return l.pump.err
		case l.fetcher == nil && l.present < l.blocks:
			return fmt.Errorf("fill %s: %w", l.key, ErrNotCached)
		}
		l.pumpOn()
		l.hashOn()
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		l.mu.Lock()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// Prefetch says that these ranges will be asked for soon. They are fetched in
// that order, below demand. What lies outside of the object is left out.
func (o *Object) Prefetch(ranges []Range) {
	l := o.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range ranges {
		off, end := max(r.Off, 0), min(r.Off+r.N, l.size)
		if off < end && len(l.pump.prefetch) < maxPrefetch {
			first, end := span(off, end-off)
			l.pump.prefetch = append(l.pump.prefetch, want{first, end})
		}
	}
	l.pumpOn()
}

// link is what is known of the way to the store: how long it takes to answer
// and how fast it delivers.
type link struct {
	mu    sync.Mutex
	rtt   time.Duration // least time to the first block
	rate  float64       // bytes a second, all transfers together
	since time.Time
	bytes int64
}

// saw takes note of k bytes that arrived after wait.
func (k *link) saw(first bool, wait time.Duration, n int, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if first && (k.rtt == 0 || wait < k.rtt) {
		k.rtt = wait
	}
	const sample = 50 * time.Millisecond
	switch d := now.Sub(k.since); {
	case k.since.IsZero() || d > time.Second:
		k.since, k.bytes = now, 0
	case d >= sample:
		rate := float64(k.bytes+int64(n)) / d.Seconds()
		if rate > k.rate {
			k.rate = rate
		} else {
			k.rate += (rate - k.rate) / 8
		}
		k.since, k.bytes = now, 0
		return
	}
	k.bytes += int64(n)
}

// product is the bandwidth-delay product in bytes.
func (k *link) product() int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return int64(k.rate * k.rtt.Seconds())
}
