package cache

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Adopt makes a finished file of size bytes, which must be on disk and is
// nobody else's any more, the complete object of that key: by renaming it, or
// copying and removing it when it lies on another file system. It is durable
// when Adopt returns. When Adopt fails, the file is still where it was.
//
// release, unless it is nil, gives back what Reserve holds for the file. Adopt
// calls it when it has charged the bytes itself, so that they need no second
// room, and may have called it when it fails; not when it copies, since then
// they lie on disk twice.
func (c *Cache) Adopt(key, path string, size int64, release func()) error {
	if err := c.adopt(key, path, size, release); err != nil {
		return fmt.Errorf("take %s into the cache as %s: %w", path, key, err)
	}
	return nil
}

func (c *Cache) adopt(key, path string, size int64, release func()) error {
	fd, err := retryEINTR(func() (int, error) { return unix.Open(path, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0) })
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	src := os.NewFile(uintptr(fd), path)
	defer src.Close()
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Size() != size {
		return fmt.Errorf("it has %d bytes, not %d", fi.Size(), size)
	}
	if err := src.Chmod(0o600); err != nil {
		return err
	}
	tmp := tmpPrefix + rand.Text()
	switch err := c.disk.Import(path, tmp); {
	case errors.Is(err, syscall.EXDEV):
		return c.adoptCopy(key, path, src, size)
	case err != nil:
		return err
	}
	charged := size + overhead(size)
	if err = c.chargeInstead(charged, release); err == nil {
		var crc []uint32
		var l *live
		if crc, err = checksums(osFile{src}, size); err == nil {
			l, err = c.install(key, size, tmp, crc, charged, false)
		}
		if err == nil {
			err := l.flush()
			c.letGo(l)
			return err
		}
		c.room.give(charged, false)
	}
	return errors.Join(err, c.disk.Export(tmp, path))
}

// adoptCopy is adopt across file systems.
func (c *Cache) adoptCopy(key, path string, src *os.File, size int64) error {
	w, err := c.Create(c.ctx, key)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, io.NewSectionReader(src, 0, size)); err != nil {
		w.Abort()
		return err
	}
	if err := w.Commit(size); err != nil {
		return err
	}
	o, err := c.Object(Spec{Key: key, Size: size})
	if err != nil {
		return err
	}
	defer o.Close()
	if err := o.l.flush(); err != nil {
		return err
	}
	return os.Remove(path)
}
