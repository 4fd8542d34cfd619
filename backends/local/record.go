package local

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/pacer"
)

// A record without a file is a small file NAME:TAG.url that says where the
// image's bytes are and what the server there said of them. An image's file of
// the same name goes before it.
const recordExtension = ".url"

// maxRecord is more than a record takes.
const maxRecord = 64 << 10

// record is the content of such a file.
type record struct {
	URL  string `json:"url"`
	Size int64  `json:"size"`
	MD5  string `json:"md5,omitempty"` // in hexadecimal, where the server told it
	// Validator is the server's ETag, else Last-Modified (RFC 9110 section
	// 8.8): what tells whether the bytes are still those.
	Validator string `json:"validator,omitempty"`
}

// parseRecord reads a record. Other programs' .url files are none.
func parseRecord(data []byte) (record, bool) {
	var r record
	if json.Unmarshal(data, &r) != nil || r.Size < 0 {
		return record{}, false
	}
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return record{}, false
	}
	return r, true
}

// recordPath is where the record of ref stands.
func recordPath(ref backends.Ref) string {
	return path.Join(ref.Collection, ref.Name+":"+ref.Tag+recordExtension)
}

// recordRef is the image whose record the file p would be.
func recordRef(p string) (backends.Ref, bool) {
	stem, ok := strings.CutSuffix(p, recordExtension)
	if !ok {
		return backends.Ref{}, false
	}
	ref, nested, ok := refOf(stem + backends.Extensions[0])
	return ref, ok && !nested && ref.Version == "" && recordPath(ref) == p
}

// readRecord reads the record at p. It is nil when there is none, or something
// else.
func (s *Store) readRecord(p string) (*record, error) {
	f, err := s.root.OpenFile(p, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return nil, err
	}
	if r, ok := parseRecord(data); ok {
		return &r, nil
	}
	return nil, nil
}

// Record asks the server at rawURL for the image's size and notes it. An image
// that is here as a file stays as it is; it is returned with that URL.
func (s *Store) Record(ctx context.Context, ref backends.Ref, rawURL string) (backends.Image, error) {
	img, err := s.record(ctx, ref, rawURL)
	return img, s.fail("record", ref, err)
}

func (s *Store) record(ctx context.Context, ref backends.Ref, rawURL string) (backends.Image, error) {
	p := recordPath(ref)
	if _, err := pathOf(ref); err != nil {
		return backends.Image{}, err
	}
	if got, ok := recordRef(p); !ok || got != ref || len(path.Base(p)) > backends.MaxName {
		return backends.Image{}, fmt.Errorf("%w: it cannot have a record", backends.ErrInvalidName)
	}
	// Somebody waits in close(2): a server that is not there is told of soon.
	resp, err := s.get(pacer.WithCeiling(ctx, 5*time.Second), rawURL, 0, 1)
	if err != nil {
		return backends.Image{}, err
	}
	resp.Body.Close()
	rec, err := describe(resp, rawURL)
	if err != nil {
		return backends.Image{}, err
	}
	unlock, err := s.exclusive(ctx)
	if err != nil {
		return backends.Image{}, err
	}
	defer unlock()
	now, err := s.find(ctx, ref)
	if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return backends.Image{}, err
	}
	if err == nil && pathOfKey(now.Key) != p {
		now.URL = shownURL(rawURL)
		return now, nil
	}
	if err := s.writeRecord(p, rec); err != nil {
		return backends.Image{}, err
	}
	return s.find(ctx, ref)
}

// writeRecord puts a record in place. It is for its owner alone: an address
// may hold a password.
func (s *Store) writeRecord(p string, rec record) error {
	data, err := json.MarshalIndent(rec, "", "    ")
	if err != nil {
		return err
	}
	tmp, err := s.createTemp()
	if err != nil {
		return err
	}
	defer tmp.file.Close()
	err = errors.Join(tmp.file.Chmod(0o600), second(tmp.file.Write(append(data, '\n'))), tmp.file.Sync(), s.makeDirs(path.Dir(p)))
	if err == nil {
		err = s.root.Rename(tmp.path, p)
	}
	if err != nil {
		s.root.Remove(tmp.path)
		return err
	}
	return s.syncDir(path.Dir(p))
}

func second(_ int, err error) error { return err }

// shownURL is an address without its password.
func shownURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	u.User = nil
	return u.String()
}

// describe takes from an answer what it says of the whole.
func describe(resp *http.Response, rawURL string) (record, error) {
	r := record{URL: rawURL, Size: totalSize(resp), Validator: resp.Header.Get("ETag")}
	if r.Validator == "" {
		r.Validator = resp.Header.Get("Last-Modified")
	}
	if r.Size < 0 {
		return r, fmt.Errorf("%w: the server does not tell the size", errors.ErrUnsupported)
	}
	// Content-MD5 is RFC 1864's, in base64; x-goog-hash is Google Cloud
	// Storage's (https://cloud.google.com/storage/docs/xml-api/reference-headers).
	sums := []string{}
	if resp.StatusCode == http.StatusOK {
		// Of a partial answer it would be the part's.
		sums = append(sums, resp.Header.Get("Content-MD5"))
	}
	for _, v := range resp.Header.Values("X-Goog-Hash") {
		for h := range strings.SplitSeq(v, ",") {
			if b, ok := strings.CutPrefix(strings.TrimSpace(h), "md5="); ok {
				sums = append(sums, b)
			}
		}
	}
	for _, b := range sums {
		if sum, err := base64.StdEncoding.DecodeString(b); err == nil && len(sum) == 16 {
			r.MD5 = hex.EncodeToString(sum)
		}
	}
	return r, nil
}

// totalSize is the size of the whole that an answer is of or from, -1 when it
// does not tell.
func totalSize(resp *http.Response) int64 {
	if resp.StatusCode != http.StatusPartialContent && resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		return resp.ContentLength
	}
	_, total, ok := strings.Cut(resp.Header.Get("Content-Range"), "/") // RFC 9110 section 14.4
	n, err := strconv.ParseInt(total, 10, 64)
	if !ok || err != nil || n < 0 {
		return -1
	}
	return n
}

// get asks for n bytes at off, to the end when n is negative. The caller closes
// the body of what it gets: status 200, 206, or 416 with nothing.
func (s *Store) get(ctx context.Context, rawURL string, off, n int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rawURL, nil)
	if err != nil {
		return nil, errors.New("the record's address is none")
	}
	// The bytes as they are kept: a range of something compressed is nothing.
	req.Header.Set("Accept-Encoding", "identity")
	if s.userAgent != "" {
		req.Header.Set("User-Agent", s.userAgent)
	}
	bytes := fmt.Sprintf("bytes=%d-", off)
	if n >= 0 {
		bytes += strconv.FormatInt(off+n-1, 10)
	}
	req.Header.Set("Range", bytes)
	resp, err := s.web.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the address, which may hold a secret
		}
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		return resp, nil
	}
	resp.Body.Close()
	err = fmt.Errorf("the server of its record answered %s", resp.Status)
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		err = fmt.Errorf("%w: %w", iofs.ErrNotExist, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		err = fmt.Errorf("%w: %w", backends.ErrAuth, err)
	default:
		err = fmt.Errorf("%w: %w", backends.ErrUnreachable, err)
	}
	return nil, err
}

// openRecorded is OpenRange of an image that a record tells of.
func (s *Store) openRecorded(ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := pathOfKey(img.Key)
	f, _, ok, err := s.look(p)
	if err != nil {
		return nil, err
	}
	if !ok || f.stamp.String() != img.Revision {
		return nil, backends.ErrStale // it has gone, or is another one
	}
	off = min(off, f.record.Size)
	if n < 0 || n > f.record.Size-off {
		n = f.record.Size - off
	}
	if n == 0 {
		return io.NopCloser(strings.NewReader("")), nil
	}
	resp, err := s.get(ctx, f.record.URL, off, n)
	if err != nil {
		return nil, err
	}
	now, err := describe(resp, f.record.URL)
	if err == nil && (now.Validator != f.record.Validator || now.Size != f.record.Size) {
		err = s.refresh(ctx, f, now)
	}
	if got := resp.Header.Get("Content-Range"); err == nil && resp.StatusCode != http.StatusOK &&
		!strings.HasPrefix(strings.ToLower(got), fmt.Sprintf("bytes %d-", off)) {
		err = fmt.Errorf("%w: asked for what begins at %d, the server of its record gave another range", backends.ErrUnreachable, off)
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		// A server without ranges sends all of it.
		if _, err := io.CopyN(io.Discard, resp.Body, off); err != nil {
			resp.Body.Close()
			return nil, err
		}
	}
	return &exactBody{rc: resp.Body, left: n}, nil
}

// refresh notes that the server has another version now, so that the next look
// finds it, and returns ErrStale.
func (s *Store) refresh(ctx context.Context, f found, now record) error {
	unlock, err := s.exclusive(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if again, _, ok, err := s.look(f.path); err == nil && ok && again.stamp == f.stamp {
		if err := s.writeRecord(f.path, now); err != nil {
			return errors.Join(backends.ErrStale, err)
		}
	}
	return backends.ErrStale
}

// exactBody gives so many bytes and no more, and tells when there are fewer.
type exactBody struct {
	rc   io.ReadCloser
	left int64
}

func (b *exactBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.rc.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err == io.EOF && b.left > 0 {
		err = io.ErrUnexpectedEOF
	} else if b.left == 0 {
		err = nil // whatever comes behind is not ours
	}
	return n, err
}

func (b *exactBody) Close() error { return b.rc.Close() }
