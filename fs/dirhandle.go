package fs

import (
	"context"
	"slices"
	"strings"
	"sync"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// dirHandle is one reading of a directory: a snapshot of its names, so that it
// neither misses nor repeats one while images come and go. What else ls -l
// shows of them is read as it gets there, many at once, so that none is looked
// up singly, names alone (ls, find) need nothing but names, and little is held
// of a directory of very many.
type dirHandle struct {
	n *dirNode

	mu     sync.Mutex
	loaded bool
	parts  [4]part // of the snapshot, in the order in which they are read
	pos    int
	entry  fuse.DirEntry // the last one that was given

	page page
}

// part is the names of one kind in a directory.
type part struct {
	mode  uint32
	names []string
}

// The parts of a snapshot.
const (
	partDirs = iota
	partImages
	partPending
	partTags
)

// page is what is known of the images of some names of a directory.
type page struct {
	first, last string // the names that it covers
	briefs      map[string]brief
}

// pageSize is how many images are read at once.
const pageSize = 500

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
	h.loaded, h.parts, h.page = false, [4]part{}, page{}
	dirs, err := n.cl.Collections(ctx, n.dir)
	if err != nil {
		return err
	}
	images, err := n.cl.Names(ctx, n.dir)
	if err != nil {
		return err
	}
	pending := slices.DeleteFunc(n.tree.pending.names(n.cl, n.dir), func(name string) bool {
		_, listed := slices.BinarySearch(images, name)
		return listed || n.cl.FoldsCase() && slices.ContainsFunc(images, func(image string) bool { return strings.EqualFold(image, name) })
	})
	h.parts[partDirs] = part{fuse.S_IFDIR, append([]string{".", ".."}, dirs...)}
	h.parts[partImages] = part{fuse.S_IFREG, images}
	h.parts[partPending] = part{fuse.S_IFREG, pending}
	if len(dirs)+len(images)+len(pending) == 0 && n.dir != "" {
		tags, err := n.tags(ctx)
		if err != nil {
			return err
		}
		h.parts[partTags] = part{fuse.S_IFLNK, tags}
	}
	h.loaded = true
	return nil
}

// at is the name at a place of the snapshot, with its kind, or "" at the end.
func (h *dirHandle) at(pos int) (name string, mode uint32) {
	for _, p := range h.parts {
		if pos < len(p.names) {
			return p.names[pos], p.mode
		}
		pos -= len(p.names)
	}
	return "", 0
}

func (h *dirHandle) Readdirent(ctx context.Context) (*fuse.DirEntry, syscall.Errno) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.loaded {
		if err := h.load(ctx); err != nil {
			return nil, h.n.tree.fail("list", h.n.path(""), err)
		}
	}
	name, mode := h.at(h.pos)
	if name == "" {
		return nil, 0
	}
	h.pos++
	h.entry = fuse.DirEntry{
		// A copy: the tree may keep it much longer than its neighbours, whose
		// memory it shares.
		Name: strings.Clone(name), Mode: mode, Off: uint64(h.pos),
		Ino: inoIn(h.n.cl, h.n.dir, name),
	}
	return &h.entry, 0
}

func (h *dirHandle) Seekdir(ctx context.Context, off uint64) syscall.Errno {
	h.mu.Lock()
	defer h.mu.Unlock()
	if off == 0 {
		h.loaded = false // rewinddir(3) shows the directory as it is now
	} else if name, _ := h.at(int(off) - 1); name == "" {
		return syscall.EINVAL
	}
	h.pos = int(off)
	return 0
}

// Lookup serves READDIRPLUS.
func (h *dirHandle) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	n := h.n
	n.acts.touch()
	if b, ok := h.brief(ctx, name); ok && n.tree.pending.get(n.cl, n.dir, name) == nil {
		return n.tree.newFile(ctx, &n.Inode, n.cl, n.dir, name, b, out), 0
	}
	child, _, errno := n.lookup(ctx, name, out)
	return child, errno
}

// brief is what is to be shown of an image in the snapshot, from the page that
// holds its name. It is false for what is no image, or none any more.
func (h *dirHandle) brief(ctx context.Context, name string) (b brief, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.page.briefs == nil || name < h.page.first || name > h.page.last {
		images := h.parts[partImages].names
		i, listed := slices.BinarySearch(images, name)
		if !listed {
			return b, false
		}
		// An error is the single look-up's to report.
		if err := h.turn(ctx, images[i:min(i+pageSize, len(images))]); err != nil {
			return b, false
		}
	}
	b, ok = h.page.briefs[name]
	return b, ok
}

// turn reads the page of the given names. It is called with h.mu held.
func (h *dirHandle) turn(ctx context.Context, names []string) error {
	n := h.n
	defer n.acts.begin()()
	n.tree.nodes.saw(n)
	h.page = page{first: names[0], last: names[len(names)-1]}
	briefs := make(map[string]brief, len(names))
	for img, err := range n.cl.ImagesFrom(ctx, n.dir, h.page.first, len(names)+1) {
		if err != nil {
			return err
		}
		name := img.Ref.Latest().File()
		if name <= h.page.last {
			briefs[name] = briefOf(n.cl, img)
		}
		if name >= h.page.last {
			break
		}
	}
	h.page.briefs = briefs
	return nil
}
