//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// front stands before a real registry and makes chosen requests fail.
type front struct {
	*registry // with the front's own address

	mu     sync.Mutex
	fault  func(*http.Request) *fault // nil: nothing fails
	asked  map[string]int             // requests by their kind, see kindOf
	served int64                      // bytes of blobs that were fetched
	taken  int64                      // bytes of blobs that were sent
}

// fault is what becomes of one request.
type fault struct {
	status int
	header map[string]string
	// The registry answers, but its body is changed: broken off or standing
	// still after at bytes, with one bit flipped there, or of another length.
	cut, stall, flip bool
	longer           int
	rewrite          func(body []byte, h http.Header) []byte
	at               int64
	// hold has the answer go on after at bytes when it is closed.
	hold chan struct{}
	// until has the request wait before anything else.
	until chan struct{}
	// lost cuts the request itself off after at bytes of its body.
	lost bool
}

// What a registry is asked for.
const (
	manifests = "manifests"
	blobs     = "blobs"
	uploads   = "uploads"
	tagLists  = "tags"
)

func kindOf(r *http.Request) string {
	switch p := r.URL.Path; {
	case strings.Contains(p, "/blobs/uploads/"):
		return uploads
	case strings.Contains(p, "/blobs/"):
		return blobs
	case strings.Contains(p, "/manifests/"):
		return manifests
	case strings.HasSuffix(p, "/tags/list"):
		return tagLists
	}
	return r.URL.Path
}

// behind starts a front for a registry without TLS.
func behind(t *testing.T, r *registry) *front {
	t.Helper()
	f := &front{asked: map[string]int{}}
	to := &url.URL{Scheme: r.scheme, Host: r.host}
	proxy := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(to)
		p.Out.Host = p.In.Host // the registry names itself by it
	}}
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		f.mu.Lock()
		kind := kindOf(req)
		f.asked[kind]++
		var x *fault
		if f.fault != nil {
			x = f.fault(req)
		}
		f.mu.Unlock()
		switch kind {
		case blobs:
			w = &countingWriter{w, f}
		case uploads:
			req.Body = &countingBody{req.Body, f}
		}
		if x == nil {
			proxy.ServeHTTP(w, req)
			return
		}
		x.serve(w, req, proxy)
	}))
	t.Cleanup(s.Close)
	of := *r
	of.host, of.t = strings.TrimPrefix(s.URL, "http://"), t
	f.registry = &of
	return f
}

func (x *fault) serve(w http.ResponseWriter, req *http.Request, next *httputil.ReverseProxy) {
	if x.until != nil {
		<-x.until
	}
	for k, v := range x.header {
		w.Header().Set(k, v)
	}
	switch {
	case x.status != 0:
		w.WriteHeader(x.status)
		return
	case x.lost:
		// What came before is the registry's.
		req.Body = io.NopCloser(io.MultiReader(io.LimitReader(req.Body, x.at), brokenReader{}))
		next.ServeHTTP(httptest.NewRecorder(), req)
		panic(http.ErrAbortHandler)
	}
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, req)
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	body := rec.Body.Bytes()
	at := min(int(x.at), len(body))
	switch {
	case x.flip && len(body) > 0:
		body = bytes.Clone(body)
		body[min(at, len(body)-1)] ^= 0x20
	case x.rewrite != nil:
		body = x.rewrite(body, w.Header())
	case x.longer > 0:
		body = append(bytes.Clone(body), make([]byte, x.longer)...)
	case x.longer < 0:
		body = body[:max(0, len(body)+x.longer)]
	}
	if x.longer != 0 {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		if rec.Code == http.StatusPartialContent {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(body)-1, len(body)))
		}
	}
	w.WriteHeader(rec.Code)
	if x.hold != nil {
		_, _ = w.Write(body[:at])
		_ = http.NewResponseController(w).Flush()
		<-x.hold
		_, _ = w.Write(body[at:])
		return
	}
	if !x.cut && !x.stall {
		_, _ = w.Write(body)
		return
	}
	_, _ = w.Write(body[:at])
	_ = http.NewResponseController(w).Flush()
	if x.stall {
		<-req.Context().Done()
	}
	panic(http.ErrAbortHandler)
}

// brokenReader is a connection that is lost.
type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// countingWriter counts what is answered.
type countingWriter struct {
	http.ResponseWriter
	f *front
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.f.mu.Lock()
	c.f.served += int64(n)
	c.f.mu.Unlock()
	return n, err
}

// Unwrap is for http.ResponseController.
func (c *countingWriter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// countingBody counts what is sent.
type countingBody struct {
	io.ReadCloser
	f *front
}

func (c *countingBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.f.mu.Lock()
	c.f.taken += int64(n)
	c.f.mu.Unlock()
	return n, err
}

// troubled decides about all further requests; nil for nothing fails.
func (f *front) troubled(decide func(*http.Request) *fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = decide
}

// always makes all requests of a kind fail in one way.
func always(kind string, x fault) func(*http.Request) *fault {
	return func(r *http.Request) *fault {
		if kindOf(r) != kind {
			return nil
		}
		return &x
	}
}

// firstOf makes the first n requests of a kind fail.
func firstOf(n int, kind string, x fault) func(*http.Request) *fault {
	return func(r *http.Request) *fault {
		if kindOf(r) != kind || n == 0 {
			return nil
		}
		n--
		return &x
	}
}

// requests is how many there have been, of some kinds or of all.
func (f *front) requests(kinds ...string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for k, v := range f.asked {
		if len(kinds) == 0 {
			n += v
		}
		for _, want := range kinds {
			if k == want {
				n += v
			}
		}
	}
	return n
}

// bytes is how much of blobs has been sent.
func (f *front) bytes() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.served
}
