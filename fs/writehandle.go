package fs

import (
	"context"
	"io"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// writeHandle is an open file that is being written, or read meanwhile.
type writeHandle struct {
	pf   *pendingFile
	n    *fileNode
	name string
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
	h.pf.mu.Lock()
	if h.pf.staged == nil && h.pf.base == nil {
		h.pf.mu.Unlock()
		return fuse.ReadResultData(nil), 0
	}
	err := h.pf.stage(ctx, false)
	staged := h.pf.staged
	h.pf.mu.Unlock()
	if err != nil {
		return nil, h.n.tree.fail("read", h.n.path(), err)
	}
	n, err := staged.ReadAt(dest, off)
	if err != nil && err != io.EOF {
		return nil, h.n.tree.fail("read", h.n.path(), err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (h *writeHandle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	h.pf.mu.Lock()
	err := h.pf.stage(ctx, false)
	staged := h.pf.staged
	h.pf.mu.Unlock()
	if err != nil {
		return 0, h.n.tree.fail("write", h.n.path(), err)
	}
	h.pf.mu.Lock()
	h.pf.refused = false
	h.pf.mu.Unlock()
	n, err := staged.WriteAt(data, off)
	if err != nil {
		return uint32(n), h.n.tree.fail("write", h.n.path(), err)
	}
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
	h.pf.mu.Lock()
	h.pf.handles--
	h.pf.mu.Unlock()
	h.pf.released()
	return 0
}
