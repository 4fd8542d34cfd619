package oci

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/pacer"
)

// refusal is an answer other than the one that was hoped for.
type refusal struct {
	status int
	codes  []string // OCI distribution specification, "Error Codes"
}

// Error tells status and codes, never the registry's own text or URL, which may
// quote a request and so a token.
func (r *refusal) Error() string {
	s := fmt.Sprintf("HTTP %d %s", r.status, http.StatusText(r.status))
	if len(r.codes) > 0 {
		s += " (" + strings.Join(r.codes, ", ") + ")"
	}
	return s
}

// Unwrap gives the kind.
func (r *refusal) Unwrap() error {
	has := func(codes ...transport.ErrorCode) bool {
		return slices.ContainsFunc(codes, func(c transport.ErrorCode) bool { return slices.Contains(r.codes, string(c)) })
	}
	switch r.status {
	case http.StatusUnauthorized:
		return backends.ErrAuth
	case http.StatusForbidden:
		return iofs.ErrPermission
	case http.StatusNotFound:
		return iofs.ErrNotExist
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return errors.ErrUnsupported
	case http.StatusTooManyRequests:
		return backends.ErrBusy
	case http.StatusRequestEntityTooLarge:
		return syscall.EFBIG
	case http.StatusInsufficientStorage:
		return backends.ErrNoSpace
	case http.StatusBadRequest:
		switch {
		case has(transport.DigestInvalidErrorCode, transport.SizeInvalidErrorCode):
			return backends.ErrCorrupt
		case has(transport.NameInvalidErrorCode, transport.TagInvalidErrorCode):
			return backends.ErrInvalidName
		case has(transport.UnsupportedErrorCode):
			return errors.ErrUnsupported
		}
		return nil
	}
	if r.status >= 500 {
		return backends.ErrUnreachable
	}
	return nil
}

// statusOf is the HTTP status that a call failed with, 0 for none.
func statusOf(err error) int {
	var r *refusal
	if errors.As(err, &r) {
		return r.status
	}
	return 0
}

// checkStatus makes an error of an answer whose status is not among ok, and
// closes its body then.
func checkStatus(resp *http.Response, ok ...int) error {
	if slices.Contains(ok, resp.StatusCode) {
		return nil
	}
	defer resp.Body.Close()
	r := &refusal{status: resp.StatusCode}
	var e *transport.Error
	if errors.As(transport.CheckError(resp), &e) {
		for _, d := range e.Errors {
			if c := backends.Code(string(d.Code)); c != "" && !slices.Contains(r.codes, c) && len(r.codes) < 4 {
				r.codes = append(r.codes, c)
			}
		}
	}
	return r
}

// lost is the cause of a request that got no answer.
func lost(err error) error {
	var paced *pacer.Error
	if errors.As(err, &paced) {
		return paced
	}
	for _, kind := range []error{errPlain, backends.ErrNotConfigured, backends.ErrAuth, backends.ErrBusy, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, kind) {
			return innermost(err)
		}
	}
	return fmt.Errorf("%w: %w", backends.ErrUnreachable, innermost(err))
}

// innermost takes the URL, which may hold a signature, off an error.
func innermost(err error) error {
	var u *url.Error
	for errors.As(err, &u) {
		err = u.Err
	}
	return err
}

// signIn is the cause of a failed handshake. The library's own texts may quote
// what the token server said, so that none of them is passed on.
func signIn(err error) error {
	var refused *transport.Error
	var paced *pacer.Error
	switch {
	case errors.As(err, &paced):
		return paced
	case errors.As(err, &refused):
		what := fmt.Sprintf("sign-in answers HTTP %d", refused.StatusCode)
		switch refused.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("%w: %s", backends.ErrAuth, what)
		case http.StatusTooManyRequests:
			return fmt.Errorf("%w: %s", backends.ErrBusy, what)
		}
		return fmt.Errorf("%w: %s; is this a registry?", backends.ErrUnreachable, what)
	case errors.As(err, new(*url.Error)), errors.Is(err, backends.ErrNotConfigured):
		return lost(err)
	}
	return fmt.Errorf("%w: its sign-in makes no sense", backends.ErrUnreachable)
}

// fail makes the error of an act on ref.
func (s *Store) fail(ctx context.Context, op string, ref backends.Ref, err error) error {
	if ctx.Err() != nil {
		return &backends.Error{Op: op, Client: s.client, Ref: ref, Err: pacer.Ended(ctx, err)}
	}
	var done *backends.Error
	if errors.As(err, &done) && done.Op == op {
		return err
	}
	e := &backends.Error{Op: op, Client: s.client, Ref: ref, Err: err}
	switch {
	case backends.Hint(err) != "":
	case errors.Is(err, backends.ErrAuth) && s.creds.any():
		e.Hint = "the image may not exist, or the credentials for " + s.registry.Name() + " are wrong or do not cover it"
	case errors.Is(err, backends.ErrAuth):
		e.Hint = "the image may not exist, or needs credentials: set a user name and password, or run \"docker login " + s.registry.Name() + "\""
	case op == "stat" && statusOf(err) == http.StatusNotFound:
		e.Hint = "the registry has no such image or tag"
	case statusOf(err) == http.StatusRequestEntityTooLarge:
		e.Hint = "the registry, or more likely a proxy before it, takes no request of that size: raise its limit"
	case errors.Is(err, backends.ErrBusy):
		e.Hint = "wait, or log in for a higher limit"
	}
	return e
}
