package dropboxtest

import (
	"net/http"
	"strings"
	"time"
)

const timeFormat = "2006-01-02T15:04:05Z"

// metadata is the Metadata union of a file or folder. acct.mu held.
func (s *Server) metadata(n *node) map[string]any {
	if n.folder() {
		return map[string]any{
			".tag": "folder", "name": n.name, "id": n.id,
			"path_lower": n.lower(), "path_display": s.shown(n.display()),
		}
	}
	m := s.fileMetadata(n.rev)
	// A folder above may have been renamed since the revision was made.
	m["path_lower"], m["path_display"] = n.lower(), s.shown(n.display())
	m[".tag"] = "file"
	return m
}

// fileMetadata is a revision's FileMetadata, where it was committed.
func (s *Server) fileMetadata(r *revision) map[string]any {
	return map[string]any{
		"name": r.name, "id": r.id, "rev": r.rev,
		"path_lower": r.lower, "path_display": s.shown(r.pathDisplay),
		"client_modified": r.client.Format(timeFormat), "server_modified": r.server.Format(timeFormat),
		"size": r.blob.size, "content_hash": r.blob.hash, "is_downloadable": true,
	}
}

func (s *Server) deletedMetadata(display string) map[string]any {
	_, name := split(display)
	return map[string]any{
		".tag": "deleted", "name": name,
		"path_lower": strings.ToLower(display), "path_display": s.shown(display),
	}
}

// shown is a path_display, with the parents' case lost where Options say so.
func (s *Server) shown(display string) string {
	if !s.opts.LossyDisplay || display == "" {
		return display
	}
	dir, name := split(display)
	return strings.ToLower(dir) + "/" + name
}

func (s *Server) getMetadata(r *http.Request, a struct {
	Path           string `json:"path"`
	IncludeDeleted bool   `json:"include_deleted"`
}) (any, *apiError) {
	if a.Path == "" || a.Path == "/" {
		return nil, badRequest("files/get_metadata", "request body: path: The root folder is unsupported.")
	}
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	if rev, ok := strings.CutPrefix(a.Path, "rev:"); ok {
		v := s.acct.revs[rev]
		if v == nil {
			return nil, refuse("path", "not_found")
		}
		m := s.fileMetadata(v)
		m[".tag"] = "file"
		return m, nil
	}
	n, err := s.acct.resolve(a.Path)
	if err != nil {
		if display, ok := s.acct.deleted[strings.ToLower(a.Path)]; ok && a.IncludeDeleted {
			return s.deletedMetadata(display), nil
		}
		return nil, err.under("path")
	}
	if n == s.acct.root {
		return nil, badRequest("files/get_metadata", "request body: path: The root folder is unsupported.")
	}
	return s.metadata(n), nil
}

func (s *Server) delete(r *http.Request, a struct {
	Path      string `json:"path"`
	ParentRev string `json:"parent_rev"`
}) (any, *apiError) {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	n, err := s.acct.resolve(a.Path)
	if err != nil {
		return nil, err.under("path_lookup")
	}
	switch {
	case n == s.acct.root:
		return nil, refuse("path_write", "no_write_permission")
	case a.ParentRev != "" && n.folder():
		return nil, refuse("path_write", "conflict", "folder")
	case a.ParentRev != "" && a.ParentRev != n.rev.rev:
		return nil, refuse("path_write", "conflict", "file")
	}
	m := s.metadata(n)
	s.acct.detach(n)
	return map[string]any{"metadata": m}, nil
}

type relocationArg struct {
	From       string `json:"from_path"`
	To         string `json:"to_path"`
	Autorename bool   `json:"autorename"`
}

// target checks both ends of a move or copy and returns the source and where
// it is to go; done says that there is nothing to do. acct.mu held.
func (s *Server) target(a relocationArg) (n *node, to string, done bool, err *apiError) {
	if n, err = s.acct.resolve(a.From); err != nil {
		return nil, "", false, err.under("from_lookup")
	}
	a.To = squeeze(a.To)
	if err := checkPath(a.To); err != nil {
		return nil, "", false, err.under("to")
	}
	from, lower := n.lower(), strings.ToLower(a.To)
	switch {
	case from == lower:
		return n, a.To, true, nil
	case strings.HasPrefix(lower, from+"/"):
		return nil, "", false, refuse("cant_move_folder_into_itself")
	}
	if there := s.acct.find(a.To); there != nil {
		if !a.Autorename {
			kind := "file"
			if there.folder() {
				kind = "folder"
			}
			return nil, "", false, refuse("to", "conflict", kind)
		}
		dir, name := split(a.To)
		a.To = dir + "/" + s.acct.freeName(dir, name, false)
	}
	return n, a.To, false, nil
}

func (s *Server) move(r *http.Request, a relocationArg) (any, *apiError) {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	n, to, same, err := s.target(a)
	if err != nil {
		return nil, err
	}
	// "We do not currently support case-only renaming": the call succeeds and
	// changes nothing.
	if !same {
		if err := s.acct.move(n, to); err != nil {
			return nil, err.under("to")
		}
	}
	return map[string]any{"metadata": s.metadata(n)}, nil
}

func (s *Server) copy(r *http.Request, a relocationArg) (any, *apiError) {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	n, to, same, err := s.target(a)
	switch {
	case err != nil:
		return nil, err
	case same:
		return nil, refuse("duplicated_or_nested_paths")
	}
	c, err := s.acct.copy(n, to)
	if err != nil {
		return nil, err.under("to")
	}
	return map[string]any{"metadata": s.metadata(c)}, nil
}

func (s *Server) createFolder(r *http.Request, a struct {
	Path       string `json:"path"`
	Autorename bool   `json:"autorename"`
}) (any, *apiError) {
	a.Path = squeeze(a.Path)
	if err := checkPath(a.Path); err != nil {
		return nil, err.under("path")
	}
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	if there := s.acct.find(a.Path); there != nil {
		switch {
		case a.Autorename:
			dir, name := split(a.Path)
			a.Path = dir + "/" + s.acct.freeName(dir, name, false)
		case there.folder():
			return nil, refuse("path", "conflict", "folder")
		default:
			return nil, refuse("path", "conflict", "file")
		}
	}
	n, err := s.acct.makeFolders(a.Path)
	if err != nil {
		return nil, err.under("path")
	}
	m := s.metadata(n)
	delete(m, ".tag")
	return map[string]any{"metadata": m}, nil
}

func (s *Server) listRevisions(r *http.Request, a struct {
	Path      string `json:"path"`
	Mode      tagged `json:"mode"`
	Limit     *int   `json:"limit"`
	BeforeRev string `json:"before_rev"`
}) (any, *apiError) {
	const route = "files/list_revisions"
	limit := 10
	if a.Limit != nil {
		limit = *a.Limit
	}
	if limit < 1 || limit > 100 {
		return nil, badRequest(route, "request body: limit: %d is not within 1 and 100", limit)
	}
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	lower, id := strings.ToLower(a.Path), a.Path
	n, err := s.acct.resolve(a.Path)
	switch {
	case err == nil && n.folder():
		return nil, refuse("path", "not_file")
	case err == nil:
		lower, id = n.lower(), n.id
	case len(s.acct.history[lower]) == 0:
		return nil, err.under("path")
	}
	var all []*revision
	if a.Mode.Tag == "id" {
		if a.BeforeRev != "" {
			return nil, refuse("before_rev_not_supported")
		}
		for _, v := range s.acct.revs {
			if v.id == id {
				all = append(all, v)
			}
		}
		sortRevisions(all)
	} else {
		all = s.acct.history[lower]
	}
	res := map[string]any{"is_deleted": n == nil, "has_more": false}
	entries := []any{}
	begun := a.BeforeRev == ""
	for i := len(all) - 1; i >= 0; i-- {
		if !begun {
			begun = all[i].rev == a.BeforeRev
			continue
		}
		if len(entries) == limit {
			res["has_more"] = true
			break
		}
		entries = append(entries, s.fileMetadata(all[i]))
	}
	if !begun {
		return nil, refuse("invalid_before_rev")
	}
	res["entries"] = entries
	return res, nil
}

func (s *Server) restore(r *http.Request, a struct {
	Path string `json:"path"`
	Rev  string `json:"rev"`
}) (any, *apiError) {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	v := s.acct.revs[a.Rev]
	if v == nil {
		return nil, refuse("invalid_revision")
	}
	n, err := s.acct.commit(a.Path, v.blob, writeMode{tag: "overwrite"}, v.client)
	if err != nil {
		return nil, err.under("path_write")
	}
	m := s.metadata(n)
	delete(m, ".tag")
	return m, nil
}

// parseTime reads a client_modified, zero when there is none.
func parseTime(s string) (time.Time, bool) {
	if s == "" {
		return time.Time{}, true
	}
	t, err := time.Parse(timeFormat, s)
	return t, err == nil
}
