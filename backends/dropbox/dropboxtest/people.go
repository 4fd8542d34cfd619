package dropboxtest

import (
	"crypto/rand"
	"net/http"
	"net/url"
	"strings"
)

func (s *Server) currentAccount(r *http.Request, _ struct{}) (any, *apiError) {
	given, surname, _ := strings.Cut(s.opts.DisplayName, " ")
	return map[string]any{
		"account_id": accountID,
		"name": map[string]any{
			"given_name": given, "surname": surname, "familiar_name": given,
			"display_name": s.opts.DisplayName, "abbreviated_name": given[:1],
		},
		"email": "vanessa@example.org", "email_verified": true, "disabled": false,
		"locale": "en", "referral_link": "https://db.tt/example", "is_paired": false,
		"account_type": map[string]any{".tag": "basic"},
		"root_info":    map[string]any{".tag": "user", "root_namespace_id": namespace, "home_namespace_id": namespace},
	}, nil
}

func (s *Server) spaceUsage(r *http.Request, _ struct{}) (any, *apiError) {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	return map[string]any{
		"used":       s.acct.used,
		"allocation": map[string]any{".tag": "individual", "allocated": s.acct.space},
	}, nil
}

// linkMetadata is a file's or folder's SharedLinkMetadata. acct.mu held.
func (s *Server) linkMetadata(n *node) map[string]any {
	m := map[string]any{
		".tag": "folder", "url": s.acct.links[n.id], "id": n.id, "name": n.name, "path_lower": n.lower(),
		"link_permissions": map[string]any{
			"can_revoke":          true,
			"resolved_visibility": map[string]any{".tag": "public"},
			"link_access_level":   map[string]any{".tag": "viewer"},
			"allow_download":      true,
			"visibility_policies": []any{},
		},
	}
	if !n.folder() {
		m[".tag"] = "file"
		m["rev"], m["size"] = n.rev.rev, n.rev.blob.size
		m["client_modified"] = n.rev.client.Format(timeFormat)
		m["server_modified"] = n.rev.server.Format(timeFormat)
	}
	return m
}

func (s *Server) createLink(r *http.Request, a struct {
	Path     string         `json:"path"`
	Settings map[string]any `json:"settings"`
}) (any, *apiError) {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	n, err := s.acct.resolve(a.Path)
	if err != nil {
		return nil, err.under("path")
	}
	if n == s.acct.root {
		return nil, refuse("path", "not_found")
	}
	if s.acct.links[n.id] != "" {
		// Custom settings keep the existing link's metadata from being told.
		var known any
		if len(a.Settings) == 0 {
			known = map[string]any{".tag": "metadata", "metadata": s.linkMetadata(n)}
		}
		u := map[string]any{".tag": "shared_link_already_exists"}
		if known != nil {
			u["shared_link_already_exists"] = known
		}
		return nil, &apiError{status: http.StatusConflict, path: []string{"shared_link_already_exists"}, union: u}
	}
	s.acct.links[n.id] = "https://www.dropbox.com/s/" + strings.ToLower(rand.Text()[:15]) + "/" + url.QueryEscape(n.name) + "?dl=0"
	return s.linkMetadata(n), nil
}

func (s *Server) listLinks(r *http.Request, a struct {
	Path       string `json:"path"`
	DirectOnly bool   `json:"direct_only"`
}) (any, *apiError) {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	links := []any{}
	if a.Path == "" {
		for id := range s.acct.links {
			links = append(links, s.linkMetadata(s.acct.byID[id]))
		}
		return map[string]any{"links": links, "has_more": false}, nil
	}
	n, err := s.acct.resolve(a.Path)
	if err != nil {
		return nil, err.under("path")
	}
	for ; n != nil && n.parent != nil; n = n.parent {
		if s.acct.links[n.id] != "" {
			links = append(links, s.linkMetadata(n))
		}
		if a.DirectOnly {
			break
		}
	}
	return map[string]any{"links": links, "has_more": false}, nil
}

// openLink is what a browser gets from a shared link: with dl=1 the file,
// otherwise a page about it.
func (s *Server) openLink(w http.ResponseWriter, r *http.Request) {
	s.acct.mu.Lock()
	var v *revision
	for id, link := range s.acct.links {
		u, err := url.Parse(link)
		if n := s.acct.byID[id]; err == nil && u.Path == r.URL.Path && n.rev != nil {
			v = n.rev
		}
	}
	s.acct.mu.Unlock()
	switch {
	case v == nil:
		http.NotFound(w, r)
	case r.URL.Query().Get("dl") == "1":
		http.ServeContent(w, r, v.name, v.server, newSection(v.blob))
	default:
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write([]byte("<html><title>Dropbox</title></html>"))
	}
}
