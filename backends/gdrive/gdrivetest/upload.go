package gdrivetest

import (
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// chunkUnit is what the size of every part but the last is a multiple of
// (guide "manage-uploads").
const chunkUnit = 256 << 10

// SessionLife is how long a resumable session lives.
const SessionLife = 7 * 24 * time.Hour

// session is a resumable upload.
type session struct {
	id      string
	target  string // the file to update, "" for a new one
	meta    metadata
	mime    string
	query   url.Values // of the request that began it
	declare int64      // X-Upload-Content-Length, -1 for none
	born    time.Time

	mu     sync.Mutex // held for a whole request; before Drive.mu
	spool  *spool
	result *file // once complete
	ended  int   // the status that tells of the end, once cancelled or failed
}

// uploadStart is files.create and files.update under /upload.
func (d *Drive) uploadStart(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	q := r.URL.Query()
	sel, err := fileResource.selection(q.Get("fields"))
	if err != nil {
		return nil, err
	}
	target := r.PathValue("id")
	switch q.Get("uploadType") {
	case "media":
		return d.uploadWhole(w, r, sel, target, metadata{}, r.Header.Get("Content-Type"), r.Body)
	case "multipart":
		kind, params, merr := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if merr != nil || kind != "multipart/related" {
			return nil, &apiError{code: 400, reason: "badContent", message: "Bad content: multipart/related is wanted"}
		}
		parts := multipart.NewReader(r.Body, params["boundary"])
		first, perr := parts.NextPart()
		if perr != nil {
			return nil, &apiError{code: 400, reason: "badContent", message: "Bad content"}
		}
		m, err := readMetadata(first)
		if err != nil {
			return nil, err
		}
		second, perr := parts.NextPart()
		if perr != nil {
			return nil, &apiError{code: 400, reason: "badContent", message: "Bad content: the media part is missing"}
		}
		return d.uploadWhole(w, r, sel, target, m, second.Header.Get("Content-Type"), second)
	case "resumable":
		return d.uploadResumable(w, r, target)
	}
	return nil, badRequest("invalidParameter", "uploadType", "Invalid upload type")
}

func (d *Drive) uploadWhole(w http.ResponseWriter, r *http.Request, sel selector, target string, m metadata, mime string, body io.Reader) (any, *apiError) {
	sp := newSpool(d.dir)
	if _, err := io.Copy(sp, body); err != nil {
		sp.discard()
		return nil, &apiError{code: 400, reason: "badContent", message: "The body ended early"}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.finish(target, m, mime, r, sp)
	if err != nil {
		sp.discard()
		return nil, err
	}
	return d.answer(sel, f), nil
}

// finish puts uploaded bytes in place. The caller holds mu.
func (d *Drive) finish(target string, m metadata, mime string, r *http.Request, sp *spool) (*file, *apiError) {
	if m.MimeType == nil && mime != "" {
		m.MimeType = &mime
	}
	if target != "" {
		f, err := d.find(target)
		if err == nil {
			err = d.update(f, m, r, sp.content())
		}
		return f, err
	}
	if err := d.check(m, nil); err != nil {
		return nil, err
	}
	f := d.create(m)
	if err := d.addRevision(f, sp.content(), f.mime, r.URL.Query().Get("keepRevisionForever") == "true"); err != nil {
		return nil, err
	}
	d.insert(f)
	d.touch(f, false)
	return f, nil
}

// uploadResumable opens a session.
func (d *Drive) uploadResumable(w http.ResponseWriter, r *http.Request, target string) (any, *apiError) {
	m, err := readMetadata(r.Body)
	if err != nil {
		return nil, err
	}
	s := &session{
		id: "ABPtcPp" + newID(90), target: target, meta: m, mime: r.Header.Get("X-Upload-Content-Type"),
		query: r.URL.Query(), declare: -1, born: time.Now(), spool: newSpool(d.dir),
	}
	if v := r.Header.Get("X-Upload-Content-Length"); v != "" {
		n, perr := strconv.ParseInt(v, 10, 64)
		if perr != nil || n < 0 {
			return nil, &apiError{code: 400, reason: "badRequest", message: "Invalid X-Upload-Content-Length"}
		}
		s.declare = n
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var f *file
	if target != "" {
		if f, err = d.find(target); err != nil {
			return nil, err
		}
	}
	if err := d.check(m, f); err != nil {
		return nil, err
	}
	if err := d.room(max(s.declare, 0)); err != nil {
		return nil, err
	}
	d.sessions[s.id] = s
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	u := url.URL{Scheme: scheme, Host: r.Host, Path: r.URL.Path}
	q := r.URL.Query()
	q.Set("upload_id", s.id)
	u.RawQuery = q.Encode()
	w.Header().Set("Location", u.String())
	w.Header().Set("X-GUploader-UploadID", s.id)
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusOK)
	return nil, nil
}

func (d *Drive) session(r *http.Request) (*session, *apiError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.sessions[r.URL.Query().Get("upload_id")]
	if s == nil || time.Since(s.born) > SessionLife {
		return nil, &apiError{code: 404, reason: "notFound", message: "Upload session not found"}
	}
	return s, nil
}

// uploadPut takes a part of a session's bytes, or tells how many there are.
func (d *Drive) uploadPut(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	s, err := d.session(r)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sel, err := fileResource.selection(s.query.Get("fields"))
	if err != nil {
		return nil, err
	}
	if s.ended != 0 {
		return nil, &apiError{code: s.ended, reason: "notFound", message: "The upload session has ended"}
	}
	if s.result != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.answer(sel, s.result), nil
	}
	first, end, total, query, ok := parseContentRange(r.Header.Get("Content-Range"), r.ContentLength)
	if !ok || s.declare >= 0 && total >= 0 && total != s.declare {
		return nil, &apiError{code: 400, reason: "badRequest", message: "Invalid Content-Range " + r.Header.Get("Content-Range")}
	}
	if total < 0 {
		total = s.declare
	}
	if !query {
		if first > s.spool.n {
			return nil, &apiError{code: 400, reason: "badRequest", message: fmt.Sprintf("The part begins at %d, but %d bytes have arrived", first, s.spool.n)}
		}
		last := total >= 0 && end == total || end < 0
		if !last && (end-first)%chunkUnit != 0 {
			return nil, &apiError{code: 400, reason: "badRequest", message: "Parts are multiples of 262144 bytes, except for the last"}
		}
		if err := d.receive(s, r.Body, first, end, last); err != nil {
			return nil, err
		}
		if end < 0 {
			total = s.spool.n
		}
	}
	if total < 0 || s.spool.n < total {
		s.incomplete(w, r)
		return nil, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	begun := r.Clone(r.Context())
	begun.URL.RawQuery = s.query.Encode()
	f, err := d.finish(s.target, s.meta, s.mime, begun, s.spool)
	if err != nil {
		s.ended = http.StatusNotFound
		s.spool.discard()
		return nil, err
	}
	s.result = f
	return d.answer(sel, f), nil
}

// receive reads the bytes [first, end) from body, or all of it when end < 0.
// What has arrived is kept in whole units when the body ends early.
func (d *Drive) receive(s *session, body io.Reader, first, end int64, last bool) *apiError {
	if skip := s.spool.n - first; skip > 0 {
		if _, err := io.CopyN(io.Discard, body, skip); err != nil {
			return nil // nothing new in it
		}
	}
	buf := make([]byte, chunkUnit)
	for end < 0 || s.spool.n < end {
		want := buf
		if end >= 0 {
			want = buf[:min(int64(len(buf)), end-s.spool.n)]
		}
		n, err := io.ReadFull(body, want)
		if err == io.EOF && end < 0 {
			return nil
		}
		short := err != nil && !(err == io.ErrUnexpectedEOF && end < 0)
		if short {
			return &apiError{code: 400, reason: "badContent", message: "The body ended early"}
		}
		d.mu.Lock()
		qerr := d.room(s.spool.n + int64(n))
		d.mu.Unlock()
		if qerr != nil {
			return qerr
		}
		if _, werr := s.spool.Write(want[:n]); werr != nil {
			return &apiError{code: 500, reason: "internalError", message: werr.Error()}
		}
		if err != nil {
			return nil
		}
	}
	return nil
}

// incomplete answers 308, or what the client library asks for instead of it.
func (s *session) incomplete(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	if s.spool.n > 0 {
		h.Set("Range", fmt.Sprintf("bytes=0-%d", s.spool.n-1))
	}
	h.Set("X-GUploader-UploadID", s.id)
	h.Set("Content-Length", "0")
	if r.Header.Get("X-GUploader-No-308") != "" {
		h.Set("X-HTTP-Status-Code-Override", "308")
		w.WriteHeader(http.StatusOK)
		return
	}
	w.WriteHeader(http.StatusPermanentRedirect)
}

// uploadCancel ends a session; Google answers 499.
func (d *Drive) uploadCancel(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	s, err := d.session(r)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.result == nil {
		s.spool.discard()
		s.ended = 499
	}
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(499)
	return nil, nil
}

// parseContentRange reads "bytes A-B/TOTAL", "bytes A-B/*", "bytes */TOTAL"
// (a question) or nothing, which means all bytes at once: end is then -1.
func parseContentRange(s string, length int64) (first, end, total int64, query, ok bool) {
	if s == "" {
		if length >= 0 {
			return 0, length, length, false, true
		}
		return 0, -1, -1, false, true
	}
	spec, found := strings.CutPrefix(s, "bytes ")
	span, size, slash := strings.Cut(spec, "/")
	if !found || !slash {
		return 0, 0, 0, false, false
	}
	total = -1
	if size != "*" {
		n, err := strconv.ParseInt(size, 10, 64)
		if err != nil || n < 0 {
			return 0, 0, 0, false, false
		}
		total = n
	}
	if span == "*" {
		return 0, 0, total, true, true
	}
	a, b, dash := strings.Cut(span, "-")
	first, err1 := strconv.ParseInt(a, 10, 64)
	last, err2 := strconv.ParseInt(b, 10, 64)
	if !dash || err1 != nil || err2 != nil || first < 0 || last < first || total >= 0 && last >= total {
		return 0, 0, 0, false, false
	}
	if length >= 0 && length != last-first+1 {
		return 0, 0, 0, false, false
	}
	return first, last + 1, total, false, true
}
