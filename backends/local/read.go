package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
)

// OpenRange reads from the file. It pins the file, not its name: a file that is
// replaced or deleted meanwhile goes on being read, one that is written to
// gives ErrStale.
func (s *Store) OpenRange(ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error) {
	if off < 0 {
		return nil, s.fail("read", img.Ref, fmt.Errorf("negative offset %d", off))
	}
	if _, ok := recordRef(pathOfKey(img.Key)); ok {
		rc, err := s.openRecorded(ctx, img, off, n)
		return rc, s.fail("read", img.Ref, err)
	}
	f, st, err := s.open(ctx, img)
	if err != nil {
		return nil, s.fail("read", img.Ref, err)
	}
	off = min(off, st.size)
	if n < 0 || n > st.size-off {
		n = st.size - off
	}
	return &reader{store: s, ctx: ctx, img: img, file: f, pinned: st, off: off, end: off + n}, nil
}

// LocalFile opens the file itself. Who reads it must look out for changes that
// other programs make to it in place. An image that is here as a record has no
// file: errors.ErrUnsupported.
func (s *Store) LocalFile(ctx context.Context, img backends.Image) (*os.File, error) {
	if _, ok := recordRef(pathOfKey(img.Key)); ok {
		return nil, s.fail("open", img.Ref, errors.ErrUnsupported)
	}
	f, _, err := s.open(ctx, img)
	return f, s.fail("open", img.Ref, err)
}

// open opens the file of img, if it still is in the state that img tells of.
func (s *Store) open(ctx context.Context, img backends.Image) (*os.File, stamp, error) {
	if err := ctx.Err(); err != nil {
		return nil, stamp{}, err
	}
	p := pathOfKey(img.Key)
	if p == "" {
		now, err := s.find(ctx, img.Ref)
		if errors.Is(err, iofs.ErrNotExist) {
			err = backends.ErrStale
		}
		if err != nil {
			return nil, stamp{}, err
		}
		p = pathOfKey(now.Key)
	}
	// Something else than a file may have taken the name: a pipe would block.
	f, err := s.root.OpenFile(p, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, iofs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		err = backends.ErrStale
	}
	if err != nil {
		return nil, stamp{}, err
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || stampOf(info).String() != img.Revision) {
		err = backends.ErrStale
	}
	if err != nil {
		f.Close()
		return nil, stamp{}, err
	}
	return f, stampOf(info), nil
}

type reader struct {
	store    *Store
	ctx      context.Context
	img      backends.Image
	file     *os.File
	pinned   stamp
	off, end int64
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, r.store.fail("read", r.img.Ref, err)
	}
	if r.off >= r.end {
		return 0, io.EOF
	}
	n, err := r.file.ReadAt(p[:min(int64(len(p)), r.end-r.off)], r.off)
	// Looked at after the reading, so that no byte is given out that was
	// written after the version which is read.
	info, statErr := r.file.Stat()
	if statErr == nil && !stampOf(info).sameContent(r.pinned) {
		statErr = backends.ErrStale
	}
	if statErr != nil {
		return 0, r.store.fail("read", r.img.Ref, statErr)
	}
	r.off += int64(n)
	if n > 0 {
		return n, nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // the size says that there is more
	}
	return 0, r.store.fail("read", r.img.Ref, err)
}

// Close closes the file.
func (r *reader) Close() error { return r.file.Close() }

func linkCount(info iofs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Nlink)
	}
	return 1
}
