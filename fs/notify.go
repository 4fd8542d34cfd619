package fs

import (
	"strings"

	fusefs "github.com/hanwen/go-fuse/v2/fs"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/index"
)

// notice is a change that the kernel must be told of.
type notice struct {
	cl   *catalog.Client
	diff index.Diff
}

// changed queues a client's changes. The kernel is told from a goroutine of
// its own: from inside a handler on the same directory it would deadlock.
func (t *Tree) changed(cl *catalog.Client) func(index.Diff) {
	return func(d index.Diff) {
		select {
		case t.notify <- notice{cl, d}:
		case <-t.quit:
		default:
			// Too much at once to tell singly: forget everything known.
			t.work.Go(func() {
				select {
				case t.notify <- notice{cl, index.Diff{Full: true}}:
				case <-t.quit:
				}
			})
		}
	}
}

func (t *Tree) sendNotices() {
	for {
		select {
		case <-t.quit:
			return
		case n := <-t.notify:
			t.tell(n)
		}
	}
}

// tell drops what the kernel holds of changed names.
func (t *Tree) tell(n notice) {
	top := t.root.GetChild(n.cl.Name)
	if top == nil {
		return
	}
	if n.diff.Full {
		t.forgetAll(top)
		return
	}
	byDir := map[string][]string{}
	for _, p := range n.diff.Changed {
		if p.File == "" {
			parent, leaf := splitPath(p.Dir)
			byDir[parent] = append(byDir[parent], leaf)
			continue
		}
		byDir[p.Dir] = append(byDir[p.Dir], p.File)
	}
	for dir, files := range byDir {
		if d := descend(top, dir); d != nil {
			t.forgetNames(d, files)
		}
	}
}

// forgetNames drops every spelling of the changed names under a directory.
func (t *Tree) forgetNames(d *fusefs.Inode, files []string) {
	// By folded name: one client's case rules are not another's, and to drop
	// a name too many costs a look-up.
	want := make(map[string]bool, len(files))
	for _, f := range files {
		want[strings.ToLower(f)] = true
	}
	var drop []string
	for name := range d.Children() {
		canonical := name
		if ref, _, ok := backends.ParseFile(name); ok {
			canonical = ref.Latest().File()
		}
		if want[strings.ToLower(canonical)] {
			drop = append(drop, name)
		}
	}
	t.drop(d, drop)
}

func (t *Tree) forgetAll(d *fusefs.Inode) {
	var drop []string
	for name, child := range d.Children() {
		if child.IsDir() {
			t.forgetAll(child)
		}
		drop = append(drop, name)
	}
	t.drop(d, drop)
}

// drop has the kernel forget names under a directory, as soon as nothing is
// done there.
func (t *Tree) drop(d *fusefs.Inode, names []string) {
	dir, ok := d.Operations().(*dirNode)
	for i, name := range names {
		if ok && !dir.acts.calm() {
			// Other directories need not wait for this one.
			t.work.Go(func() { t.dropLater(d, dir, names[i:]) })
			return
		}
		d.NotifyEntry(name)
	}
}

func (t *Tree) dropLater(d *fusefs.Inode, dir *dirNode, names []string) {
	for _, name := range names {
		if !dir.acts.waitCalm(t.quit) {
			return
		}
		d.NotifyEntry(name)
	}
}

func descend(n *fusefs.Inode, dir string) *fusefs.Inode {
	if dir == "" {
		return n
	}
	for seg := range strings.SplitSeq(dir, "/") {
		if n = n.GetChild(seg); n == nil {
			return nil
		}
	}
	return n
}

func splitPath(p string) (dir, leaf string) {
	i := strings.LastIndex(p, "/")
	return strings.TrimSuffix(p[:max(i, 0)], "/"), p[i+1:]
}
