package pacer

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// Fault is what kind of passing trouble a response tells of.
type Fault int

const (
	// None: an answer, good or bad, that is handed on.
	None Fault = iota
	// Limited: the account is too fast. All its requests pause.
	Limited
	// Contended: this request alone is to come later (two writers got in each
	// other's way).
	Contended
	// Failing: the service or something before it is out of order.
	Failing
)

// Decision says what to do about a response.
type Decision struct {
	Fault Fault
	// After is how long the service wants to wait, 0 when it does not say.
	After time.Duration
}

// Default is the decision by status alone: 429 (RFC 6585 section 4), and a 503
// or a 403 with Retry-After, are Limited: a refusal that says when to come back
// is none. 500, 502, 503 and 504 (RFC 9110 section 15.6) are Failing.
func Default(resp *http.Response) Decision {
	after := RetryAfter(resp)
	switch resp.StatusCode {
	case http.StatusTooManyRequests:
		return Decision{Limited, after}
	case http.StatusForbidden:
		if after > 0 {
			return Decision{Limited, after}
		}
	case http.StatusServiceUnavailable:
		if after > 0 {
			return Decision{Limited, after}
		}
		return Decision{Fault: Failing}
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		return Decision{Failing, after}
	}
	return Decision{}
}

// RetryAfter is the response's Retry-After header (RFC 9110 section 10.2.3),
// in seconds or as a date, as a time from now; 0 when there is none or it
// makes no sense. A date is counted from the response's own Date, so that a
// wrong clock on this machine does no harm.
func RetryAfter(resp *http.Response) time.Duration {
	v := resp.Header.Get("Retry-After")
	if v == "" {
		return 0
	}
	if s, err := strconv.ParseFloat(v, 64); err == nil {
		// The RFC has whole seconds; some services send fractions.
		const most = 24 * 60 * 60
		if !(s > 0) {
			return 0
		}
		return time.Duration(min(s, most) * float64(time.Second))
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return max(0, min(at.Sub(now), 24*time.Hour))
}

// Peek returns the first bytes of the response's body, n at most, and leaves
// the body as if nobody had read it.
func Peek(resp *http.Response, n int64) []byte {
	head, err := io.ReadAll(io.LimitReader(resp.Body, n))
	rest := io.Reader(resp.Body)
	if err != nil {
		rest = failedReader{err}
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), rest), resp.Body}
	return head
}

type failedReader struct{ err error }

func (r failedReader) Read([]byte) (int, error) { return 0, r.err }

// discard ends a response that is not wanted. A short body is read, so that
// its connection serves the next try.
func discard(resp *http.Response) {
	io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
}

// isKnown reports whether a layer below has already said what kind of failure
// err is (credentials that cannot be refreshed, say), so that there is nothing
// to judge.
func isKnown(err error) bool {
	for _, kind := range []error{backends.ErrAuth, backends.ErrNotConfigured, backends.ErrBusy,
		backends.ErrUnreachable, backends.ErrQuota} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// isPermanent reports whether a connection fails for a reason that no waiting
// removes: a certificate that is not trusted, a server without TLS.
func isPermanent(err error) bool {
	var (
		cert      *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		record    tls.RecordHeaderError
		alert     tls.AlertError
	)
	return errors.As(err, &cert) || errors.As(err, &authority) || errors.As(err, &host) ||
		errors.As(err, &record) || errors.As(err, &alert)
}

// advise says what may be done about a connection that fails for a reason which
// users know how to remove, "" for all others.
func advise(err error) string {
	var (
		authority x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
		host      x509.HostnameError
		record    tls.RecordHeaderError
		name      *net.DNSError
	)
	switch {
	case errors.As(err, &authority):
		return "if you trust who signed it, name its certificate in SSL_CERT_FILE"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "look whether this machine's clock is right"
	case errors.As(err, &host):
		return "look whether the address is right, and whether a proxy is in between"
	case errors.As(err, &record):
		return "look whether the address should begin with http://"
	case errors.As(err, &name):
		return "look whether the network is up and the address is right"
	}
	return ""
}

// neverSent reports whether err came before anything of the request went out.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
