// Package pacer sends a client's HTTP requests at a pace that the service
// bears: so many at once, again after a passing fault, and none at all while
// the service asks for quiet. One Pacer serves one account, so that all files
// share it and none hammers on while another backs off.
//
// It is an http.RoundTripper and goes right around the transport, below
// whatever adds credentials. It knows no service: what is peculiar to one comes
// in through Options.Classify. Start at New; the marks that a request's context
// can carry are in context.go.
package pacer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// Options set a Pacer up. The zero value is good.
type Options struct {
	// Concurrency is how many requests may be under way at once, 8 when it is
	// not set. A request is under way until its response's body was read to
	// the end or closed, or was left unread for five seconds. A part of the
	// slots is kept for demand requests; see Background.
	Concurrency int
	// Classify says what a response is. Nil is Default. It may look at the
	// body with Peek, and falls back on Default for what it does not know.
	Classify func(*http.Response) Decision
	// Ceiling bounds what one request may wait in all for the service to come
	// round, 60 seconds when it is not set; see WithCeiling.
	Ceiling time.Duration
	// MinBackoff and MaxBackoff bound the wait between two tries where the
	// service names none: half a second and 16 seconds when not set.
	MinBackoff, MaxBackoff time.Duration
	// StallTimeout is how long a connection may stand still, in bytes of the
	// request taken or of the response given, before it counts as broken: 60
	// seconds when it is not set.
	StallTimeout time.Duration
	// Log is told when the account has to pause and, where it takes slog.LevelDebug,
	// of each request. Nil for nobody.
	Log *slog.Logger
}

// Pacer is an http.RoundTripper that paces one account's requests. It is safe
// for concurrent use.
type Pacer struct {
	base  http.RoundTripper
	opts  Options
	gate  *gate
	reach reach

	requests, retries, limited, faults, gaveUp atomic.Int64
}

// New returns a Pacer that sends by base, http.DefaultTransport when it is nil.
func New(base http.RoundTripper, o Options) *Pacer {
	if base == nil {
		base = http.DefaultTransport
	}
	if o.Concurrency <= 0 {
		o.Concurrency = 8
	}
	if o.Classify == nil {
		o.Classify = Default
	}
	setDefault(&o.Ceiling, 60*time.Second)
	setDefault(&o.MinBackoff, 500*time.Millisecond)
	setDefault(&o.MaxBackoff, 16*time.Second)
	setDefault(&o.StallTimeout, 60*time.Second)
	return &Pacer{base: base, opts: o, gate: newGate(o.Concurrency)}
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d <= 0 {
		*d = v
	}
}

// Stats are a Pacer's counters since New, and how it stands now.
type Stats struct {
	// Requests counts what was sent, Retries how many of it were sent again.
	Requests, Retries int64
	// Limited counts the answers that the account is too fast, Faults the
	// other passing faults, GaveUp the requests that failed for either.
	Limited, Faults, GaveUp int64
	// Active requests hold a slot, Waiting ones want one.
	Active, Waiting int
	// PausedUntil is when the account may send again; zero when it may now.
	PausedUntil time.Time
}

// Unreachable is what the last demand request met at the host of an address, if that
// has stopped to answer, as an *Error of kind backends.ErrUnreachable; nil when it
// has not, or that was minutes ago.
func (p *Pacer) Unreachable(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return nil
	}
	if err := p.reach.silence(u.Host); err != nil {
		return &Error{Kind: backends.ErrUnreachable, Err: err}
	}
	return nil
}

// Stats returns the counters.
func (p *Pacer) Stats() Stats {
	s := Stats{
		Requests: p.requests.Load(), Retries: p.retries.Load(),
		Limited: p.limited.Load(), Faults: p.faults.Load(), GaveUp: p.gaveUp.Load(),
	}
	s.Active, s.Waiting, s.PausedUntil = p.gate.state()
	return s
}

// Error is how a request ends that waiting did not help.
type Error struct {
	// Kind is backends.ErrBusy when the service limits the account,
	// backends.ErrUnreachable when it or the network fails, and
	// backends.ErrUntrusted when there is no safe connection with it.
	Kind error
	// Status is the last answer's HTTP status, 0 when there was none.
	Status int
	// Tries is how often the request was sent; 0 when the account's pause
	// would have outlasted the ceiling.
	Tries int
	// RetryAfter is how long the service wants to be left alone, 0 when it
	// does not say.
	RetryAfter time.Duration
	// Err is what went wrong on the way, nil when Status says it.
	Err error
}

// Error says what was the matter and, where that is known, what to do about it,
// without the request's URL, which may hold secrets.
func (e *Error) Error() string {
	s := e.Kind.Error()
	switch {
	case e.Status != 0:
		s += fmt.Sprintf(": HTTP %d %s", e.Status, http.StatusText(e.Status))
	case e.Err != nil:
		s += ": " + e.Err.Error()
	}
	if e.Tries > 1 {
		s += fmt.Sprintf(" (tried %d times)", e.Tries)
	}
	if e.RetryAfter > 0 {
		s += fmt.Sprintf("; it asks to be left alone for %s", e.RetryAfter.Round(time.Second))
	}
	if advice := advise(e.Err); advice != "" {
		s += "; " + advice
	}
	return s
}

// Unwrap gives the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Ended is why an act came to nothing whose ctx is done and whose last request
// failed with err: what had gone wrong when the time ran out, where that is
// known, and the cause of ctx's end otherwise.
func Ended(ctx context.Context, err error) error {
	var met *Error
	if ctx.Err() == context.DeadlineExceeded && errors.As(err, &met) {
		return met
	}
	return context.Cause(ctx)
}

// RoundTrip sends req once a slot is free, and again after passing faults as
// long as the ceiling on waiting allows; then it fails with an *Error. A
// request whose body cannot be had again (GetBody is nil) is sent once: its
// answer is handed on whatever it is, though the account pauses as asked. Of the
// requests to a host that has stopped to answer, one is sent now and then, for
// all of them.
//
// A wait ends at once when req's context is done: with the context's error when
// that was cancelled or nothing had gone wrong yet, and with the *Error of what
// had when its time has run out.
func (p *Pacer) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	m := marksOf(ctx)
	budget := p.opts.Ceiling
	if m.ceilingSet {
		budget = m.ceiling
	}
	hasBody := req.Body != nil && req.Body != http.NoBody
	sent := false // the request's own body was handed on, or is closed
	defer func() {
		if hasBody && !sent {
			req.Body.Close() // RoundTrippers close the body, also on errors
		}
	}()

	var gave *Error // for what the last try met, this request's or another's to the host
	ended := func() error {
		if gave == nil || ctx.Err() != context.DeadlineExceeded {
			return ctx.Err()
		}
		p.gaveUp.Add(1)
		return gave
	}
	for try := 1; ; try++ {
		left, met, ok := p.reach.enter(ctx, target{req.URL.Host, m.class}, budget)
		if met != nil {
			gave = &Error{Kind: backends.ErrUnreachable, Tries: try - 1, Err: met}
		}
		if !ok {
			if ctx.Err() != nil {
				return nil, ended()
			}
			p.gaveUp.Add(1)
			return nil, gave
		}
		left, err := p.gate.enter(ctx, m.class, left)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ended()
			}
			var paused *pausedError
			if errors.As(err, &paused) {
				p.gaveUp.Add(1)
				err = &Error{Kind: backends.ErrBusy, Tries: try - 1, RetryAfter: paused.left}
			}
			return nil, err
		}
		budget = left

		body := req.Body
		if try > 1 {
			p.retries.Add(1)
			if hasBody {
				if body, err = req.GetBody(); err != nil {
					p.gate.leave(m.class)
					return nil, fmt.Errorf("read the request's body again: %w", err)
				}
			}
		}
		p.requests.Add(1)
		sent = true
		resp, stuck, err := p.send(req, body, m)
		if ctx.Err() != nil && err != nil {
			return nil, ended()
		}
		d, permanent := p.judge(resp, err)
		deaf := false
		if err == nil || d.Fault == Failing && !permanent && !errors.As(err, new(*unreadError)) {
			deaf = p.reach.saw(target{req.URL.Host, m.class}, err)
		}
		if d.Fault == None {
			return resp, err
		}

		again := !hasBody || req.GetBody != nil
		if m.once && d.Fault == Failing && !neverSent(err) {
			again = false
		}
		delay := d.After
		if deaf {
			delay = 0 // until the next knock
		} else if delay <= 0 {
			delay = p.backoff(try)
		}
		if d.Fault == Limited {
			p.pause(delay, resp)
		}
		if !again && resp != nil {
			return resp, nil
		}
		// A try that hung until it was given up has been a wait as well.
		budget -= stuck
		gave = &Error{Kind: backends.ErrUnreachable, Tries: try, RetryAfter: d.After, Err: err}
		switch {
		case d.Fault != Failing:
			gave.Kind = backends.ErrBusy
		case permanent:
			gave.Kind = backends.ErrUntrusted
		}
		if resp != nil {
			gave.Status = resp.StatusCode
			discard(resp)
		}
		if !again || permanent || delay > budget || budget <= 0 {
			p.gaveUp.Add(1)
			return nil, gave
		}
		if d.Fault != Limited { // otherwise the gate waits
			if sleep(ctx, delay) != nil {
				return nil, ended()
			}
			budget -= delay
		}
	}
}

// judge says what the outcome of a try is. With permanent set there is no use
// in trying again.
func (p *Pacer) judge(resp *http.Response, err error) (d Decision, permanent bool) {
	if err != nil {
		if isKnown(err) {
			return Decision{}, false
		}
		p.faults.Add(1)
		return Decision{Fault: Failing}, isPermanent(err)
	}
	d = p.opts.Classify(resp)
	switch d.Fault {
	case None:
	case Limited:
		p.limited.Add(1)
	default:
		p.faults.Add(1)
	}
	return d, false
}

func (p *Pacer) pause(d time.Duration, resp *http.Response) {
	p.gate.pause(d)
	if p.opts.Log != nil && d >= time.Second {
		p.opts.Log.Info("the service asks for a pause", "host", resp.Request.URL.Host,
			"status", resp.StatusCode, "pause", d.Round(time.Second))
	}
}

// backoff is the wait after the given try: twice as long each time, and half
// of it by chance, so that requests that failed together do not come back
// together.
func (p *Pacer) backoff(try int) time.Duration {
	d := p.opts.MaxBackoff
	if shift := try - 1; shift < 16 {
		d = min(d, p.opts.MinBackoff<<shift)
	}
	return d/2 + rand.N(d/2+1)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
