package gdrive

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net/http"
	"strings"

	"google.golang.org/api/drive/v3"

	"github.com/sregfs/sregfs/backends"
)

// Why a reader gets one version. Drive's files.get gives whatever content a
// file has at the moment and does not say in its answer which revision that
// is; a range of it after another may be of another version. revisions.get
// names the revision, and so cannot blend: it is asked first, one request for a
// range. But the documentation allows it only for revisions that are kept
// forever, and only to who may write the file. Where it is refused, the range
// comes from files.get, and before the first byte of it is handed on, the file
// is asked for its head revision. Revision ids never come back: if the head is
// still the one that was asked for, after the answer to files.get had begun,
// then it was so when that answer was made. If it is not, the old revision is
// asked for once more after it was marked to be kept, which is what the
// documentation demands; when that fails too, the reader gets ErrStale.

// OpenRange reads a range of img's revision.
func (s *Store) OpenRange(ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error) {
	const op = "read"
	if off < 0 {
		return nil, &backends.Error{Op: op, Client: s.client, Ref: img.Ref, Err: fmt.Errorf("offset %d is negative", off)}
	}
	if err := ctx.Err(); err != nil {
		return nil, s.fail(ctx, op, img.Ref, err)
	}
	left := max(img.Size-off, 0)
	if n < 0 || n > left {
		n = left
	}
	if n == 0 {
		return http.NoBody, nil
	}
	span := span{off, n, img.Size}
	body, err := s.openRange(ctx, img, span)
	switch {
	case errors.Is(err, backends.ErrStale):
		return nil, s.refused(op, img.Ref, backends.ErrStale, "Drive has that revision no more")
	case err != nil:
		return nil, s.fail(ctx, op, img.Ref, err)
	}
	return backends.Body(ctx, body, n, lost), nil
}

// span is n bytes at off of size.
type span struct{ off, n, size int64 }

func (s *Store) openRange(ctx context.Context, img backends.Image, sp span) (io.ReadCloser, error) {
	if !img.ReadOnly && !s.unpinned.Load() {
		body, err := s.openRevision(ctx, img, sp)
		if err == nil || !errors.Is(err, errRefused) && !errors.Is(err, iofs.ErrNotExist) {
			return body, err
		}
		// Gone, or not to be had that way: the file itself knows.
		body, herr := s.openHead(ctx, img, sp)
		if herr == nil && errors.Is(err, errRefused) {
			s.unpinned.Store(true)
		}
		if !errors.Is(herr, backends.ErrStale) || errors.Is(err, iofs.ErrNotExist) {
			return body, herr
		}
		return s.openKept(ctx, img, sp)
	}
	body, err := s.openHead(ctx, img, sp)
	if errors.Is(err, backends.ErrStale) && !img.ReadOnly {
		return s.openKept(ctx, img, sp)
	}
	return body, err
}

// errRefused: revisions.get does not give that revision to this account.
var errRefused = errors.New("the revision cannot be downloaded")

// openRevision asks for the revision by its id. It fails with fs.ErrNotExist
// when there is none, with errRefused when it is not to be had.
func (s *Store) openRevision(ctx context.Context, img backends.Image, sp span) (io.ReadCloser, error) {
	call := s.svc.Revisions.Get(img.ID, img.Revision).Context(ctx)
	call.Header().Set("Range", sp.header())
	resp, err := call.Download()
	switch kind := reasons[reasonOf(err)]; {
	case gone(err), codeOf(err) == http.StatusBadRequest: // an id that never was one
		return nil, iofs.ErrNotExist
	case codeOf(err) == http.StatusForbidden && (kind == nil || kind == iofs.ErrPermission || kind == errors.ErrUnsupported) &&
		reasonOf(err) != "cannotDownloadAbusiveFile":
		return nil, errRefused
	case err != nil:
		return nil, err
	}
	return sp.check(resp)
}

// openHead asks for the file's content and makes sure that it is of img's
// revision. It fails with ErrStale when it is not, or when there is no file.
func (s *Store) openHead(ctx context.Context, img backends.Image, sp span) (io.ReadCloser, error) {
	call := s.get(img.ID).Context(ctx)
	call.Header().Set("Range", sp.header())
	resp, err := call.Download()
	switch {
	case gone(err), codeOf(err) == http.StatusRequestedRangeNotSatisfiable: // it has become shorter
		return nil, backends.ErrStale
	case err != nil:
		return nil, err
	}
	f, err := again(ctx, s.get(img.ID).Context(ctx).Fields("headRevisionId,md5Checksum").Do)
	if err == nil && or(f.HeadRevisionId, f.Md5Checksum) == img.Revision {
		return sp.check(resp)
	}
	resp.Body.Close()
	if err == nil || gone(err) {
		err = backends.ErrStale
	}
	return nil, err
}

// openKept marks an old revision to be kept, and asks for it.
func (s *Store) openKept(ctx context.Context, img backends.Image, sp span) (io.ReadCloser, error) {
	body, err := s.openRevision(ctx, img, sp)
	if !errors.Is(err, errRefused) {
		return body, stale(err)
	}
	_, err = again(ctx, s.svc.Revisions.Update(img.ID, img.Revision, &drive.Revision{KeepForever: true}).Context(ctx).Fields("id").Do)
	if err == nil {
		body, err = s.openRevision(ctx, img, sp)
	}
	return body, stale(err)
}

// stale turns what says that a revision cannot be had into ErrStale.
func stale(err error) error {
	if errors.Is(err, iofs.ErrNotExist) || errors.Is(err, errRefused) || gone(err) {
		return backends.ErrStale
	}
	return err
}

func (sp span) header() string { return fmt.Sprintf("bytes=%d-%d", sp.off, sp.off+sp.n-1) }

// check makes sure that an answer holds the range that was asked for, of
// content that is as long as was expected.
func (sp span) check(resp *http.Response) (io.ReadCloser, error) {
	want := fmt.Sprintf("bytes %d-%d/%d", sp.off, sp.off+sp.n-1, sp.size)
	got := resp.Header.Get("Content-Range")
	switch {
	case resp.StatusCode == http.StatusPartialContent && strings.EqualFold(got, want):
		return resp.Body, nil
	case resp.StatusCode == http.StatusOK && sp.off == 0 && sp.n == sp.size && (resp.ContentLength == sp.size || resp.ContentLength < 0):
		return resp.Body, nil
	}
	resp.Body.Close()
	return nil, fmt.Errorf("%w: asked for %q, the answer has another range (HTTP %d)", backends.ErrUnreachable, want, resp.StatusCode)
}
