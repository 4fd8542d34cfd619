package fs

import (
	"context"
	"errors"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/fs/catalog"
)

// fileNode is an image, or a file on its way to become one. A node stands for
// one content: when an image's content changes on the remote, its name leads
// to another node with the same inode number and another generation, so that
// no reader sees a blend.
//
// There is one for every image that ls -l has shown, so it holds little; the
// rest is asked of the catalog when it is needed.
type fileNode struct {
	fusefs.Inode
	tree *Tree
	cl   *catalog.Client

	mu   sync.Mutex
	dir  string
	file string // canonical tree name, or a temporary one
	brief
	pf *pendingFile // what is being written over it
	// cached counts open handles through the kernel's page cache. While there
	// are any, a passthrough open would fail with EIO.
	cached int32
	// direct counts open handles past both. What they read may change its size,
	// so no handle is passed through beside them.
	direct int32
	// passed counts open handles through passthrough. While there are any, the
	// kernel refuses every other kind of open of this inode with EIO. All read
	// the same file, which slot stands for (see passthrough).
	passed int32
	slot   uint32
	// revoked is what cache.Revoked said when the kernel last had none but right
	// pages. More since, and a page may be of bytes that were wrong.
	revoked int64
	counted atomic.Bool // in Tree.nodes
}

// brief is what a listing shows of an image.
type brief struct {
	size     int64
	modified int64  // Unix time in nanoseconds, 0 for unknown
	gen      uint64 // of the content; 0 while nothing is stored under the name
	layered  bool
	readOnly bool
}

func briefOf(cl *catalog.Client, img backends.Image) brief {
	modified := int64(0)
	if t := cl.Modified(img); !t.IsZero() {
		modified = t.UnixNano()
	}
	return brief{
		size: cl.Size(img), modified: modified, gen: generation(cl, img),
		layered: img.Layered, readOnly: img.ReadOnly,
	}
}

// generation tells contents of one name apart.
func generation(cl *catalog.Client, img backends.Image) uint64 {
	return ino(img.ContentKey(cl.Name), img.Revision)
}

var (
	_ fusefs.NodeGetattrer     = (*fileNode)(nil)
	_ fusefs.NodeSetattrer     = (*fileNode)(nil)
	_ fusefs.NodeOpener        = (*fileNode)(nil)
	_ fusefs.NodeStatfser      = (*fileNode)(nil)
	_ fusefs.NodeGetxattrer    = (*fileNode)(nil)
	_ fusefs.NodeListxattrer   = (*fileNode)(nil)
	_ fusefs.NodeSetxattrer    = (*fileNode)(nil)
	_ fusefs.NodeRemovexattrer = (*fileNode)(nil)
)

func (t *Tree) newFile(ctx context.Context, parent *fusefs.Inode, cl *catalog.Client, dir, file string, b brief, out *fuse.EntryOut) *fusefs.Inode {
	id := fusefs.StableAttr{Mode: fuse.S_IFREG, Ino: inoIn(cl, dir, file), Gen: b.gen}
	t.briefAttr(cl, b, &out.Attr, id.Ino)
	out.SetEntryTimeout(t.timeout(cl))
	out.SetAttrTimeout(t.briefTimeout(cl, b))
	// A listing shows again what is known already.
	if old := parent.GetChild(file); old != nil && old.StableAttr() == id {
		return old
	}
	n := &fileNode{tree: t, cl: cl, dir: dir, file: file, brief: b}
	t.nodes.made(n)
	return parent.NewInode(ctx, n, id)
}

// newPending is the node of a file that is being written.
func (t *Tree) newPending(ctx context.Context, parent *fusefs.Inode, pf *pendingFile, out *fuse.EntryOut) *fusefs.Inode {
	dir, name := pf.place()
	n := &fileNode{tree: t, cl: pf.cl, dir: dir, file: name, pf: pf}
	if pf.base != nil {
		n.brief = briefOf(pf.cl, *pf.base)
	}
	n.attr(&out.Attr, pf.ino)
	out.SetEntryTimeout(time.Second)
	out.SetAttrTimeout(unkept)
	return parent.NewInode(ctx, n, fusefs.StableAttr{Mode: fuse.S_IFREG, Ino: pf.ino, Gen: pf.gen})
}

// unkept is the shortest time-out: go-fuse takes 0 for "the default".
const unkept = time.Nanosecond

func (n *fileNode) attrTimeout() time.Duration {
	if n.pf != nil {
		return unkept
	}
	return n.tree.briefTimeout(n.cl, n.brief)
}

func (t *Tree) briefTimeout(cl *catalog.Client, b brief) time.Duration {
	if b.layered {
		return unkept
	}
	return t.timeout(cl)
}

// path is what the user calls the file.
func (n *fileNode) path() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return "/" + path.Join(n.cl.Name, n.dir, n.file)
}

// image asks the catalog for the image that the node stands for. It fails with
// backends.ErrStale when the name means something else by now, and with
// ENODATA while nothing is stored under it.
func (n *fileNode) image(ctx context.Context) (backends.Image, error) {
	n.mu.Lock()
	n.adopt()
	dir, file, gen := n.dir, n.file, n.gen
	n.mu.Unlock()
	ref, _, ok := backends.ParseFile(file)
	if gen == 0 || !ok {
		return backends.Image{}, syscall.ENODATA
	}
	img, err := n.cl.Lookup(ctx, dir, ref)
	if err == nil && generation(n.cl, img) != gen {
		err = &backends.Error{Op: "look up", Client: n.cl.Name, Ref: img.Ref, Err: backends.ErrStale}
	}
	return img, err
}

// adopt makes the node of a file that was being written one of the image that
// was pushed, once that has ended: the kernel may have come by another node
// than the one that did it. It is called with n.mu held.
func (n *fileNode) adopt() {
	if n.pf == nil || !n.pf.ended() || n.pf.unlinked() {
		return
	}
	if img := n.pf.outcome(); img != nil {
		n.dir, n.file = n.pf.place()
		n.brief = briefOf(n.cl, *img)
		n.pf = nil
	}
}

// renamed follows a rename or a push, so that open handles go on.
func (n *fileNode) renamed(dir, file string, img backends.Image) {
	b := briefOf(n.cl, img)
	n.mu.Lock()
	n.adopt()
	n.dir, n.file, n.brief = dir, file, b
	n.mu.Unlock()
}

// attr is called before the node is known to others, or with n.mu held.
func (n *fileNode) attr(a *fuse.Attr, ino uint64) {
	if n.pf != nil {
		// Another node of the file may have been the one that pushed it.
		if img := n.pf.outcome(); img != nil {
			n.brief = briefOf(n.cl, *img)
		}
	}
	if n.pf != nil && n.pf.attr(a) {
		if n.pf.unlinked() {
			a.Nlink = 0
		}
		return
	}
	n.tree.briefAttr(n.cl, n.brief, a, ino)
	if n.pf != nil && n.pf.unlinked() {
		a.Nlink = 0
	}
}

// briefAttr is what stat shows of an image.
func (t *Tree) briefAttr(cl *catalog.Client, b brief, a *fuse.Attr, ino uint64) {
	mode := uint32(fuse.S_IFREG | 0o755)
	if b.readOnly || !cl.Writable() {
		mode = fuse.S_IFREG | 0o555
	}
	// One that nothing is known of has to stay the same, for rsync and others that
	// compare: the epoch.
	t.attr(a, ino, mode, time.Unix(0, b.modified))
	setSize(a, b.size)
}

func (n *fileNode) Getattr(ctx context.Context, f fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f == nil && n.pf != nil && n.gen == 0 && n.pf.absent() {
		return syscall.ENOENT
	}
	n.attr(&out.Attr, n.StableAttr().Ino)
	out.SetTimeout(n.attrTimeout())
	return 0
}

func (n *fileNode) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	n.tree.statfs(ctx, []*catalog.Client{n.cl}, out)
	return 0
}

// Setattr sets size and modification time; owner and mode are accepted and not
// kept, so that cp -p and rsync -a are content.
func (n *fileNode) Setattr(ctx context.Context, f fusefs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if err := n.truncate(ctx, int64(size)); err == errElsewhere {
			return errElsewhere
		} else if err != nil {
			return n.tree.fail("truncate", n.path(), err)
		}
	}
	if mtime, ok := in.GetMTime(); ok {
		if err := n.setModified(ctx, mtime); err != nil {
			return n.tree.fail("set times of", n.path(), err)
		}
	}
	return n.Getattr(ctx, nil, out)
}

func (n *fileNode) setModified(ctx context.Context, t time.Time) error {
	n.mu.Lock()
	pf, stored := n.pf, n.gen != 0
	n.mu.Unlock()
	var img backends.Image
	if pf != nil && !pf.ended() {
		on := pf.setModified(t)
		if on == nil {
			return nil
		}
		img = *on
	} else if !stored {
		return nil
	} else {
		var err error
		if img, err = n.image(ctx); err != nil {
			return err
		}
	}
	if err := n.cl.SetModified(ctx, img, t); err != nil {
		return err
	}
	n.mu.Lock()
	n.modified = t.UnixNano()
	n.mu.Unlock()
	return nil
}

// truncate sets the size of what is being written. Without an open handle,
// as by truncate(2), the result is pushed at once.
func (n *fileNode) truncate(ctx context.Context, size int64) error {
	pf, err := n.write(ctx)
	if err != nil {
		return err
	}
	defer pf.letGo()
	if err := pf.truncate(ctx, size); err != nil {
		return err
	}
	if pf.alone() && size > 0 {
		return pf.close(ctx, n, false)
	}
	return nil
}

// write is edit with a hold on the file.
func (n *fileNode) write(ctx context.Context) (*pendingFile, error) {
	for {
		pf, err := n.edit(ctx)
		if err != nil {
			return nil, err
		}
		if pf.hold(n) {
			return pf, nil
		}
		// It was let go of this very moment; the next one is another.
	}
}

// edit returns the file that is written in place of this image, beginning one
// where there is none.
func (n *fileNode) edit(ctx context.Context) (*pendingFile, error) {
	n.mu.Lock()
	if pf := n.pf; pf != nil && !pf.ended() {
		n.mu.Unlock()
		return pf, nil
	}
	n.mu.Unlock()
	img, err := n.image(ctx)
	if err != nil {
		return nil, err
	}
	if !n.cl.Writable() || img.ReadOnly || img.Ref.Version != "" {
		return nil, &backends.Error{Op: "write", Client: n.cl.Name, Ref: img.Ref, Err: backends.ErrReadOnly}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if pf := n.pf; pf != nil && !pf.ended() {
		return pf, nil
	}
	if n.tree.pending.get(n.cl, n.dir, n.file) != nil {
		return nil, errElsewhere
	}
	pf := n.tree.newPendingFile(n.cl, n.dir, n.file, img.Ref.Latest(), &img)
	if n.passed+n.cached > 0 {
		// Who reads this inode would see its size change.
		pf.expected = time.Now()
		n.tree.pending.put(pf)
		return nil, errElsewhere
	}
	n.tree.pending.put(pf)
	n.pf = pf
	return pf, nil
}

// errElsewhere means that what is written under the name is another inode than
// the one that was asked for, which somebody reads. For ESTALE the kernel looks
// the name up again (LOOKUP_REVAL in fs/namei.c and fs/open.c) and finds that.
const errElsewhere = syscall.ESTALE

func (n *fileNode) Open(ctx context.Context, flags uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	if flags&(syscall.O_WRONLY|syscall.O_RDWR) != 0 {
		pf, err := n.write(ctx)
		switch {
		case err == errElsewhere:
			return nil, 0, errElsewhere
		case err != nil:
			return nil, 0, n.tree.fail("open", n.path(), err)
		}
		// Past the page cache, which would keep what is about to be replaced.
		return n.openDirect(pf)
	}
	n.mu.Lock()
	pf := n.pf
	n.mu.Unlock()
	switch {
	case pf == nil:
	case pf.clean():
		// What the remote has is one version, whatever is written here next.
		pf.letGoSoon(ctx)
	case pf.changed() && pf.hold(n):
		return n.openDirect(pf)
	}
	h, fuseFlags, err := n.openRead(ctx)
	if errors.Is(err, backends.ErrStale) {
		// No failure yet: the kernel looks the name up again, as above.
		n.tree.log.Debug("a changed image is looked up again", "path", n.path())
		return nil, 0, syscall.ESTALE
	}
	if err != nil {
		return nil, 0, n.tree.fail("open", n.path(), err)
	}
	return h, fuseFlags, 0
}

// pass counts a handle in that the kernel serves from f; false when that cannot
// be. It is called with n.mu held.
func (n *fileNode) pass(f *os.File) bool {
	if n.cached+n.direct > 0 {
		return false
	}
	if n.passed == 0 {
		if n.slot = n.tree.pass.hold(f); n.slot == 0 {
			return false
		}
	}
	n.passed++
	return true
}

// letGo counts a handle out.
func (n *fileNode) letGo(count *int32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if *count--; count == &n.passed && n.passed == 0 {
		n.tree.pass.letGo(n.slot)
		n.slot = 0
	}
}

// openDirect makes a handle on what is being written, which pf was held for.
func (n *fileNode) openDirect(pf *pendingFile) (fusefs.FileHandle, uint32, syscall.Errno) {
	n.mu.Lock()
	if n.passed > 0 {
		n.mu.Unlock()
		pf.letGo()
		return nil, 0, errElsewhere
	}
	n.direct++
	n.mu.Unlock()
	return &writeHandle{pf: pf, n: n}, fuse.FOPEN_DIRECT_IO, 0
}
