package cache

import "testing"

// TestAsManyYieldAsAreNeeded: for each reader that waits for a slot one transfer
// in the background ends, one that moves, however often there is cause to look.
func TestAsManyYieldAsAreNeeded(t *testing.T) {
	var started int
	s := newScheduler(4, func(func()) { started++ })
	background := []*transfer{{background: true}, {background: true}, {background: true}}
	s.busy, s.background = 4, 3
	round := func(want int) (yielded *transfer) {
		t.Helper()
		n := 0
		for range 3 {
			s.offer(&live{}) // others have something to fetch ahead meanwhile
			for _, b := range background {
				if !b.yields && s.yield(b) {
					n++
					yielded = b
				}
			}
		}
		if n != want {
			t.Errorf("%d transfers yield, want %d", n, want)
		}
		return yielded
	}
	round(0)
	s.want(&transfer{})
	y := round(1)
	s.done(y)
	if started != 1 || len(s.demand) != 0 || s.busy != 4 || s.background != 2 {
		t.Errorf("when its slot is free: %d started, %d wait, %d slots are taken, %d of them in the background", started, len(s.demand), s.busy, s.background)
	}
	round(0)
	s.want(&transfer{})
	s.want(&transfer{})
	round(2)
}
