package cache

import (
	"math/bits"
	"time"
)

const (
	// maxStreams is how many sequential readers one handle is watched for.
	maxStreams = 8
	// windowGrowth: a reader that went on for n bytes is read ahead so many
	// times n, when it is the only one; until steadyRun bytes, one among
	// others only once n.
	windowGrowth = 4
	steadyRun    = 4 << 20
	// copyRead: who asks for so much with an object's first byte is taken to copy
	// all of it. The request brings firstWindow more, of a small object one part in
	// copyShare; what follows is asked for once copySure was read in order. Who
	// looks at an image's head, or mounts it, asks for less.
	copyRead    = 128 << 10
	firstWindow = 4 << 20
	copyShare   = 16
	copySure    = 1 << 20
	// A steady reader is read ahead openProducts times what the link holds, and
	// leastOpen at least; when half of that has come, the next is asked for.
	openProducts = 4
	leastOpen    = 1 << 20
	// strays is how far a reader of a file within an object may read behind its
	// end without meaning what lies there: the kernel reads 256 KiB ahead, and
	// begins the next such piece in the midst of one.
	strays = 512 << 10
	// bulkShare: when one part in so many was asked for, the rest is fetched;
	// denseShare is the same for a reader who uses most of what is guessed.
	bulkShare, denseShare = 3, 8
	// One part in scatteredShare has to have been asked for, at scatteredParts
	// of 64 parts of an object, for its reader to count as one who reads all
	// over it, and one part in waitedShare of the time that the rest takes has
	// to have been waited.
	scatteredShare = 10
	scatteredParts = 48
	waitedShare    = 2
)

// streams finds the sequential readers in one handle's reads.
type streams struct {
	s    [maxStreams]stream
	tick int
}

// stream is one sequential reader.
type stream struct {
	began int64 // where its first read was
	next  int64 // where it is expected to read on
	ahead int64 // up to where it is read ahead
	run   int64 // how much it read in sequence
	used  int   // tick of the last read
	copy  bool  // it looks like a copy of all
}

// saw takes note of a read of [off, end) of l, which is not locked. It returns the
// stream that it belongs to and what should be there soon: [from, to), empty for
// nothing new.
func (ss *streams) saw(l *live, off, end int64) (s *stream, from, to int64) {
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
		*oldest = stream{began: off, next: end, ahead: end, run: end - off, used: ss.tick}
		if off == 0 && end >= copyRead {
			oldest.run = max(oldest.run, firstWindow/windowGrowth)
			oldest.copy = true
			return oldest, end, end + int64(l.copyWindow())*blockSize
		}
		return oldest, 0, 0
	}
	s.used = ss.tick
	if end <= s.next {
		return s, 0, 0 // overtaken, or read again
	}
	s.run += end - max(off, s.next)
	s.next = end
	s.ahead = max(s.ahead, end)
	limit := l.c.opts.ReadAhead
	window := s.run
	if s.run >= steadyRun || l.alone(s.run) {
		window *= windowGrowth
	}
	window = min(window, limit)
	if s.run < steadyRun && !s.copy {
		if s.ahead-s.next > window/2 {
			return s, 0, 0
		}
		return s, s.ahead, s.next + window
	}
	if s.copy && s.next-s.began <= copySure {
		return s, 0, 0
	}
	// What is on its way counts, not where the reader is: requests share the link,
	// so that the reader waits for the first while the others come, too, and is
	// through with them at once when nothing more is on its way. But what is asked
	// for beyond what fills the link only delays what is read next.
	most := min(window, max(leastOpen, openProducts*l.link.product()))
	open := l.missing(s.next, s.ahead)
	if open > most/2 {
		return s, 0, 0
	}
	return s, s.ahead, min(s.ahead+most-open, s.next+limit)
}

// alone reports whether a reader of run bytes is the only one so far.
func (l *live) alone(run int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(l.trace.count-1)*blockSize <= run
}

// missing is how many bytes of [from, to) are not on disk, in whole blocks.
func (l *live) missing(from, to int64) (n int64) {
	if to = min(to, l.size); from >= to {
		return 0
	}
	b, end := span(from, to-from)
	for b < end {
		b = l.recorded.next(b, end, false)
		gap := l.recorded.next(b, end, true)
		n += int64(gap-b) * blockSize
		b = gap
	}
	return n
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
				l.trace.add(b, l.blocks)
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
	s, from, to := o.streams.saw(l, off, off+n)
	if to = min(to, l.size); from >= to {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.told(first, end) {
		return
	}
	if to = min(to, l.within(s)); from >= to {
		return
	}
	if l.pump.full != nil {
		// What is not kept on disk has to fit into a corner of memory.
		to = min(to, off+n+overflowBytes/8)
	}
	first = int(from / blockSize)
	end = min(int((to+blockSize-1)/blockSize), l.blocks)
	// What looks like a copy has its first window without having earned it. Where the
	// request for the first bytes brings that (around), nothing is left to ask for.
	opening := s.copy && s.began == off && s.next == off+n
	if !opening {
		if end = min(end, first+l.affordable(s, end-first)); first >= end {
			return
		}
		l.guess.made(l, first, end)
	}
	s.ahead = max(s.ahead, min(int64(end)*blockSize, to))
	l.pump.ahead = append(l.pump.ahead, want{first, end})
	l.pumpOn()
}

// affordable is how many of so many blocks may be read ahead of s: all, some, or
// none where it would become little by little. The caller holds l.mu.
func (l *live) affordable(s *stream, blocks int) int {
	allowed := l.allowance()
	if s.run >= int64(l.trace.count)*blockSize/2 {
		// Hardly anything but this reader: there is little else to spare for.
		allowed += l.trace.count * windowGrowth
	}
	if allowed < blocks && (allowed < blocks/4 || allowed < minChunk/blockSize) {
		return 0 // it would be too many requests
	}
	return allowed
}

// within is up to where s may be read ahead: it stays in the file that it began
// in, until it has gone on behind that for more than the kernel's own read-ahead
// does. The caller holds l.mu.
func (l *live) within(s *stream) int64 {
	if l.extent == nil {
		return l.size
	}
	end := l.extent(s.began)
	if s.next > end+strays {
		return l.size
	}
	return end
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
	if l.trace.count*share >= l.blocks && l.blocks > 1 || l.scattered() {
		l.pump.bulk = true
		l.pumpOn()
	}
}

// scattered reports whether the object is read in pieces all over it, in a way
// that by now has cost as much time as a good part of fetching the rest would.
// A program that is started reads in pieces too, but hardly all over its image.
// The caller holds l.mu.
func (l *live) scattered() bool {
	if l.trace.count*scatteredShare < l.blocks || bits.OnesCount64(l.trace.spread) < scatteredParts {
		return false
	}
	rest := float64(l.blocks-l.present) * blockSize
	waited := time.Duration(l.waited.Load()).Seconds()
	return waited*l.link.capacity()*waitedShare >= rest
}
