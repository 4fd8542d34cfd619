package cache

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// maxStreams is how many sequential readers one handle is watched for.
	maxStreams = 8
	// windowGrowth: a reader that went on for n bytes is read ahead so many
	// times n.
	windowGrowth = 4
	// maxPrefetch bounds the hints that wait, prefetchBatch how many of them
	// are put in order at a time, and prefetchGap is what is fetched between
	// two of them rather than making two requests.
	maxPrefetch   = 4096
	prefetchBatch = 64
	prefetchGap   = 64 << 10 / blockSize
	// minChunk and maxChunk bound a read-ahead request, maxStretch one of
	// those that fetch all the rest.
	minChunk   = 256 << 10
	maxChunk   = 8 << 20
	maxStretch = 64 << 20
	// bulkShare: when one part in so many was asked for, the rest is fetched;
	// denseShare is the same for a reader who uses most of what is guessed.
	bulkShare, denseShare = 3, 8
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
	next  int64 // where it is expected to read on
	ahead int64 // up to where it is read ahead
	run   int64 // how much it read in sequence
	used  int   // tick of the last read
}

// saw takes note of a read of [off, end). It returns the stream that it
// belongs to and what should be there soon: [from, to), empty for nothing new.
func (ss *streams) saw(off, end, limit int64) (s *stream, from, to int64) {
	ss.tick++
	var oldest *stream
	for i := range ss.s {
		c := &ss.s[i]
		// The kernel sends its read-ahead in several requests at once, which
		// may overtake each other.
		slack := min(c.run, 1<<20)
		if c.used > 0 && off >= c.next-slack && off <= c.next+slack/2 {
			s = c
			break
		}
		if oldest == nil || c.used < oldest.used {
			oldest = c
		}
	}
	if s == nil {
		*oldest = stream{next: end, ahead: end, run: end - off, used: ss.tick}
		return oldest, 0, 0
	}
	s.used = ss.tick
	if end <= s.next {
		return s, 0, 0 // overtaken, or read again
	}
	s.run += end - max(off, s.next)
	s.next = end
	s.ahead = max(s.ahead, end)
	window := min(windowGrowth*s.run, limit)
	if s.ahead-s.next > window/2 {
		return s, 0, 0
	}
	return s, s.ahead, s.next + window
}

// note takes notice of a read: for the trace, for read-ahead and for the
// decision to fetch everything.
func (o *Object) note(off, n int64) {
	l := o.l
	first, end := span(off, n)
	if !l.asked.hasAll(first, end) {
		l.mu.Lock()
		for b := first; b < end; b++ {
			if l.asked.set(b) {
				l.trace.add(b)
				l.guess.used(b)
			}
		}
		l.bulkOn()
		l.mu.Unlock()
	}
	if l.complete.Load() || l.c.opts.ReadAhead == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	s, from, to := o.streams.saw(off, off+n, l.c.opts.ReadAhead)
	if to = min(to, l.size); from >= to {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pump.full != nil {
		// What is not kept on disk has to fit into a corner of memory.
		to = min(to, off+n+overflowBytes/8)
	}
	first = int(from / blockSize)
	end = min(int((to+blockSize-1)/blockSize), l.blocks)
	allowed := l.allowance()
	if s.run > int64(l.trace.count)*blockSize/2 {
		// Hardly anything but this reader: there is little else to spare for.
		allowed += l.trace.count * windowGrowth
	}
	if allowed < end-first {
		// Little by little would be too many requests.
		if allowed < (end-first)/4 || allowed < minChunk/blockSize {
			return
		}
		end = first + allowed
	}
	if first >= end {
		return
	}
	s.ahead = max(s.ahead, min(int64(end)*blockSize, to))
	l.guess.made(l, first, end)
	l.pump.ahead = append(l.pump.ahead, want{first, end})
	l.pumpOn()
}

// bulkOn decides whether so much was read that the rest should be fetched. The
// caller holds l.mu.
func (l *live) bulkOn() {
	if l.pump.bulk || l.complete.Load() {
		return
	}
	share := bulkShare
	if l.guess.good() {
		share = denseShare
	}
	if l.trace.count*share >= l.blocks && l.blocks > 1 {
		l.pump.bulk = true
		l.pumpOn()
	}
}

// guess keeps account of the blocks that were fetched on suspicion: ahead of
// sequential readers, and behind what a random reader asked for. What it
// guards is that guessing never costs more than a share of what was asked for.
// Guarded by live.mu.
type guess struct {
	open bitmap // guessed, and not asked for since
	// waste is how many blocks are in open.
	waste int
	// total and hits are about recent guesses, and how many were used.
	total, hits int
	// reach is how many blocks are fetched around a random read, and skipped
	// counts the reads since guessing there was given up.
	reach, skipped int
}

const maxReach = 1 << 20 / blockSize

// allowance is how many blocks may be guessed now. The caller holds l.mu.
func (l *live) allowance() int {
	slack := min(2<<20, l.size/64) / blockSize
	return max(0, l.trace.count*3/4+int(slack)-l.guess.waste)
}

// made notes that [first, end) is fetched on suspicion.
func (g *guess) made(l *live, first, end int) {
	for b := first; b < end; b++ {
		if !l.asked.has(b) && !l.recorded.has(b) && g.open.set(b) {
			g.waste++
			g.total++
		}
	}
	if g.total >= 256 {
		g.total, g.hits = g.total/2, g.hits/2
	}
}

// used notes that b was asked for.
func (g *guess) used(b int) {
	if g.open.has(b) {
		g.open.clear(b)
		g.waste--
		g.hits++
	}
}

// good reports whether most guesses were right.
func (g *guess) good() bool { return g.total >= 64 && g.hits*3 >= g.total*2 }

// around says how far a demand transfer of [first, end) should reach beyond it.
// Reading scattered pieces, a program often comes back for their neighbours,
// and bytes beside a request cost no round trip. How far is learnt: it grows
// while guesses are right, and goes to zero for a random reader. The caller
// holds l.mu.
func (l *live) around(first, end int) (from, to int) {
	g := &l.guess
	if l.c.opts.ReadAhead == 0 || l.pump.bulk {
		return first, end
	}
	// A wrong guess costs the time of its bytes, a right one saves a good part
	// of a round trip: one in five pays.
	switch {
	case g.hits >= 4 && g.hits*5 > g.total*2:
		g.reach = min(g.reach*2, maxReach)
		g.total, g.hits = 0, 0
	case g.total >= 8 && g.hits == 0, g.total >= 16 && g.hits*5 < g.total:
		g.reach /= 2
		g.total, g.hits = 0, 0
	}
	n := g.reach
	if n == 0 {
		// Look again now and then whether the reader has changed its ways.
		if g.skipped++; g.skipped < 16 {
			return first, end
		}
		g.skipped, g.reach, n = 0, 1, 1
	}
	n = min(n, l.allowance())
	from, to = first, end
	for to < min(end+n, l.blocks) && !l.covered(to) {
		to++
	}
	// What lies before delays what was asked for, so it is less.
	for from > max(0, first-n/2) && !l.covered(from-1) {
		from--
	}
	g.made(l, from, first)
	g.made(l, end, to)
	return from, to
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
	if w, ok := l.takeMissing(&p.ahead, l.chunk(), l.covered); ok {
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

// chunk is how many blocks one read-ahead request takes: long enough that
// its round trip does not count, short enough that several share the window.
func (l *live) chunk() int {
	n := minChunk / blockSize
	if ahead := l.pump.ahead; len(ahead) > 0 {
		n = max(n, (ahead[0].end-ahead[0].first)/4)
	}
	return min(max(n, int(l.link.product()/blockSize)), maxChunk/blockSize)
}

// stretch is how many blocks one request takes when everything is fetched.
func (l *live) stretch() int {
	slots := max(l.pump.width.n, 4)
	share := (l.blocks - l.present + slots - 1) / slots
	return min(max(share, minChunk*4/blockSize), maxStretch/blockSize)
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
	t.ahead = max(8, int(l.link.product()/blockSize))
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
	unwanted := t.whole && (l.pump.full != nil || (!l.pump.bulk && l.pump.fills == 0))
	if t.yield.Load() || unwanted {
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

// speed is the rate in bytes a second.
func (k *link) speed() float64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.rate
}

// product is the bandwidth-delay product in bytes.
func (k *link) product() int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return int64(k.rate * k.rtt.Seconds())
}
