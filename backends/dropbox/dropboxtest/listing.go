package dropboxtest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"
)

// cursor is a place in a folder's listing and then in its changes. It is
// immutable and holds all that a later call needs, as Dropbox's do.
type cursor struct {
	Root      string // id of the folder, "" for the root
	Recursive bool
	Deleted   bool
	Limit     int
	// Seq is the number of the last event that the holder knows of: of the
	// listing's beginning, then of the last one told.
	Seq int
	// Listing says that the listing is still under way, After what its last
	// entry's lower path was.
	Listing bool
	After   string
	Media   bool
}

func (c cursor) String() string {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings, numbers and booleans
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func parseCursor(s string) (cursor, bool) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	var c cursor
	return c, err == nil && json.Unmarshal(b, &c) == nil
}

type listArg struct {
	Path             string `json:"path"`
	Recursive        bool   `json:"recursive"`
	IncludeDeleted   bool   `json:"include_deleted"`
	IncludeMediaInfo bool   `json:"include_media_info"`
	Limit            *int   `json:"limit"`
}

// begin makes the cursor of a new listing.
func (s *Server) begin(route string, a listArg) (cursor, *apiError) {
	if a.Path == "/" {
		return cursor{}, badRequest(route, `request body: path: Specify the root folder as an empty string rather than as "/".`)
	}
	limit := s.opts.PageSize
	// The SDK sends 0 for a limit that was not set; the documented range is 1
	// to 2000.
	if a.Limit != nil && *a.Limit != 0 {
		limit = *a.Limit
		if limit < 1 || limit > 2000 {
			return cursor{}, badRequest(route, "request body: limit: %d is not within 1 and 2000", limit)
		}
		if s.opts.PageMax > 0 {
			limit = min(limit, s.opts.PageMax)
		}
	}
	n, err := s.acct.resolve(a.Path)
	if err != nil {
		return cursor{}, err.under("path")
	}
	if !n.folder() {
		return cursor{}, refuse("path", "not_folder")
	}
	return cursor{Root: n.id, Recursive: a.Recursive, Deleted: a.IncludeDeleted, Limit: limit,
		Seq: len(s.acct.journal), Listing: true, Media: a.IncludeMediaInfo}, nil
}

func (s *Server) listFolder(r *http.Request, a listArg) (any, *apiError) {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	c, err := s.begin("files/list_folder", a)
	if err != nil {
		return nil, err
	}
	return s.page(c)
}

func (s *Server) latestCursor(r *http.Request, a listArg) (any, *apiError) {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	c, err := s.begin("files/list_folder/get_latest_cursor", a)
	if err != nil {
		return nil, err
	}
	c.Listing = false
	return map[string]any{"cursor": c.String()}, nil
}

type cursorArg struct {
	Cursor  string `json:"cursor"`
	Timeout int    `json:"timeout"`
}

func (s *Server) listContinue(r *http.Request, a cursorArg) (any, *apiError) {
	c, ok := parseCursor(a.Cursor)
	if !ok {
		return nil, badRequest("files/list_folder/continue", "request body: cursor: Invalid cursor")
	}
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	return s.page(c)
}

// page answers with the next entries behind c. acct.mu held.
func (s *Server) page(c cursor) (any, *apiError) {
	a := s.acct
	if c.Seq < a.trimmed || c.Seq > len(a.journal) {
		return nil, refuse("reset")
	}
	root := a.root
	if c.Root != "" {
		if root = a.byID[c.Root]; root == nil {
			return nil, refuse("path", "not_found")
		}
	}
	var entries []any
	var more bool
	if c.Listing {
		entries, more = s.listed(root, &c)
	} else {
		entries, more = s.told(root, &c)
	}
	return map[string]any{"entries": entries, "cursor": c.String(), "has_more": more}, nil
}

// listed are the entries that stand in the folder now, behind c.After.
func (s *Server) listed(root *node, c *cursor) ([]any, bool) {
	a := s.acct
	prefix := root.lower() + "/"
	paths := a.paths()
	entries := []any{}
	if c.Recursive && c.After == "" && root.parent != nil {
		entries = append(entries, s.metadata(root)) // a recursive listing begins with the folder itself
	}
	i, found := slices.BinarySearch(paths, max(c.After, prefix))
	if found && c.After != "" {
		i++
	}
	for ; i < len(paths) && strings.HasPrefix(paths[i], prefix); i++ {
		p := paths[i]
		if !c.Recursive && strings.Contains(p[len(prefix):], "/") {
			continue
		}
		var e any
		if n := a.find(p); n != nil {
			e = s.metadata(n)
		} else if c.Deleted {
			e = s.deletedMetadata(a.deleted[p])
		} else {
			continue
		}
		if len(entries) == c.Limit {
			return entries, true
		}
		entries = append(entries, e)
		c.After = p
	}
	c.Listing, c.After = false, ""
	// What changed while the listing was read is told next.
	return entries, c.Seq < len(a.journal)
}

// paths are all lower paths that exist or existed, sorted.
func (a *account) paths() []string {
	if a.order != nil {
		return a.order
	}
	a.order = make([]string, 0, len(a.byID)+len(a.deleted))
	var walk func(n *node, path string)
	walk = func(n *node, path string) {
		for name, k := range n.kids {
			p := path + "/" + name
			a.order = append(a.order, p)
			walk(k, p)
		}
	}
	walk(a.root, "")
	for p := range a.deleted {
		a.order = append(a.order, p)
	}
	slices.Sort(a.order)
	return a.order
}

// told are the changes behind c.Seq, in order, each path once, in its present
// state; except that a folder that went away is told even where there is
// something again.
func (s *Server) told(root *node, c *cursor) ([]any, bool) {
	a := s.acct
	last := make(map[string]int)
	for i := c.Seq; i < len(a.journal); i++ {
		last[a.journal[i].lower] = i
	}
	prefix := root.lower() + "/"
	entries := []any{}
	for ; c.Seq < len(a.journal); c.Seq++ {
		e := a.journal[c.Seq]
		rest, ok := strings.CutPrefix(e.lower, prefix)
		if !ok || !c.Recursive && strings.Contains(rest, "/") {
			continue
		}
		n := a.find(e.lower)
		if !e.folderGone && last[e.lower] != c.Seq {
			continue
		}
		if len(entries) >= c.Limit {
			return entries, true
		}
		if e.folderGone || n == nil {
			entries = append(entries, s.deletedMetadata(e.display))
		}
		if n != nil && last[e.lower] == c.Seq {
			entries = append(entries, s.metadata(n))
		}
	}
	return entries, false
}

// longpoll waits for a change behind the cursor. It never answers with what
// changed.
func (s *Server) longpoll(r *http.Request, arg cursorArg) (any, *apiError) {
	const route = "files/list_folder/longpoll"
	c, ok := parseCursor(arg.Cursor)
	if !ok || c.Media {
		return nil, badRequest(route, "request body: cursor: Invalid cursor")
	}
	if arg.Timeout == 0 {
		arg.Timeout = 30
	}
	if arg.Timeout < 30 || arg.Timeout > 480 {
		return nil, badRequest(route, "request body: timeout: %d is not within 30 and 480", arg.Timeout)
	}
	wait := time.Duration(arg.Timeout) * time.Second
	if m := s.opts.LongpollMax; m > 0 {
		wait = min(wait, m)
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	for {
		changes, next, err := s.news(c)
		if err != nil {
			return nil, err
		}
		if !changes && ctx.Err() == nil {
			select {
			case <-next:
				continue
			case <-ctx.Done():
			}
		}
		res := map[string]any{"changes": changes}
		s.mu.Lock()
		if s.backoff > 0 {
			res["backoff"] = int(s.backoff / time.Second)
		}
		s.mu.Unlock()
		return res, nil
	}
}

// news reports whether there is anything behind c, and what to wait for if
// not.
func (s *Server) news(c cursor) (bool, <-chan struct{}, *apiError) {
	a := s.acct
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.Seq < a.trimmed || c.Seq > len(a.journal) {
		return false, nil, refuse("reset")
	}
	root := a.root
	if c.Root != "" {
		if root = a.byID[c.Root]; root == nil {
			return true, nil, nil // continue tells of it
		}
	}
	if c.Listing {
		return true, nil, nil
	}
	entries, _ := s.told(root, &c)
	return len(entries) > 0, a.changed, nil
}

// ResetCursors makes all cursors that were given out too old.
func (s *Server) ResetCursors() {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	a := s.acct
	a.note(event{}) // a number that no earlier cursor has
	a.trimmed = len(a.journal)
}

// SetBackoff has longpolls ask their callers to wait that long, in whole
// seconds, before the next one; 0 for not.
func (s *Server) SetBackoff(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backoff = d
}
