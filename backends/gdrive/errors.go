package gdrive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"net/http"
	"net/url"

	"google.golang.org/api/googleapi"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/pacer"
)

// reasons are the kinds of Drive's errors 403 and 400, by the reason that they
// give (guide "handle-errors" of the Drive API).
var reasons = map[string]error{
	"rateLimitExceeded":        backends.ErrBusy,
	"userRateLimitExceeded":    backends.ErrBusy,
	"sharingRateLimitExceeded": backends.ErrBusy,

	"storageQuotaExceeded":              backends.ErrNoSpace,
	"quotaExceeded":                     backends.ErrNoSpace,
	"teamDriveFileLimitExceeded":        backends.ErrNoSpace,
	"numChildrenInNonRootLimitExceeded": backends.ErrNoSpace,
	"activeItemCreationLimitExceeded":   backends.ErrNoSpace,

	"downloadQuotaExceeded": backends.ErrQuota,
	"dailyLimitExceeded":    backends.ErrQuota,

	"authError":               backends.ErrAuth,
	"required":                backends.ErrAuth, // with 401: no token at all
	"expired":                 backends.ErrAuth,
	"accessNotConfigured":     backends.ErrAuth,
	"insufficientPermissions": iofs.ErrPermission,

	"insufficientFilePermissions":   iofs.ErrPermission,
	"insufficientParentPermissions": iofs.ErrPermission,
	"appNotAuthorizedToFile":        iofs.ErrPermission,
	"cannotDownloadAbusiveFile":     iofs.ErrPermission,
	"cannotDownloadFile":            iofs.ErrPermission,
	"domainPolicy":                  iofs.ErrPermission,
	"forbidden":                     iofs.ErrPermission,

	"fileNotDownloadable":   errors.ErrUnsupported,
	"sharingNotSupported":   errors.ErrUnsupported,
	"invalidSharingRequest": iofs.ErrInvalid,
}

// hints say what to do about some of them.
var hints = map[string]string{
	"accessNotConfigured":       "enable the Google Drive API for the project of the credentials at https://console.cloud.google.com/apis/library/drive.googleapis.com",
	"storageQuotaExceeded":      "empty the bin or get more space (a service account has none of its own: share a folder with it)",
	"downloadQuotaExceeded":     "wait a day: the file was downloaded too often; what is cached stays readable",
	"dailyLimitExceeded":        "wait until tomorrow, or raise the project's quota",
	"cannotDownloadAbusiveFile": "Google takes the file for malware; only its owner can download it, in the browser",
	"invalidSharingRequest":     "check the e-mail address",
}

// reasonOf is the reason that an answer gives, "" when it gives none.
func reasonOf(err error) string {
	var e *googleapi.Error
	if errors.As(err, &e) && len(e.Errors) > 0 {
		return e.Errors[0].Reason
	}
	return ""
}

func codeOf(err error) int {
	var e *googleapi.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

// gone reports whether the service itself said that there is no such thing.
func gone(err error) bool {
	return codeOf(err) == http.StatusNotFound || codeOf(err) == http.StatusGone
}

// explain is the cause of a failed call, of one of the kinds. It goes by
// statuses and reasons alone. None of an answer's text goes into it.
func explain(err error) error {
	var e *googleapi.Error
	if !errors.As(err, &e) {
		return lost(err)
	}
	reason := reasonOf(err)
	what := fmt.Sprintf("HTTP %d", e.Code)
	if code := backends.Code(reason); code != "" {
		what += " " + code
	}
	kind := reasons[reason]
	switch {
	case e.Code == http.StatusUnauthorized:
		kind = backends.ErrAuth
	case kind != nil && reason != "required":
	case e.Code == http.StatusForbidden:
		kind = iofs.ErrPermission
	case e.Code == http.StatusNotFound, e.Code == http.StatusGone:
		kind = iofs.ErrNotExist
	case e.Code == http.StatusConflict:
		kind = iofs.ErrExist
	case e.Code == http.StatusTooManyRequests:
		kind = backends.ErrBusy
	case e.Code >= 400 && e.Code < 500:
		kind = iofs.ErrInvalid
	default:
		kind = backends.ErrUnreachable
	}
	return &backends.Error{Op: "ask Google Drive", Err: fmt.Errorf("%w (%s)", kind, what), Hint: hints[reason]}
}

// lost is the cause of a request that got no answer. The URL, which may hold
// an upload's key, is cut off.
func lost(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	for _, kind := range []error{backends.ErrBusy, backends.ErrUnreachable, backends.ErrAuth, backends.ErrNotConfigured, backends.ErrQuota} {
		if errors.Is(err, kind) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", backends.ErrUnreachable, err)
}

// fail makes the error of an act on ref out of what a call returned.
func (s *Store) fail(ctx context.Context, op string, ref backends.Ref, err error) error {
	e := &backends.Error{Op: op, Client: s.client, Ref: ref}
	var done *backends.Error
	switch {
	case ctx.Err() != nil:
		e.Err = pacer.Ended(ctx, err)
		return e
	case errors.As(err, &done) && done.Op == op && done.Client != "":
		return err // said already
	case errors.As(err, new(*url.Error)):
		e.Err = lost(err)
	case codeOf(err) == 0 && isKnown(err):
		e.Err = err
	default:
		e.Err = explain(err)
	}
	if inner := (*backends.Error)(nil); errors.As(e.Err, &inner) && inner.Client == "" {
		// One sentence, not two.
		e.Err, e.Hint = inner.Err, inner.Hint
	}
	if e.Hint == "" && errors.Is(e.Err, backends.ErrAuth) && backends.Hint(e.Err) == "" {
		e.Hint = fmt.Sprintf("run %q", "sregfs login "+s.client)
	}
	return e
}

// refused is the error of an act on ref that this package finds fault with
// itself.
func (s *Store) refused(op string, ref backends.Ref, kind error, what string) error {
	if what != "" {
		kind = fmt.Errorf("%w: %s", kind, what)
	}
	return &backends.Error{Op: op, Client: s.client, Ref: ref, Err: kind}
}

// isKnown reports whether err already is of a kind.
func isKnown(err error) bool {
	for _, kind := range []error{
		iofs.ErrNotExist, iofs.ErrExist, iofs.ErrPermission, errors.ErrUnsupported, backends.ErrAuth, backends.ErrNotConfigured,
		backends.ErrReadOnly, backends.ErrNoSpace, backends.ErrQuota, backends.ErrBusy, backends.ErrUnreachable, backends.ErrStale,
		backends.ErrCorrupt, backends.ErrInvalidName, backends.ErrNotEmpty, backends.ErrCursorReset, errContent,
	} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// classify is pacer.Default, and knows that Drive says 403 for too many
// requests as well.
func classify(resp *http.Response) pacer.Decision {
	if resp.StatusCode == http.StatusForbidden {
		var answer struct {
			Error struct {
				Errors []struct {
					Reason string `json:"reason"`
				} `json:"errors"`
			} `json:"error"`
		}
		if json.Unmarshal(pacer.Peek(resp, 64<<10), &answer) == nil && len(answer.Error.Errors) > 0 &&
			reasons[answer.Error.Errors[0].Reason] == backends.ErrBusy {
			return pacer.Decision{Fault: pacer.Limited, After: pacer.RetryAfter(resp)}
		}
	}
	return pacer.Default(resp)
}
