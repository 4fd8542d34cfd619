package fs

import (
	"context"
	"io"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/fs/catalog"
)

// readHandle is an open image, one version from open to close.
type readHandle struct {
	n       *fileNode
	img     backends.Image
	content *catalog.Content
	count   *int32 // of n, that it is counted in by the way it is read
}

var (
	_ fusefs.FileReader   = (*readHandle)(nil)
	_ fusefs.FileReleaser = (*readHandle)(nil)
)

// openRead opens the content for reading.
func (n *fileNode) openRead(ctx context.Context) (fusefs.FileHandle, uint32, error) {
	img, err := n.image(ctx)
	if err != nil {
		return nil, 0, err
	}
	if err := n.cl.Revalidate(ctx, img); err != nil {
		// For ESTALE the kernel looks the name up again and opens what it
		// then leads to.
		return nil, 0, err
	}
	content, err := n.cl.Open(ctx, img)
	if err != nil {
		return nil, 0, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if img.Layered {
		// The true size is known only now, and a reader must see it.
		n.size = content.Size()
		n.NotifyContent(-1, 0)
	}
	if n.pf != nil && !n.pf.ended() && n.passed == 0 {
		// The file is open for writing as well, and its size may change under
		// the page cache; this handle's content does not.
		n.direct++
		n.tree.served.Add(1)
		return &readHandle{n, img, content, &n.direct}, fuse.FOPEN_DIRECT_IO, nil
	}
	if f, ok := content.File(); ok && n.pass(f) {
		n.tree.passed.Add(1)
		return &readHandle{n, img, content, &n.passed}, n.slot << slotShift, nil
	}
	if n.passed > 0 {
		// The kernel would refuse it on this inode (EIO); after a rename the
		// name leads to another.
		_ = content.Close()
		return nil, 0, errElsewhere
	}
	var keep uint32
	if c := n.tree.cat.Cache(); c != nil {
		keep = n.keepPages(c.Revoked())
	}
	n.cached++
	n.tree.served.Add(1)
	return &readHandle{n, img, content, &n.cached}, keep, nil
}

// keepPages is the flag for an open through the page cache, which is not counted
// yet: the kernel keeps the pages that it has, unless some may be of bytes that
// were wrong. It is called with n.mu held.
func (n *fileNode) keepPages(revoked int64) uint32 {
	if revoked == n.revoked {
		return fuse.FOPEN_KEEP_CACHE
	}
	if n.cached == 0 {
		n.revoked = revoked
	}
	// Else who has it open since before may have a read under way that brings
	// such bytes after the pages were dropped: the next open drops them again.
	return 0
}

func (h *readHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := h.content.ReadAt(ctx, dest, off)
	if err != nil && err != io.EOF {
		return nil, h.n.tree.fail("read", h.n.path(), err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (h *readHandle) Release(ctx context.Context) syscall.Errno {
	defer h.n.letGo(h.count)
	h.n.cl.Learn(h.img, h.content)
	return h.n.tree.fail("close", h.n.path(), h.content.Close())
}
