package fs

import (
	"context"
	"path"
	"sync"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// dirHandle is one reading of a directory: a snapshot, so that it neither
// misses nor repeats a name while images come and go, and so that ls -l of
// many images looks none of them up singly.
type dirHandle struct {
	n *dirNode

	mu      sync.Mutex
	loaded  bool
	entries []fuse.DirEntry
	images  map[string]brief // by listed name
	pos     int
}

var (
	_ fusefs.FileReaddirenter = (*dirHandle)(nil)
	_ fusefs.FileLookuper     = (*dirHandle)(nil)
	_ fusefs.FileSeekdirer    = (*dirHandle)(nil)
)

// OpendirHandle asks nobody: df and cd open directories that they do not read.
func (n *dirNode) OpendirHandle(ctx context.Context, flags uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	return &dirHandle{n: n}, 0, 0
}

// load takes the snapshot. It is called with h.mu held.
func (h *dirHandle) load(ctx context.Context) error {
	n := h.n
	defer n.acts.begin()()
	h.entries, h.loaded = nil, false
	h.images = map[string]brief{}
	add := func(name string, mode uint32) {
		h.entries = append(h.entries, fuse.DirEntry{Name: name, Mode: mode,
			Ino: ino(n.cl.Name, path.Join(n.dir, name)), Off: uint64(len(h.entries) + 1)})
	}
	add(".", fuse.S_IFDIR)
	add("..", fuse.S_IFDIR)
	dirs, err := n.cl.Collections(ctx, n.dir)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		add(d, fuse.S_IFDIR)
	}
	for img, err := range n.cl.Images(ctx, n.dir) {
		if err != nil {
			return err
		}
		name := img.Ref.Latest().File()
		h.images[name] = briefOf(n.cl, img)
		add(name, fuse.S_IFREG)
	}
	for _, name := range n.tree.pending.names(n.cl, n.dir) {
		if _, listed := h.images[name]; !listed {
			add(name, fuse.S_IFREG)
		}
		delete(h.images, name)
	}
	if len(h.entries) == 2 && n.dir != "" {
		tags, err := n.tags(ctx)
		if err != nil {
			return err
		}
		for _, name := range tags {
			add(name, fuse.S_IFLNK)
		}
	}
	h.loaded = true
	return nil
}

func (h *dirHandle) Readdirent(ctx context.Context) (*fuse.DirEntry, syscall.Errno) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.loaded {
		if err := h.load(ctx); err != nil {
			return nil, h.n.tree.fail("list", h.n.path(""), err)
		}
	}
	if h.pos >= len(h.entries) {
		return nil, 0
	}
	e := &h.entries[h.pos]
	h.pos++
	return e, 0
}

func (h *dirHandle) Seekdir(ctx context.Context, off uint64) syscall.Errno {
	h.mu.Lock()
	defer h.mu.Unlock()
	if off == 0 {
		h.loaded = false // rewinddir(3) shows the directory as it is now
	} else if off > uint64(len(h.entries)) {
		return syscall.EINVAL
	}
	h.pos = int(off)
	return 0
}

// Lookup serves READDIRPLUS from the snapshot.
func (h *dirHandle) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	h.mu.Lock()
	b, ok := h.images[name]
	h.mu.Unlock()
	if ok {
		return h.n.tree.newFile(ctx, &h.n.Inode, h.n.cl, h.n.dir, name, b, out), 0
	}
	child, _, errno := h.n.lookup(ctx, name, out)
	return child, errno
}
