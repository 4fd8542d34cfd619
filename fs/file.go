package fs

import (
	"context"
	"path"
	"sync"
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
type fileNode struct {
	fusefs.Inode
	tree *Tree
	cl   *catalog.Client

	mu   sync.Mutex
	dir  string
	file string         // canonical tree name, or a temporary one
	img  backends.Image // zero while it is only being written
	pf   *pendingFile   // what is being written over it
	// cached counts open handles through the kernel's page cache. While there
	// are any, a passthrough open would fail with EIO.
	cached int
	// passed counts open handles through passthrough. While there are any, the
	// kernel refuses every other kind of open of this inode with EIO.
	passed int
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

func (t *Tree) newFile(ctx context.Context, parent *fusefs.Inode, cl *catalog.Client, dir, file string, img backends.Image, out *fuse.EntryOut) *fusefs.Inode {
	n := &fileNode{tree: t, cl: cl, dir: dir, file: file, img: img}
	n.attr(&out.Attr)
	out.SetEntryTimeout(t.timeout(cl))
	out.SetAttrTimeout(n.attrTimeout())
	return parent.NewInode(ctx, n, fusefs.StableAttr{
		Mode: fuse.S_IFREG, Ino: out.Attr.Ino,
		Gen: ino(img.ContentKey(cl.Name), img.Revision),
	})
}

// newPending is the node of a file that is being written.
func (t *Tree) newPending(ctx context.Context, parent *fusefs.Inode, pf *pendingFile, out *fuse.EntryOut) *fusefs.Inode {
	dir, name := pf.place()
	n := &fileNode{tree: t, cl: pf.cl, dir: dir, file: name, pf: pf}
	if pf.base != nil {
		n.img = *pf.base
	}
	n.attr(&out.Attr)
	out.SetEntryTimeout(time.Second)
	out.SetAttrTimeout(unkept)
	return parent.NewInode(ctx, n, fusefs.StableAttr{Mode: fuse.S_IFREG, Ino: pf.ino, Gen: pf.gen})
}

// unkept is the shortest time-out: go-fuse takes 0 for "the default".
const unkept = time.Nanosecond

func (n *fileNode) attrTimeout() time.Duration {
	if n.pf != nil || n.img.Layered {
		return unkept
	}
	return n.tree.timeout(n.cl)
}

// path is what the user calls the file.
func (n *fileNode) path() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return "/" + path.Join(n.cl.Name, n.dir, n.file)
}

// image is the stored image, and whether there is one yet.
func (n *fileNode) image() (backends.Image, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.img, n.img.Revision != ""
}

// renamed follows a rename, so that open handles go on.
func (n *fileNode) renamed(dir, file string, img backends.Image) {
	n.mu.Lock()
	n.dir, n.file, n.img = dir, file, img
	n.mu.Unlock()
}

// pushed turns the node of a file that was written into the image's.
func (n *fileNode) pushed(dir, file string, img backends.Image) {
	n.mu.Lock()
	n.dir, n.file, n.img, n.pf = dir, file, img, nil
	n.mu.Unlock()
}

// attr is called before the node is known to others, or with n.mu held.
func (n *fileNode) attr(a *fuse.Attr) {
	if n.pf != nil && n.pf.attr(a) {
		return
	}
	n.tree.attr(a, ino(n.cl.Name, path.Join(n.dir, n.file)), n.tree.fileMode(n.cl, n.img), n.cl.Modified(n.img))
	setSize(a, n.cl.Size(n.img))
}

func (n *fileNode) Getattr(ctx context.Context, f fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f == nil && n.pf != nil && n.img.Revision == "" && n.pf.absent() {
		return syscall.ENOENT
	}
	n.attr(&out.Attr)
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
		if err := n.truncate(ctx, int64(size), f); err != nil {
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
	pf, img := n.pf, n.img
	n.mu.Unlock()
	if pf != nil && pf.setModified(t) {
		return nil
	}
	if img.Revision == "" {
		return nil
	}
	return n.cl.SetModified(ctx, img, t)
}

// truncate sets the size of what is being written. Without an open handle,
// as by truncate(2), the result is pushed at once.
func (n *fileNode) truncate(ctx context.Context, size int64, f fusefs.FileHandle) error {
	pf, err := n.edit()
	if err != nil {
		return err
	}
	if err := pf.truncate(ctx, size); err != nil {
		return err
	}
	if pf.idle() && size > 0 {
		defer pf.released()
		return pf.close(ctx, n, false)
	}
	return nil
}

// edit returns the file that is written in place of this image, beginning one
// where there is none.
func (n *fileNode) edit() (*pendingFile, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pf != nil && !n.pf.ended() {
		return n.pf, nil
	}
	if !n.cl.Writable() || n.img.ReadOnly || n.img.Ref.Version != "" {
		return nil, &backends.Error{Op: "write", Client: n.cl.Name, Ref: n.img.Ref, Err: backends.ErrReadOnly}
	}
	img := n.img
	pf := n.tree.newPendingFile(n.cl, n.dir, n.file, img.Ref.Latest(), &img)
	n.tree.pending.put(pf)
	n.pf = pf
	return pf, nil
}

func (n *fileNode) Open(ctx context.Context, flags uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	if flags&(syscall.O_WRONLY|syscall.O_RDWR) != 0 {
		pf, err := n.edit()
		if err != nil {
			return nil, 0, n.tree.fail("open", n.path(), err)
		}
		n.mu.Lock()
		passed := n.passed
		n.mu.Unlock()
		if passed > 0 {
			// For ESTALE the kernel looks the name up again (open(2) in
			// fs/namei.c, LOOKUP_REVAL). It now leads to the inode of what is
			// written, while this one goes on being read.
			return nil, 0, syscall.ESTALE
		}
		// Past the page cache, which may belong to readers through
		// passthrough, and which would keep what is about to be replaced.
		return pf.open(n, ""), fuse.FOPEN_DIRECT_IO, 0
	}
	n.mu.Lock()
	pf := n.pf
	n.mu.Unlock()
	if pf != nil && pf.changed() {
		return pf.open(n, ""), fuse.FOPEN_DIRECT_IO, 0
	}
	h, fuseFlags, err := n.openRead(ctx)
	if err != nil {
		return nil, 0, n.tree.fail("open", n.path(), err)
	}
	return h, fuseFlags, 0
}
