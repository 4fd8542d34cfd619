package pacer

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"
)

// class is whom a request is for; lower ones go first.
type class int

const (
	demand class = iota
	background
	longPoll // takes no slot
	classes
)

// gate hands out the slots, none while the account pauses, demand before
// background, and within a class first come first served.
type gate struct {
	mu            sync.Mutex
	slots         int
	maxBackground int
	held          [classes]int
	queues        [classes]list.List // of *waiter
	until         time.Time          // end of the pause
	timer         *time.Timer        // runs dispatch at until
}

type waiter struct {
	budget time.Duration // what it may still wait for pauses
	ready  chan error    // gets nil with the slot; room for one
}

// pausedError: the pause lasts longer than the request may wait.
type pausedError struct{ left time.Duration }

func (e *pausedError) Error() string { return fmt.Sprintf("account pauses for %s", e.left) }

func newGate(slots int) *gate {
	return &gate{slots: slots, maxBackground: max(1, slots-max(1, slots/4))}
}

// enter waits for a slot, which leave gives back. It returns what is left of
// budget, the time that pauses may take; when a pause needs more, it fails at
// once with a pausedError.
func (g *gate) enter(ctx context.Context, c class, budget time.Duration) (time.Duration, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	g.mu.Lock()
	w := &waiter{budget: budget, ready: make(chan error, 1)}
	if left := time.Until(g.until); left > 0 {
		if left > budget {
			g.mu.Unlock()
			return 0, &pausedError{left}
		}
		w.budget -= left
	}
	e := g.queues[c].PushBack(w)
	g.dispatch()
	g.mu.Unlock()

	select {
	case err := <-w.ready:
		return w.budget, err
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case err := <-w.ready: // answered at the same moment
		if err == nil {
			g.held[c]--
			g.dispatch()
		}
	default:
		g.queues[c].Remove(e)
	}
	return 0, ctx.Err()
}

// leave gives a slot back.
func (g *gate) leave(c class) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held[c]--
	g.dispatch()
}

// pause keeps the gate shut for d from now, or longer if it was to be so.
func (g *gate) pause(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	until := now.Add(d)
	if !until.After(g.until) {
		return
	}
	from := now
	if g.until.After(now) {
		from = g.until
	}
	more := until.Sub(from)
	g.until = until
	if g.timer == nil {
		g.timer = time.AfterFunc(d, g.resume)
	} else {
		g.timer.Reset(d)
	}
	for c := range g.queues {
		for e := g.queues[c].Front(); e != nil; {
			next := e.Next()
			if w := e.Value.(*waiter); more > w.budget {
				w.ready <- &pausedError{d}
				g.queues[c].Remove(e)
			} else {
				w.budget -= more
			}
			e = next
		}
	}
}

func (g *gate) resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dispatch()
}

// dispatch lets in whoever may go. g.mu is held.
func (g *gate) dispatch() {
	if time.Now().Before(g.until) {
		return // the timer comes back
	}
	for g.next(longPoll) {
	}
	for g.held[demand]+g.held[background] < g.slots {
		if g.next(demand) {
			continue
		}
		if g.held[background] >= g.maxBackground || !g.next(background) {
			break
		}
	}
}

// next lets the first of a class in, if there is one.
func (g *gate) next(c class) bool {
	e := g.queues[c].Front()
	if e == nil {
		return false
	}
	g.queues[c].Remove(e)
	g.held[c]++
	e.Value.(*waiter).ready <- nil
	return true
}

func (g *gate) state() (active, waiting int, until time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.queues {
		active += g.held[c]
		waiting += g.queues[c].Len()
	}
	if time.Now().Before(g.until) {
		until = g.until
	}
	return active, waiting, until
}
