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
	// maxKnock bounds the wait between two knocks. That is also how late at most
	// it is noticed that a host is back.
	maxKnock = 2 * time.Second
	// recently is how long ago the last try may be for a host to count as out of
	// reach: whoever follows a feed asks again within two minutes.
	recently = 150 * time.Second
)

// reach keeps account of the hosts that do not answer. Such a host is only
// knocked at: however many requests there are for it, one is sent now and then,
// and with the first answer all go on.
type reach struct {
	mu   sync.Mutex
	deaf map[string]*deafness // by host; none for one that answers
}

type deafness struct {
	tries int           // without an answer, since the last one
	err   error         // of the last of them
	at    time.Time     // of the last of them
	next  time.Time     // when it may be knocked at again
	over  chan struct{} // closed when it answers
}

// enter waits until a request may be sent to host. It returns what is left of
// budget, the time that the wait may take. When that does not suffice, or ctx
// ends, it fails with what the host's last request met.
func (r *reach) enter(ctx context.Context, host string, budget time.Duration) (time.Duration, error) {
	for {
		r.mu.Lock()
		d := r.deaf[host]
		if d == nil || d.tries < deafAfter {
			r.mu.Unlock()
			return budget, nil
		}
		now := time.Now()
		wait := d.next.Sub(now)
		if wait <= 0 {
			d.next = now.Add(min(maxKnock, maxKnock>>2<<(d.tries-deafAfter)))
			r.mu.Unlock()
			return budget, nil
		}
		met, over := d.err, d.over
		r.mu.Unlock()
		if wait > budget {
			return 0, met
		}
		knock := time.NewTimer(wait)
		select {
		case <-knock.C:
		case <-over:
		case <-ctx.Done():
			knock.Stop()
			return 0, met
		}
		knock.Stop()
		budget -= time.Since(now)
	}
}

// silence is what the last request met to a host that is knocked at, nil when
// none has been of late.
func (r *reach) silence() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.deaf {
		if d.tries >= deafAfter && time.Since(d.at) < recently {
			return d.err
		}
	}
	return nil
}

// saw takes note of what came of a try: nil for an answer of any kind. It reports
// whether the host is knocked at from now on.
func (r *reach) saw(host string, err error) (deaf bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.deaf[host]
	switch {
	case err == nil:
		if d != nil {
			close(d.over)
			delete(r.deaf, host)
		}
		return false
	case d == nil:
		d = &deafness{over: make(chan struct{})}
		if r.deaf == nil {
			r.deaf = map[string]*deafness{}
		}
		r.deaf[host] = d
	}
	d.tries, d.err, d.at = min(d.tries+1, deafAfter+16), err, time.Now()
	return d.tries >= deafAfter
}
