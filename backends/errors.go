package backends

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"strings"
)

// The kinds of failure, beside those of io/fs (ErrNotExist, ErrExist,
// ErrPermission), errors.ErrUnsupported and the context's. A client maps its
// service's errors to these once, from codes and types, never from text.
// ErrNotExist is a store's own no; what could not be asked is never that.
var (
	// ErrAuth: credentials refused, or expired beyond refresh.
	ErrAuth = errors.New("credentials refused")
	// ErrNotConfigured: the client lacks credentials; the hint says which.
	ErrNotConfigured = errors.New("not set up")
	// ErrReadOnly: this client cannot change anything there.
	ErrReadOnly = errors.New("read-only")
	// ErrNoSpace: the account's space is used up.
	ErrNoSpace = errors.New("no space left")
	// ErrQuota: a quota other than space is used up (Drive's downloads a day).
	ErrQuota = errors.New("quota exceeded")
	// ErrBusy: rate limited, or refused for now, longer than retries may last.
	ErrBusy = errors.New("remote is busy")
	// ErrUnreachable: the network or the service failed longer than retries
	// may last. Whether an image exists is then unknown.
	ErrUnreachable = errors.New("remote cannot be reached")
	// ErrUntrusted: what answers cannot prove that it is the service, so that
	// nothing was sent to it. It is ErrUnreachable too, which no waiting helps.
	ErrUntrusted = fmt.Errorf("%w", ErrUnreachable)
	// ErrStale: the version that was asked for is gone or was replaced.
	ErrStale = errors.New("changed on the remote")
	// ErrCorrupt: content does not match its checksum, or cannot be parsed.
	ErrCorrupt = errors.New("content is corrupt")
	// ErrInvalidName: a name that the store cannot keep.
	ErrInvalidName = errors.New("not an image's name")
	// ErrNotEmpty: a collection that still holds something.
	ErrNotEmpty = errors.New("collection is not empty")
	// ErrCursorReset: a change feed's cursor is no longer good.
	ErrCursorReset = errors.New("change cursor expired")
)

// Error says what was being done to which image, and what to do about it.
type Error struct {
	// Op is the act, a verb: "push", "list", "read".
	Op string
	// Client is the client's name, Ref the image's; either may be zero.
	Client string
	Ref    Ref
	// Err is the cause. It wraps a kind.
	Err error
	// Hint tells the user what to do, a sentence without a full stop; may be
	// empty.
	Hint string
}

// Error is one sentence: what, which image, why, what to do. It never holds a
// secret.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	switch {
	case e.Client != "" && !e.Ref.IsZero():
		b.WriteString(" " + e.Client + "://" + e.Ref.String())
	case e.Client != "":
		b.WriteString(" " + e.Client)
	case !e.Ref.IsZero():
		b.WriteString(" " + e.Ref.String())
	}
	b.WriteString(": ")
	b.WriteString(e.Err.Error())
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Hint returns the outermost hint in err's chain, or "".
func Hint(err error) string {
	var e *Error
	for errors.As(err, &e) {
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}

// Code is the code by which a service calls a kind of failure, if it can be one:
// letters, and dots and underscores between them. It is "" for all else, which may
// be a text that quotes the request and so a token, and is not to be shown.
func Code(s string) string {
	odd := func(c rune) bool { return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '.' && c != '_' }
	if len(s) > 64 || strings.ContainsFunc(s, odd) {
		return ""
	}
	return s
}

// NotExist is the error for an image that the store says it does not have.
func NotExist(op, client string, ref Ref) error {
	return &Error{Op: op, Client: client, Ref: ref, Err: iofs.ErrNotExist}
}
