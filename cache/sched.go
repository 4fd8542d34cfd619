package cache

import "sync"

// scheduler hands out the slots in which transfers run, over all objects.
// Demand goes first, in order of arrival; background work takes turns by
// object, and leaves a slot free for demand when there is more than one.
type scheduler struct {
	slots int
	start func(func()) // runs a transfer in a goroutine that Close waits for

	mu         sync.Mutex
	closed     bool
	busy       int // slots taken
	background int // of those, by background work
	demand     []*transfer
	// idle objects with background work to do, each at most once.
	waiting []*live
	// yielding is how many background transfers are giving their slots up.
	yielding int
}

func newScheduler(slots int, start func(func())) *scheduler {
	return &scheduler{slots: slots, start: start}
}

// want queues a demand transfer. Its turn comes as live.run. It reports false
// when the scheduler is closed.
func (s *scheduler) want(t *transfer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.demand = append(s.demand, t)
	s.dispatch()
	return true
}

// offer says that l has background work, which l.nextBackground will name
// when its turn comes.
func (s *scheduler) offer(l *live) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for _, o := range s.waiting {
		if o == l {
			return
		}
	}
	s.waiting = append(s.waiting, l)
	s.dispatch()
}

// backgroundSlots is how many slots background work may fill.
func (s *scheduler) backgroundSlots() int { return max(1, s.slots-1) }

// dispatch starts what can be started. The caller holds s.mu.
func (s *scheduler) dispatch() {
	for len(s.demand) > 0 && s.busy < s.slots {
		t := s.demand[0]
		s.demand = s.demand[1:]
		s.busy++
		s.start(func() { t.live.run(t); s.done(t) })
	}
	if len(s.demand) > 0 {
		return // background transfers give way; see yield
	}
	for len(s.waiting) > 0 && s.busy < s.slots && s.background < s.backgroundSlots() {
		l := s.waiting[0]
		s.waiting = s.waiting[1:]
		s.busy++
		s.background++
		t := &transfer{live: l, background: true}
		s.start(func() { l.runBackground(t); s.done(t) })
	}
}

// yield reports whether a background transfer that has just brought a block
// should end, for demand that finds no slot. As many do as there is demand that
// waits: what one still had to bring takes another request. One that stands
// still could not give way, and does not count.
func (s *scheduler) yield(t *transfer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.demand) <= s.yielding {
		return false
	}
	s.yielding++
	t.yields = true
	return true
}

// done gives a slot back.
func (s *scheduler) done(t *transfer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy--
	if t.background {
		s.background--
	}
	if t.yields {
		s.yielding--
	}
	if !s.closed {
		s.dispatch()
	}
}

// cancel takes l's work that has not started out of the queues.
func (s *scheduler) cancel(l *live) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := s.demand[:0]
	for _, t := range s.demand {
		if t.live != l {
			keep = append(keep, t)
		}
	}
	clear(s.demand[len(keep):])
	s.demand = keep
	for i, o := range s.waiting {
		if o == l {
			s.waiting = append(s.waiting[:i], s.waiting[i+1:]...)
			break
		}
	}
}

// close drops all queues and starts nothing more. Those who wait for a transfer
// in them are the caller's to tell.
func (s *scheduler) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.demand, s.waiting = nil, nil
}
