package fs

import (
	"context"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/fs/catalog"
)

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

func (pf *pendingFile) lastNode() *fileNode {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	return pf.node
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
