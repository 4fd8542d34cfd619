package cache

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

// copyWindow is how many blocks the first request of what looks like a copy of all
// brings besides. They are no guess that a reader has to earn.
func (l *live) copyWindow() int {
	return int(min(firstWindow, l.size/copyShare, l.c.opts.ReadAhead) / blockSize)
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
	if l.c.opts.ReadAhead == 0 || l.pump.bulk || l.exact || l.told(first, end) {
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
	copies := first == 0 && end >= copyRead/blockSize && l.trace.count == 0
	if copies {
		n = l.copyWindow()
	} else {
		n = min(n, l.allowance())
	}
	from, to = first, end
	most := min(end+n, l.blocks)
	if l.extent != nil {
		_, file := span(0, l.extent(int64(first)*blockSize))
		most = min(most, file)
	}
	for to < most && !l.covered(to) {
		to++
	}
	// What lies before delays what was asked for, so it is less.
	for from > max(0, first-n/2) && !l.covered(from-1) {
		from--
	}
	if !copies {
		g.made(l, from, first)
		g.made(l, end, to)
	}
	return from, to
}
