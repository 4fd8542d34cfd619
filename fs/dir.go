package fs

import (
	"context"
	"errors"
	iofs "io/fs"
	"path"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/fs/catalog"
)

// dirNode is a client's directory, where dir is empty, or a collection.
type dirNode struct {
	fusefs.Inode
	noXattrs
	tree *Tree
	cl   *catalog.Client
	dir  string // its path below the client, in the tree's names
	acts acts
}

var (
	_ fusefs.NodeLookuper       = (*dirNode)(nil)
	_ fusefs.NodeOpendirHandler = (*dirNode)(nil)
	_ fusefs.NodeGetattrer      = (*dirNode)(nil)
	_ fusefs.NodeSetattrer      = (*dirNode)(nil)
	_ fusefs.NodeStatfser       = (*dirNode)(nil)
	_ fusefs.NodeMkdirer        = (*dirNode)(nil)
	_ fusefs.NodeRmdirer        = (*dirNode)(nil)
	_ fusefs.NodeUnlinker       = (*dirNode)(nil)
	_ fusefs.NodeRenamer        = (*dirNode)(nil)
	_ fusefs.NodeCreater        = (*dirNode)(nil)
	_ fusefs.NodeFsyncer        = (*dirNode)(nil)
	_ fusefs.NodeGetxattrer     = (*dirNode)(nil)
	_ fusefs.NodeSetxattrer     = (*dirNode)(nil)
	_ fusefs.NodeRemovexattrer  = (*dirNode)(nil)
)

func (t *Tree) newDir(ctx context.Context, parent *fusefs.Inode, cl *catalog.Client, dir string, out *fuse.EntryOut) *fusefs.Inode {
	n := &dirNode{tree: t, cl: cl, dir: dir}
	n.attr(&out.Attr)
	out.SetEntryTimeout(t.timeout(cl))
	out.SetAttrTimeout(t.timeout(cl))
	return parent.NewInode(ctx, n, fusefs.StableAttr{Mode: fuse.S_IFDIR, Ino: out.Attr.Ino})
}

func (n *dirNode) attr(a *fuse.Attr) {
	n.tree.attr(a, ino(n.cl.Name, n.dir), n.tree.dirMode(n.cl), n.cl.Listing().At)
	a.Nlink = 2
}

// path is what the user calls name in this directory.
func (n *dirNode) path(name string) string { return "/" + path.Join(n.cl.Name, n.dir, name) }

func (n *dirNode) Getattr(ctx context.Context, f fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	return 0
}

// Setattr accepts times and modes, which directories here do not keep.
func (n *dirNode) Setattr(ctx context.Context, f fusefs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	return 0
}

// Fsync has nothing to do: what was answered is on the remote.
func (n *dirNode) Fsync(ctx context.Context, f fusefs.FileHandle, flags uint32) syscall.Errno {
	return 0
}

func (n *dirNode) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	n.tree.statfs(ctx, []*catalog.Client{n.cl}, out)
	return 0
}

func (n *dirNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	defer n.acts.begin()()
	child, img, errno := n.lookup(ctx, name, out)
	if img != nil {
		n.cl.Seen(*img)
	}
	return child, errno
}

// lookup finds what name is: a file being written, an image, its record, a
// collection. img is set for an image.
func (n *dirNode) lookup(ctx context.Context, name string, out *fuse.EntryOut) (child *fusefs.Inode, img *backends.Image, errno syscall.Errno) {
	t := n.tree
	if n.dir == "" {
		switch name {
		case searchDir:
			return t.newSearch(ctx, &n.Inode, n.cl, out), nil, 0
		case byIDDir:
			return t.newByID(ctx, &n.Inode, n.cl, out), nil, 0
		}
	}
	ref, sidecar, isImage := backends.ParseFile(name)
	key := name
	if isImage && !sidecar {
		key = ref.File()
	}
	if pf := t.pending.get(n.cl, n.dir, key); pf != nil && !pf.absent() {
		return t.newPending(ctx, &n.Inode, pf, out), nil, 0
	}
	if isImage {
		switch found, err := n.cl.Lookup(ctx, n.dir, ref); {
		case err == nil && sidecar:
			return t.newSidecar(ctx, &n.Inode, n.cl, found, out), nil, 0
		case err == nil:
			return t.newFile(ctx, &n.Inode, n.cl, n.dir, ref.File(), briefOf(n.cl, found), out), &found, 0
		default:
			return nil, nil, t.fail("look up", n.path(name), err)
		}
	}
	if temporary(name) {
		return nil, nil, syscall.ENOENT
	}
	actual, ok, err := n.cl.Directory(ctx, path.Join(n.dir, name))
	switch {
	case err != nil:
		return nil, nil, t.fail("look up", n.path(name), err)
	case ok:
		return t.newDir(ctx, &n.Inode, n.cl, actual, out), nil, 0
	}
	child, errno = n.lookupTag(ctx, name, out)
	return child, nil, errno
}

func (n *dirNode) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	ctx, stop := patient(ctx, caller(ctx))
	defer stop()
	defer n.acts.begin()()
	// A name that would be shown in another spelling is refused too: whoever
	// made it would not find it.
	canonical := backends.CollectionPath(backends.ParseCollection(name)) == name
	if _, _, isImage := backends.ParseFile(name); isImage || !canonical || temporary(name) || n.dir == "" && (name == searchDir || name == byIDDir) {
		return nil, n.tree.fail("make collection", n.path(name), &backends.Error{Op: "name", Err: backends.ErrInvalidName,
			Hint: "a collection's name does not begin with a dot or end like an image's"})
	}
	dir := path.Join(n.dir, name)
	if _, ok, err := n.cl.Directory(ctx, dir); err == nil && ok {
		return nil, syscall.EEXIST
	}
	if err := n.cl.MakeCollection(ctx, dir); err != nil {
		return nil, n.tree.fail("make collection", n.path(name), err)
	}
	return n.tree.newDir(ctx, &n.Inode, n.cl, dir, out), 0
}

func (n *dirNode) Rmdir(ctx context.Context, name string) syscall.Errno {
	ctx, stop := patient(ctx, caller(ctx))
	defer stop()
	defer n.acts.begin()()
	dir := path.Join(n.dir, name)
	if n.tree.pending.any(n.cl, dir) {
		return syscall.ENOTEMPTY
	}
	if err := n.cl.RemoveCollection(ctx, dir); err != nil {
		return n.tree.fail("remove collection", n.path(name), err)
	}
	return 0
}

func (n *dirNode) Unlink(ctx context.Context, name string) syscall.Errno {
	ctx, stop := patient(ctx, caller(ctx))
	defer stop()
	defer n.acts.begin()()
	ref, sidecar, isImage := backends.ParseFile(name)
	key := name
	if isImage && !sidecar {
		key = ref.File()
	}
	pf := n.tree.pending.get(n.cl, n.dir, key)
	if pf != nil && !pf.stored() {
		if err := pf.unlink(ctx); err != nil || !pf.stored() {
			return n.tree.fail("remove", n.path(name), err)
		}
		pf = nil // its push was over before it could be stopped
	}
	switch {
	case sidecar:
		// A record has no life of its own: rm of a folder's content passes by.
		return syscall.EPERM
	case !isImage:
		return syscall.ENOENT
	}
	img, err := n.cl.Lookup(ctx, n.dir, ref)
	if err == nil {
		err = n.cl.Remove(ctx, img)
	}
	if pf != nil && (err == nil || errors.Is(err, iofs.ErrNotExist)) {
		err = pf.unlink(ctx)
	}
	if errors.Is(err, errors.ErrUnsupported) {
		_ = n.tree.fail("remove", n.path(name), err)
		return syscall.EPERM
	}
	return n.tree.fail("remove", n.path(name), err)
}

// Rename pushes a file that was written under a temporary name, or renames an
// image on the remote.
func (n *dirNode) Rename(ctx context.Context, name string, newParent fusefs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	to, ok := newParent.(*dirNode)
	if !ok || flags&^unixRenameNoreplace != 0 {
		return syscall.EINVAL
	}
	ctx, stop := patient(ctx, caller(ctx))
	defer stop()
	defer n.acts.begin()()
	if to != n {
		defer to.acts.begin()()
	}
	if to.cl != n.cl {
		return syscall.EXDEV
	}
	if err := n.rename(ctx, name, to, newName, flags&unixRenameNoreplace != 0); err != nil {
		return n.tree.fail("rename", n.path(name)+" to "+to.path(newName), err)
	}
	return 0
}

const unixRenameNoreplace = 1 // RENAME_NOREPLACE of renameat2(2)

func (n *dirNode) rename(ctx context.Context, name string, to *dirNode, newName string, noReplace bool) error {
	t := n.tree
	ref, sidecar, isImage := backends.ParseFile(name)
	key := name
	if isImage && !sidecar {
		key = ref.File()
	}
	pf := t.pending.get(n.cl, n.dir, key)
	if pf != nil {
		// Where the remote has it already, the remote renames it.
		if err := pf.settled(ctx); err != nil {
			return err
		}
	}
	fresh := pf != nil && !pf.stored()
	if fresh && temporary(newName) {
		return pf.move(ctx, to.dir, newName)
	}
	if pf == nil && !isImage {
		if _, ok, err := n.cl.Directory(ctx, path.Join(n.dir, name)); err != nil || ok {
			// mv then copies what is in it, image by image.
			return errors.Join(err, syscall.EXDEV)
		}
		return iofs.ErrNotExist
	}
	if sidecar {
		return syscall.EPERM
	}
	target, err := imageName(to.dir, newName)
	if err == nil {
		err = n.cl.CheckName(target)
	}
	if err != nil {
		return err
	}
	replaced := t.pending.get(n.cl, to.dir, target.File())
	if noReplace {
		if replaced != nil && !replaced.absent() {
			return iofs.ErrExist
		}
		switch _, err := n.cl.Lookup(ctx, to.dir, target); {
		case err == nil:
			return iofs.ErrExist
		case !errors.Is(err, iofs.ErrNotExist):
			return err
		}
	}
	if fresh {
		return pf.commitAs(ctx, to.dir, target)
	}
	img, err := n.cl.Lookup(ctx, n.dir, ref)
	if err != nil {
		return err
	}
	moved, err := n.cl.Rename(ctx, img, target)
	if err != nil {
		return err
	}
	if child := n.GetChild(name); child != nil {
		if f, ok := child.Operations().(*fileNode); ok {
			f.renamed(to.dir, target.File(), moved)
		}
	}
	if replaced != nil && replaced != pf {
		if err := replaced.unlink(ctx); err != nil {
			return err
		}
	}
	if pf != nil {
		return pf.follow(ctx, to.dir, moved)
	}
	return nil
}

func (n *dirNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fusefs.Inode, fusefs.FileHandle, uint32, syscall.Errno) {
	defer n.acts.begin()()
	t := n.tree
	if ref, sidecar, ok := backends.ParseFile(name); ok && sidecar {
		return n.createSidecar(ctx, ref, name, out)
	}
	key := name
	var ref backends.Ref
	if !temporary(name) {
		var err error
		if ref, err = imageName(n.dir, name); err != nil {
			return nil, nil, 0, t.fail("create", n.path(name), err)
		}
		key = ref.File()
	}
	if !n.cl.Writable() {
		return nil, nil, 0, syscall.EROFS
	}
	if !ref.IsZero() {
		if err := n.cl.CheckName(ref); err != nil {
			return nil, nil, 0, t.fail("create", n.path(name), err)
		}
	}
	pf := t.newPendingFile(n.cl, n.dir, key, ref, nil)
	t.pending.put(pf)
	node := t.newPending(ctx, &n.Inode, pf, out)
	f := node.Operations().(*fileNode)
	pf.hold(f)
	h, fuseFlags, errno := f.openDirect(pf)
	return node, h, fuseFlags, errno
}
