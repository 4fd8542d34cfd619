package dropboxtest

import (
	"bytes"
	"context"
	"net/http"
	"time"
)

// Fault is what goes wrong with one request. The zero value changes nothing.
type Fault struct {
	// Delay is waited before anything else.
	Delay time.Duration
	// Status, when not 0, is answered instead of the endpoint's own status,
	// with Header and Body.
	Status int
	Header http.Header
	Body   string
	// Act has the request carried out all the same before Status is answered
	// or the connection is dropped: the answer is lost, not the act.
	Act bool
	// Drop cuts the connection before any answer.
	Drop bool
	// Break does something to the body of the answer at its byte At.
	Break Break
	At    int64
}

// Break is what becomes of an answer's body.
type Break int

const (
	// Whole leaves the body as it is.
	Whole Break = iota
	// Cut ends the connection at byte At, short of the promised length.
	Cut
	// Stall sends nothing after byte At until the caller gives up.
	Stall
	// Flip turns the lowest bit of byte At.
	Flip
)

// RateLimited is the fault of too many requests; reason is too_many_requests
// or too_many_write_operations.
func RateLimited(reason string, wait time.Duration) *Fault { return faultOf(refuseRate(reason, wait)) }

// Unauthorized is the fault of a token: expired_access_token,
// invalid_access_token.
func Unauthorized(tag string) *Fault { return faultOf(refuseAuth(tag)) }

// Refused is an endpoint's own error, outermost tag first: Refused("path",
// "insufficient_space").
func Refused(tags ...string) *Fault { return faultOf(refuse(tags...)) }

// Failed is an answer of that status with a body that is no JSON, as proxies
// and 5xx have it.
func Failed(status int) *Fault {
	return &Fault{Status: status, Body: "<html>" + http.StatusText(status) + "</html>"}
}

func faultOf(e *apiError) *Fault {
	var rec recorder
	e.write(&rec)
	return &Fault{Status: rec.status, Header: rec.Header(), Body: rec.body.String()}
}

func (f *Fault) apply(ctx context.Context, out *wire, r *http.Request, act func(http.ResponseWriter)) {
	if f.Delay > 0 && sleep(ctx, f.Delay) != nil {
		panic(http.ErrAbortHandler)
	}
	if f.Act && (f.Drop || f.Status != 0) {
		act(new(recorder))
	}
	switch {
	case f.Drop:
		panic(http.ErrAbortHandler)
	case f.Status != 0:
		for k, v := range f.Header {
			out.Header()[k] = v
		}
		out.WriteHeader(f.Status)
		out.Write([]byte(f.Body))
		return
	}
	switch f.Break {
	case Cut:
		out.end = f.At
	case Stall:
		out.end, out.stall = f.At, true
	case Flip:
		out.flip = f.At
	}
	act(out)
}

// recorder takes an answer that nobody is to see.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header {
	if r.header == nil {
		r.header = make(http.Header)
	}
	return r.header
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
}

func (r *recorder) Write(p []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	return r.body.Write(p)
}
