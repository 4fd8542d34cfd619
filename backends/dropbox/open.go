package dropbox

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"

	"github.com/sregfs/sregfs/backends"
)

// OpenRange downloads a range of img's revision. A revision that Dropbox keeps
// no more is looked for in the file itself, which still has its content when
// the file was only moved.
func (s *Store) OpenRange(ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error) {
	const op = "read"
	if off < 0 {
		return nil, &backends.Error{Op: op, Client: s.client, Ref: img.Ref, Err: fmt.Errorf("offset %d is negative", off)}
	}
	if err := ctx.Err(); err != nil {
		return nil, &backends.Error{Op: op, Client: s.client, Ref: img.Ref, Err: err}
	}
	left := max(img.Size-off, 0)
	if n < 0 || n > left {
		n = left
	}
	if n == 0 {
		return http.NoBody, nil
	}
	body, err := s.openPath(ctx, img, "rev:"+img.Revision, off, n)
	if err == errGone && img.ID != "" && !img.Sum.IsZero() {
		body, err = s.openPath(ctx, img, img.ID, off, n)
	}
	if err == errGone {
		return nil, s.refused(op, img.Ref, backends.ErrStale, "Dropbox has revision "+img.Revision+" no more")
	}
	return body, err
}

// errGone: there is no file at a path, or another one.
var errGone = fmt.Errorf("no such content")

// openPath is OpenRange of what a path names, as long as that has img's
// content; otherwise it fails with errGone.
func (s *Store) openPath(ctx context.Context, img backends.Image, path string, off, n int64) (io.ReadCloser, error) {
	const op = "read"
	arg := files.NewDownloadArg(path)
	if err := files.SetRangeLength(arg, off, n); err != nil {
		return nil, &backends.Error{Op: op, Client: s.client, Ref: img.Ref, Err: err}
	}
	cctx, c := newCall(ctx)
	m, body, err := s.files.DownloadContext(cctx, arg)
	switch {
	case notFound(err), hasTag(err, files.LookupErrorMalformedPath), c.status == http.StatusRequestedRangeNotSatisfiable:
		return nil, errGone
	case err != nil:
		return nil, s.fail(ctx, op, img.Ref, c, err)
	}
	// The rev of a file that was moved is another, the content is the same.
	same := m.Rev == img.Revision || !img.Sum.IsZero() && m.ContentHash == img.Sum.Hex
	want := fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, img.Size)
	got := c.header.Get("Content-Range")
	switch {
	case !same || int64(m.Size) != img.Size:
		body.Close()
		return nil, errGone
	case c.status != http.StatusPartialContent || !strings.EqualFold(got, want):
		body.Close()
		return nil, s.refused(op, img.Ref, backends.ErrUnreachable,
			fmt.Sprintf("asked for %q, the answer has another range (HTTP %d)", want, c.status))
	}
	return backends.Body(ctx, body, n, nil), nil
}
