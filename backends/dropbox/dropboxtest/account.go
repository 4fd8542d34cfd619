package dropboxtest

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	namespace = "1"
	accountID = "dbid:AAH4f99T0taONIb-OurWxbNQ6ywGRopQngc"
)

// account is the tree of files and folders with its history. Names are
// compared in lower case and kept as they were given. All fields are guarded
// by mu; functions that say so need it held.
type account struct {
	mu      sync.Mutex
	root    *node
	byID    map[string]*node
	revs    map[string]*revision
	history map[string][]*revision // by lower path, oldest first
	deleted map[string]string      // lower path to display path, of what is gone
	links   map[string]string      // file id to shared link
	journal []event                // event i has sequence number i+1
	trimmed int                    // cursors before this number are too old
	changed chan struct{}          // closed and replaced with each event
	order   []string               // all lower paths, sorted; nil when stale
	used    int64
	space   int64
	lastRev uint64
	blobs   []*blob       // all that have to be closed
	skew    time.Duration // of its clock, before this machine's
}

type node struct {
	id, name string
	parent   *node
	kids     map[string]*node // by lower name; nil for files
	rev      *revision        // nil for folders
}

// revision is one version of one file.
type revision struct {
	rev, id, name      string
	blob               *blob
	client, server     time.Time
	lower, pathDisplay string // where it was committed
}

// event is a change: what path it happened to, and whether something that was
// a folder went away there.
type event struct {
	lower, display string
	folderGone     bool
}

func newAccount(space int64, skew time.Duration) *account {
	a := &account{
		byID:    make(map[string]*node),
		revs:    make(map[string]*revision),
		history: make(map[string][]*revision),
		deleted: make(map[string]string),
		links:   make(map[string]string),
		changed: make(chan struct{}),
		root:    &node{kids: make(map[string]*node)},
		space:   space,
		skew:    skew,
		lastRev: 0x5e1a2b3c4,
	}
	return a
}

func (a *account) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range a.blobs {
		b.close()
	}
	a.blobs = nil
}

func (n *node) folder() bool { return n.kids != nil }

// display is the path as it was written.
func (n *node) display() string {
	if n.parent == nil {
		return ""
	}
	return n.parent.display() + "/" + n.name
}

func (n *node) lower() string { return strings.ToLower(n.display()) }

// sorted are a folder's members in the order of their lower names.
func (n *node) sorted() []*node {
	names := make([]string, 0, len(n.kids))
	for k := range n.kids {
		names = append(names, k)
	}
	slices.Sort(names)
	kids := make([]*node, len(names))
	for i, k := range names {
		kids[i] = n.kids[k]
	}
	return kids
}

// find walks to a path, "" for the root; nil when there is nothing. mu held.
func (a *account) find(path string) *node {
	n := a.root
	for name := range strings.SplitSeq(strings.ToLower(path), "/") {
		if name == "" {
			continue
		}
		if n = n.kids[name]; n == nil {
			return nil
		}
	}
	return n
}

// checkPath refuses what cannot be a path (documentation, "Path formats").
func checkPath(path string) *apiError {
	bad := refuse("malformed_path")
	if !strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/") || !utf8.ValidString(path) {
		return bad
	}
	for name := range strings.SplitSeq(path[1:], "/") {
		if name == "" || name == "." || name == ".." || utf8.RuneCountInString(name) > 255 ||
			strings.ContainsAny(name, "\\\x00\x7f") || strings.HasSuffix(name, " ") {
			return bad
		}
	}
	return nil
}

// squeeze makes one slash of several in a row, which the service does: rclone
// lists "//folder".
func squeeze(path string) string {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path
}

// resolve turns any of the forms of a path argument into the node it names: a
// path, id:…, or ns:…/path. mu held.
func (a *account) resolve(path string) (*node, *apiError) {
	if rest, ok := strings.CutPrefix(path, "ns:"); ok {
		ns, sub, _ := strings.Cut(rest, "/")
		if ns != namespace {
			return nil, refuse("not_found")
		}
		if path = ""; sub != "" {
			path = "/" + sub
		}
	}
	if strings.HasPrefix(path, "id:") {
		if n := a.byID[path]; n != nil {
			return n, nil
		}
		return nil, refuse("not_found")
	}
	if path = squeeze(path); path != "" {
		if err := checkPath(path); err != nil {
			return nil, err
		}
	}
	if n := a.find(path); n != nil {
		return n, nil
	}
	return nil, refuse("not_found")
}

// note records a change and wakes the longpolls. mu held.
func (a *account) note(e event) {
	e.lower = strings.ToLower(e.display)
	a.journal = append(a.journal, e)
	close(a.changed)
	a.changed = make(chan struct{})
	a.order = nil
}

// makeFolders makes the folders down to and including path. mu held.
func (a *account) makeFolders(path string) (*node, *apiError) {
	n := a.root
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		kid := n.kids[strings.ToLower(name)]
		switch {
		case kid == nil:
			kid = &node{id: newID(), name: name, parent: n, kids: make(map[string]*node)}
			a.attach(kid)
		case !kid.folder():
			return nil, refuse("conflict", "file_ancestor")
		}
		n = kid
	}
	return n, nil
}

// attach puts a new node in its parent. mu held.
func (a *account) attach(n *node) {
	n.parent.kids[strings.ToLower(n.name)] = n
	a.byID[n.id] = n
	delete(a.deleted, n.lower())
	a.note(event{display: n.display()})
}

// detach takes a node and all below it away. mu held.
func (a *account) detach(n *node) {
	display := n.display()
	a.forget(n)
	delete(n.parent.kids, strings.ToLower(n.name))
	a.note(event{display: display, folderGone: n.folder()})
}

func (a *account) forget(n *node) {
	a.deleted[n.lower()] = n.display()
	delete(a.byID, n.id)
	delete(a.links, n.id)
	if n.rev != nil {
		a.used -= n.rev.blob.size
	}
	for _, k := range n.kids {
		a.forget(k)
	}
}

// writeMode is a WriteMode of the documentation.
type writeMode struct {
	tag, rev   string
	autorename bool
	strict     bool
}

// commit puts content at a path, as CommitInfo's documentation has it. mu
// held.
func (a *account) commit(path string, b *blob, mode writeMode, modified time.Time) (*node, *apiError) {
	path = squeeze(path)
	if err := checkPath(path); err != nil {
		return nil, err
	}
	dir, name := split(path)
	old := a.find(path)
	conflict := ""
	switch {
	case old != nil && old.folder():
		conflict = "folder"
	case old != nil && !mode.strict && old.rev.blob.hash == b.hash:
		return old, nil // identical content: nothing is written
	case old != nil && mode.tag == "add",
		old != nil && mode.tag == "update" && mode.rev != old.rev.rev,
		old == nil && mode.tag == "update" && mode.strict:
		conflict = "file"
	}
	if conflict != "" {
		if !mode.autorename {
			return nil, refuse("conflict", conflict)
		}
		name = a.freeName(dir, name, mode.tag == "update")
		old = nil
	}
	var oldSize int64
	if old != nil {
		oldSize = old.rev.blob.size
	}
	if a.used-oldSize+b.size > a.space {
		return nil, refuse("insufficient_space")
	}
	parent, err := a.makeFolders(dir)
	if err != nil {
		return nil, err
	}
	n := old
	if n == nil {
		n = &node{id: newID(), name: name, parent: parent}
	}
	a.setContent(n, b, modified)
	if old == nil {
		a.attach(n)
	} else {
		a.note(event{display: n.display()})
	}
	return n, nil
}

// setContent gives a file a new revision. mu held.
func (a *account) setContent(n *node, b *blob, modified time.Time) {
	if n.rev != nil {
		a.used -= n.rev.blob.size
	}
	a.used += b.size
	now := time.Now().Add(a.skew).UTC().Truncate(time.Second)
	if modified.IsZero() {
		modified = now
	}
	a.lastRev++
	r := &revision{
		rev: fmt.Sprintf("%015x", a.lastRev), id: n.id, name: n.name, blob: b,
		client: modified.UTC().Truncate(time.Second), server: now,
		lower: n.lower(), pathDisplay: n.display(),
	}
	n.rev = r
	a.revs[r.rev] = r
	a.history[r.lower] = append(a.history[r.lower], r)
	a.blobs = append(a.blobs, b)
}

// freeName is what autorename makes of a name that is taken. mu held.
func (a *account) freeName(dir, name string, conflicted bool) string {
	stem, ext := name, ""
	if i := strings.LastIndex(name, "."); i > 0 {
		stem, ext = name[:i], name[i:]
	}
	for i := 1; ; i++ {
		try := fmt.Sprintf("%s (%d)%s", stem, i, ext)
		if conflicted {
			try = fmt.Sprintf("%s (conflicted copy %d)%s", stem, i, ext)
		}
		if a.find(dir+"/"+try) == nil {
			return try
		}
	}
}

// move puts n, with all below it, at path, which is free. Files get new
// revisions there; ids stay. mu held.
func (a *account) move(n *node, path string) *apiError {
	dir, name := split(path)
	parent, err := a.makeFolders(dir)
	if err != nil {
		return err
	}
	a.deleted[n.lower()] = n.display()
	display := n.display()
	delete(n.parent.kids, strings.ToLower(n.name))
	a.note(event{display: display, folderGone: n.folder()})
	n.name, n.parent = name, parent
	a.replant(n)
	return nil
}

func (a *account) replant(n *node) {
	if n.rev != nil {
		// The same bytes at a new path: b is already accounted for in blobs.
		b, modified := n.rev.blob, n.rev.client
		a.setContent(n, b, modified)
	}
	a.attach(n)
	for _, k := range n.sorted() {
		a.replant(k)
	}
}

// copy makes a copy of n, with all below it, at path, which is free. mu held.
func (a *account) copy(n *node, path string) (*node, *apiError) {
	if !n.folder() {
		return a.commit(path, n.rev.blob, writeMode{tag: "add"}, n.rev.client)
	}
	c, err := a.makeFolders(path)
	if err != nil {
		return nil, err
	}
	for _, k := range n.sorted() {
		if _, err := a.copy(k, path+"/"+k.name); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func split(path string) (dir, name string) {
	i := strings.LastIndex(path, "/")
	return path[:i], path[i+1:]
}

func newID() string { return "id:" + rand.Text()[:22] }
