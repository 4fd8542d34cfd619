package dropbox

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"net/http"
	"net/url"
	"strings"

	sdk "github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/auth"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/sharing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/pacer"
)

// fail makes the error of an act on ref out of what the SDK returned for the
// call c.
func (s *Store) fail(ctx context.Context, op string, ref backends.Ref, c *call, err error) error {
	e := &backends.Error{Op: op, Client: s.client, Ref: ref}
	switch {
	case ctx.Err() != nil:
		e.Err = pacer.Ended(ctx, err)
		return e
	case errors.As(err, new(auth.BadRequest)) && s.tokenIsGarbage(ctx):
		e.Err = fmt.Errorf("%w: Dropbox cannot read the token", backends.ErrAuth)
	default:
		e.Err = explain(c, err)
	}
	switch {
	case backends.Hint(e.Err) != "":
	case errors.Is(e.Err, backends.ErrAuth):
		e.Hint = fmt.Sprintf("set %s to a new token, or run %q", TokenSetting, "sregfs login "+s.client)
	case errors.Is(e.Err, backends.ErrNoSpace):
		e.Hint = "delete something from the account, or get more space"
	case missingScope(err) != "":
		e.Hint = fmt.Sprintf("tick %s among the app's permissions, then get a new token", missingScope(err))
	}
	return e
}

// refused is the error of an act on ref that this package finds fault with
// itself.
func (s *Store) refused(op string, ref backends.Ref, kind error, what string) error {
	return &backends.Error{Op: op, Client: s.client, Ref: ref, Err: because(kind, what)}
}

// tokenIsGarbage finds out whose fault an error 400 is: a request without any
// argument gets one only for its token.
func (s *Store) tokenIsGarbage(ctx context.Context) bool {
	_, err := s.users.GetCurrentAccountContext(ctx)
	return errors.As(err, new(auth.BadRequest))
}

// because is kind with more words; kind may be nil for what has none.
func because(kind error, what string) error {
	switch {
	case kind == nil:
		return errors.New("Dropbox refused: " + what)
	case what == "":
		return kind
	}
	return fmt.Errorf("%w: %s", kind, what)
}

// explain is the cause of a failed call, of one of the kinds where it has one.
// It goes by types, tags and status alone. None of an answer's text goes into
// it: an error 400 may quote the request's headers, and so the token.
func explain(c *call, err error) error {
	var lost *url.Error
	if errors.As(err, &lost) {
		// The request did not get through; the layers below know why.
		for _, kind := range []error{backends.ErrBusy, backends.ErrUnreachable, backends.ErrAuth} {
			if errors.Is(lost.Err, kind) {
				return lost.Err
			}
		}
		return fmt.Errorf("%w: %w", backends.ErrUnreachable, lost.Err)
	}
	var (
		unauthorized auth.AuthAPIError
		forbidden    auth.AccessAPIError
		limited      auth.RateLimitAPIError
		failed       auth.ServerError
		bad          auth.BadRequest
		other        sdk.SDKInternalError
	)
	switch {
	case errors.As(err, &unauthorized):
		switch u := unauthorized.AuthError; {
		case u == nil:
			return backends.ErrAuth
		case u.Tag == auth.AuthErrorMissingScope, u.Tag == auth.AuthErrorRouteAccessDenied:
			return because(iofs.ErrPermission, backends.Code(u.Tag))
		default:
			return because(backends.ErrAuth, backends.Code(u.Tag))
		}
	case errors.As(err, &forbidden):
		if forbidden.AccessError != nil {
			return because(iofs.ErrPermission, backends.Code(forbidden.AccessError.Tag))
		}
		return iofs.ErrPermission
	case errors.As(err, &limited):
		return backends.ErrBusy
	case errors.As(err, &failed):
		return because(backends.ErrUnreachable, "Dropbox is out of order")
	case errors.As(err, &bad):
		return because(nil, "it takes the request for malformed (HTTP 400)")
	case errors.As(err, &other):
		return byStatus(other.StatusCode)
	}
	if tags := tagsOf(err); len(tags) > 0 {
		shown := make([]string, len(tags))
		for i, tag := range tags {
			if shown[i] = backends.Code(tag); shown[i] == "" {
				shown[i] = "?"
			}
		}
		return because(kindOf(tags), strings.Join(shown, "/"))
	}
	if c == nil || c.status < 300 {
		return because(backends.ErrUnreachable, "what answered is not Dropbox")
	}
	return byStatus(c.status)
}

// byStatus is for answers without a typed error, from whatever stands between.
func byStatus(status int) error {
	what := fmt.Sprintf("HTTP %d %s", status, http.StatusText(status))
	switch status {
	case http.StatusUnauthorized:
		return because(backends.ErrAuth, what)
	case http.StatusForbidden:
		return because(iofs.ErrPermission, what)
	case http.StatusTooManyRequests:
		return because(backends.ErrBusy, what)
	case http.StatusBadRequest, http.StatusConflict, http.StatusUnprocessableEntity:
		return because(nil, what)
	}
	return because(backends.ErrUnreachable, what)
}

func missingScope(err error) string {
	var u auth.AuthAPIError
	if errors.As(err, &u) && u.AuthError != nil && u.AuthError.MissingScope != nil {
		return backends.Code(u.AuthError.MissingScope.RequiredScope)
	}
	return ""
}

// tagsOf is the path of tags of an endpoint's error, outermost first; nil for
// any other error. The SDK has a type for each endpoint.
func tagsOf(err error) []string {
	switch e := err.(type) {
	case files.GetMetadataAPIError:
		if u := e.EndpointError; u != nil {
			return append([]string{u.Tag}, lookupTags(u.Path)...)
		}
	case files.ListFolderAPIError:
		if u := e.EndpointError; u != nil {
			return append([]string{u.Tag}, lookupTags(u.Path)...)
		}
	case files.ListFolderGetLatestCursorAPIError:
		if u := e.EndpointError; u != nil {
			return append([]string{u.Tag}, lookupTags(u.Path)...)
		}
	case files.ListFolderContinueAPIError:
		if u := e.EndpointError; u != nil {
			return append([]string{u.Tag}, lookupTags(u.Path)...)
		}
	case files.ListFolderLongpollAPIError:
		if u := e.EndpointError; u != nil {
			return []string{u.Tag}
		}
	case files.DownloadAPIError:
		if u := e.EndpointError; u != nil {
			return append([]string{u.Tag}, lookupTags(u.Path)...)
		}
	case files.ListRevisionsAPIError:
		if u := e.EndpointError; u != nil {
			return append([]string{u.Tag}, lookupTags(u.Path)...)
		}
	case files.SearchV2APIError:
		if u := e.EndpointError; u != nil {
			return append([]string{u.Tag}, lookupTags(u.Path)...)
		}
	case files.SearchContinueV2APIError:
		if u := e.EndpointError; u != nil {
			return append([]string{u.Tag}, lookupTags(u.Path)...)
		}
	case files.DeleteV2APIError:
		if u := e.EndpointError; u != nil {
			return append(append([]string{u.Tag}, lookupTags(u.PathLookup)...), writeTags(u.PathWrite)...)
		}
	case files.MoveV2APIError:
		if u := e.EndpointError; u != nil {
			tags := append([]string{u.Tag}, lookupTags(u.FromLookup)...)
			return append(append(tags, writeTags(u.FromWrite)...), writeTags(u.To)...)
		}
	case files.RestoreAPIError:
		if u := e.EndpointError; u != nil {
			return append(append([]string{u.Tag}, lookupTags(u.PathLookup)...), writeTags(u.PathWrite)...)
		}
	case files.CreateFolderV2APIError:
		if u := e.EndpointError; u != nil {
			return append([]string{u.Tag}, writeTags(u.Path)...)
		}
	case files.UploadAPIError:
		if u := e.EndpointError; u != nil {
			tags := []string{u.Tag}
			if u.Path != nil {
				tags = append(tags, writeTags(u.Path.Reason)...)
			}
			return tags
		}
	case files.UploadSessionStartAPIError:
		if u := e.EndpointError; u != nil {
			return []string{u.Tag}
		}
	case files.UploadSessionAppendV2APIError:
		if u := e.EndpointError; u != nil {
			return []string{u.Tag}
		}
	case files.UploadSessionFinishAPIError:
		if u := e.EndpointError; u != nil {
			tags := append([]string{u.Tag}, writeTags(u.Path)...)
			if u.LookupFailed != nil {
				tags = append(tags, u.LookupFailed.Tag)
			}
			return tags
		}
	case sharing.CreateSharedLinkWithSettingsAPIError:
		if u := e.EndpointError; u != nil {
			return append([]string{u.Tag}, lookupTags(u.Path)...)
		}
	case sharing.ListSharedLinksAPIError:
		if u := e.EndpointError; u != nil {
			return append([]string{u.Tag}, lookupTags(u.Path)...)
		}
	}
	return nil
}

func lookupTags(u *files.LookupError) []string {
	if u == nil {
		return nil
	}
	return []string{u.Tag}
}

func writeTags(u *files.WriteError) []string {
	switch {
	case u == nil:
		return nil
	case u.Conflict != nil:
		return []string{u.Tag, u.Conflict.Tag}
	}
	return []string{u.Tag}
}

// kinds are the kinds of the tags that say what is wrong. A tag that is not
// here ("other", "path") says nothing.
var kinds = map[string]error{
	// LookupError
	files.LookupErrorNotFound:               iofs.ErrNotExist,
	files.LookupErrorNotFile:                iofs.ErrNotExist, // something else has that name
	files.LookupErrorNotFolder:              iofs.ErrNotExist,
	files.LookupErrorMalformedPath:          backends.ErrInvalidName,
	files.LookupErrorRestrictedContent:      iofs.ErrPermission,
	files.LookupErrorUnsupportedContentType: errors.ErrUnsupported,
	files.LookupErrorLocked:                 backends.ErrBusy,
	// WriteError
	files.WriteErrorConflict:                      iofs.ErrExist,
	files.WriteErrorDisallowedName:                backends.ErrInvalidName,
	files.WriteErrorNoWritePermission:             iofs.ErrPermission,
	files.WriteErrorAccessRestricted:              iofs.ErrPermission,
	files.WriteErrorTeamFolder:                    iofs.ErrPermission,
	files.WriteErrorOperationSuppressed:           iofs.ErrPermission,
	files.WriteErrorInsufficientSpace:             backends.ErrNoSpace,
	files.WriteErrorTeamFolderInsufficientSpace:   backends.ErrNoSpace,
	files.WriteErrorMemberFolderInsufficientSpace: backends.ErrNoSpace,
	files.WriteErrorUploadTrafficLimitReached:     backends.ErrQuota,
	files.WriteErrorTooManyWriteOperations:        backends.ErrBusy,
	// RelocationError
	files.RelocationErrorInsufficientQuota:             backends.ErrNoSpace,
	files.RelocationErrorTeamFolderInsufficientQuota:   backends.ErrNoSpace,
	files.RelocationErrorMemberFolderInsufficientQuota: backends.ErrNoSpace,
	files.RelocationErrorInternalError:                 backends.ErrUnreachable,
	// Uploads
	files.UploadErrorContentHashMismatch: backends.ErrCorrupt,
	files.UploadErrorPayloadTooLarge:     errors.ErrUnsupported,
	// Sharing
	sharing.CreateSharedLinkWithSettingsErrorEmailNotVerified: iofs.ErrPermission,
	sharing.CreateSharedLinkWithSettingsErrorAccessDenied:     iofs.ErrPermission,
	sharing.CreateSharedLinkWithSettingsErrorBannedMember:     iofs.ErrPermission,
}

// kindOf is the kind of a path of tags: that of the innermost tag that has one.
func kindOf(tags []string) error {
	for i := len(tags) - 1; i >= 0; i-- {
		if k := kinds[tags[i]]; k != nil {
			return k
		}
	}
	return nil
}

// hasTag reports whether err is an endpoint's error with that tag in it.
func hasTag(err error, tag string) bool {
	for _, t := range tagsOf(err) {
		if t == tag {
			return true
		}
	}
	return false
}

// notFound reports whether err is Dropbox's own no: there is nothing of the
// kind that was asked for.
func notFound(err error) bool { return errors.Is(kindOf(tagsOf(err)), iofs.ErrNotExist) }

// notThere reports whether err says that there is no such image.
func notThere(err error) bool { return errors.Is(err, iofs.ErrNotExist) }
