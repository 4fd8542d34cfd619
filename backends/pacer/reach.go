package pacer

import (
	"context"
	"sync"
	"time"
)

const (
	// deafAfter is how many tries in a row a host has to leave without an
	// answer until it is only knocked at.
	deafAfter = 3
	// maxKnock bounds the wait between two knocks by demand, idleKnock by what
	// nobody waits for. That is also how late at most it is noticed that a host is
	// back.
	maxKnock  = 2 * time.Second
	idleKnock = 5 * time.Second
	// recently is how long ago the last try may be for a host to count as out of
	// reach: whoever follows a feed asks again within two minutes.
	recently = 150 * time.Second
)

// reach keeps account of the hosts that do not answer. Such a host is only
// knocked at: however many requests there are for it, one is sent now and then,
// and with the first answer all go on. It does so by class: a host, or what is
// before it, may cut uploads off and answer all else.
type reach struct {
	mu   sync.Mutex
	deaf map[target]*deafness // none for one that answers
}

type target struct {
	host  string
	class class
}

type deafness struct {
	tries int           // without an answer, since the last one
	err   error         // of the last of them
	at    time.Time     // of the last of them
	next  time.Time     // when it may be knocked at again
	over  chan struct{} // closed when it answers
}

// enter waits until a request may be sent. It returns what is left of budget, the
// time that the wait may take, and what the last request to the host met if that does
// not answer. The request may not be sent, not ok, when budget does not suffice or
// ctx has ended before the host answered.
func (r *reach) enter(ctx context.Context, to target, budget time.Duration) (left time.Duration, met error, ok bool) {
	for {
		r.mu.Lock()
		d := r.deaf[to]
		if d == nil || d.tries < deafAfter {
			r.mu.Unlock()
			return budget, nil, true
		}
		now := time.Now()
		wait := d.next.Sub(now)
		met, over := d.err, d.over
		// A knock falls to whoever can still make it.
		if wait <= 0 && ctx.Err() == nil {
			d.next = now.Add(min(to.class.knock(), maxKnock>>2<<(d.tries-deafAfter)))
			r.mu.Unlock()
			return budget, met, true
		}
		r.mu.Unlock()
		if wait > budget || ctx.Err() != nil {
			return 0, met, false
		}
		knock := time.NewTimer(wait)
		select {
		case <-knock.C:
		case <-over:
		case <-ctx.Done():
			knock.Stop()
			return 0, met, false
		}
		knock.Stop()
		budget -= time.Since(now)
	}
}

func (c class) knock() time.Duration {
	if c == demand {
		return maxKnock
	}
	return idleKnock
}

// silence is what the last demand met at a host that is knocked at, nil when it
// is not, or was not of late.
func (r *reach) silence(host string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.deaf[target{host, demand}]
	if d == nil || d.tries < deafAfter || time.Since(d.at) >= recently {
		return nil
	}
	return d.err
}

// saw takes note of what came of a try: nil for an answer of any kind. It reports
// whether the host is knocked at from now on.
func (r *reach) saw(to target, err error) (deaf bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.deaf[to]
	switch {
	case err == nil:
		if d != nil {
			close(d.over)
			delete(r.deaf, to)
		}
		return false
	case d == nil:
		d = &deafness{over: make(chan struct{})}
		if r.deaf == nil {
			r.deaf = map[target]*deafness{}
		}
		r.deaf[to] = d
	}
	d.tries, d.err, d.at = min(d.tries+1, deafAfter+16), err, time.Now()
	return d.tries >= deafAfter
}
