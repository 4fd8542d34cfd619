package cache

// trace is the order in which blocks were first asked for.
type trace struct {
	count  int
	spread uint64 // which of 64 equal parts of the object were touched
	ranges []want
}

// maxTrace bounds a trace. The first accesses are the ones that matter to the
// next start; what comes later is dropped.
const maxTrace = 1024

func (t *trace) add(b, blocks int) {
	t.count++
	t.spread |= 1 << (int64(b) * 64 / int64(blocks))
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
// thousand ranges: what Replay wants to be told at the next first start.
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
