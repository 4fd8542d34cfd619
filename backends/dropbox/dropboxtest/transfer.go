package dropboxtest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf16"
)

// maxRequest is the most content that one request may carry.
const maxRequest = 150 << 20

func (s *Server) download(w http.ResponseWriter, r *http.Request) *apiError {
	const route = "files/download"
	var arg struct {
		Path string `json:"path"`
		Rev  string `json:"rev"`
	}
	if err := headerArg(route, r, &arg); err != nil {
		return err
	}
	if arg.Rev != "" {
		arg.Path = "rev:" + arg.Rev
	}
	v, meta, aerr := s.lookUp(arg.Path)
	if aerr != nil {
		return aerr.under("path")
	}
	etag := `W/"` + v.rev + `"`
	h := w.Header()
	h.Set("Etag", etag)
	h.Set("Accept-Ranges", "bytes")
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	off, n, status := int64(0), v.blob.size, http.StatusOK
	if rng := r.Header.Get("Range"); rng != "" {
		var ok, good bool
		if off, n, ok, good = parseRange(rng, v.blob.size); good {
			if !ok {
				h.Set("Content-Range", fmt.Sprintf("bytes */%d", v.blob.size))
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return nil
			}
			status = http.StatusPartialContent
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, v.blob.size))
		}
	}
	h.Set("Dropbox-API-Result", headerSafe(meta))
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(n, 10))
	w.WriteHeader(status)
	io.CopyBuffer(onlyWriter{w}, onlyReader{io.NewSectionReader(v.blob, off, n)}, make([]byte, 256<<10))
	return nil
}

type onlyWriter struct{ io.Writer }

// lookUp finds the revision that a path argument names, with its metadata.
func (s *Server) lookUp(path string) (*revision, map[string]any, *apiError) {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	if rev, ok := strings.CutPrefix(path, "rev:"); ok {
		v := s.acct.revs[rev]
		if v == nil {
			return nil, nil, refuse("not_found")
		}
		return v, s.fileMetadata(v), nil
	}
	n, err := s.acct.resolve(path)
	if err != nil {
		return nil, nil, err
	}
	if n.folder() {
		return nil, nil, refuse("not_file")
	}
	m := s.metadata(n)
	delete(m, ".tag")
	return n.rev, m, nil
}

// parseRange reads a Range header with one range (RFC 9110, section 14.1). ok
// is false when nothing of it lies within size, good when the header is not
// understood and so ignored.
func parseRange(h string, size int64) (off, n int64, ok, good bool) {
	spec, found := strings.CutPrefix(h, "bytes=")
	first, last, dash := strings.Cut(spec, "-")
	if !found || !dash || strings.Contains(spec, ",") {
		return 0, size, false, false
	}
	if first == "" {
		k, err := strconv.ParseInt(last, 10, 64)
		if err != nil || k < 0 {
			return 0, size, false, false
		}
		k = min(k, size)
		return size - k, k, k > 0, true
	}
	off, err := strconv.ParseInt(first, 10, 64)
	if err != nil || off < 0 {
		return 0, size, false, false
	}
	end := size - 1
	if last != "" {
		if end, err = strconv.ParseInt(last, 10, 64); err != nil || end < off {
			return 0, size, false, false
		}
		end = min(end, size-1)
	}
	return off, end - off + 1, off < size, true
}

// headerSafe is JSON in ASCII
// (https://www.dropbox.com/developers/reference/json-encoding).
func headerSafe(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps of strings, numbers and booleans
	}
	var out strings.Builder
	for _, r := range string(b) {
		switch {
		case r < 0x7f:
			out.WriteRune(r)
		case r <= 0xffff:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, hi, lo)
		}
	}
	return out.String()
}

// commitArg is CommitInfo.
type commitArg struct {
	Path           string `json:"path"`
	Mode           tagged `json:"mode"`
	Autorename     bool   `json:"autorename"`
	ClientModified string `json:"client_modified"`
	Strict         bool   `json:"strict_conflict"`
}

func (s *Server) upload(r *http.Request, a struct {
	commitArg
	ContentHash string `json:"content_hash"`
}) (any, *apiError) {
	const route = "files/upload"
	b, aerr, err := s.receive(r.Body, maxRequest, a.ContentHash)
	if err != nil {
		return nil, badRequest(route, "the request body ended early")
	}
	if aerr != nil {
		return nil, aerr
	}
	m, aerr := s.commit(route, a.commitArg, b)
	if aerr != nil && aerr.union != nil && aerr.path[0] == "path" {
		// UploadWriteFailed is a struct inside the union, so its members stand
		// beside the tag.
		return nil, &apiError{status: aerr.status, path: aerr.path, union: map[string]any{
			".tag": "path", "reason": nest(aerr.path[1:]), "upload_session_id": newSessionID(),
		}}
	}
	return m, aerr
}

// commit puts b where a says. The errors are UploadError's, outermost tag
// "path".
func (s *Server) commit(route string, a commitArg, b *blob) (any, *apiError) {
	modified, ok := parseTime(a.ClientModified)
	if !ok {
		return nil, badRequest(route, "client_modified: time data %q does not match format '%%Y-%%m-%%dT%%H:%%M:%%SZ'", a.ClientModified)
	}
	mode := writeMode{tag: or(a.Mode.Tag, "add"), rev: a.Mode.field("update"), autorename: a.Autorename, strict: a.Strict}
	switch mode.tag {
	case "add", "overwrite", "update":
	default:
		return nil, badRequest(route, "mode: unknown tag %q", mode.tag)
	}
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	n, err := s.acct.commit(a.Path, b, mode, modified)
	if err != nil {
		return nil, err.under("path")
	}
	m := s.metadata(n)
	delete(m, ".tag")
	return m, nil
}
