package dropbox

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"unicode/utf16"

	"github.com/sregfs/sregfs/backends/pacer"
)

// transport stands between the SDK and the pacer, and mends what keeps the
// SDK's requests from being sent twice or from arriving as they are meant.
type transport struct {
	authorized http.RoundTripper // adds the token
	plain      http.RoundTripper
	agent      string
}

// RoundTrip is http.RoundTripper's.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	if t.agent != "" {
		req.Header.Set("User-Agent", t.agent)
	}
	if arg := req.Header.Get("Dropbox-API-Arg"); arg != "" {
		req.Header.Set("Dropbox-API-Arg", headerSafe(arg))
	}
	if err := repeatable(req); err != nil {
		return nil, err
	}
	c := callOf(req.Context())
	next := t.authorized
	if strings.HasSuffix(req.URL.Path, "/list_folder/longpoll") {
		next = t.plain // "fails with auth", as it is not authenticated
	}
	resp, err := next.RoundTrip(req)
	if err == nil && c != nil {
		c.status = resp.StatusCode
		c.header = resp.Header
	}
	return resp, err
}

// repeatable gives req a GetBody and a length, which the SDK's lack: it hides
// the body in an io.NopCloser. Content comes from the call; arguments are
// short.
func repeatable(req *http.Request) error {
	if c := callOf(req.Context()); c != nil && c.body != nil {
		req.ContentLength = c.size
		req.GetBody = func() (io.ReadCloser, error) {
			if c.size == 0 {
				return http.NoBody, nil
			}
			return io.NopCloser(io.NewSectionReader(c.body, c.off, c.size)), nil
		}
		req.Body, _ = req.GetBody()
		return nil
	}
	if req.Body == nil || req.Body == http.NoBody || req.GetBody != nil {
		return nil
	}
	data, err := io.ReadAll(req.Body)
	req.Body.Close()
	if err != nil {
		return fmt.Errorf("read the request's argument: %w", err)
	}
	req.ContentLength = int64(len(data))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	req.Body, _ = req.GetBody()
	return nil
}

// call is one call of the API, as far as the SDK tells too little of it. It
// travels in the context and is written before the SDK's method returns.
type call struct {
	// body[off:off+size] is the content to send; nil for none.
	body      io.ReaderAt
	off, size int64

	status int         // of the last answer, 0 when there was none
	header http.Header // of the last answer
	tries  atomic.Int32
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// newCall returns a context for one call of the API, and what becomes of it.
func newCall(ctx context.Context) (context.Context, *call) {
	c := new(call)
	return context.WithValue(ctx, callKey{}, c), c
}

// repeated reports whether the request was sent more than once, so that a
// refusal may be due to an earlier try whose answer was lost.
func (c *call) repeated() bool { return c.tries.Load() > 1 }

// counted counts the tries of each call. It stands above the pacer, which
// repeats; the pacer asks for the body of each try but the first.
type counted struct{ next http.RoundTripper }

// RoundTrip is http.RoundTripper's.
func (t counted) RoundTrip(req *http.Request) (*http.Response, error) {
	c := callOf(req.Context())
	if c == nil {
		return t.next.RoundTrip(req)
	}
	c.tries.Add(1)
	if again := req.GetBody; again != nil {
		req = req.Clone(req.Context())
		req.GetBody = func() (io.ReadCloser, error) {
			c.tries.Add(1)
			return again()
		}
	}
	return t.next.RoundTrip(req)
}

// staticToken authorizes with a token that never changes.
type staticToken struct {
	token string
	next  http.RoundTripper
}

// RoundTrip is http.RoundTripper's.
func (t staticToken) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+t.token)
	return t.next.RoundTrip(req)
}

// classify is pacer.Default, except for the two answers with which Dropbox says
// that writers got in each other's way: those ask for a later try of that
// request, not for a pause of the account
// (https://developers.dropbox.com/error-handling-guide, "namespace lock
// contention").
func classify(resp *http.Response) pacer.Decision {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusConflict {
		return pacer.Default(resp)
	}
	var answer struct {
		Error json.RawMessage `json:"error"`
	}
	if json.Unmarshal(pacer.Peek(resp, 64<<10), &answer) == nil && contended(answer.Error, 4) {
		return pacer.Decision{Fault: pacer.Contended, After: pacer.RetryAfter(resp)}
	}
	return pacer.Default(resp)
}

// contended reports whether a union's innermost tag, at most depth unions
// down, is too_many_write_operations.
func contended(union json.RawMessage, depth int) bool {
	var m map[string]json.RawMessage
	if depth == 0 || json.Unmarshal(union, &m) != nil {
		return false
	}
	var tag string
	if raw, ok := m[".tag"]; ok && json.Unmarshal(raw, &tag) == nil && tag == "too_many_write_operations" {
		return true
	}
	for _, name := range []string{tag, "reason"} {
		if inner, ok := m[name]; ok && contended(inner, depth-1) {
			return true
		}
	}
	return false
}

// headerSafe escapes what must not stand in a header's argument
// (https://www.dropbox.com/developers/reference/json-encoding), DEL included;
// the SDK sends it as it is.
func headerSafe(json string) string {
	if !strings.ContainsFunc(json, beyondASCII) {
		return json
	}
	var b strings.Builder
	for _, r := range json {
		switch {
		case !beyondASCII(r):
			b.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

func beyondASCII(r rune) bool { return r >= 0x7f }
