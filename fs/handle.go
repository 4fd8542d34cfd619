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
}

// passHandle is a readHandle whose reads the kernel serves itself from the
// file that holds the content. Only handles that really are passed through may
// have PassthroughFd: while one is open, go-fuse passes every further one
// through that has it.
type passHandle struct {
	readHandle
	fd int
}

var (
	_ fusefs.FileReader          = (*readHandle)(nil)
	_ fusefs.FileReleaser        = (*readHandle)(nil)
	_ fusefs.FilePassthroughFder = (*passHandle)(nil)
)

// PassthroughFd is the file that the kernel reads from.
func (h *passHandle) PassthroughFd() (int, bool) { return h.fd, true }

func (h *passHandle) Release(ctx context.Context) syscall.Errno {
	h.n.mu.Lock()
	h.n.passed--
	h.n.mu.Unlock()
	return h.readHandle.Release(ctx)
}

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
		return &directHandle{readHandle{n, img, content}}, fuse.FOPEN_DIRECT_IO, nil
	}
	if f, ok := content.File(); ok && n.mayPass() {
		n.passed++
		return &passHandle{readHandle{n, img, content}, int(f.Fd())}, 0, nil
	}
	if n.passed > 0 {
		// The kernel would refuse it on this inode (EIO); after a rename the
		// name leads to another.
		_ = content.Close()
		return nil, 0, errElsewhere
	}
	n.cached++
	return &cachedHandle{readHandle{n, img, content}}, n.keepPages(), nil
}

// keepPages is the flag for an open through the page cache: the kernel keeps
// the pages that it has, unless content was found to be corrupt since they may
// have been read. It is called with n.mu held.
func (n *fileNode) keepPages() uint32 {
	c := n.tree.cat.Cache()
	if c == nil {
		return 0
	}
	failures := c.VerifyFailures()
	if failures == n.failures {
		return fuse.FOPEN_KEEP_CACHE
	}
	n.failures = failures
	return 0
}

// directHandle is a readHandle past the page cache.
type directHandle struct{ readHandle }

func (h *directHandle) Release(ctx context.Context) syscall.Errno {
	defer h.n.letGo(&h.n.direct)
	return h.readHandle.Release(ctx)
}

// cachedHandle is a readHandle through the kernel's page cache.
type cachedHandle struct{ readHandle }

func (h *cachedHandle) Release(ctx context.Context) syscall.Errno {
	defer h.n.letGo(&h.n.cached)
	return h.readHandle.Release(ctx)
}

func (h *readHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := h.content.ReadAt(ctx, dest, off)
	if err != nil && err != io.EOF {
		return nil, h.n.tree.fail("read", h.n.path(), err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (h *readHandle) Release(ctx context.Context) syscall.Errno {
	h.n.cl.Learn(h.img, h.content)
	return h.n.tree.fail("close", h.n.path(), h.content.Close())
}
