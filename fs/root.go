package fs

import (
	"context"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// searchDir is the directory of searches, in the root and in each client.
const searchDir = ".search"

// byIDDir is the directory of images by remote id, in each client.
const byIDDir = ".by-id"

// unchanging is for directories whose entries nobody may remove. Without it go-fuse
// answers that they were, and forgets the names.
type unchanging struct{}

var (
	_ fusefs.NodeRmdirer  = unchanging{}
	_ fusefs.NodeUnlinker = unchanging{}
)

func (unchanging) Rmdir(ctx context.Context, name string) syscall.Errno  { return syscall.EPERM }
func (unchanging) Unlink(ctx context.Context, name string) syscall.Errno { return syscall.EPERM }

// rootNode is the mount point: one directory for each client.
type rootNode struct {
	fusefs.Inode
	noXattrs
	unchanging
	tree *Tree
}

var (
	_ fusefs.NodeLookuper  = (*rootNode)(nil)
	_ fusefs.NodeReaddirer = (*rootNode)(nil)
	_ fusefs.NodeGetattrer = (*rootNode)(nil)
	_ fusefs.NodeStatfser  = (*rootNode)(nil)
	_ fusefs.NodeMkdirer   = (*rootNode)(nil)
	_ fusefs.NodeCreater   = (*rootNode)(nil)
)

func (n *rootNode) Getattr(ctx context.Context, f fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.tree.attr(&out.Attr, 1, fuse.S_IFDIR|0o755, n.tree.born)
	return 0
}

func (n *rootNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	t := n.tree
	if name == searchDir {
		return t.newSearch(ctx, &n.Inode, nil, out), 0
	}
	if cl := t.cat.Client(name); cl != nil {
		return t.newDir(ctx, &n.Inode, cl, "", out), 0
	}
	if target, ok := t.opts.Aliases[name]; ok && t.cat.Client(target) != nil {
		return t.newLink(ctx, &n.Inode, target, out, name), 0
	}
	return nil, syscall.ENOENT
}

func (n *rootNode) Readdir(ctx context.Context) (fusefs.DirStream, syscall.Errno) {
	list := selfAndParent()
	for _, cl := range n.tree.cat.Clients() {
		list = append(list, fuse.DirEntry{Name: cl.Name, Mode: fuse.S_IFDIR, Ino: ino(cl.Name)})
	}
	return fusefs.NewListDirStream(list), 0
}

// Mkdir and Create are refused: what stands here are clients.

func (n *rootNode) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	if n.tree.cat.Client(name) != nil {
		return nil, syscall.EEXIST
	}
	return nil, syscall.EPERM
}

func (n *rootNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fusefs.Inode, fusefs.FileHandle, uint32, syscall.Errno) {
	return nil, nil, 0, syscall.EPERM
}

func (n *rootNode) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	n.tree.statfs(ctx, n.tree.cat.Clients(), out)
	return 0
}

// selfAndParent begins a listing; the kernel adds neither.
func selfAndParent() []fuse.DirEntry {
	return []fuse.DirEntry{{Name: ".", Mode: fuse.S_IFDIR}, {Name: "..", Mode: fuse.S_IFDIR}}
}
