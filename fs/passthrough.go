package fs

import (
	"log/slog"
	"os"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// passthrough has the kernel read files of this machine itself, without asking
// the daemon (FUSE passthrough, Linux 6.9; fs/fuse/passthrough.c and iomode.c
// there). It stands between the server and go-fuse's tree of nodes and
// completes the answers to opens.
//
// go-fuse would do that for handles with PassthroughFd. Version 2.12.1 drops an
// inode's file with the release of any handle of the inode, though, passed
// through or not, and after it has told us (Release in its fs/bridge.go): what
// is passed through meanwhile fails with EIO. So the count is kept by the node,
// which knows its handles.
type passthrough struct {
	fuse.RawFileSystem
	kernel backingFiles
	log    *slog.Logger

	mu sync.Mutex
	// off is why the kernel takes no files; nil while it may.
	off error
	// files are the kernel's numbers of the files that are in use, by slot.
	files map[uint32]int32
	last  uint32 // slot that was given out last
}

// backingFiles is what fuse.Server does of it.
type backingFiles interface {
	RegisterBackingFd(*fuse.BackingMap) (int32, syscall.Errno)
	UnregisterBackingFd(id int32) syscall.Errno
}

// A node answers an open with the slot of its file above the flags proper,
// since go-fuse leaves no other way from there to here. The kernel's own
// numbers grow without end and need not fit.
const (
	slotShift = 12
	maxSlot   = 1<<(32-slotShift) - 1
	openFlags = 1<<slotShift - 1
)

func newPassthrough(tree fuse.RawFileSystem, log *slog.Logger) *passthrough {
	return &passthrough{RawFileSystem: tree, log: log, files: map[uint32]int32{}}
}

// Init is called by the server before any request.
func (p *passthrough) Init(s *fuse.Server) {
	p.kernel = s
	p.RawFileSystem.Init(s)
}

// Open is the tree's, with the number of the file that the node named by its
// slot.
func (p *passthrough) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	status := p.RawFileSystem.Open(cancel, in, out)
	if slot := out.OpenFlags >> slotShift; slot != 0 {
		p.mu.Lock()
		out.BackingID = p.files[slot]
		p.mu.Unlock()
		out.OpenFlags = out.OpenFlags&openFlags | fuse.FOPEN_PASSTHROUGH
	}
	return status
}

// hold tells the kernel of a file that it is to read. It returns the slot for
// the node's answers, 0 when the kernel does not take the file; the node lets
// go of a slot when its last handle is released. f may be closed meanwhile.
func (p *passthrough) hold(f *os.File) (slot uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.off != nil || len(p.files) == maxSlot {
		return 0
	}
	id, errno := p.kernel.RegisterBackingFd(&fuse.BackingMap{Fd: int32(f.Fd())})
	switch errno {
	case 0:
	case syscall.EPERM, syscall.ENOTTY, syscall.ELOOP, syscall.EOPNOTSUPP, syscall.EINVAL, syscall.ENOSYS:
		// Not with these rights, this kernel, or the cache on this disk.
		p.off = errno
		p.log.Debug("the kernel reads no files itself (no passthrough)", "error", errno)
		return 0
	default:
		p.log.Debug("the kernel does not take a file", "file", f.Name(), "error", errno)
		return 0
	}
	for p.last = p.last%maxSlot + 1; p.files[p.last] != 0; {
		p.last = p.last%maxSlot + 1
	}
	p.files[p.last] = id
	return p.last
}

// letGo takes the file of a slot back from the kernel.
func (p *passthrough) letGo(slot uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := p.files[slot]
	delete(p.files, slot)
	if errno := p.kernel.UnregisterBackingFd(id); errno != 0 {
		p.log.Warn("the kernel does not give a file back", "error", errno)
	}
}
