package pacer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// errStalled is what cancels a request whose connection stands still.
var errStalled = errors.New("the connection stood still")

// idleSlot is how long a body may be left unread before its slot goes to
// another request. A reader that takes its time must not stop the others, nor
// a reader that needs a second request to get on with the first.
const idleSlot = 5 * time.Second

// send makes one try. The slot that the caller entered for it is given back
// here, or when the response's body is done with. stuck is for how long, at
// the end of a failed try, nothing moved.
func (p *Pacer) send(req *http.Request, reqBody io.ReadCloser, m marks) (resp *http.Response, stuck time.Duration, err error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	start := newProgress(p.opts.StallTimeout, func() { cancel(errStalled) })
	if m.class == longPoll {
		start.stop()
	}
	out := req.WithContext(ctx)
	var body *requestBody
	if reqBody != nil && reqBody != http.NoBody {
		body = &requestBody{ReadCloser: reqBody, progress: start}
		out.Body = body
	}
	began := time.Now()
	resp, err = p.base.RoundTrip(out)
	stuck = start.stop()
	p.tell(req, resp, err, time.Since(began))
	if err != nil {
		if context.Cause(ctx) == errStalled {
			err = errStalled // the transport says "context canceled"
		} else if body != nil && body.broken.Load() {
			err = &unreadError{err}
		}
		cancel(nil)
		p.gate.leave(m.class)
		return nil, stuck, err
	}
	resp.Request = req
	b := &responseBody{rc: resp.Body, stall: p.opts.StallTimeout, cancel: cancel,
		leave: sync.OnceFunc(func() { p.gate.leave(m.class) })}
	if m.class == longPoll {
		b.stall = 0
	}
	b.arm(idleSlot)
	if resp.Body == http.NoBody {
		b.leave()
	}
	resp.Body = b
	return resp, 0, nil
}

// tell logs a request for who looks for what goes wrong: what stands in its path, not
// in its query, which may hold a signature.
func (p *Pacer) tell(req *http.Request, resp *http.Response, err error, took time.Duration) {
	if p.opts.Log == nil || !p.opts.Log.Enabled(req.Context(), slog.LevelDebug) {
		return
	}
	args := []any{"method", req.Method, "host", req.URL.Host, "path", req.URL.Path, "took", took.Round(time.Millisecond)}
	if err != nil {
		args = append(args, "error", withoutURL(err))
	} else {
		args = append(args, "status", resp.StatusCode)
	}
	p.opts.Log.Debug("request", args...)
}

// withoutURL is the error below one that quotes a request's address.
func withoutURL(err error) error {
	var quoting *url.Error
	if errors.As(err, &quoting) {
		return quoting.Err
	}
	return err
}

// progress fires when nothing has moved for a while before the response. It
// may be moved on after it was stopped: a transport can go on reading the
// request's body after it has answered.
type progress struct {
	mu      sync.Mutex
	timeout time.Duration
	timer   *time.Timer
	last    time.Time
	stopped bool
}

func newProgress(timeout time.Duration, fire func()) *progress {
	return &progress{timeout: timeout, last: time.Now(), timer: time.AfterFunc(timeout, fire)}
}

func (p *progress) moved() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now()
	if !p.stopped {
		p.timer.Reset(p.timeout)
	}
}

// stop returns how long ago the last movement was.
func (p *progress) stop() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	p.timer.Stop()
	return time.Since(p.last)
}

// unreadError is how a request fails whose own body cannot be read, which says
// nothing of the host.
type unreadError struct{ error }

func (e *unreadError) Unwrap() error { return e.error }

// requestBody tells of its reading as progress.
type requestBody struct {
	io.ReadCloser
	progress *progress
	broken   atomic.Bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.progress.moved()
	if err != nil && err != io.EOF {
		b.broken.Store(true)
	}
	return n, err
}

// responseBody watches a body being read: a Read that takes longer than stall
// fails (0: as long as it likes), and between two Reads longer than idleSlot apart the slot is lent.
type responseBody struct {
	rc     io.ReadCloser
	stall  time.Duration
	cancel context.CancelCauseFunc
	leave  func()

	mu      sync.Mutex
	timer   *time.Timer
	due     time.Time // of the timer; one that fires earlier was overtaken
	reading bool
	done    bool
	stalled bool
}

// arm sets the timer. b.mu is held, or b not yet shared.
func (b *responseBody) arm(d time.Duration) {
	b.due = time.Now().Add(d)
	if b.timer == nil {
		b.timer = time.AfterFunc(d, b.fire)
	} else {
		b.timer.Reset(d)
	}
}

func (b *responseBody) fire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.done || time.Now().Before(b.due):
	case b.reading && b.stall == 0:
	case b.reading:
		b.stalled = true
		b.cancel(errStalled)
	default:
		b.leave()
	}
}

// Read is io.Reader's. It fails with backends.ErrUnreachable when the
// connection stands still.
func (b *responseBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	if !b.done {
		b.reading = true
		if b.stall > 0 {
			b.arm(b.stall)
		} else {
			b.timer.Stop()
		}
	}
	b.mu.Unlock()

	n, err := b.rc.Read(p)

	b.mu.Lock()
	defer b.mu.Unlock()
	b.reading = false
	switch {
	case err == nil && !b.done:
		b.arm(idleSlot)
	case err != nil:
		b.finish()
		if b.stalled && err != io.EOF {
			err = fmt.Errorf("%w: %w", backends.ErrUnreachable, errStalled)
		}
	}
	return n, err
}

// Close ends the response and gives its slot back.
func (b *responseBody) Close() error {
	b.mu.Lock()
	b.finish()
	b.mu.Unlock()
	err := b.rc.Close()
	b.cancel(nil)
	return err
}

// finish gives back the slot. b.mu is held.
func (b *responseBody) finish() {
	b.done = true
	if b.timer != nil {
		b.timer.Stop()
	}
	b.leave()
}
