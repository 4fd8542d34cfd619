package fs

import (
	"bytes"
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

// sidecarNode is IMAGE:TAG.json, an image's record. It is found by name and
// not listed, so that copying a folder copies images alone.
type sidecarNode struct {
	fusefs.Inode
	noXattrs
	tree *Tree
	cl   *catalog.Client
	img  backends.Image
	ino  uint64
}

var (
	_ fusefs.NodeGetattrer = (*sidecarNode)(nil)
	_ fusefs.NodeOpener    = (*sidecarNode)(nil)
	_ fusefs.NodeSetattrer = (*sidecarNode)(nil)
)

// sidecarGuess is a record's size before it has ever been made.
const sidecarGuess = 4096

// recordCache remembers the last records' sizes, for stat.
type recordCache struct {
	mu    sync.Mutex
	sizes map[uint64]int64 // by inode number
}

func (c *recordCache) init() { c.sizes = map[uint64]int64{} }

func (c *recordCache) size(ino uint64) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.sizes[ino]; ok {
		return s
	}
	return sidecarGuess
}

func (c *recordCache) set(ino uint64, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.sizes) > 10_000 {
		clear(c.sizes)
	}
	c.sizes[ino] = size
}

func (t *Tree) newSidecar(ctx context.Context, parent *fusefs.Inode, cl *catalog.Client, img backends.Image, out *fuse.EntryOut) *fusefs.Inode {
	n := &sidecarNode{tree: t, cl: cl, img: img,
		ino: ino(cl.Name, img.Ref.Dir(), img.Ref.Sidecar(), img.ContentKey(cl.Name), img.Revision)}
	n.attr(&out.Attr)
	out.SetAttrTimeout(unkept)
	return parent.NewInode(ctx, n, fusefs.StableAttr{Mode: fuse.S_IFREG, Ino: n.ino})
}

func (n *sidecarNode) path() string {
	return "/" + path.Join(n.cl.Name, n.img.Ref.Dir(), n.img.Ref.Sidecar())
}

func (n *sidecarNode) attr(a *fuse.Attr) {
	n.tree.attr(a, n.ino, fuse.S_IFREG|0o444, n.cl.Modified(n.img))
	setSize(a, n.tree.records.size(n.ino))
}

func (n *sidecarNode) Getattr(ctx context.Context, f fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	if h, ok := f.(*sidecarHandle); ok {
		setSize(&out.Attr, int64(len(h.data)))
	}
	out.SetTimeout(unkept)
	return 0
}

func (n *sidecarNode) Setattr(ctx context.Context, f fusefs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if _, ok := in.GetSize(); ok {
		return syscall.EPERM
	}
	return n.Getattr(ctx, f, out)
}

// Open makes the record: its true size is known from then on, and the kernel
// is told before it asks for a byte.
func (n *sidecarNode) Open(ctx context.Context, flags uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	if flags&(syscall.O_WRONLY|syscall.O_RDWR) != 0 {
		return nil, 0, syscall.EPERM
	}
	data, err := n.cl.Record(ctx, n.img)
	if err != nil {
		return nil, 0, n.tree.fail("inspect", n.path(), err)
	}
	n.tree.records.set(n.ino, int64(len(data)))
	n.NotifyContent(-1, 0)
	return &sidecarHandle{data: data}, fuse.FOPEN_DIRECT_IO, 0
}

// sidecarHandle is an open record.
type sidecarHandle struct{ data []byte }

var _ fusefs.FileReader = (*sidecarHandle)(nil)

func (h *sidecarHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off >= int64(len(h.data)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(h.data[off:min(off+int64(len(dest)), int64(len(h.data)))]), 0
}

// maxSidecar bounds what may be written as a record.
const maxSidecar = 1 << 20

// newRecordNode is a record that is being written: an image that lies at a
// URL, for clients that can keep such a thing.
type newRecordNode struct {
	fusefs.Inode
	noXattrs
	tree *Tree
	cl   *catalog.Client
	ref  backends.Ref
	ino  uint64

	mu    sync.Mutex
	data  []byte
	saved []byte // what was last taken
}

var (
	_ fusefs.NodeGetattrer = (*newRecordNode)(nil)
	_ fusefs.NodeSetattrer = (*newRecordNode)(nil)
	_ fusefs.NodeOpener    = (*newRecordNode)(nil)
	_ fusefs.NodeReader    = (*newRecordNode)(nil)
	_ fusefs.NodeWriter    = (*newRecordNode)(nil)
	_ fusefs.NodeFlusher   = (*newRecordNode)(nil)
)

func (n *dirNode) createSidecar(ctx context.Context, ref backends.Ref, name string, out *fuse.EntryOut) (*fusefs.Inode, fusefs.FileHandle, uint32, syscall.Errno) {
	if !n.cl.Recorder() {
		return nil, nil, 0, n.tree.fail("create", n.path(name), &backends.Error{Op: "record", Client: n.cl.Name,
			Err: backends.ErrInvalidName, Hint: "a record with a url can be written into the local client alone"})
	}
	ref.Collection = backends.ParseCollection(n.dir)
	child := &newRecordNode{tree: n.tree, cl: n.cl, ref: ref,
		ino: ino(n.cl.Name, n.dir, name, time.Now().String())}
	n.tree.attr(&out.Attr, child.ino, fuse.S_IFREG|0o644, time.Now())
	return n.NewInode(ctx, child, fusefs.StableAttr{Mode: fuse.S_IFREG, Ino: child.ino}), nil, fuse.FOPEN_DIRECT_IO, 0
}

// Open shows what the record became to those who read it; the kernel may still
// know its name by this node.
func (n *newRecordNode) Open(ctx context.Context, flags uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	n.mu.Lock()
	taken := n.saved != nil
	n.mu.Unlock()
	if !taken || flags&(syscall.O_WRONLY|syscall.O_RDWR) != 0 {
		return nil, fuse.FOPEN_DIRECT_IO, 0
	}
	img, err := n.cl.Lookup(ctx, n.ref.Dir(), n.ref)
	if err != nil {
		return nil, 0, n.tree.fail("inspect", n.path(), err)
	}
	data, err := n.cl.Record(ctx, img)
	if err != nil {
		return nil, 0, n.tree.fail("inspect", n.path(), err)
	}
	return &sidecarHandle{data: data}, fuse.FOPEN_DIRECT_IO, 0
}

func (n *newRecordNode) path() string {
	return "/" + path.Join(n.cl.Name, n.ref.Dir(), n.ref.Sidecar())
}

func (n *newRecordNode) Getattr(ctx context.Context, f fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tree.attr(&out.Attr, n.ino, fuse.S_IFREG|0o644, time.Now())
	setSize(&out.Attr, int64(len(n.data)))
	return 0
}

func (n *newRecordNode) Setattr(ctx context.Context, f fusefs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		n.mu.Lock()
		switch {
		case size > maxSidecar:
			n.mu.Unlock()
			return syscall.EFBIG
		case size <= uint64(len(n.data)):
			n.data = n.data[:size]
		default:
			n.data = append(n.data, make([]byte, size-uint64(len(n.data)))...)
		}
		n.mu.Unlock()
	}
	return n.Getattr(ctx, f, out)
}

func (n *newRecordNode) Read(ctx context.Context, f fusefs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if h, ok := f.(*sidecarHandle); ok {
		return h.Read(ctx, dest, off)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return (&sidecarHandle{data: bytes.Clone(n.data)}).Read(ctx, dest, off)
}

func (n *newRecordNode) Write(ctx context.Context, f fusefs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	end := off + int64(len(data))
	if end > maxSidecar {
		return 0, syscall.EFBIG
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if grow := end - int64(len(n.data)); grow > 0 {
		n.data = append(n.data, make([]byte, grow)...)
	}
	copy(n.data[off:], data)
	return uint32(len(data)), 0
}

// Flush takes the record when it is whole JSON; a duplicate descriptor's close
// before that is not the end.
func (n *newRecordNode) Flush(ctx context.Context, f fusefs.FileHandle) syscall.Errno {
	n.mu.Lock()
	data := bytes.Clone(n.data)
	same := bytes.Equal(data, n.saved)
	n.mu.Unlock()
	if len(data) == 0 || same {
		return 0
	}
	if err := n.cl.AddRecord(ctx, n.ref, data); err != nil {
		return n.tree.told("record", n.path(), err)
	}
	n.mu.Lock()
	n.saved = data
	n.mu.Unlock()
	return 0
}
