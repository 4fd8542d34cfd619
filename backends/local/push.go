package local

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	iofs "io/fs"
	"os"
	"path"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
)

// Begin prepares a push. Nothing is sent ahead: the folder is as near as the
// place where the content comes from.
func (s *Store) Begin(ctx context.Context, ref backends.Ref, _ string) (backends.Upload, error) {
	if err := ctx.Err(); err != nil {
		return nil, s.fail("push", ref, err)
	}
	if err := s.CheckName(ref); err != nil {
		return nil, err
	}
	return &upload{s, ref}, nil
}

// CheckName is backends.Namer's.
func (s *Store) CheckName(ref backends.Ref) error {
	_, err := pathOf(ref)
	return s.fail("push", ref, err)
}

type upload struct {
	store *Store
	ref   backends.Ref
}

func (u *upload) PartSize() int64                                { return 0 }
func (u *upload) Parallel() int                                  { return 1 }
func (u *upload) Sent() int64                                    { return 0 }
func (u *upload) State() string                                  { return "" }
func (u *upload) Part(context.Context, int64, io.ReaderAt) error { return errors.ErrUnsupported }
func (u *upload) Abort(context.Context) error                    { return nil }

// Commit copies to a temporary file, checks it, and gives it its name.
func (u *upload) Commit(ctx context.Context, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
	img, err := u.store.push(ctx, u.ref, r, size, c)
	return img, u.store.fail("push", u.ref, err)
}

func (s *Store) push(ctx context.Context, ref backends.Ref, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
	if err := ctx.Err(); err != nil {
		return backends.Image{}, err
	}
	tmp, err := s.createTemp()
	if err != nil {
		return backends.Image{}, err
	}
	placed := false
	defer func() {
		tmp.file.Close()
		if !placed {
			s.root.Remove(tmp.path)
		}
	}()
	sum, err := copyTo(ctx, tmp.file, r, size, c.MD5 != "")
	if err != nil {
		return backends.Image{}, err
	}
	if sum != c.MD5 {
		return backends.Image{}, fmt.Errorf("%w: what was copied has the MD5 %s, not %s", backends.ErrCorrupt, sum, c.MD5)
	}
	if !c.Modified.IsZero() {
		t := unix.NsecToTimeval(c.Modified.UnixNano())
		if err := unix.Futimes(int(tmp.file.Fd()), []unix.Timeval{t, t}); err != nil {
			return backends.Image{}, err
		}
	}
	if err := tmp.file.Sync(); err != nil {
		return backends.Image{}, err
	}

	unlock, err := s.exclusive(ctx)
	if err != nil {
		return backends.Image{}, err
	}
	defer unlock()
	p, now, err := s.destination(ctx, ref)
	if err != nil {
		return backends.Image{}, err
	}
	if now != nil && (c.Replaces == nil || c.Replaces.Key != now.Key || c.Replaces.Revision != now.Revision) {
		// Somebody else was first. If that was with the same content, all is
		// well: a push whose answer was lost is tried again that way.
		if same, err := s.holds(ctx, *now, size, c.MD5); err != nil || !same {
			return backends.Image{}, errors.Join(backends.ErrStale, err)
		}
		return *now, nil
	}
	if err := s.makeDirs(path.Dir(p)); err != nil {
		return backends.Image{}, err
	}
	if err := s.root.Rename(tmp.path, p); err != nil {
		return backends.Image{}, err
	}
	placed = true
	if err := errors.Join(s.syncDir(path.Dir(p)), s.dropRecord(ref)); err != nil {
		return backends.Image{}, err
	}
	info, err := tmp.file.Stat() // of the file, whatever its name is by now
	if err != nil {
		return backends.Image{}, err
	}
	got, _, _ := refOf(p)
	return s.image(found{path: p, ref: got, stamp: stampOf(info)}), nil
}

// destination is the path for an image that is to be named ref, and the image
// that it replaces, nil for none. A file keeps the name that it has, so that
// one image never becomes two.
func (s *Store) destination(ctx context.Context, ref backends.Ref) (string, *backends.Image, error) {
	p, err := pathOf(ref)
	if err != nil {
		return "", nil, err
	}
	now, err := s.find(ctx, ref)
	if errors.Is(err, iofs.ErrNotExist) {
		return p, nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	have, _, isFile := refOf(pathOfKey(now.Key))
	switch {
	case !isFile:
		return p, &now, nil // a record, which the file is to replace
	case have.Version != ref.Version:
		// A file that names its version keeps it; the new one stands beside it.
		return p, nil, nil
	}
	return pathOfKey(now.Key), &now, nil
}

// dropRecord removes the record that a file has replaced.
func (s *Store) dropRecord(ref backends.Ref) error {
	if _, _, ok, err := s.look(recordPath(ref)); err != nil || !ok || ref.Version != "" {
		return nil // it gives way to the file anyhow
	}
	if err := s.root.Remove(recordPath(ref)); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	return nil
}

// holds reports whether img is a file of that size and MD5.
func (s *Store) holds(ctx context.Context, img backends.Image, size int64, sum string) (bool, error) {
	if _, isRecord := recordRef(pathOfKey(img.Key)); isRecord || sum == "" || img.Size != size {
		return false, nil
	}
	rc, err := s.OpenRange(ctx, img, 0, -1)
	if err != nil {
		return false, err
	}
	defer rc.Close()
	h := md5.New()
	if _, err := io.Copy(h, rc); err != nil {
		return false, err
	}
	return hex.EncodeToString(h.Sum(nil)) == sum, nil
}

// makeDirs makes the directory dir and those above it, for good.
func (s *Store) makeDirs(dir string) error {
	if dir == "." || dir == "" {
		return nil
	}
	if info, err := s.root.Lstat(dir); err == nil {
		if info.IsDir() {
			return nil
		}
		// What lies behind a link is not listed, so nothing is put there.
		return fmt.Errorf("%w: %s is no folder", backends.ErrInvalidName, dir)
	}
	if err := s.makeDirs(path.Dir(dir)); err != nil {
		return err
	}
	if err := s.root.Mkdir(dir, 0o755); err != nil && !errors.Is(err, iofs.ErrExist) {
		return err
	}
	return s.syncDir(path.Dir(dir))
}

func (s *Store) syncDir(dir string) error {
	if dir == "" {
		dir = "."
	}
	d, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// Some network file systems refuse to sync a directory.
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return nil
}

// copyChunk is how much is copied between two looks at the context.
const copyChunk = 8 << 20

// copyTo copies size bytes of r to the empty file dst, and returns their MD5 as
// dst has them when that is asked for.
func copyTo(ctx context.Context, dst *os.File, r io.ReaderAt, size int64, summed bool) (string, error) {
	if size > 0 {
		// Room first: better now than after gigabytes. Where this is not
		// offered, the writing tells.
		if err := unix.Fallocate(int(dst.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size); errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return "", err
		}
	}
	// The sum follows the copying at its heels, on another core, and reads
	// what it finds in the page cache.
	g, ctx := errgroup.WithContext(ctx)
	copied := make(chan int64, 64)
	g.Go(func() error {
		defer close(copied)
		return copyChunks(ctx, dst, r, size, copied)
	})
	h := md5.New()
	g.Go(func() error {
		var done int64
		for upTo := range copied {
			if summed {
				if _, err := io.Copy(h, io.NewSectionReader(dst, done, upTo-done)); err != nil {
					return err
				}
			}
			done = upTo
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return "", err
	}
	info, err := dst.Stat()
	if err != nil {
		return "", err
	}
	if info.Size() != size {
		return "", fmt.Errorf("%w: %d bytes were copied, not %d", io.ErrUnexpectedEOF, info.Size(), size)
	}
	if !summed {
		return "", nil
	}
	return sumOf(h), nil
}

func sumOf(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// copyChunks copies, in the kernel where r is a file, which shares blocks where
// the file system can. It tells copied how far it has come.
func copyChunks(ctx context.Context, dst *os.File, r io.ReaderAt, size int64, copied chan<- int64) error {
	src, isFile := r.(*os.File)
	var buf []byte
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(copyChunk, size-off)
		if isFile {
			k, err := copyRange(dst, src, off, n)
			if err == nil && k == 0 {
				return fmt.Errorf("%w: the content ends after %d of %d bytes", io.ErrUnexpectedEOF, off, size)
			}
			if err == nil {
				off += k
				send(ctx, copied, off)
				continue
			}
			if !cannotCopyRange(err) {
				return err
			}
			isFile = false
		}
		if buf == nil {
			buf = make([]byte, min(copyChunk, size))
		}
		k, err := r.ReadAt(buf[:n], off)
		if int64(k) < n {
			if err == io.EOF {
				err = fmt.Errorf("%w: the content ends after %d of %d bytes", io.ErrUnexpectedEOF, off+int64(k), size)
			}
			return err
		}
		if _, err := dst.WriteAt(buf[:n], off); err != nil {
			return err
		}
		off += n
		send(ctx, copied, off)
	}
	return nil
}

func send(ctx context.Context, ch chan<- int64, v int64) {
	select {
	case ch <- v:
	case <-ctx.Done():
	}
}

// copyRange is copy_file_range(2), which leaves both files' offsets alone: the
// source is shared with others.
func copyRange(dst, src *os.File, off, n int64) (int64, error) {
	in, out := off, off
	for {
		k, err := unix.CopyFileRange(int(src.Fd()), &in, int(dst.Fd()), &out, int(n), 0)
		if !errors.Is(err, unix.EINTR) {
			return int64(k), err
		}
	}
}

func cannotCopyRange(err error) bool {
	for _, e := range []error{unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.EPERM, unix.EBADF, unix.EIO, unix.ETXTBSY} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
