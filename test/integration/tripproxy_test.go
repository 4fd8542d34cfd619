//go:build integration

package integration

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"
)

// halfWay is how long a body must be for its middle to be a moment.
const halfWay = 64 << 10

// proxy stands before the service at base and counts its requests as steps of
// the daemon's: before they reach the service, when half of a long body has
// passed, and before the answer reaches the daemon. It returns its own address.
func (w *tripwire) proxy(t *testing.T, base string) string {
	t.Helper()
	service := strings.TrimPrefix(base, "http://")
	transport := &http.Transport{DisableCompression: true}
	srv := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		name := requestName(r)
		if name == "" {
			name = "-" // a poll, which comes whenever it likes: no moment of it is ever asked for
		}
		if name != "-" && w.step("before "+name) {
			w.await()
			panic(http.ErrAbortHandler)
		}
		req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+service+r.URL.RequestURI(), r.Body)
		if err != nil {
			http.Error(out, err.Error(), http.StatusBadGateway)
			return
		}
		req.Header, req.Host, req.ContentLength = r.Header.Clone(), r.Host, r.ContentLength
		if r.ContentLength > halfWay && name != "-" {
			req.Body = &halfBody{ReadCloser: r.Body, left: r.ContentLength / 2, at: func() bool { return w.step("in the middle of " + name) }, await: w.await}
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			panic(http.ErrAbortHandler) // the daemon sees a cut connection
		}
		defer resp.Body.Close()
		var answer io.Reader = resp.Body
		if name != "-" {
			// The service has done its part when all of its answer is here.
			data, err := io.ReadAll(resp.Body)
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			if w.step("after " + name) {
				w.await()
				panic(http.ErrAbortHandler)
			}
			answer = bytes.NewReader(data)
		}
		for k, v := range resp.Header {
			out.Header()[k] = v
		}
		out.WriteHeader(resp.StatusCode)
		if name != "-" && resp.ContentLength > halfWay {
			if _, err := io.CopyN(out, answer, resp.ContentLength/2); err != nil {
				return
			}
			_ = http.NewResponseController(out).Flush()
			if w.step("in the middle of the answer to " + name) {
				w.await()
				panic(http.ErrAbortHandler)
			}
		}
		_, _ = io.Copy(out, answer) // whoever leaves early has a reason
	}))
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		transport.CloseIdleConnections()
	})
	return srv.URL
}

// await waits until the killed daemon is gone, so that it cannot act on what
// becomes of its connection.
func (w *tripwire) await() { w.d.died(10 * time.Second) }

// halfBody is a request's body that is a moment after some bytes, and ends in
// it when that is the one.
type halfBody struct {
	io.ReadCloser
	left  int64
	past  bool
	at    func() bool
	await func()
}

func (b *halfBody) Read(p []byte) (int, error) {
	if b.left <= 0 && !b.past {
		b.past = true
		if b.at() {
			b.await()
			return 0, context.Canceled
		}
	}
	if !b.past {
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}

var (
	digestInPath  = regexp.MustCompile(`sha256:[0-9a-f]{64}`)
	sessionInPath = regexp.MustCompile(`/uploads/[0-9a-f-]{30,}`)
	driveID       = regexp.MustCompile(`/(files|revisions)/[A-Za-z0-9_-]{15,}`)
)

// requestName is what a request is called in moments, the same for the same
// act in every run; "" for polls.
func requestName(r *http.Request) string {
	p := r.URL.Path
	if strings.HasSuffix(p, "/longpoll") || strings.HasPrefix(p, "/drive/v3/changes") && r.Method == http.MethodGet {
		return ""
	}
	p = digestInPath.ReplaceAllString(p, "DIGEST")
	p = sessionInPath.ReplaceAllString(p, "/uploads/SESSION")
	p = driveID.ReplaceAllString(p, "/$1/ID")
	q := r.URL.Query()
	switch {
	case q.Get("upload_id") != "":
		p += " in a session"
	case q.Get("uploadType") != "":
		p += " " + q.Get("uploadType")
	case q.Get("alt") == "media":
		p += " content"
	}
	// Without slashes, at which "go test -run" would take it apart.
	return r.Method + " " + strings.ReplaceAll(strings.Trim(p, "/"), "/", ".")
}
