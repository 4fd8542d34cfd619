// Package conn makes and keeps the connections to services. A container that
// is started reads in a chain of small requests, so that each round trip is
// felt: connections are pooled for as many requests as run at a time, and can be
// made before there is a request for them.
//
// It knows no service. Start at New.
package conn

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"sync"
	"syscall"
	"time"
)

const (
	// keptFor is how long a connection that was made in advance waits for its
	// request. Servers close what says nothing, some after 15 s.
	keptFor = 10 * time.Second
	// pooledFor is how long a connection is taken to be in the pool after its
	// last request: less than the pool keeps it.
	pooledFor = 60 * time.Second
	// pooled is how many idle connections to one host are kept: as many as
	// requests may run at once by default, and the demand requests beside them.
	pooled = 32
	// connectTime bounds a connection in advance.
	connectTime = 10 * time.Second
)

// Transport is an http.Transport that pools connections for many requests to
// few hosts, and a backends.Connector. Like every http.Transport it is safe for
// concurrent use and meant to be kept; CloseIdleConnections ends what it keeps.
type Transport struct {
	*http.Transport
	// roots and the rest of what a TLS connection is made with.
	config *tls.Config
	now    func() time.Time

	mu    sync.Mutex
	spare map[string]*spare    // by host and port
	used  map[string]time.Time // when a request to the host last began
}

// spare is a connection that waits for a request, or is being made.
type spare struct {
	done chan struct{} // closed when conn is there, or there will be none
	conn *tls.Conn     // nil when it could not be made
	made time.Time
}

// New returns a Transport that is otherwise like http.DefaultTransport: it
// heeds HTTPS_PROXY, verifies TLS by the system's roots (or SSL_CERT_FILE), and
// speaks HTTP/2 where the server does.
func New() *Transport { return newTransport(nil) }

func newTransport(config *tls.Config) *Transport {
	t := &Transport{
		Transport: http.DefaultTransport.(*http.Transport).Clone(),
		config:    &tls.Config{},
		now:       time.Now,
		spare:     map[string]*spare{},
		used:      map[string]time.Time{},
	}
	if config != nil {
		t.config = config.Clone()
	}
	t.config.NextProtos = []string{"h2", "http/1.1"}
	// Resumption saves a server work, and a client none of the round trips.
	t.TLSClientConfig = t.config.Clone()
	t.MaxIdleConnsPerHost = pooled
	t.DialTLSContext = t.dialTLS
	return t
}

// RoundTrip is http.RoundTripper's.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.mu.Lock()
	t.used[hostPort(req.URL)] = t.now()
	t.mu.Unlock()
	return t.Transport.RoundTrip(req)
}

// Connect sees to it that a connection to the host of an https address will be
// there for the next request. It returns at once, does nothing where there is
// one, or may be one in the pool, or where requests go by a proxy, and tells
// nobody of failure: the request will.
func (t *Transport) Connect(address string) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" {
		return
	}
	if t.Proxy != nil {
		if proxy, err := t.Proxy(&http.Request{URL: u}); err != nil || proxy != nil {
			return
		}
	}
	addr := hostPort(u)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.spare[addr] != nil || t.now().Sub(t.used[addr]) < pooledFor {
		return
	}
	s := &spare{done: make(chan struct{})}
	t.spare[addr] = s
	go func() {
		defer close(s.done)
		ctx, cancel := context.WithTimeout(context.Background(), connectTime)
		defer cancel()
		conn, err := t.handshake(ctx, "tcp", addr)
		if err != nil {
			t.drop(addr, s)
			return
		}
		s.conn, s.made = conn, t.now()
		time.AfterFunc(keptFor, func() {
			if t.drop(addr, s) {
				conn.Close()
			}
		})
	}()
}

// drop takes s out of the spares; false when somebody has taken it.
func (t *Transport) drop(addr string, s *spare) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.spare[addr] != s {
		return false
	}
	delete(t.spare, addr)
	return true
}

// CloseIdleConnections closes what waits for a request.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	waiting := t.spare
	t.spare = map[string]*spare{}
	clear(t.used)
	t.mu.Unlock()
	for _, s := range waiting {
		if <-s.done; s.conn != nil {
			s.conn.Close()
		}
	}
	t.Transport.CloseIdleConnections()
}

// dialTLS is http.Transport's way to a new connection: the spare one, if it is
// good, or another.
func (t *Transport) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	t.mu.Lock()
	s := t.spare[addr]
	delete(t.spare, addr)
	t.mu.Unlock()
	if s != nil {
		select {
		case <-s.done:
		case <-ctx.Done():
			// It goes to nobody.
			go func() {
				if <-s.done; s.conn != nil {
					s.conn.Close()
				}
			}()
			return nil, context.Cause(ctx)
		}
		if s.conn != nil {
			if t.now().Sub(s.made) < keptFor && open(s.conn) {
				return s.conn, nil
			}
			s.conn.Close()
		}
	}
	return t.handshake(ctx, network, addr)
}

// handshake makes a TLS connection.
func (t *Transport) handshake(ctx context.Context, network, addr string) (*tls.Conn, error) {
	if t.TLSHandshakeTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.TLSHandshakeTimeout)
		defer cancel()
	}
	raw, err := t.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	config := t.config.Clone()
	if config.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			raw.Close()
			return nil, err
		}
		config.ServerName = host
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// open reports whether the other side has not closed a connection, as far as
// that is known here. What it may have sent (session tickets) stays unread.
func open(conn *tls.Conn) bool {
	sc, ok := conn.NetConn().(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	var n int
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, rerr = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return true
	})
	return err == nil && (n > 0 || errors.Is(rerr, syscall.EAGAIN))
}

// hostPort is the host of an https address as it is dialled.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port)
}
