package fs

import (
	"context"
	"fmt"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/index"
)

// pending is what is being written, by where it stands in the tree.
type pending struct {
	mu sync.Mutex
	m  map[string]map[string]*pendingFile // client/dir → name
	// made counts them, so that files of one name can be told apart.
	made atomic.Uint64
}

func (p *pending) init() { p.m = map[string]map[string]*pendingFile{} }

func dirKey(cl *catalog.Client, dir string) string { return path.Join(cl.Name, dir) }

func (p *pending) get(cl *catalog.Client, dir, name string) *pendingFile {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.m[dirKey(cl, dir)][name]
}

func (p *pending) names(cl *catalog.Client, dir string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for name := range p.m[dirKey(cl, dir)] {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (p *pending) any(cl *catalog.Client, dir string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.m[dirKey(cl, dir)]) > 0
}

func (p *pending) put(pf *pendingFile) {
	dir, name := pf.place()
	p.mu.Lock()
	defer p.mu.Unlock()
	k := dirKey(pf.cl, dir)
	if p.m[k] == nil {
		p.m[k] = map[string]*pendingFile{}
	}
	p.m[k][name] = pf
}

func (p *pending) drop(cl *catalog.Client, dir, name string, pf *pendingFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := dirKey(cl, dir)
	if p.m[k][name] == pf {
		delete(p.m[k], name)
		if len(p.m[k]) == 0 {
			delete(p.m, k)
		}
	}
}

// finish closes what is left when the tree is gone: its bytes stay on disk.
func (p *pending) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, files := range p.m {
		for _, pf := range files {
			if pf.staged != nil {
				pf.staged.Finish(true)
			}
		}
	}
	clear(p.m)
}

// pendingFile is one file that is being written: a new one, or an image's next
// content. Nothing is staged before the first change.
type pendingFile struct {
	tree *Tree
	cl   *catalog.Client
	ref  backends.Ref // zero under a temporary name
	ino  uint64
	gen  uint64

	mu      sync.Mutex
	dir     string
	name    string
	base    *backends.Image // what it was opened on, nil for a new file
	staged  *catalog.Staged // nil until the first change
	handles int             // open ones
	gone    bool            // unlinked, or pushed and let go of
	refused bool            // the bytes cannot be right, and their writer was told
	pushed  *backends.Image // what the last commit made
	node    *fileNode       // of the last open
	mtime   time.Time       // set before anything was staged
	xattrs  map[string][]byte
}

func (t *Tree) newPendingFile(cl *catalog.Client, dir, name string, ref backends.Ref, base *backends.Image) *pendingFile {
	return &pendingFile{
		tree: t, cl: cl, ref: ref, dir: dir, name: name, base: base,
		ino: ino(cl.Name, path.Join(dir, name)), gen: uint64(t.born.UnixNano()) + t.pending.made.Add(1),
	}
}

// place is where the file stands now.
func (pf *pendingFile) place() (dir, name string) {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	return pf.dir, pf.name
}

func (pf *pendingFile) path() string {
	dir, name := pf.place()
	return "/" + path.Join(pf.cl.Name, dir, name)
}

// attr fills in the attributes of what was written so far; false while that is
// nothing, and the image's own count.
func (pf *pendingFile) attr(a *fuse.Attr) bool {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	if pf.base != nil && (pf.staged == nil || pf.refused) {
		return false
	}
	mtime, size := pf.mtime, int64(0)
	if pf.staged != nil {
		mtime, size = pf.staged.Modified(), pf.staged.Size()
	}
	if mtime.IsZero() {
		mtime = time.Now()
	}
	pf.tree.attr(a, pf.ino, fuse.S_IFREG|0o755, mtime)
	setSize(a, size)
	return true
}

// changed reports whether anything was written.
func (pf *pendingFile) changed() bool {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	return pf.staged != nil || pf.base == nil
}

// absent reports whether the name leads to nothing (any more).
func (pf *pendingFile) absent() bool {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	return pf.base == nil && pf.pushed == nil && (pf.gone || pf.refused)
}

// ended reports whether what is written here any more would be lost.
func (pf *pendingFile) ended() bool {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	return pf.gone
}

func (pf *pendingFile) idle() bool {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	return pf.handles == 0
}

func (pf *pendingFile) setModified(t time.Time) bool {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	if pf.staged == nil {
		pf.mtime = t
		return pf.base == nil
	}
	pf.staged.SetModified(t)
	return true
}

// stage makes the staged file. Unless it is to be emptied at once, what was
// there before is copied into it. It is called with pf.mu held.
func (pf *pendingFile) stage(ctx context.Context, empty bool) (err error) {
	switch {
	case pf.staged != nil:
		return nil
	case pf.base != nil:
		pf.staged, err = pf.cl.Edit(ctx, *pf.base, empty)
	default:
		pf.staged, err = pf.cl.Stage(ctx, pf.ref, pf.name)
	}
	if err == nil && !pf.mtime.IsZero() {
		pf.staged.SetModified(pf.mtime)
	}
	return err
}

func (pf *pendingFile) truncate(ctx context.Context, size int64) error {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	if pf.staged == nil && pf.base == nil && size == 0 {
		return nil
	}
	if err := pf.stage(ctx, size == 0); err != nil {
		return err
	}
	return pf.staged.Truncate(ctx, size)
}

// move gives the file another temporary name.
func (pf *pendingFile) move(dir, name string) error {
	oldDir, oldName := pf.place()
	pf.tree.pending.drop(pf.cl, oldDir, oldName, pf)
	pf.mu.Lock()
	pf.dir, pf.name, pf.ref = dir, name, backends.Ref{}
	pf.mu.Unlock()
	pf.tree.pending.put(pf)
	return nil
}

// unlink takes the file out of the tree; open handles go on.
func (pf *pendingFile) unlink() {
	dir, name := pf.place()
	pf.tree.pending.drop(pf.cl, dir, name, pf)
	pf.mu.Lock()
	pf.gone = true
	pf.mu.Unlock()
	pf.released()
}

// commitAs pushes the file under an image's name: a rename's result is the
// push's.
func (pf *pendingFile) commitAs(ctx context.Context, dir string, to backends.Ref) error {
	pf.mu.Lock()
	staged := pf.staged
	pf.mu.Unlock()
	if staged == nil || staged.Size() == 0 {
		return &backends.Error{Op: "push", Client: pf.cl.Name, Ref: to, Err: errEmpty}
	}
	if err := staged.Complete(ctx); catalog.Truncated(err) {
		return pf.refuse(to, err)
	}
	img, err := staged.CommitAs(ctx, to)
	if err != nil {
		return err
	}
	oldDir, oldName := pf.place()
	pf.tree.pending.drop(pf.cl, oldDir, oldName, pf)
	pf.mu.Lock()
	pf.dir, pf.name, pf.ref, pf.pushed = dir, to.File(), to, &img
	node := pf.node
	pf.mu.Unlock()
	pf.tree.pending.put(pf)
	if node != nil {
		node.renamed(dir, to.File(), img)
	}
	pf.released()
	return nil
}

var errEmpty = fmt.Errorf("the file is empty: %w", syscall.EINVAL)

// refuse is the error for content that is known to be broken. The name goes
// back to what it was before.
func (pf *pendingFile) refuse(ref backends.Ref, err error) error {
	pf.mu.Lock()
	pf.refused = true
	pf.mu.Unlock()
	return &backends.Error{Op: "push", Client: pf.cl.Name, Ref: ref, Err: fmt.Errorf("%w (%w)", err, syscall.EINVAL),
		Hint: "copy the whole image again"}
}

// open counts and returns a handle on what is being written. name is how the
// program called the file, where that may differ.
func (pf *pendingFile) open(n *fileNode, name string) *writeHandle {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	pf.handles++
	pf.node = n
	return &writeHandle{pf: pf, n: n, name: name}
}

// close is what a program's close(2) means: what was written since the last
// commit is pushed, and the answer is the remote's. FUSE's FLUSH comes also
// when a duplicate of the descriptor is closed, with more to be written
// through others; then nothing is done yet.
func (pf *pendingFile) close(ctx context.Context, n *fileNode, exiting bool) error {
	pf.mu.Lock()
	staged, ref, gone := pf.staged, pf.ref, pf.gone
	pf.mu.Unlock()
	if staged == nil || gone || ref.IsZero() || !staged.Dirty() || staged.Size() == 0 {
		return nil
	}
	if err := staged.Complete(ctx); err != nil {
		switch {
		case pf.heldElsewhere():
			return nil
		case catalog.Truncated(err):
			return pf.refuse(ref, err)
		case exiting:
			// Nobody closed it: its writer was ended, perhaps half-way, and
			// no header tells whether this is all.
			return nil
		}
		pf.tree.log.Warn("pushing a file that is no image of a known kind", "path", pf.path(), "why", err)
	}
	img, err := staged.Commit(ctx)
	if err != nil {
		return err
	}
	pf.mu.Lock()
	pf.pushed = &img
	attrs := pf.xattrs
	pf.mu.Unlock()
	n.mu.Lock()
	n.brief = briefOf(n.cl, img)
	n.mu.Unlock()
	for name, value := range attrs {
		if err := n.tree.cat.Index().SetXattr(ctx, n.cl.Name, n.dir, n.file, name, value); err != nil {
			return err
		}
	}
	return nil
}

// released lets go of a file that nobody has open any more.
func (pf *pendingFile) released() {
	pf.mu.Lock()
	if pf.handles > 0 {
		pf.mu.Unlock()
		return
	}
	staged, pushed, gone, node, temp := pf.staged, pf.pushed, pf.gone, pf.node, pf.ref.IsZero()
	dir, name := pf.dir, pf.name
	done := true
	switch {
	case staged == nil:
		// Nothing was written; an empty new file stays in sight until it is
		// written to or removed.
		done = pf.base != nil || gone
	case gone, pushed != nil && !staged.Dirty():
	case temp:
		done = false // a rename decides
	}
	if done {
		pf.gone, pf.staged = true, nil
	}
	pf.mu.Unlock()
	if !done {
		return
	}
	pf.tree.pending.drop(pf.cl, dir, name, pf)
	if node != nil {
		node.mu.Lock()
		if node.pf == pf && (pushed != nil || pf.base != nil) {
			node.pf = nil
			if pushed != nil {
				node.brief = briefOf(pf.cl, *pushed)
			}
		}
		node.mu.Unlock()
	}
	if pushed == nil {
		pf.tree.changed(pf.cl)(index.Diff{Changed: []index.Place{{Dir: dir, File: name}}})
	}
	if staged == nil {
		return
	}
	if pushed == nil && !gone && staged.Dirty() {
		pf.leftover(staged, path.Join(pf.cl.Name, dir, name))
		return
	}
	staged.Finish(!gone)
}

// leftover deals with bytes that no close has pushed: a whole image is pushed
// now, a truncated one was refused and dropped, and what is neither is kept on
// disk for the user to decide.
func (pf *pendingFile) leftover(staged *catalog.Staged, name string) {
	err := staged.Complete(context.Background())
	switch {
	case err == nil && staged.Failed() == nil:
		pf.tree.work.Go(func() {
			if _, err := staged.Commit(context.Background()); err != nil {
				_ = pf.tree.fail("push", "/"+name, err)
			}
			staged.Finish(true)
		})
	case catalog.Truncated(err):
		pf.tree.log.Warn("dropped an incomplete copy", "path", "/"+name, "why", err)
		staged.Finish(false)
	default:
		staged.Finish(true)
	}
}
