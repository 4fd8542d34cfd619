package oci

import (
	"math"
	"strings"

	"github.com/sregfs/sregfs/image/squash"
)

// maxLinks is how many symbolic links one path may lead through, as in Linux.
const maxLinks = 40

// maxSteps bounds the work for one path, links included.
const maxSteps = 4 * maxPath

// tree is a root file system that layers are laid into. It lives in memory
// alone; a path can lead nowhere but into it.
type tree struct {
	root  *node
	layer int32 // the number of the layer that is being laid; 0 is none
	// made is what a directory gets that no layer has an entry for.
	made squash.Inode
	// room is how much the sizes of further files may come to. Each block of
	// them takes memory, also where layers keep nothing of it.
	room int64
	// dirs is how many further directories may be made that no entry tells of.
	// A link's target of some bytes can name a thousand.
	dirs int
	// aufs are the nodes in the root that go at the layer's end.
	aufs []*node
}

// node is one name in the tree.
type node struct {
	name     string
	parent   *node
	depth    int32
	inode    *squash.Inode
	children map[string]*node // not nil: a directory

	entry   int32 // the layer that set the inode
	touched int32 // the latest layer that set it or anything below
	cleared int32 // the layer that hid all that lay here before it
}

func newTree(made squash.Inode) *tree {
	made.Mode = squash.ModeDir | 0o755
	t := &tree{made: made, room: math.MaxInt64, dirs: math.MaxInt}
	t.root = &node{children: map[string]*node{}}
	t.root.parent = t.root
	t.root.inode = t.newDir()
	return t
}

func (t *tree) newDir() *squash.Inode {
	d := t.made
	return &d
}

func (n *node) isDir() bool { return n.children != nil }

// touch notes that the current layer has something at or below n.
func (t *tree) touch(n *node) {
	for n.touched != t.layer {
		n.touched = t.layer
		n = n.parent
	}
}

// remove takes n out of its directory.
func (n *node) remove() { delete(n.parent.children, n.name) }

// put sets what stands under name in dir. Whatever else stands there goes,
// with all below it; but a directory put over a directory keeps its entries.
func (t *tree) put(dir *node, name string, inode *squash.Inode) (*node, error) {
	n := dir.children[name]
	isDir := inode.Mode&squash.ModeType == squash.ModeDir
	if n == nil || n.isDir() != isDir {
		if dir.depth >= squash.MaxDepth {
			return nil, unsupported("more than %d directories inside each other", squash.MaxDepth)
		}
		n = &node{name: strings.Clone(name), parent: dir, depth: dir.depth + 1}
		if isDir {
			n.children = map[string]*node{}
			n.cleared = t.layer // nothing older is in it
		}
		dir.children[n.name] = n
		if dir == t.root && strings.HasPrefix(n.name, aufsPrefix) {
			t.aufs = append(t.aufs, n)
		}
	}
	n.inode, n.entry = inode, t.layer
	t.touch(n)
	return n, nil
}

// hide takes away what older layers have at n, but not what this one has.
func (t *tree) hide(n *node) {
	if n.touched != t.layer {
		n.remove()
		return
	}
	if n.entry != t.layer {
		// Only entries below it are of this layer, so that this is the
		// directory that is made for them.
		n.inode = t.newDir()
	}
	t.hideChildren(n)
}

// hideChildren does so for all that is in a directory.
func (t *tree) hideChildren(dir *node) {
	if dir.cleared == t.layer {
		return
	}
	dir.cleared = t.layer
	for _, c := range dir.children {
		t.hide(c)
	}
}

// walk says how a path is followed.
type walk struct {
	tree  *tree
	mkdir bool // make the directories that are missing
	links int
	steps int
}

// dir returns the directory that path names, starting at from, through
// symbolic links. When it is missing, it is made if mkdir is set, in the place
// of anything that is no directory; otherwise the result is nil.
func (w *walk) dir(from *node, path string) (*node, error) {
	at := from
	for path != "" {
		if w.steps++; w.steps > maxSteps {
			return nil, corrupt("links without end")
		}
		var part string
		part, path, _ = strings.Cut(path, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			at = at.parent // of the root that is the root
			continue
		}
		next := at.children[part]
		if next != nil && next.inode.Mode&squash.ModeType == squash.ModeSymlink {
			var err error
			if next, err = w.follow(next); err != nil {
				return nil, err
			}
		}
		if next == nil || !next.isDir() {
			if !w.mkdir {
				return nil, nil
			}
			var err error
			if next, err = w.make(at, part); err != nil {
				return nil, err
			}
		}
		at = next
	}
	return at, nil
}

// follow returns the directory a link leads to, or nil.
func (w *walk) follow(link *node) (*node, error) {
	if w.links++; w.links > maxLinks {
		return nil, corrupt("more than %d symbolic links in a path", maxLinks)
	}
	from := link.parent
	if strings.HasPrefix(link.inode.Target, "/") {
		from = w.tree.root
	}
	return w.dir(from, link.inode.Target)
}

// make makes a directory that no entry told of.
func (w *walk) make(at *node, name string) (*node, error) {
	if len(name) > squash.MaxName {
		return nil, unsupported("name of %d bytes", len(name))
	}
	if w.tree.dirs--; w.tree.dirs < 0 {
		return nil, unsupported("more directories without an entry than the limit")
	}
	return w.tree.put(at, name, w.tree.newDir())
}

// mkdirAll returns the directory path, which it makes if need be.
func (t *tree) mkdirAll(path string) (*node, error) {
	w := walk{tree: t, mkdir: true}
	return w.dir(t.root, path)
}

// lookup returns what path names, the last element not followed; nil if there
// is nothing.
func (t *tree) lookup(path string) (*node, error) {
	if path == "" {
		return t.root, nil
	}
	dir, base := split(path)
	w := walk{tree: t}
	d, err := w.dir(t.root, dir)
	if d == nil || err != nil {
		return nil, err
	}
	return d.children[base], nil
}

// finish hands the tree over to the layout and lets go of it.
func (t *tree) finish() *squash.Inode {
	t.root.finish()
	return t.root.inode
}

func (n *node) finish() {
	n.inode.Entries = make([]squash.Entry, 0, len(n.children))
	for name, c := range n.children {
		if c.isDir() {
			c.finish()
		}
		n.inode.Entries = append(n.inode.Entries, squash.Entry{Name: name, Inode: c.inode})
	}
	n.children = nil
}
