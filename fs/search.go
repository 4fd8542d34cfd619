package fs

import (
	"context"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/index"
)

// maxFound bounds what one search shows.
const maxFound = 10_000

// searchNode is .search: each name in it is a word to search for.
type searchNode struct {
	fusefs.Inode
	unchanging
	tree *Tree
	cl   *catalog.Client // nil for all clients
}

// foundNode is .search/WORD: symlinks to the images that match.
type foundNode struct {
	fusefs.Inode
	unchanging
	tree *Tree
	cl   *catalog.Client
	word string

	mu     sync.Mutex
	listed map[string]string // what the last listing showed, for the look-ups that follow it
	at     time.Time         // of it
}

// listedFor is how long look-ups believe a listing: ls -l does one for each
// name.
const listedFor = time.Second

// byIDNode is .by-id: symlinks to images by their remote id.
type byIDNode struct {
	fusefs.Inode
	unchanging
	tree *Tree
	cl   *catalog.Client
}

// linkNode is a symlink.
type linkNode struct {
	fusefs.Inode
	tree   *Tree
	ino    uint64
	target string
}

var (
	_ fusefs.NodeLookuper   = (*searchNode)(nil)
	_ fusefs.NodeReaddirer  = (*searchNode)(nil)
	_ fusefs.NodeGetattrer  = (*searchNode)(nil)
	_ fusefs.NodeLookuper   = (*foundNode)(nil)
	_ fusefs.NodeReaddirer  = (*foundNode)(nil)
	_ fusefs.NodeGetattrer  = (*foundNode)(nil)
	_ fusefs.NodeLookuper   = (*byIDNode)(nil)
	_ fusefs.NodeReaddirer  = (*byIDNode)(nil)
	_ fusefs.NodeGetattrer  = (*byIDNode)(nil)
	_ fusefs.NodeReadlinker = (*linkNode)(nil)
	_ fusefs.NodeGetattrer  = (*linkNode)(nil)
)

// place names a search's home for inode numbers.
func place(cl *catalog.Client) string {
	if cl == nil {
		return ""
	}
	return cl.Name
}

func (t *Tree) newSearch(ctx context.Context, parent *fusefs.Inode, cl *catalog.Client, out *fuse.EntryOut) *fusefs.Inode {
	n := &searchNode{tree: t, cl: cl}
	t.attr(&out.Attr, ino(place(cl), searchDir), fuse.S_IFDIR|0o555, t.born)
	return parent.NewInode(ctx, n, fusefs.StableAttr{Mode: fuse.S_IFDIR, Ino: out.Attr.Ino})
}

func (n *searchNode) Getattr(ctx context.Context, f fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.tree.attr(&out.Attr, n.StableAttr().Ino, fuse.S_IFDIR|0o555, n.tree.born)
	return 0
}

func (n *searchNode) Readdir(ctx context.Context) (fusefs.DirStream, syscall.Errno) {
	return fusefs.NewListDirStream(selfAndParent()), 0
}

func (n *searchNode) Lookup(ctx context.Context, word string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	child := &foundNode{tree: n.tree, cl: n.cl, word: word}
	n.tree.attr(&out.Attr, ino(place(n.cl), searchDir, word), fuse.S_IFDIR|0o555, n.tree.born)
	return n.NewInode(ctx, child, fusefs.StableAttr{Mode: fuse.S_IFDIR, Ino: out.Attr.Ino}), 0
}

func (n *foundNode) Getattr(ctx context.Context, f fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.tree.attr(&out.Attr, n.StableAttr().Ino, fuse.S_IFDIR|0o555, n.tree.born)
	return 0
}

// links are the matches, by the names that they have here: the seeds' flat
// form, pusheen-asaurus:red.simg, with the client before it in the root.
func (n *foundNode) links(ctx context.Context) (map[string]string, error) {
	var found []index.Found
	clients := []*catalog.Client{n.cl}
	if n.cl == nil {
		clients = n.tree.cat.Clients()
	}
	for _, cl := range clients {
		f, err := cl.Search(ctx, n.word, maxFound)
		if err != nil {
			return nil, err
		}
		found = append(found, f...)
	}
	links := make(map[string]string, len(found))
	for _, f := range found {
		ref := f.Image.Ref.Latest()
		target := path.Join("..", "..", ref.Dir(), ref.File())
		name := strings.ReplaceAll(path.Join(ref.Dir(), ref.File()), "/", "-")
		if n.cl == nil {
			target = path.Join("..", "..", f.Client, ref.Dir(), ref.File())
			name = f.Client + "-" + name
		}
		if old, ok := links[name]; ok && old != target {
			// a-b/c and a/b-c: the second keeps its slash, encoded.
			name = strings.ReplaceAll(path.Join(f.Client, ref.Dir(), ref.File()), "/", "%2F")
		}
		if len(name) <= backends.MaxName {
			links[name] = target
		}
	}
	return links, nil
}

func (n *foundNode) Readdir(ctx context.Context) (fusefs.DirStream, syscall.Errno) {
	links, err := n.links(ctx)
	if err != nil {
		return nil, n.tree.fail("search for", n.word, err)
	}
	n.mu.Lock()
	n.listed, n.at = links, time.Now()
	n.mu.Unlock()
	list := selfAndParent()
	for _, name := range slices.Sorted(maps.Keys(links)) {
		list = append(list, fuse.DirEntry{Name: name, Mode: fuse.S_IFLNK})
	}
	return fusefs.NewListDirStream(list), 0
}

func (n *foundNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	n.mu.Lock()
	links, fresh := n.listed, time.Since(n.at) < listedFor
	n.mu.Unlock()
	target, ok := links[name]
	if !ok || !fresh {
		var err error
		if links, err = n.links(ctx); err != nil {
			return nil, n.tree.fail("search for", n.word, err)
		}
		target, ok = links[name]
		n.mu.Lock()
		n.listed, n.at = links, time.Now()
		n.mu.Unlock()
	}
	if !ok {
		return nil, syscall.ENOENT
	}
	return n.tree.newLink(ctx, &n.Inode, target, out, place(n.cl), searchDir, n.word, name), 0
}

func (t *Tree) newByID(ctx context.Context, parent *fusefs.Inode, cl *catalog.Client, out *fuse.EntryOut) *fusefs.Inode {
	n := &byIDNode{tree: t, cl: cl}
	t.attr(&out.Attr, ino(cl.Name, byIDDir), fuse.S_IFDIR|0o555, t.born)
	return parent.NewInode(ctx, n, fusefs.StableAttr{Mode: fuse.S_IFDIR, Ino: out.Attr.Ino})
}

func (n *byIDNode) Getattr(ctx context.Context, f fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.tree.attr(&out.Attr, n.StableAttr().Ino, fuse.S_IFDIR|0o555, n.tree.born)
	return 0
}

func (n *byIDNode) Readdir(ctx context.Context) (fusefs.DirStream, syscall.Errno) {
	if err := n.cl.Listed(ctx); err != nil {
		return nil, n.tree.fail("list", "/"+n.cl.Name+"/"+byIDDir, err)
	}
	list := selfAndParent()
	for id, err := range n.tree.cat.Index().IDs(ctx, n.cl.Name) {
		if err != nil {
			return nil, n.tree.fail("list", "/"+n.cl.Name+"/"+byIDDir, err)
		}
		list = append(list, fuse.DirEntry{Name: strings.ReplaceAll(id, "/", "%2F") + backends.Extensions[0], Mode: fuse.S_IFLNK})
	}
	return fusefs.NewListDirStream(list), 0
}

func (n *byIDNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	id, ok := strings.CutSuffix(name, backends.Extensions[0])
	if !ok {
		return nil, syscall.ENOENT
	}
	img, err := n.cl.ByID(ctx, strings.ReplaceAll(id, "%2F", "/"))
	if err != nil {
		return nil, n.tree.fail("look up", "/"+n.cl.Name+"/"+byIDDir+"/"+name, err)
	}
	target := path.Join("..", img.Ref.Dir(), img.Ref.File())
	return n.tree.newLink(ctx, &n.Inode, target, out, n.cl.Name, byIDDir, name), 0
}

func (t *Tree) newLink(ctx context.Context, parent *fusefs.Inode, target string, out *fuse.EntryOut, identity ...string) *fusefs.Inode {
	// The target is part of the identity: the kernel may keep what a link
	// says.
	n := &linkNode{tree: t, ino: ino(append(identity, target)...), target: target}
	n.attr(&out.Attr)
	return parent.NewInode(ctx, n, fusefs.StableAttr{Mode: fuse.S_IFLNK, Ino: n.ino})
}

func (n *linkNode) attr(a *fuse.Attr) {
	n.tree.attr(a, n.ino, fuse.S_IFLNK|0o777, n.tree.born)
	setSize(a, int64(len(n.target)))
}

func (n *linkNode) Getattr(ctx context.Context, f fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	return 0
}

func (n *linkNode) Readlink(ctx context.Context) ([]byte, syscall.Errno) {
	return []byte(n.target), 0
}
