package gdrivetest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// readable finds a file whose revisions the account may see: writers only.
func (d *Drive) readable(id string) (*file, *apiError) {
	f, err := d.find(id)
	if err == nil && f.readOnly {
		err = &apiError{code: 403, reason: "insufficientFilePermissions", message: "The user does not have sufficient permissions for file " + id + "."}
	}
	if err == nil && f.head() == nil {
		err = forbidden("revisionsNotSupported", "The file does not support revisions.")
	}
	return f, err
}

// revision finds a revision by the request's path.
func (d *Drive) revision(r *http.Request) (*file, *revision, *apiError) {
	f, err := d.readable(r.PathValue("id"))
	if err != nil {
		return nil, nil, err
	}
	id := r.PathValue("rev")
	if id == "head" {
		return f, f.head(), nil
	}
	for _, rev := range f.revs {
		if rev.id == id {
			return f, rev, nil
		}
	}
	e := notFound("Revision", id)
	e.location = "revisionId"
	return nil, nil, e
}

func (d *Drive) revisionsList(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	p := r.URL.Query()
	sel, err := revisionListResource.selection(p.Get("fields"))
	if err != nil {
		return nil, err
	}
	n, ok := atoi(p.Get("pageSize"), 200, 1, 1000)
	if !ok {
		return nil, invalidParameter("pageSize")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.readable(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	// The token is the last revision that was told.
	revs := f.revs
	if token := p.Get("pageToken"); token != "" {
		i := slices.IndexFunc(revs, func(r *revision) bool { return r.id == token })
		if i < 0 {
			return nil, invalidParameter("pageToken")
		}
		revs = revs[i+1:]
	}
	out := map[string]any{"kind": "drive#revisionList"}
	list := []any{}
	for _, rev := range revs[:min(n, len(revs))] {
		list = append(list, rev.json())
	}
	if len(revs) > n {
		out["nextPageToken"] = revs[n-1].id
	}
	out["revisions"] = list
	return sel.apply(out), nil
}

func (d *Drive) revisionsGet(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	sel, err := revisionResource.selection(r.URL.Query().Get("fields"))
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	f, rev, err := d.revision(r)
	if err != nil {
		d.mu.Unlock()
		return nil, err
	}
	out, keep, abusive := rev.json(), rev.keep, f.abusive
	d.mu.Unlock()
	if r.URL.Query().Get("alt") != "media" {
		return sel.apply(out), nil
	}
	if d.opts.StrictRevisions && !keep {
		return nil, forbidden("revisionNotDownloadable", "Only revisions marked \"Keep Forever\" can be downloaded.")
	}
	if abusive && r.URL.Query().Get("acknowledgeAbuse") != "true" {
		return nil, forbidden("cannotDownloadAbusiveFile", "This file has been identified as malware or spam and cannot be downloaded.")
	}
	return nil, serveContent(w, r, rev)
}

func (d *Drive) revisionsUpdate(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	sel, err := revisionResource.selection(r.URL.Query().Get("fields"))
	if err != nil {
		return nil, err
	}
	var in struct{ KeepForever *bool }
	body, rerr := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if rerr != nil || json.Unmarshal(body, &in) != nil {
		return nil, &apiError{code: 400, reason: "parseError", message: "Parse Error"}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f, rev, err := d.revision(r)
	if err != nil {
		return nil, err
	}
	if in.KeepForever != nil {
		kept := 0
		for _, r := range f.revs {
			if r.keep {
				kept++
			}
		}
		if *in.KeepForever && !rev.keep && kept >= maxKeptRevisions {
			return nil, forbidden("tooManyPinnedRevisions", fmt.Sprintf("Only %d revisions can be kept forever.", maxKeptRevisions))
		}
		rev.keep = *in.KeepForever
		d.touch(f, false)
	}
	return sel.apply(rev.json()), nil
}

func (d *Drive) revisionsDelete(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, rev, err := d.revision(r)
	if err != nil {
		return nil, err
	}
	if len(f.revs) == 1 {
		return nil, badRequest("cannotDeleteOnlyRevision", "revisionId", "The last remaining revision cannot be deleted.")
	}
	d.dropRevision(f, slices.Index(f.revs, rev))
	d.touch(f, false)
	w.WriteHeader(http.StatusNoContent)
	return nil, nil
}

// serveContent sends a revision's bytes or the one range of them that is asked
// for (RFC 9110, section 14).
func serveContent(w http.ResponseWriter, r *http.Request, rev *revision) *apiError {
	h := w.Header()
	h.Set("Content-Type", rev.mime)
	h.Set("Accept-Ranges", "bytes")
	start, end, ranged, ok := parseRange(r.Header.Get("Range"), rev.size)
	if !ok {
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", rev.size))
		return &apiError{code: 416, reason: "requestedRangeNotSatisfiable", message: "Request range not satisfiable", locationType: "header", location: "Range"}
	}
	h.Set("Content-Length", strconv.FormatInt(end-start, 10))
	code := http.StatusOK
	if ranged {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, end-1, rev.size))
		code = http.StatusPartialContent
	}
	w.WriteHeader(code)
	io.Copy(struct{ io.Writer }{w}, io.NewSectionReader(rev.r, start, end-start))
	return nil
}

// parseRange reads a Range header; a malformed one counts as none.
func parseRange(s string, size int64) (start, end int64, ranged, ok bool) {
	spec, found := strings.CutPrefix(s, "bytes=")
	first, last, dash := strings.Cut(spec, "-")
	if !found || !dash || strings.Contains(spec, ",") {
		return 0, size, false, true
	}
	if first == "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n < 0 {
			return 0, size, false, true
		}
		return max(0, size-n), size, true, n > 0 && size > 0
	}
	start, err := strconv.ParseInt(first, 10, 64)
	if err != nil || start < 0 {
		return 0, size, false, true
	}
	end = size
	if last != "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n < start {
			return 0, size, false, true
		}
		if n < size-1 {
			end = n + 1
		}
	}
	return start, end, true, start < size
}
