package gdrivetest

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Link is the network between the Drive and its clients.
type Link struct {
	// RoundTrip is waited before each answer, and once more when a connection
	// is made.
	RoundTrip time.Duration
	// Bandwidth is in bytes a second for each direction, shared by all
	// connections; 0 for no limit.
	Bandwidth int64
}

// SetLink sets the link from now on.
func (d *Drive) SetLink(l Link) {
	d.link.mu.Lock()
	defer d.link.mu.Unlock()
	d.link.Link, d.link.free = l, [2]time.Time{}
}

// slack is how far behind the clock a direction may catch up.
const slack = 5 * time.Millisecond

// chunk is how much of a body crosses at a time while others wait.
const chunk = 32 << 10

const (
	up = iota
	down
)

type link struct {
	mu sync.Mutex // guards all below
	Link
	free [2]time.Time // when each direction has sent what it was given
}

// send waits until n bytes have crossed in a direction.
func (l *link) send(ctx context.Context, direction, n int) {
	l.mu.Lock()
	if l.Bandwidth <= 0 || n == 0 {
		l.mu.Unlock()
		return
	}
	now := time.Now()
	at := l.free[direction]
	// A sleep that ended late may be made good, or it would cost bandwidth.
	if behind := now.Add(-slack); at.Before(behind) {
		at = behind
	}
	at = at.Add(time.Duration(float64(n) / float64(l.Bandwidth) * float64(time.Second)))
	l.free[direction] = at
	l.mu.Unlock()
	sleep(ctx, time.Until(at))
}

// farListener lets each new connection wait for the round trip that making it
// costs.
type farListener struct {
	net.Listener
	link *link
}

func (l *farListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if d := l.link.roundTrip(); err == nil && d > 0 {
		c = &farConn{Conn: c, wait: d}
	}
	return c, err
}

type farConn struct {
	net.Conn
	wait time.Duration
	once sync.Once
}

func (c *farConn) Read(p []byte) (int, error) {
	c.once.Do(func() { time.Sleep(c.wait) })
	return c.Conn.Read(p)
}

func (l *link) roundTrip() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.RoundTrip
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Count is what was asked of one method of the API.
type Count struct {
	Requests int
	// In and Out are the bytes of the bodies.
	In, Out int64
}

// Counts returns what was asked since the last ResetCounts, by method:
// "files.list", "files.get", "files.get.media", "upload" (a session's parts),
// "oauth.token" and so on.
func (d *Drive) Counts() map[string]Count {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.counts)
}

// Total is the sum of Counts.
func (d *Drive) Total() Count {
	var sum Count
	for _, c := range d.Counts() {
		sum.Requests += c.Requests
		sum.In += c.In
		sum.Out += c.Out
	}
	return sum
}

// ResetCounts begins counting anew.
func (d *Drive) ResetCounts() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.counts)
}

// Request is what a fault's hook is told of.
type Request struct {
	// Method is the API's, as in Counts.
	Method string
	// N counts that method's requests since ResetCounts, from 1.
	N    int
	HTTP *http.Request
}

// Fault is what goes wrong with a request. The zero value is nothing.
type Fault struct {
	// Delay comes before anything else.
	Delay time.Duration
	// Status answers with an error of that status and Reason instead, with a
	// Retry-After header when that is set.
	Status     int
	Reason     string
	RetryAfter time.Duration
	// Kind is what happens to the connection or the bytes, after At bytes.
	Kind Kind
	At   int64
}

// Kind is a kind of trouble.
type Kind int

// What can happen.
const (
	None Kind = iota
	// CutRequest cuts the connection after At bytes of the request's body, or
	// at its end. What the method has done with them by then stays done.
	CutRequest
	// LoseResponse does what was asked and cuts the connection instead of
	// answering.
	LoseResponse
	// CutResponse cuts the connection after At bytes of the answer's body.
	CutResponse
	// StallResponse stops after At bytes of the answer's body until the client
	// gives up.
	StallResponse
	// FlipResponse flips a bit in byte At of the answer's body.
	FlipResponse
)

// SetFaults has hook decide about every request from now on; nil for none. It
// is called with nothing locked, and concurrently.
func (d *Drive) SetFaults(hook func(Request) Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hook = hook
}

// begin counts a request, asks for its fault and wraps its body and answer.
func (d *Drive) begin(name string, w http.ResponseWriter, r *http.Request) (http.ResponseWriter, Fault, func()) {
	d.mu.Lock()
	c := d.counts[name]
	c.Requests++
	d.counts[name] = c
	hook := d.hook
	d.mu.Unlock()
	var fault Fault
	if hook != nil {
		fault = hook(Request{Method: name, N: c.Requests, HTTP: r})
	}
	count := func(in, out int) {
		d.mu.Lock()
		c := d.counts[name]
		c.In += int64(in)
		c.Out += int64(out)
		d.counts[name] = c
		d.mu.Unlock()
	}
	r.Body = &requestBody{ReadCloser: r.Body, ctx: r.Context(), link: &d.link, fault: fault, count: count}
	rw := &responseWriter{ResponseWriter: w, ctx: r.Context(), link: &d.link, fault: fault, count: count}
	return rw, fault, func() {
		if fault.silent() {
			panic(http.ErrAbortHandler)
		}
	}
}

// silent says that no answer reaches the client.
func (f Fault) silent() bool { return f.Kind == LoseResponse || f.Kind == CutRequest }

// inject applies what happens before the method is called; it reports whether
// to call it.
func (d *Drive) inject(f Fault, w http.ResponseWriter, r *http.Request) bool {
	sleep(r.Context(), d.link.roundTrip()+f.Delay)
	if f.Status == 0 {
		return true
	}
	reason := f.Reason
	if reason == "" {
		reason = "backendError"
	}
	writeError(w, &apiError{code: f.Status, reason: reason, message: http.StatusText(f.Status), retryAfter: f.RetryAfter})
	return false
}

type requestBody struct {
	io.ReadCloser
	ctx   context.Context
	link  *link
	fault Fault
	n     int64
	count func(in, out int)
}

// cut reports whether the connection is to be cut before more is read.
func (b *requestBody) cut() bool { return b.fault.Kind == CutRequest && b.n >= b.fault.At }

func (b *requestBody) Read(p []byte) (int, error) {
	if b.cut() {
		return 0, io.ErrUnexpectedEOF
	}
	if b.fault.Kind == CutRequest {
		p = p[:min(int64(len(p)), b.fault.At-b.n)]
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), chunk)])
	b.n += int64(n)
	b.count(n, 0)
	b.link.send(b.ctx, up, n)
	return n, err
}

type responseWriter struct {
	http.ResponseWriter
	ctx   context.Context
	link  *link
	fault Fault
	n     int64
	count func(in, out int)
}

func (w *responseWriter) WriteHeader(code int) {
	if w.fault.silent() {
		panic(http.ErrAbortHandler)
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *responseWriter) Write(p []byte) (int, error) {
	if w.fault.silent() {
		panic(http.ErrAbortHandler)
	}
	total := 0
	for len(p) > 0 {
		k := min(len(p), chunk)
		part := p[:k]
		at := w.fault.At - w.n // where in part it happens
		hit := at >= 0 && at < int64(k)
		switch {
		case !hit:
		case w.fault.Kind == FlipResponse:
			part = append([]byte(nil), part...)
			part[at] ^= 1
		case w.fault.Kind == CutResponse || w.fault.Kind == StallResponse:
			part = part[:at]
		}
		w.link.send(w.ctx, down, len(part))
		n, err := w.ResponseWriter.Write(part)
		w.n += int64(n)
		total += n
		w.count(0, n)
		if err != nil {
			return total, err
		}
		if hit && (w.fault.Kind == CutResponse || w.fault.Kind == StallResponse) {
			http.NewResponseController(w.ResponseWriter).Flush()
			if w.fault.Kind == StallResponse {
				<-w.ctx.Done()
			}
			panic(http.ErrAbortHandler)
		}
		p = p[k:]
	}
	return total, nil
}

// Unwrap is for http.ResponseController.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func atoi(s string, def, lowest, highest int) (int, bool) {
	if s == "" {
		return def, true
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= lowest && n <= highest
}
