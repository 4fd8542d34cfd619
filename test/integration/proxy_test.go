//go:build integration

package integration

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// proxy stands between sregfs and a service, and does to what passes what
// neither an emulator nor a real server does by itself.
type proxy struct {
	*httptest.Server
	// all counts what was asked, requests that without waiting for changes.
	all, requests atomic.Int64
	// hellos counts beginnings of TLS.
	hellos atomic.Int64

	mu     sync.Mutex
	before func(r *http.Request) *trouble
	after  func(r *http.Response)
	cert   *tls.Certificate
}

// newProxy starts a proxy to the service at target, with TLS when it has a
// certificate.
func newProxy(t *testing.T, target string, cert *tls.Certificate) *proxy {
	t.Helper()
	to, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{cert: cert}
	quiet := log.New(io.Discard, "", 0)
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host // so that addresses in answers lead back here
			r.SetXForwarded()
		},
		Transport:     &http.Transport{DisableCompression: true},
		FlushInterval: -1,
		ErrorLog:      quiet,
		ModifyResponse: func(r *http.Response) error {
			p.mu.Lock()
			after := p.after
			p.mu.Unlock()
			if after != nil {
				after(r)
			}
			return nil
		},
	}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.all.Add(1)
		if !strings.HasSuffix(r.URL.Path, "longpoll") && !strings.HasSuffix(r.URL.Path, "/changes") {
			p.requests.Add(1)
		}
		p.mu.Lock()
		before := p.before
		p.mu.Unlock()
		var x *trouble
		if before != nil {
			x = before(r)
		}
		if x == nil {
			forward.ServeHTTP(w, r)
			return
		}
		x.meddle(w, r, forward)
	}))
	p.Config.ErrorLog = quiet
	if cert == nil {
		p.Start()
	} else {
		p.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			p.hellos.Add(1)
			p.mu.Lock()
			defer p.mu.Unlock()
			return &tls.Config{Certificates: []tls.Certificate{*p.cert}}, nil
		}}
		p.StartTLS()
	}
	t.Cleanup(func() {
		p.CloseClientConnections()
		p.Close()
	})
	return p
}

// meddle does to one request what x says.
func (x *trouble) meddle(w http.ResponseWriter, r *http.Request, next http.Handler) {
	switch {
	case x.drop:
		panic(http.ErrAbortHandler)
	case x.silent:
		_, _ = io.Copy(io.Discard, r.Body) // before that, nobody looks whether the client is still there
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case x.lost:
		next.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	case x.status != 0:
		for k, v := range x.header {
			w.Header()[k] = v
		}
		if x.after > 0 {
			w.Header().Set("Retry-After", seconds(x.after))
		}
		w.WriteHeader(x.status)
		_, _ = io.WriteString(w, x.body)
	default:
		next.ServeHTTP(&meddler{ResponseWriter: w, x: x, r: r}, r)
	}
}

func seconds(d time.Duration) string { return big.NewInt(int64(d / time.Second)).String() }

// meddler is the way of an answer's body.
type meddler struct {
	http.ResponseWriter
	x *trouble
	r *http.Request
	n int64
}

func (m *meddler) Write(p []byte) (int, error) {
	at := m.x.at - m.n
	if at < 0 || at >= int64(len(p)) {
		m.n += int64(len(p))
		return m.ResponseWriter.Write(p)
	}
	switch {
	case m.x.flip:
		p = bytes.Clone(p)
		p[at] ^= 1
	case m.x.cut, m.x.stall:
		_, _ = m.ResponseWriter.Write(p[:at])
		_ = http.NewResponseController(m.ResponseWriter).Flush()
		if m.x.stall {
			<-m.r.Context().Done()
		}
		panic(http.ErrAbortHandler)
	}
	m.n += int64(len(p))
	return m.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (m *meddler) Unwrap() http.ResponseWriter { return m.ResponseWriter }

// troubled has f say what goes wrong with a request; nil for nothing any more.
func (p *proxy) troubled(f func(r *http.Request) *trouble) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.before = f
}

// change has f alter each answer; nil for none.
func (p *proxy) change(f func(r *http.Response)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.after = f
}

// present has the proxy show another certificate, to new connections and by
// ending the old ones.
func (p *proxy) present(cert tls.Certificate) {
	p.mu.Lock()
	p.cert = &cert
	p.mu.Unlock()
	p.CloseClientConnections()
}

// through puts a proxy before a service.
func (s *service) through(t *testing.T, cert *tls.Certificate) *proxy {
	t.Helper()
	base := ""
	for _, kv := range s.env {
		if _, v, ok := strings.Cut(kv, "_BASE="); ok {
			base = v
		}
	}
	if base == "" {
		t.Fatalf("where is %s? %q", s.client, s.env)
	}
	p := newProxy(t, base, cert)
	s.leadTo(p.URL)
	return p
}

// leadTo has sregfs find the service at another address.
func (s *service) leadTo(base string) {
	env := make([]string, len(s.env))
	for i, kv := range s.env {
		if name, _, ok := strings.Cut(kv, "_BASE="); ok {
			kv = name + "_BASE=" + base
		}
		env[i] = kv
	}
	s.env = env
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // for SSL_CERT_FILE
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "an authority of the tests"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-1000 * time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a := authority{key: key, file: filepath.Join(t.TempDir(), "ca.pem")}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	return a
}

// certificate is one for this machine, or as alter has it.
func (a authority) certificate(t *testing.T, alter func(c *x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "a service of the tests"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	if alter != nil {
		alter(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
