package dropboxtest

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// link is the emulated line: a round trip for each request, and a bandwidth
// that everything in one direction shares, first come, first served by chunks.
type link struct {
	latency   atomic.Int64 // a time.Duration
	bandwidth atomic.Int64 // bytes a second, 0 for no limit
	in, out   lane
}

// SetLink changes what Options.Latency and Options.Bandwidth have set.
func (s *Server) SetLink(latency time.Duration, bandwidth int64) { s.link.set(latency, bandwidth) }

func (l *link) set(latency time.Duration, bandwidth int64) {
	l.latency.Store(int64(latency))
	l.bandwidth.Store(bandwidth)
}

func (l *link) limited() bool { return l.bandwidth.Load() > 0 }

type lane struct {
	mu   sync.Mutex
	free time.Time // when the last reserved byte will have gone through
}

// chunk is how much one stream may take at a time while others wait.
const chunk = 16 << 10

// slack is how far behind the clock a lane may catch up, so that a sleep that
// ends late costs no bandwidth.
const slack = 5 * time.Millisecond

func (l *link) wait(ctx context.Context) error {
	if d := l.latency.Load(); d > 0 {
		return sleep(ctx, time.Duration(d))
	}
	return nil
}

// pass waits until n bytes have gone through the lane.
func (l *link) pass(ctx context.Context, ln *lane, n int) error {
	rate := l.bandwidth.Load()
	if rate <= 0 || n == 0 {
		return nil
	}
	ln.mu.Lock()
	now := time.Now()
	if behind := now.Add(-slack); ln.free.Before(behind) {
		ln.free = behind
	}
	ln.free = ln.free.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	until := ln.free
	ln.mu.Unlock()
	return sleep(ctx, until.Sub(now))
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// slowListener lets each new connection wait for the round trip that making
// it costs.
type slowListener struct {
	net.Listener
	link *link
}

func (l *slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &slowConn{Conn: c, link: l.link}, nil
}

type slowConn struct {
	net.Conn
	link *link
	once sync.Once
}

func (c *slowConn) Read(p []byte) (int, error) {
	c.once.Do(func() { time.Sleep(time.Duration(c.link.latency.Load())) })
	return c.Conn.Read(p)
}

// meteredBody is a request's body on its way through the line.
type meteredBody struct {
	io.ReadCloser
	ctx   context.Context
	link  *link
	count *counter
}

func (b *meteredBody) Read(p []byte) (int, error) {
	if b.link.limited() && len(p) > chunk {
		p = p[:chunk]
	}
	n, err := b.ReadCloser.Read(p)
	b.count.in.Add(int64(n))
	if lerr := b.link.pass(b.ctx, &b.link.in, n); lerr != nil {
		return n, lerr
	}
	return n, err
}

// wire is an answer on its way through the line, and the place where it may
// break.
type wire struct {
	http.ResponseWriter
	ctx   context.Context
	link  *link
	count *counter
	sent  int64
	end   int64 // the body breaks off here; -1 for never
	stall bool  // it stalls there instead
	flip  int64 // this byte's lowest bit is turned; -1 for none
}

func (w *wire) WriteHeader(status int) {
	if status >= 400 {
		w.count.errors.Add(1)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *wire) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		part := p
		if w.link.limited() && len(part) > chunk {
			part = part[:chunk]
		}
		if w.end >= 0 && w.sent+int64(len(part)) >= w.end {
			part = part[:max(w.end-w.sent, 0)]
		}
		if err := w.link.pass(w.ctx, &w.link.out, len(part)); err != nil {
			return total, err
		}
		n, err := w.ResponseWriter.Write(w.flipped(part))
		w.sent += int64(n)
		w.count.out.Add(int64(n))
		total += n
		if err != nil {
			return total, err
		}
		if w.end >= 0 && w.sent >= w.end {
			w.breakOff()
		}
		p = p[n:]
	}
	return total, nil
}

func (w *wire) flipped(p []byte) []byte {
	at := w.flip - w.sent
	if w.flip < 0 || at < 0 || at >= int64(len(p)) {
		return p
	}
	q := append([]byte(nil), p...)
	q[at] ^= 1
	return q
}

func (w *wire) breakOff() {
	http.NewResponseController(w.ResponseWriter).Flush()
	if w.stall {
		<-w.ctx.Done()
	}
	panic(http.ErrAbortHandler)
}

// Count is what has gone through one route.
type Count struct {
	// Requests that arrived, and those of them answered with 400 or above.
	Requests, Errors int64
	// In and Out are bytes of request and answer bodies.
	In, Out int64
}

type counter struct{ requests, errors, in, out atomic.Int64 }

type counters struct {
	mu     sync.Mutex
	routes map[string]*counter
}

func (c *counters) of(route string) *counter {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.routes == nil {
		c.routes = make(map[string]*counter)
	}
	n := c.routes[route]
	if n == nil {
		n = new(counter)
		c.routes[route] = n
	}
	return n
}

// Counts returns what has gone through each route since the start or since
// ResetCounts, by route ("files/download").
func (s *Server) Counts() map[string]Count {
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	m := make(map[string]Count, len(s.counts.routes))
	for route, n := range s.counts.routes {
		m[route] = Count{n.requests.Load(), n.errors.Load(), n.in.Load(), n.out.Load()}
	}
	return m
}

// Count returns what has gone through one route.
func (s *Server) Count(route string) Count { return s.Counts()[route] }

// ResetCounts sets all counts to zero.
func (s *Server) ResetCounts() {
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	s.counts.routes = nil
}
