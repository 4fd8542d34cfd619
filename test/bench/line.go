package main

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// line is a link to a server that has none of its own: a TCP relay in front of
// it. Everything in one direction shares its bandwidth; what a client sends
// arrives a round trip late and answers come back at once, which to the client
// is the same as half of it each way. A new connection costs a round trip more.
type line struct {
	net.Listener
	to       string
	link     link
	bytes    atomic.Int64 // in both directions
	up, down lane
	relays   sync.WaitGroup
	ctx      context.Context
	cancel   context.CancelFunc
}

// window is how much of one direction of a connection may be on its way: more
// than any link here holds.
const window = 256

// newLine relays what comes to a port of this machine to an address.
func newLine(to string, ln link) (*line, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &line{Listener: l, to: to, link: ln}
	r.up.rate, r.down.rate = ln.mbit*1e6/8, ln.mbit*1e6/8
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.relays.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.relays.Go(func() { r.relay(c) })
		}
	})
	return r, nil
}

func (r *line) addr() string { return r.Addr().String() }

// close breaks all connections off.
func (r *line) close() {
	r.cancel()
	r.Close()
	r.relays.Wait()
}

func (r *line) relay(c net.Conn) {
	defer c.Close()
	s, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer s.Close()
	// A pump that cannot go on closes both ends, and with them the other pump.
	stop := context.AfterFunc(r.ctx, func() {
		c.Close()
		s.Close()
	})
	defer stop()
	var pumps sync.WaitGroup
	pumps.Go(func() { r.pump(s, c, &r.up, r.link.rtt) })
	pumps.Go(func() { r.pump(c, s, &r.down, 0) })
	pumps.Wait()
}

// pump carries one direction of a connection, each piece so long after it has
// been read.
func (r *line) pump(to, from net.Conn, ln *lane, delay time.Duration) {
	type piece struct {
		b   []byte
		due time.Time
	}
	way := make(chan piece, window)
	var last sync.WaitGroup
	last.Go(func() {
		for p := range way {
			time.Sleep(time.Until(p.due))
			ln.pass(len(p.b))
			if _, err := to.Write(p.b); err != nil {
				from.Close() // the reader below ends
			}
		}
	})
	setUp := delay
	for {
		b := make([]byte, 16<<10)
		n, err := from.Read(b)
		r.bytes.Add(int64(n))
		if n > 0 {
			way <- piece{b[:n], time.Now().Add(delay + setUp)}
			setUp = 0
		}
		if err != nil {
			break
		}
	}
	close(way)
	last.Wait()
	to.(*net.TCPConn).CloseWrite()
}

// lane is one direction of a line, which all connections share.
type lane struct {
	rate int64 // bytes a second, 0 for no limit
	mu   sync.Mutex
	free time.Time // when all that was let in will have gone through
}

// slack is how far behind the clock a lane may catch up, so that a sleep that
// ends late costs no bandwidth.
const slack = 5 * time.Millisecond

// pass waits until n bytes have gone through.
func (l *lane) pass(n int) {
	if l.rate == 0 {
		return
	}
	l.mu.Lock()
	if behind := time.Now().Add(-slack); l.free.Before(behind) {
		l.free = behind
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	until := l.free
	l.mu.Unlock()
	time.Sleep(time.Until(until))
}
