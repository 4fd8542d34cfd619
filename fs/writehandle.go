package fs

import (
	"context"
	"io"
	"sync"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregfs/sregfs/fs/catalog"
)

// writeHandle is an open file that is being written, or read meanwhile.
type writeHandle struct {
	pf *pendingFile
	n  *fileNode

	mu   sync.Mutex
	base *catalog.Content // what is read before the first change; nil until then
}

var (
	_ fusefs.FileReader    = (*writeHandle)(nil)
	_ fusefs.FileWriter    = (*writeHandle)(nil)
	_ fusefs.FileFlusher   = (*writeHandle)(nil)
	_ fusefs.FileFsyncer   = (*writeHandle)(nil)
	_ fusefs.FileReleaser  = (*writeHandle)(nil)
	_ fusefs.FileAllocater = (*writeHandle)(nil)
)

func (h *writeHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := h.readAt(ctx, dest, off)
	if err != nil && err != io.EOF {
		return nil, h.n.tree.fail("read", h.n.path(), err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

// readAt reads what was written, and what was there before while nothing was:
// a loop device opens for writing what it will only read.
func (h *writeHandle) readAt(ctx context.Context, dest []byte, off int64) (int, error) {
	h.pf.mu.Lock()
	staged, base := h.pf.staged, h.pf.base
	h.pf.mu.Unlock()
	if staged != nil {
		return staged.ReadAt(dest, off)
	}
	if base == nil {
		return 0, io.EOF
	}
	h.mu.Lock()
	content := h.base
	if content == nil {
		var err error
		if content, err = h.pf.cl.Open(ctx, *base); err != nil {
			h.mu.Unlock()
			return 0, err
		}
		h.base = content
	}
	h.mu.Unlock()
	return content.ReadAt(ctx, dest, off)
}

func (h *writeHandle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	staged, err := h.pf.stage(ctx, false)
	if err != nil {
		return 0, h.n.tree.fail("write", h.n.path(), err)
	}
	n, err := staged.Write(ctx, data, off)
	if err != nil {
		return uint32(n), h.n.tree.fail("write", h.n.path(), err)
	}
	h.pf.mu.Lock()
	h.pf.refused = false
	h.pf.mu.Unlock()
	return uint32(n), 0
}

// Allocate accepts a reservation without a size change (rclone asks for one)
// and refuses the rest.
func (h *writeHandle) Allocate(ctx context.Context, off, size uint64, mode uint32) syscall.Errno {
	const keepSize = 1 // FALLOC_FL_KEEP_SIZE
	if mode != keepSize {
		return syscall.EOPNOTSUPP
	}
	return 0
}

func (h *writeHandle) Flush(ctx context.Context) syscall.Errno {
	ctx, stop := patient(ctx, caller(ctx))
	defer stop()
	return h.n.tree.fail("push", h.pf.path(), h.pf.close(ctx, h.n, exiting(caller(ctx))))
}

// Fsync promises that the bytes are safe: on the remote when they are a whole
// image, else on this disk.
func (h *writeHandle) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	h.pf.mu.Lock()
	staged, temp := h.pf.staged, h.pf.ref.IsZero()
	h.pf.mu.Unlock()
	if staged == nil {
		return 0
	}
	if !temp && staged.Complete(ctx) == nil {
		return h.Flush(ctx)
	}
	return h.n.tree.fail("sync", h.pf.path(), staged.Sync())
}

func (h *writeHandle) Release(ctx context.Context) syscall.Errno {
	defer h.n.letGo(&h.n.direct)
	h.pf.letGo()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.base != nil {
		return h.n.tree.fail("close", h.n.path(), h.base.Close())
	}
	return 0
}
