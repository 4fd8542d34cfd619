package fs

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/index"
)

// pending is what is being written, by where it stands in the tree. Its mutex
// goes before those of the files in it.
type pending struct {
	mu sync.Mutex
	m  map[string]map[string]*pendingFile // client/dir → name
	// made counts them, so that files of one name can be told apart.
	made atomic.Uint64
}

func (p *pending) init() { p.m = map[string]map[string]*pendingFile{} }

func dirKey(cl *catalog.Client, dir string) string { return path.Join(cl.Name, dir) }

// leafKey is a file's name as the store tells names of images apart.
func leafKey(cl *catalog.Client, name string) string {
	if cl.FoldsCase() && backends.HasExtension(name) {
		return strings.ToLower(name)
	}
	return name
}

// get returns the file that is being written under a name, nil when none is.
func (p *pending) get(cl *catalog.Client, dir, name string) *pendingFile {
	p.mu.Lock()
	defer p.mu.Unlock()
	pf := p.m[dirKey(cl, dir)][leafKey(cl, name)]
	if pf == nil || pf.ended() {
		return nil
	}
	if pf.forsaken() {
		delete(p.m[dirKey(cl, dir)], leafKey(cl, name))
		return nil
	}
	return pf
}

// names are those of the files in a directory that can be seen.
func (p *pending) names(cl *catalog.Client, dir string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for _, pf := range p.m[dirKey(cl, dir)] {
		if _, name := pf.place(); !pf.absent() && !pf.ended() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (p *pending) any(cl *catalog.Client, dir string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.m[dirKey(cl, dir)]) > 0
}

// put shows a file where it stands, unless it was let go of meanwhile.
func (p *pending) put(pf *pendingFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pf.ended() {
		return
	}
	dir, name := pf.place()
	k := dirKey(pf.cl, dir)
	if p.m[k] == nil {
		p.m[k] = map[string]*pendingFile{}
	}
	p.m[k][leafKey(pf.cl, name)] = pf
}

func (p *pending) drop(cl *catalog.Client, dir, name string, pf *pendingFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := dirKey(cl, dir)
	if name := leafKey(cl, name); p.m[k][name] == pf {
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
			if staged := pf.stagedFile(); staged != nil {
				staged.Finish(true)
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
	turn chan struct{} // held while the staged file is being made, which may take long

	mu      sync.Mutex // not held over anything that waits
	dir     string
	name    string
	base    *backends.Image // what it was opened on, nil for a new file
	staged  *catalog.Staged // nil until the first change
	handles int             // open ones
	gone    bool            // unlinked, or pushed and let go of: it has no name any more
	removed bool            // unlinked
	late    bool            // a push is under way that nobody waits for
	tried   bool            // such a push has been tried since the last open
	// expected is when an open was sent here that has not come yet.
	expected time.Time
	refused  bool            // the bytes cannot be right, and their writer was told
	owed     bool            // a close was answered before what it answers for was pushed
	pushed   *backends.Image // what the last commit made
	node     *fileNode       // of the last open
	inos     []uint64        // inode numbers of all nodes that it was opened through
	over     chan struct{}   // closed when nothing of it is left to do
	end      func()          // closes over, once
	mtime    time.Time       // set before anything was staged
	xattrs   map[string][]byte
}

func (t *Tree) newPendingFile(cl *catalog.Client, dir, name string, ref backends.Ref, base *backends.Image) *pendingFile {
	over := make(chan struct{})
	return &pendingFile{
		tree: t, cl: cl, ref: ref, dir: dir, name: name, base: base,
		turn: make(chan struct{}, 1), over: over, end: sync.OnceFunc(func() { close(over) }),
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
	if (pf.base != nil || pf.pushed != nil) && (pf.staged == nil || pf.refused) {
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

// clean reports whether the remote has all that was written.
func (pf *pendingFile) clean() bool {
	pf.learn()
	pf.mu.Lock()
	defer pf.mu.Unlock()
	return pf.pushed != nil && (pf.staged == nil || !pf.staged.Dirty())
}

// letGoSoon waits a moment for a writer who has closed the file to let go of it,
// which the kernel tells a little later, and without being asked.
func (pf *pendingFile) letGoSoon(ctx context.Context) {
	select {
	case <-pf.over:
	case <-time.After(50 * time.Millisecond): // another has it open
	case <-ctx.Done():
	}
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

// unlinked reports whether the file was removed while it was open.
func (pf *pendingFile) unlinked() bool {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	return pf.removed
}

func (pf *pendingFile) stagedFile() *catalog.Staged {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	return pf.staged
}

// stored reports whether the remote has an image under the file's name, an
// earlier one or what was pushed.
func (pf *pendingFile) stored() bool {
	pf.learn()
	pf.mu.Lock()
	defer pf.mu.Unlock()
	return pf.base != nil || pf.pushed != nil
}

// outcome is what was pushed, once nothing more is written.
func (pf *pendingFile) outcome() *backends.Image {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	if pf.staged != nil {
		return nil
	}
	return pf.pushed
}

// settled returns when no push of the file is under way.
func (pf *pendingFile) settled(ctx context.Context) error {
	staged := pf.stagedFile()
	if staged == nil {
		return nil
	}
	return staged.Settle(ctx)
}

// learn takes notice of a push that ended when nobody waited for it any more.
func (pf *pendingFile) learn() {
	pf.mu.Lock()
	staged, pushed := pf.staged, pf.pushed
	pf.mu.Unlock()
	if staged == nil || pushed != nil {
		return
	}
	if img, ok := staged.Pushed(); ok && !staged.Ref().IsZero() && pf.named() {
		_ = pf.took(context.Background(), img)
	}
}

// named reports whether the file stands under an image's name.
func (pf *pendingFile) named() bool {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	return !pf.ref.IsZero()
}

// setModified sets the time of what is being written. It returns an image where
// the time is that image's too, nil where there is none.
func (pf *pendingFile) setModified(t time.Time) *backends.Image {
	pf.learn()
	pf.mu.Lock()
	defer pf.mu.Unlock()
	pf.mtime = t
	if pf.staged != nil {
		pf.staged.SetModified(t)
		if pf.staged.Dirty() {
			return nil // it goes with the push
		}
	}
	if pf.pushed != nil {
		return pf.pushed
	}
	return pf.base
}

// stage returns the staged file, and makes it when there is none. Unless it is
// to be emptied at once, what was there before is copied into it.
func (pf *pendingFile) stage(ctx context.Context, empty bool) (*catalog.Staged, error) {
	select {
	case pf.turn <- struct{}{}:
		defer func() { <-pf.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	pf.mu.Lock()
	staged, base, ref, name := pf.staged, pf.base, pf.ref, pf.name
	pf.mu.Unlock()
	if staged != nil {
		return staged, nil
	}
	var err error
	if base != nil {
		staged, err = pf.cl.Edit(ctx, *base, empty)
	} else {
		staged, err = pf.cl.Stage(ctx, ref, name)
	}
	if err != nil {
		return nil, err
	}
	pf.mu.Lock()
	pf.staged = staged
	pf.mu.Unlock()
	return staged, nil
}

func (pf *pendingFile) truncate(ctx context.Context, size int64) error {
	pf.mu.Lock()
	nothing := pf.staged == nil && pf.base == nil && size == 0
	pf.mu.Unlock()
	if nothing {
		return nil
	}
	staged, err := pf.stage(ctx, size == 0)
	if err != nil {
		return err
	}
	return staged.Truncate(ctx, size)
}

// move gives a file that the remote knows nothing of another temporary name.
func (pf *pendingFile) move(ctx context.Context, dir, name string) error {
	replaced := pf.tree.pending.get(pf.cl, dir, name)
	pf.stand(dir, name, backends.Ref{})
	if replaced != nil && replaced != pf {
		return replaced.unlink(ctx)
	}
	return nil
}

// stand puts the file where it stands from now on.
func (pf *pendingFile) stand(dir, name string, ref backends.Ref) {
	oldDir, oldName := pf.place()
	pf.tree.pending.drop(pf.cl, oldDir, oldName, pf)
	pf.mu.Lock()
	pf.dir, pf.name, pf.ref = dir, name, ref
	pf.mu.Unlock()
	pf.tree.pending.put(pf)
}

// follow goes along with the remote's renaming of the image that is being
// written.
func (pf *pendingFile) follow(ctx context.Context, dir string, img backends.Image) error {
	pf.stand(dir, img.Ref.File(), img.Ref)
	pf.mu.Lock()
	staged := pf.staged // nil when it was let go of meanwhile
	pf.base = &img
	if pf.pushed != nil {
		pf.pushed = &img
	}
	pf.mu.Unlock()
	if staged == nil {
		return nil
	}
	return staged.Renamed(ctx, img)
}

// unlink takes the file out of the tree; open handles go on. A push that is
// under way is given up.
func (pf *pendingFile) unlink(ctx context.Context) error {
	dir, name := pf.place()
	pf.tree.pending.drop(pf.cl, dir, name, pf)
	pf.mu.Lock()
	pf.gone, pf.removed = true, true
	staged := pf.staged
	pf.mu.Unlock()
	defer pf.released()
	if staged == nil {
		return nil
	}
	err := staged.Abandon(ctx)
	pf.learn()
	return err
}

// commitAs pushes the file under an image's name: a rename's result is the
// push's.
func (pf *pendingFile) commitAs(ctx context.Context, dir string, to backends.Ref) error {
	staged := pf.stagedFile()
	if staged == nil || staged.Size() == 0 {
		return &backends.Error{Op: "push", Client: pf.cl.Name, Ref: to, Err: errEmpty}
	}
	if err := staged.Complete(ctx); catalog.Truncated(err) {
		return cutShort(pf.cl, to, err)
	}
	img, err := staged.CommitAs(ctx, to)
	if err != nil {
		return err
	}
	replaced := pf.tree.pending.get(pf.cl, dir, to.File())
	pf.stand(dir, to.File(), to)
	if err := pf.took(ctx, img); err != nil {
		return err
	}
	if node := pf.lastNode(); node != nil {
		node.renamed(dir, to.File(), img)
	}
	pf.released()
	if replaced != nil && replaced != pf {
		return replaced.unlink(ctx)
	}
	return nil
}

func (pf *pendingFile) lastNode() *fileNode {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	return pf.node
}

// took notes that the remote has the file as img.
func (pf *pendingFile) took(ctx context.Context, img backends.Image) error {
	pf.mu.Lock()
	pf.pushed, pf.owed = &img, false
	attrs, dir, name, node := pf.xattrs, pf.dir, pf.name, pf.node
	pf.xattrs = nil
	pf.mu.Unlock()
	if node != nil {
		b := briefOf(pf.cl, img)
		node.mu.Lock()
		node.brief = b
		node.mu.Unlock()
	}
	for attr, value := range attrs {
		if err := pf.tree.cat.Index().SetXattr(ctx, pf.cl.Name, dir, name, attr, value); err != nil {
			return err
		}
	}
	return nil
}

var errEmpty = fmt.Errorf("the file is empty: %w", syscall.EINVAL)

// refuse is the error for content that is known to be broken. The name goes
// back to what it was before. What a program that is exiting is told, nobody
// hears.
func (pf *pendingFile) refuse(ref backends.Ref, err error, exiting bool) error {
	pf.mu.Lock()
	pf.refused = true
	pf.owed = pf.owed && exiting
	pf.mu.Unlock()
	return cutShort(pf.cl, ref, err)
}

func cutShort(cl *catalog.Client, ref backends.Ref, err error) error {
	return &backends.Error{Op: "push", Client: cl.Name, Ref: ref, Err: fmt.Errorf("%w (%w)", err, syscall.EINVAL),
		Hint: "copy the whole image again"}
}

// hold counts one that has the file open, through the node n; false when it is
// too late for that.
func (pf *pendingFile) hold(n *fileNode) bool {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	if pf.gone {
		return false
	}
	pf.handles++
	pf.node, pf.tried, pf.expected = n, false, time.Time{}
	if ino := n.StableAttr().Ino; !slices.Contains(pf.inos, ino) {
		pf.inos = append(pf.inos, ino)
	}
	return true
}

// forsaken reports whether the open that the file was made for never came, and
// ends it then.
func (pf *pendingFile) forsaken() bool {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	if pf.expected.IsZero() || time.Since(pf.expected) < comingSoon {
		return false
	}
	pf.gone = true
	return true
}

// comingSoon is how long the kernel may take to look a name up again.
const comingSoon = 5 * time.Second

// letGo ends a hold.
func (pf *pendingFile) letGo() {
	pf.mu.Lock()
	pf.handles--
	pf.mu.Unlock()
	pf.released()
}

// alone reports whether nobody but the caller has the file open.
func (pf *pendingFile) alone() bool {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	return pf.handles == 1
}

// close is what a program's close(2) means: what was written since the last
// commit is pushed, and the answer is the remote's. FUSE's FLUSH comes also
// when a duplicate of the descriptor is closed, with more to be written
// through others; then nothing is done yet, and the rest is owed: a later close
// does it, or released.
func (pf *pendingFile) close(ctx context.Context, n *fileNode, exiting bool) error {
	pf.mu.Lock()
	staged, ref, gone := pf.staged, pf.ref, pf.gone
	pf.mu.Unlock()
	if staged == nil || gone || ref.IsZero() || !staged.Dirty() || staged.Size() == 0 {
		pf.learn()
		return nil
	}
	if err := staged.Complete(ctx); err != nil {
		switch {
		case pf.heldElsewhere():
			pf.mu.Lock()
			pf.owed = pf.owed || !exiting
			pf.mu.Unlock()
			return nil
		case catalog.Truncated(err):
			return pf.refuse(ref, err, exiting)
		case exiting:
			// Nobody closed it: its writer was ended, perhaps half-way, and
			// no header tells whether this is all.
			return pf.unsure(ref, err)
		}
		pf.tree.log.Warn("pushing a file that is no image of a known kind", "path", pf.path(), "why", err)
	}
	img, err := staged.Commit(ctx)
	switch {
	case err != nil && pf.unlinked() && ctx.Err() == nil:
		return nil // there is nothing to push any more
	case err != nil:
		return err
	}
	b := briefOf(n.cl, img)
	n.mu.Lock()
	n.brief = b
	n.mu.Unlock()
	return pf.took(ctx, img)
}

// unsure is for a file of no known kind whose last writer was ended: it is kept
// and not pushed. That is an error where a close was answered before.
func (pf *pendingFile) unsure(ref backends.Ref, err error) error {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	if !pf.owed {
		return nil
	}
	pf.owed = false
	return &backends.Error{Op: "push", Client: pf.cl.Name, Ref: ref,
		Err: fmt.Errorf("its last writer ended without closing it, and nothing tells whether it is whole (%w, %w)", err, syscall.EINVAL), Hint: keptHint}
}

const keptHint = "the bytes are kept; sregfs status shows where"

// released lets go of a file that nobody has open any more.
func (pf *pendingFile) released() {
	pf.learn()
	if pf.pushLater() {
		return
	}
	pf.mu.Lock()
	if pf.handles > 0 || pf.late {
		pf.mu.Unlock()
		return
	}
	staged, pushed, gone, node, temp := pf.staged, pf.pushed, pf.gone, pf.node, pf.ref.IsZero()
	dir, name, ref, owed, refused := pf.dir, pf.name, pf.ref, pf.owed, pf.refused
	switch {
	case gone:
	case staged == nil && pf.base == nil, staged != nil && temp:
		// An empty new file stays in sight until it is written to or removed,
		// and a temporary one until it is renamed.
		pf.mu.Unlock()
		return
	}
	pf.gone, pf.staged = true, nil
	pf.mu.Unlock()
	defer pf.end()
	pf.tree.pending.drop(pf.cl, dir, name, pf)
	if node != nil {
		node.mu.Lock()
		if node.pf == pf && (pushed != nil || pf.base != nil) && !pf.unlinked() {
			node.pf = nil
		}
		node.mu.Unlock()
	}
	if pushed == nil {
		pf.tree.changed(pf.cl)(index.Diff{Changed: []index.Place{{Dir: dir, File: name}}})
	}
	if staged == nil {
		return
	}
	if !gone && staged.Dirty() {
		switch err := staged.Complete(context.Background()); {
		case !catalog.Truncated(err):
		case owed:
			// Whoever closed it may have done away with where it came from.
			err = &backends.Error{Op: "push", Client: pf.cl.Name, Ref: ref, Err: fmt.Errorf("%w (%w)", err, syscall.EINVAL), Hint: keptHint}
			staged.Fail(err)
			if !refused {
				_ = pf.tree.fail("push", "/"+path.Join(pf.cl.Name, dir, name), err)
			}
		default:
			pf.tree.log.Warn("dropped an incomplete copy", "path", "/"+path.Join(pf.cl.Name, dir, name), "why", err)
			gone = true
		}
	}
	staged.Finish(!gone)
}

// pushLater sees to it that a push goes on whose waiter was interrupted, and
// begins one for what no close has pushed: a whole image, and a file of no known
// kind that was closed as one. Until it has ended the file stays in sight.
func (pf *pendingFile) pushLater() bool {
	pf.mu.Lock()
	staged := pf.staged
	skip := staged == nil || pf.handles > 0 || pf.gone || pf.late || pf.tried || pf.ref.IsZero()
	owed := pf.owed
	pf.mu.Unlock()
	if skip || !staged.Dirty() || staged.Size() == 0 {
		return false
	}
	if !staged.Pushing() {
		if staged.Failed() != nil {
			return false
		}
		if err := staged.Complete(context.Background()); err != nil {
			if !owed || catalog.Truncated(err) {
				return false
			}
			pf.tree.log.Warn("pushing a file that is no image of a known kind", "path", pf.path(), "why", err)
		}
	}
	pf.mu.Lock()
	defer pf.mu.Unlock()
	if pf.handles > 0 || pf.gone || pf.late {
		return true
	}
	pf.late, pf.tried = true, true
	pf.tree.work.Go(func() {
		if _, err := staged.Commit(context.Background()); err != nil {
			_ = pf.tree.fail("push", pf.path(), err)
		}
		pf.mu.Lock()
		pf.late = false
		pf.mu.Unlock()
		pf.released()
	})
	return true
}
