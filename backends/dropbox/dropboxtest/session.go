package dropboxtest

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"io"
	"net/http"
	"os"
	"sync"
)

// block is what concurrent sessions count in: offsets and sizes of their parts
// are multiples of it.
const block = 4 << 20

// session is an upload session. Its file takes parts at their offsets.
type session struct {
	mu         sync.Mutex
	concurrent bool
	closed     bool
	data       *blob
	file       *os.File
	size       int64          // contiguous bytes of a sequential session
	parts      map[int64]bool // blocks of a concurrent one that have arrived
	end        int64          // of a concurrent session that was closed
	committed  bool
}

func newSessionID() string { return "pid_upload_session:" + rand.Text() }

type sessionCursor struct {
	ID     string `json:"session_id"`
	Offset int64  `json:"offset"`
}

// body reads one request's content and checks its hash.
func (s *Server) body(r *http.Request, route, hash string) ([]byte, *apiError) {
	h := newHash()
	var buf bytes.Buffer
	if r.ContentLength > 0 && r.ContentLength <= maxRequest {
		buf.Grow(int(r.ContentLength))
	}
	_, err := io.Copy(&buf, io.TeeReader(io.LimitReader(r.Body, maxRequest+1), h))
	switch {
	case err != nil:
		return nil, badRequest(route, "the request body ended early")
	case buf.Len() > maxRequest:
		return nil, refuse("payload_too_large")
	case hash != "" && hash != hex.EncodeToString(h.Sum(nil)):
		return nil, refuse("content_hash_mismatch")
	}
	return buf.Bytes(), nil
}

func (s *Server) sessionStart(r *http.Request, a struct {
	Close       bool   `json:"close"`
	Type        tagged `json:"session_type"`
	ContentHash string `json:"content_hash"`
}) (any, *apiError) {
	const route = "files/upload_session/start"
	p, err := s.body(r, route, a.ContentHash)
	if err != nil {
		return nil, err
	}
	u := &session{concurrent: a.Type.Tag == "concurrent", parts: make(map[int64]bool)}
	switch {
	case u.concurrent && len(p) > 0:
		return nil, refuse("concurrent_session_data_not_allowed")
	case u.concurrent && a.Close:
		return nil, refuse("concurrent_session_close_not_allowed")
	}
	f, ferr := s.tempFile()
	if ferr != nil {
		return nil, &apiError{status: http.StatusInternalServerError, text: ferr.Error()}
	}
	u.file, u.data = f, &blob{ReaderAt: f, close: func() { f.Close() }}
	if err := u.append(0, p, a.Close); err != nil {
		f.Close()
		return nil, err
	}
	id := newSessionID()
	s.mu.Lock()
	s.sessions[id] = u
	s.mu.Unlock()
	return map[string]any{"session_id": id}, nil
}

func (s *Server) session(id string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[id]
}

func (s *Server) sessionAppend(r *http.Request, a struct {
	Cursor      sessionCursor `json:"cursor"`
	Close       bool          `json:"close"`
	ContentHash string        `json:"content_hash"`
}) (any, *apiError) {
	p, err := s.body(r, "files/upload_session/append_v2", a.ContentHash)
	if err != nil {
		return nil, err
	}
	u := s.session(a.Cursor.ID)
	if u == nil {
		return nil, refuse("not_found")
	}
	return nil, u.append(a.Cursor.Offset, p, a.Close)
}

func (s *Server) sessionAppendBatch(r *http.Request, a struct {
	Entries []struct {
		Cursor sessionCursor `json:"cursor"`
		Length int64         `json:"length"`
		Close  bool          `json:"close"`
	} `json:"entries"`
	ContentHash string `json:"content_hash"`
}) (any, *apiError) {
	p, err := s.body(r, "files/upload_session/append_batch", a.ContentHash)
	if err != nil {
		return nil, err
	}
	var total int64
	for _, e := range a.Entries {
		total += e.Length
	}
	if total != int64(len(p)) {
		return nil, refuse("length_mismatch")
	}
	entries := []any{}
	for _, e := range a.Entries {
		part := p[:e.Length]
		p = p[e.Length:]
		err := refuse("not_found")
		if u := s.session(e.Cursor.ID); u != nil {
			err = u.append(e.Cursor.Offset, part, e.Close)
		}
		if err != nil {
			entries = append(entries, map[string]any{".tag": "failure", "failure": err.union})
			continue
		}
		entries = append(entries, map[string]any{".tag": "success"})
	}
	return map[string]any{"entries": entries}, nil
}

// append takes one part. The errors are UploadSessionAppendError's.
func (u *session) append(off int64, p []byte, last bool) *apiError {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.closed && !u.concurrent, u.committed:
		return refuse("closed")
	case u.concurrent && off%block != 0:
		return refuse("concurrent_session_invalid_offset")
	case u.concurrent && len(p)%block != 0 && !last:
		return refuse("concurrent_session_invalid_data_size")
	case u.concurrent && u.closed && last && u.end != off+int64(len(p)),
		u.concurrent && u.closed && off+int64(len(p)) > u.end:
		return refuse("closed")
	case !u.concurrent && off != u.size:
		return incorrectOffset(u.size)
	}
	if _, err := u.file.WriteAt(p, off); err != nil {
		return &apiError{status: http.StatusInternalServerError, text: err.Error()}
	}
	if u.concurrent {
		for b := off; b < off+int64(len(p)); b += block {
			u.parts[b] = true
		}
		if last {
			u.end = off + int64(len(p))
		}
	} else {
		u.size += int64(len(p))
	}
	u.closed = u.closed || last
	return nil
}

func incorrectOffset(correct int64) *apiError {
	return &apiError{status: http.StatusConflict, path: []string{"incorrect_offset"},
		union: map[string]any{".tag": "incorrect_offset", "correct_offset": correct}}
}

type finishArg struct {
	Cursor      sessionCursor `json:"cursor"`
	Commit      commitArg     `json:"commit"`
	ContentHash string        `json:"content_hash"`
}

func (s *Server) sessionFinish(r *http.Request, a finishArg) (any, *apiError) {
	const route = "files/upload_session/finish"
	p, err := s.body(r, route, a.ContentHash)
	if err != nil {
		return nil, err
	}
	return s.finish(route, a, p, false)
}

// finish commits a session, with p as its last bytes. The errors are
// UploadSessionFinishError's.
func (s *Server) finish(route string, a finishArg, p []byte, mustBeClosed bool) (any, *apiError) {
	u := s.session(a.Cursor.ID)
	if u == nil {
		return nil, refuse("lookup_failed", "not_found")
	}
	if u.concurrent && len(p) > 0 {
		return nil, refuse("concurrent_session_data_not_allowed")
	}
	if len(p) > 0 {
		if err := u.append(a.Cursor.Offset, p, false); err != nil {
			return nil, err.under("lookup_failed")
		}
		a.Cursor.Offset += int64(len(p))
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.committed:
		return nil, refuse("lookup_failed", "not_found")
	case u.concurrent && !u.closed:
		return nil, refuse("concurrent_session_not_closed")
	case u.concurrent && int64(len(u.parts)) != (u.end+block-1)/block:
		return nil, refuse("concurrent_session_missing_data")
	case mustBeClosed && !u.closed:
		return nil, refuse("lookup_failed", "not_closed")
	}
	size := u.size
	if u.concurrent {
		size = u.end
	}
	if a.Cursor.Offset != size {
		return nil, incorrectOffset(size).under("lookup_failed")
	}
	hash, herr := hashOf(u.file, size)
	if herr != nil {
		return nil, &apiError{status: http.StatusInternalServerError, text: herr.Error()}
	}
	u.data.size, u.data.hash = size, hash
	m, err := s.commit(route, a.Commit, u.data)
	if err != nil {
		return nil, err // the session stays and can be finished elsewhere
	}
	u.committed = true
	s.mu.Lock()
	delete(s.sessions, a.Cursor.ID)
	s.mu.Unlock()
	return m, nil
}

// hashOf is the content hash of a file's first size bytes.
func hashOf(f io.ReaderAt, size int64) (string, error) {
	h := newHash()
	_, err := io.CopyBuffer(onlyWriter{h}, onlyReader{io.NewSectionReader(f, 0, size)}, make([]byte, 1<<20))
	return hex.EncodeToString(h.Sum(nil)), err
}

// sessionFinishBatch commits many sessions at once; each of them must be
// closed.
func (s *Server) sessionFinishBatch(r *http.Request, a struct {
	Entries []finishArg `json:"entries"`
}) (any, *apiError) {
	const route = "files/upload_session/finish_batch_v2"
	if len(a.Entries) > 1000 {
		return nil, badRequest(route, "request body: entries: more than 1000")
	}
	entries := []any{}
	for _, e := range a.Entries {
		m, err := s.finish(route, e, nil, true)
		switch {
		case err != nil && err.union == nil:
			return nil, err
		case err != nil:
			entries = append(entries, map[string]any{".tag": "failure", "failure": err.union})
		default:
			file := m.(map[string]any)
			file[".tag"] = "success" // a struct in a union: members beside the tag
			entries = append(entries, file)
		}
	}
	return map[string]any{"entries": entries}, nil
}

// ForgetSessions makes all open upload sessions unknown, as Dropbox does after
// seven days.
func (s *Server) ForgetSessions() { s.dropSessions() }

func (s *Server) dropSessions() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, u := range s.sessions {
		u.mu.Lock()
		if !u.committed {
			u.data.close()
			u.committed = true
		}
		u.mu.Unlock()
		delete(s.sessions, id)
	}
}

// OpenSessions is the number of upload sessions that were begun and not
// finished.
func (s *Server) OpenSessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}
