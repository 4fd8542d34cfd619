package cache

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	// maxPrefetch bounds the hints that wait, prefetchBatch how many of them
	// are put in order at a time, and prefetchGap is what is fetched between
	// two of them rather than making two requests. A start with Python makes
	// some 90 hints; in larger batches what is needed first comes too late.
	maxPrefetch   = 4096
	prefetchBatch = 16
	prefetchGap   = 64 << 10 / blockSize
	// minChunk and maxChunk bound a read-ahead request, which otherwise brings all
	// that is asked for at a time: requests that share the link delay the one that
	// is waited for. maxStretch bounds one of those that fetch all the rest: what
	// readers ask for in the midst of one comes twice. Over a long fat link it is
	// longer.
	minChunk   = 256 << 10
	maxChunk   = 8 << 20
	maxStretch = 4 << 20
	// pauseAfterError is how long background work rests after it failed.
	pauseAfterError = 5 * time.Second
	// buffered is how long what a sender has sent may lie in sockets.
	buffered = 20 * time.Millisecond
)

// want is the blocks [first, end), wanted in the background.
type want struct{ first, end int }

// pump is what should be fetched of an object when nobody waits for more
// urgent things. Guarded by live.mu.
type pump struct {
	ahead    []want // for sequential readers
	prefetch []want // hints
	sorted   int    // how many of them are in order
	bulk     bool   // so much was read that the rest is fetched too
	fills    int    // callers of Fill
	full     error  // why the last block that came could not be kept
	err      error  // what the last background transfer failed with
	failed   time.Time
	width    width
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
	if p.full != nil && len(p.ahead) == 0 && len(p.prefetch) == 0 {
		return
	}
	if p.err != nil && p.fills == 0 && time.Since(p.failed) < pauseAfterError {
		return
	}
	l.c.sched.offer(l)
}

// nextBackground names the blocks that t should fetch next in the background.
// The caller holds l.mu.
func (l *live) nextBackground(t *transfer) (w want, ok bool) {
	p := &l.pump
	if len(l.handles) == 0 || l.err != nil || l.fetcher == nil {
		return want{}, false
	}
	if w, ok := l.takeMissing(&p.ahead, maxChunk/blockSize, l.covered); ok {
		return w, true
	}
	p.sortHints()
	if w, ok := l.takeMissing(&p.prefetch, maxChunk/blockSize, l.covered); ok {
		return w, true
	}
	if !p.bulk && p.fills == 0 {
		return want{}, false
	}
	if p.full != nil {
		// There is no sense in fetching everything to keep nothing.
		p.bulk = false
		l.tell()
		return want{}, false
	}
	running := 0
	for _, t := range l.transfers {
		if t.background {
			running++
		}
	}
	if running >= p.width.allow(l.link.speed(), l.c.sched.backgroundSlots()) {
		return want{}, false
	}
	t.whole = true
	all := []want{{0, l.blocks}}
	return l.takeMissing(&all, l.stretch(), l.onItsWay)
}

// sortHints puts the first hints in order of offset and joins near ones: many
// small requests cost more than the gaps between them.
func (p *pump) sortHints() {
	n := min(len(p.prefetch), prefetchBatch)
	if n == 0 || p.sorted > 0 {
		return
	}
	batch := p.prefetch[:n]
	slices.SortFunc(batch, func(a, b want) int { return cmp.Compare(a.first, b.first) })
	joined := batch[:1:1]
	for _, w := range batch[1:] {
		if last := &joined[len(joined)-1]; w.first <= last.end+prefetchGap {
			last.end = max(last.end, w.end)
		} else {
			joined = append(joined, w)
		}
	}
	p.prefetch = append(joined, p.prefetch[n:]...)
	p.sorted = len(joined)
}

// width is how many requests at a time fetch the whole of an object: as few
// as fill the link, because a demand read shares the link with them.
type width struct {
	n    int
	rate float64 // that fewer requests had
}

// allow returns the width, after widening when the last widening paid.
func (w *width) allow(rate float64, most int) int {
	switch {
	case w.n == 0:
		w.n = 2
	case rate > w.rate*1.15:
		w.n, w.rate = w.n+1, rate
	}
	w.n = min(w.n, most)
	return w.n
}

// takeMissing takes the first stretch of at most limit blocks out of ws that is
// not covered, and drops from ws what is.
func (l *live) takeMissing(ws *[]want, limit int, covered func(b int) bool) (want, bool) {
	for len(*ws) > 0 {
		w := &(*ws)[0]
		first := w.first
		for first < w.end && covered(first) {
			first++
		}
		if first == w.end {
			*ws = (*ws)[1:]
			if ws == &l.pump.prefetch {
				l.pump.sorted--
			}
			continue
		}
		end := first + 1
		for end < w.end && end < first+limit && !covered(end) {
			end++
		}
		w.first = end
		return want{first, end}, true
	}
	return want{}, false
}

// covered reports whether b is at hand or part of any transfer.
func (l *live) covered(b int) bool { return l.onItsWay(b) || l.c.spill.has(l, b) }

// onItsWay reports whether b is on disk or part of any transfer.
func (l *live) onItsWay(b int) bool {
	if l.recorded.has(b) {
		return true
	}
	for _, t := range l.transfers {
		if t.next <= b && b < t.end {
			return true
		}
	}
	return false
}

// stretch is how many blocks one request takes when everything is fetched.
func (l *live) stretch() int {
	slots := max(l.pump.width.n, 4)
	share := (l.blocks - l.present + slots - 1) / slots
	most := max(maxStretch, 2*l.link.product())
	return min(max(share, minChunk*4/blockSize), int(most/blockSize))
}

// runBackground does one background transfer in the slot that it was given.
func (l *live) runBackground(t *transfer) {
	l.mu.Lock()
	w, ok := l.nextBackground(t)
	if !ok {
		l.mu.Unlock()
		return
	}
	t.next, t.end, t.started = w.first, w.end, true
	t.first, t.limit = w.first, w.end
	t.ahead = l.flight()
	l.transfers = append(l.transfers, t)
	l.pumpOn() // the other slots may help
	l.mu.Unlock()
	l.run(t)
}

// flight is how many blocks are taken to be on their way to us in a transfer
// that delivers: what the link brings in a round trip, or in the time for which
// buffers between here and the store are filled.
func (l *live) flight() int {
	n := l.link.within(buffered) / blockSize
	return int(min(max(n, 512<<10/blockSize), maxChunk/blockSize))
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
	unwanted := t.whole && (l.pump.full != nil || (!l.pump.bulk && l.pump.fills == 0))
	if unwanted || l.c.sched.yield(t) {
		if !t.whole && t.next < t.end {
			// It was next in line, and is so again.
			l.pump.ahead = append([]want{{t.next, t.end}}, l.pump.ahead...)
		}
		t.end = t.next
		return false
	}
	// Where much of what lies ahead comes by other ways, stop here: more than
	// is on its way to us already, which would come in vain.
	for b := t.next; b < min(t.next+l.flight(), t.end); b++ {
		if !l.recorded.has(b) && !l.demanded(b) {
			return true
		}
	}
	t.end = t.next
	return false
}

// demanded reports whether a demand transfer brings b. The caller holds l.mu.
func (l *live) demanded(b int) bool {
	for _, t := range l.transfers {
		if !t.background && t.next <= b && b < t.end {
			return true
		}
	}
	return false
}

// afterTransfer looks at what is to be done next. The caller holds l.mu.
func (l *live) afterTransfer(t *transfer, err error) {
	if err != nil && l.ctx.Err() == nil {
		if t.background {
			l.pump.err, l.pump.failed = err, time.Now()
			l.pump.ahead, l.pump.prefetch, l.pump.sorted = nil, nil, 0
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
	l.pump.err, l.pump.full = nil, nil
	for {
		switch {
		case l.complete.Load():
			return nil
		case l.err != nil:
			return l.err
		case o.closed.Load() || l.ctx.Err() != nil:
			return fmt.Errorf("fill %s: %w", l.key, ErrClosed)
		case l.pump.err != nil:
			return l.pump.err
		case l.pump.full != nil:
			return l.pump.full
		case l.fetcher == nil && l.present < l.blocks:
			return fmt.Errorf("fill %s: %w", l.key, ErrNotCached)
		}
		l.pumpOn()
		l.hashOn()
		changed, over := l.changed, l.ctx
		l.mu.Unlock()
		select {
		case <-changed:
		case <-over.Done():
		case <-ctx.Done():
		}
		l.mu.Lock()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// Prefetch says that these ranges will be asked for soon. They are fetched in
// about that order, below demand. What lies outside of the object is left out.
func (o *Object) Prefetch(ranges []Range) {
	l := o.l
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hint(ranges, nil)
}

// Replay is Prefetch of what an earlier reader has read, in that order, where
// the next one will do the same: a read within these ranges announces nothing
// beyond them, so that nothing is fetched ahead of it or around it.
func (o *Object) Replay(ranges []Range) {
	l := o.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.foretold == nil {
		l.foretold = newBitmap(l.blocks)
	}
	l.hint(ranges, l.foretold)
}

// hint queues ranges, and adds their blocks to a set if there is one. The
// caller holds l.mu.
func (l *live) hint(ranges []Range, set bitmap) {
	for _, r := range ranges {
		off, end := max(r.Off, 0), min(r.Off+r.N, l.size)
		if off >= end || len(l.pump.prefetch) == maxPrefetch {
			continue
		}
		from, to := span(off, end-off)
		l.pump.prefetch = append(l.pump.prefetch, want{from, to})
		for b := from; set != nil && b < to; b++ {
			set.set(b)
		}
	}
	l.pumpOn()
}

// told reports whether a read of the blocks [first, end) was foretold. The
// caller holds l.mu.
func (l *live) told(first, end int) bool {
	return l.foretold != nil && l.foretold.hasAll(first, end)
}
