package dropboxtest

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"path"
	"slices"
	"strings"
	"unicode"
)

type searchArg struct {
	Query   string `json:"query"`
	Options struct {
		Path         string   `json:"path"`
		MaxResults   int      `json:"max_results"`
		FilenameOnly bool     `json:"filename_only"`
		Extensions   []string `json:"file_extensions"`
	} `json:"options"`
}

// searchCursor is a search under way: the query, and how many of its matches
// were told.
type searchCursor struct {
	Arg  searchArg
	Told int
}

func (s *Server) search(r *http.Request, a searchArg) (any, *apiError) {
	const route = "files/search_v2"
	if a.Query == "" || len(a.Query) > 1000 {
		return nil, badRequest(route, "request body: query: expected 1 to 1000 characters")
	}
	a.Options.MaxResults = or(a.Options.MaxResults, 100)
	if a.Options.MaxResults < 1 || a.Options.MaxResults > 1000 {
		return nil, badRequest(route, "request body: options: max_results: %d is not within 1 and 1000", a.Options.MaxResults)
	}
	return s.matches(searchCursor{Arg: a})
}

func (s *Server) searchContinue(r *http.Request, a cursorArg) (any, *apiError) {
	b, err := base64.RawURLEncoding.DecodeString(a.Cursor)
	var c searchCursor
	if err != nil || json.Unmarshal(b, &c) != nil {
		return nil, badRequest("files/search/continue_v2", "request body: cursor: Invalid cursor")
	}
	return s.matches(c)
}

// matches answers with the next page of a search: names in which each word of
// the query begins some word. Dropbox says no more of how it matches than that
// parts of words other than their beginnings do not.
func (s *Server) matches(c searchCursor) (any, *apiError) {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	root, err := s.acct.resolve(c.Arg.Options.Path)
	if err != nil {
		return nil, err.under("path")
	}
	prefix := root.lower() + "/"
	asked := words(c.Arg.Query)
	found, seen, more := []any{}, 0, false
	for _, p := range s.acct.paths() {
		n := s.acct.find(p)
		if n == nil || !strings.HasPrefix(p, prefix) || !matchesAll(words(n.name), asked) {
			continue
		}
		if ext := strings.TrimPrefix(path.Ext(strings.ToLower(n.name)), "."); len(c.Arg.Options.Extensions) > 0 &&
			(n.folder() || !slices.Contains(c.Arg.Options.Extensions, ext)) {
			continue
		}
		if seen++; seen <= c.Told {
			continue
		}
		if len(found) == c.Arg.Options.MaxResults {
			more = true
			break
		}
		found = append(found, map[string]any{
			"match_type": map[string]any{".tag": "filename"},
			"metadata":   map[string]any{".tag": "metadata", "metadata": s.metadata(n)},
		})
	}
	res := map[string]any{"matches": found, "has_more": more}
	if more {
		c.Told += len(found)
		b, err := json.Marshal(c)
		if err != nil {
			panic(err) // strings and numbers
		}
		res["cursor"] = base64.RawURLEncoding.EncodeToString(b)
	}
	return res, nil
}

func words(s string) []string {
	return strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
}

func matchesAll(have, asked []string) bool {
	for _, w := range asked {
		if !slices.ContainsFunc(have, func(h string) bool { return strings.HasPrefix(h, w) }) {
			return false
		}
	}
	return len(asked) > 0
}
