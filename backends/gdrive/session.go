package gdrive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/api/drive/v3"
	"google.golang.org/api/googleapi"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/pacer"
)

// A session is one resumable upload
// (https://developers.google.com/workspace/drive/api/guides/manage-uploads#resumable).
// The library has one too, but it neither survives the process nor begins
// before the size is known. It is used by one goroutine at a time.
type session struct {
	s     *Store
	uri   string // a key to this upload: who has it may write
	acked int64  // bytes that the service has
	file  *drive.File
	// dirty is set once a request with bytes has failed: its connection may
	// still be reading them.
	dirty bool
}

// errForgotten: the service does not know the session any more.
var errForgotten = fmt.Errorf("%w: the service has forgotten the upload", backends.ErrUnreachable)

// begin opens a session for a new file, or for new content of the file id. size
// is -1 when it is not known yet.
func (s *Store) begin(ctx context.Context, id string, meta *drive.File, size int64) (*session, error) {
	body, err := json.Marshal(meta)
	if err != nil {
		return nil, fmt.Errorf("describe the upload: %w", err)
	}
	method, target := http.MethodPost, s.base+"/upload/drive/v3/files"
	if id != "" {
		method, target = http.MethodPatch, target+"/"+url.PathEscape(id)
	}
	target += "?" + url.Values{"uploadType": {"resumable"}, "fields": {fileFields}}.Encode()
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json; charset=UTF-8")
	req.Header.Set("X-Upload-Content-Type", blobMIME)
	if size >= 0 {
		req.Header.Set("X-Upload-Content-Length", strconv.FormatInt(size, 10))
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := googleapi.CheckResponse(resp); err != nil {
		return nil, err
	}
	uri, err := s.ours(resp.Header.Get("Location"))
	if err != nil {
		return nil, err
	}
	return &session{s: s, uri: uri}, nil
}

// ours makes sure that a session lies with the service that was asked: the
// account's token goes there. Behind a proxy its own address is used.
func (s *Store) ours(location string) (string, error) {
	u, err := url.Parse(location)
	base, berr := url.Parse(s.base)
	if err != nil || berr != nil || !strings.HasPrefix(u.Path, "/upload/") {
		return "", fmt.Errorf("%w: the service gives no address for the upload", backends.ErrUnreachable)
	}
	u.Scheme, u.Host, u.User = base.Scheme, base.Host, nil
	return u.String(), nil
}

// put sends data, which begins at off, or only asks how far the upload is when
// data is nil. total is the content's size, -1 while it is unknown. Once the
// service has everything, file is set. It fails with errForgotten when there
// is no such session.
func (u *session) put(ctx context.Context, data []byte, off, total int64) error {
	span, size := "*", "*"
	if len(data) > 0 {
		span = fmt.Sprintf("%d-%d", off, off+int64(len(data))-1)
		// What is sent twice would not harm, but how far it got is better asked.
		ctx = pacer.Once(ctx)
	}
	if total >= 0 {
		size = strconv.FormatInt(total, 10)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, u.uri, bytes.NewReader(data))
	if err != nil {
		return errForgotten // an address out of a damaged state
	}
	req.Header.Set("Content-Range", "bytes "+span+"/"+size)
	req.Header.Set("Content-Type", blobMIME)
	resp, err := u.s.http.Do(req)
	if err != nil {
		u.dirty = true
		return lost(err)
	}
	defer resp.Body.Close()
	u.dirty = u.dirty || resp.StatusCode >= 400
	switch resp.StatusCode {
	case http.StatusPermanentRedirect: // 308, which here means: go on
		acked, err := ackedBytes(resp.Header.Get("Range"))
		if err != nil {
			return err
		}
		u.acked = acked
		return nil
	case http.StatusOK, http.StatusCreated:
		f := new(drive.File)
		if err := json.NewDecoder(resp.Body).Decode(f); err != nil || f.Id == "" {
			return fmt.Errorf("%w: the upload's answer breaks off", backends.ErrUnreachable)
		}
		u.file, u.acked = f, f.Size
		return nil
	case http.StatusNotFound, http.StatusGone, 499:
		return errForgotten
	}
	return googleapi.CheckResponse(resp)
}

// ackedBytes reads "bytes=0-N".
func ackedBytes(header string) (int64, error) {
	if header == "" {
		return 0, nil
	}
	_, last, ok := strings.Cut(strings.TrimPrefix(header, "bytes="), "-")
	n, err := strconv.ParseInt(last, 10, 64)
	if !ok || err != nil || n < 0 {
		return 0, fmt.Errorf("%w: the range in the upload's answer makes no sense", backends.ErrUnreachable)
	}
	return n + 1, nil
}

// maxStandstill is how often a part may fail without one more byte arriving.
const maxStandstill = 3

// send brings the bytes data, which begin at off, to the service, as far as it
// does not have them; with total set they are the last. After a broken
// connection it asks how far it got, and goes on there. The answer to what was
// lost is not lost with it: a finished upload says so when asked.
func (u *session) send(ctx context.Context, data []byte, off, total int64) error {
	end := off + int64(len(data))
	for tries := 0; ; {
		if u.file != nil || total < 0 && u.acked >= end {
			return nil
		}
		if u.acked < off {
			return errForgotten // it has lost what it had acknowledged
		}
		before := u.acked
		err := u.put(ctx, data[min(u.acked-off, int64(len(data))):], u.acked, total)
		if err == nil && (u.file != nil || u.acked > before) {
			tries = 0
			continue
		}
		if err != nil && !passing(err) || ctx.Err() != nil {
			return err
		}
		if tries++; tries > maxStandstill {
			if err == nil {
				err = fmt.Errorf("%w: the service takes no more bytes", backends.ErrUnreachable)
			}
			return err
		}
		if err := pause(ctx, tries); err != nil {
			return err
		}
		if qerr := u.put(ctx, nil, 0, total); qerr != nil {
			if errors.Is(qerr, errForgotten) || err == nil {
				return qerr
			}
			return err
		}
		if u.acked > before {
			tries = 0
		}
	}
}

// pause waits before the given try, longer each time.
func pause(ctx context.Context, try int) error {
	t := time.NewTimer(100 * time.Millisecond << try)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// passing reports whether it makes sense to go on with an upload after err.
func passing(err error) bool {
	if errors.Is(err, errForgotten) {
		return false
	}
	return errors.Is(err, backends.ErrUnreachable) || codeOf(err) >= 500
}

// cancel gives a session up. What it holds goes by itself after a week.
func (u *session) cancel(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, u.uri, nil)
	if err != nil {
		return nil
	}
	resp, err := u.s.http.Do(req)
	if err != nil {
		return lost(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode >= 500 {
		return googleapi.CheckResponse(resp)
	}
	return nil // 499 is the answer to a success
}
