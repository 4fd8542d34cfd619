package fs

import (
	"context"
	"errors"
	"fmt"
	"path"
	"syscall"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/index"
)

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
	if errors.Is(err, cache.ErrNoRoom) {
		return &backends.Error{Op: "push", Client: cl.Name, Ref: ref, Err: err} // which says what to do
	}
	return &backends.Error{Op: "push", Client: cl.Name, Ref: ref, Err: fmt.Errorf("%w (%w)", err, syscall.EINVAL),
		Hint: "copy the whole image again"}
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
	// The look at what was written is short, and what it finds is told even if the
	// kernel says that the caller, who was killed, waits no longer.
	if err := staged.Complete(context.WithoutCancel(ctx)); err != nil {
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
