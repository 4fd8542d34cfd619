package conn

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
)

var _ backends.Connector = (*Transport)(nil)

// server counts the connections that were made to it.
type server struct {
	*httptest.Server
	made, open atomic.Int32
	protocol   atomic.Value
}

func newServer(t *testing.T, h2 bool) (*server, *Transport) {
	s := new(server)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.protocol.Store(r.Proto)
		io.WriteString(w, "hello")
	}))
	s.EnableHTTP2 = h2
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			s.made.Add(1)
			s.open.Add(1)
		case http.StateClosed:
			s.open.Add(-1)
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	tr := newTransport(&tls.Config{RootCAs: roots})
	tr.Proxy = nil
	t.Cleanup(tr.CloseIdleConnections)
	return s, tr
}

func (s *server) get(t *testing.T, tr *Transport) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "hello" {
		t.Fatalf("answered %q, %v", b, err)
	}
}

// ready waits for the spare connection.
func (s *server) ready(t *testing.T, tr *Transport) *spare {
	t.Helper()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	tr.mu.Lock()
	sp := tr.spare[hostPort(u)]
	tr.mu.Unlock()
	if sp == nil {
		t.Fatal("no connection is being made")
	}
	<-sp.done
	return sp
}

// TestConnect: the first request takes the connection that was made for it,
// over either protocol; asking again while one waits, or is in the pool, makes
// none.
func TestConnect(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprint("h2=", h2), func(t *testing.T) {
			s, tr := newServer(t, h2)
			for range 3 {
				tr.Connect(s.URL)
			}
			if s.ready(t, tr).conn == nil {
				t.Fatal("no connection")
			}
			s.get(t, tr)
			if want := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[h2]; s.protocol.Load() != want {
				t.Errorf("spoke %v, want %s", s.protocol.Load(), want)
			}
			tr.Connect(s.URL)
			s.get(t, tr)
			if n := s.made.Load(); n != 1 {
				t.Errorf("%d connections for two requests one after another", n)
			}
		})
	}
}

// TestPool: requests in parallel leave their connections for the next ones.
func TestPool(t *testing.T) {
	s, tr := newServer(t, false)
	for range 20 {
		var all sync.WaitGroup
		for range 9 {
			all.Go(func() { s.get(t, tr) })
		}
		all.Wait()
	}
	// Some come back to the pool a moment after their answer was read; with the
	// two connections that are kept by default there would be 142.
	if n := s.made.Load(); n > 60 {
		t.Errorf("%d connections for 20 times 9 requests at a time", n)
	}
}

// TestSpareIsDead: a connection that the server has closed, or that waited for
// too long, is not used.
func TestSpareIsDead(t *testing.T) {
	t.Run("closed", func(t *testing.T) {
		s, tr := newServer(t, false)
		tr.Connect(s.URL)
		sp := s.ready(t, tr)
		s.CloseClientConnections()
		for open(sp.conn) {
			time.Sleep(time.Millisecond)
		}
		s.get(t, tr)
	})
	t.Run("old", func(t *testing.T) {
		s, tr := newServer(t, false)
		tr.Connect(s.URL)
		sp := s.ready(t, tr)
		tr.now = func() time.Time { return sp.made.Add(keptFor) }
		s.get(t, tr)
		if n := s.made.Load(); n != 2 {
			t.Errorf("%d connections, want another one than the old", n)
		}
	})
}

// TestConnectFails: what cannot be connected to, or must not be without a
// certificate, leaves it to the request to say so.
func TestConnectFails(t *testing.T) {
	s, tr := newServer(t, false)
	stranger := newTransport(&tls.Config{RootCAs: x509.NewCertPool()})
	stranger.Proxy = nil
	stranger.Connect(s.URL)
	if sp := s.ready(t, stranger); sp.conn != nil {
		t.Error("connected to a server with an unknown certificate")
	}
	req, _ := http.NewRequestWithContext(t.Context(), "GET", s.URL, nil)
	if res, err := stranger.RoundTrip(req); err == nil {
		res.Body.Close()
		t.Error("asked a server with an unknown certificate")
	}
	for _, address := range []string{"http://127.0.0.1:1", ":", ""} {
		tr.Connect(address)
	}
	if n := len(tr.spare); n != 0 {
		t.Errorf("%d connections without TLS", n)
	}
	proxied := New()
	proxied.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse("http://127.0.0.1:1") }
	proxied.Connect(s.URL)
	if n := len(proxied.spare); n != 0 {
		t.Error("connected past the proxy")
	}
}

// TestCloseIdle: what waits for a request is closed.
func TestCloseIdle(t *testing.T) {
	s, tr := newServer(t, false)
	tr.Connect(s.URL)
	s.ready(t, tr)
	tr.CloseIdleConnections()
	for s.open.Load() != 0 {
		time.Sleep(time.Millisecond)
	}
}
