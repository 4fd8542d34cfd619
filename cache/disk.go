package cache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// disk is one flat directory of regular files. It exists so that tests can
// fail or "lose power" at any single step; osDisk is the real one.
type disk interface {
	// Open opens a regular file for reading and writing, never through a
	// symbolic link. flag may add os.O_CREATE, os.O_EXCL, os.O_TRUNC.
	Open(name string, flag int) (file, error)
	Rename(from, to string) error
	Remove(name string) error
	// Import renames the file at path, which is outside, to name.
	Import(path, name string) error
	// Export renames the file name to path, which is outside.
	Export(name, path string) error
	Names() ([]string, error)
	// Sync makes creations, renames and removals durable.
	Sync() error
	// Touch sets a file's modification time.
	Touch(name string, t time.Time) error
	Close() error
}

// file is an open file of a disk. ReadAt after Close fails with os.ErrClosed,
// and a Close waits for no reader.
type file interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
	// Sync makes written bytes and the size durable (fdatasync).
	Sync() error
	Stat() (os.FileInfo, error)
	Close() error
	// OS is the file itself, for the kernel to read from.
	OS() *os.File
}

type osDisk struct {
	path string
	dir  *os.File
}

// openDisk opens path, a directory below the cache's own, making it when it is
// missing. A symbolic link in its place is an error.
func openDisk(path string) (*osDisk, error) {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	fd, err := retryEINTR(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &osDisk{path: path, dir: os.NewFile(uintptr(fd), path)}, nil
}

func retryEINTR(f func() (int, error)) (int, error) {
	for {
		fd, err := f()
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func (d *osDisk) fd() int { return int(d.dir.Fd()) }

func (d *osDisk) err(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: filepath.Join(d.path, name), Err: err}
}

func (d *osDisk) Open(name string, flag int) (file, error) {
	// O_NONBLOCK keeps a planted FIFO from blocking the open; regular files
	// ignore it.
	fd, err := retryEINTR(func() (int, error) {
		return unix.Openat(d.fd(), name, flag|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
	})
	if err != nil {
		return nil, d.err("open", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		if err == nil {
			err = fmt.Errorf("not a regular file: %w", os.ErrInvalid)
		}
		return nil, d.err("open", name, err)
	}
	unix.SetNonblock(fd, false)
	return osFile{os.NewFile(uintptr(fd), filepath.Join(d.path, name))}, nil
}

func (d *osDisk) Rename(from, to string) error {
	return d.err("rename", to, unix.Renameat(d.fd(), from, d.fd(), to))
}

func (d *osDisk) Import(path, name string) error {
	return d.err("rename", name, unix.Renameat(unix.AT_FDCWD, path, d.fd(), name))
}

func (d *osDisk) Export(name, path string) error {
	return d.err("rename", name, unix.Renameat(d.fd(), name, unix.AT_FDCWD, path))
}

func (d *osDisk) Remove(name string) error {
	return d.err("remove", name, unix.Unlinkat(d.fd(), name, 0))
}

func (d *osDisk) Names() ([]string, error) {
	if _, err := d.dir.Seek(0, 0); err != nil {
		return nil, err
	}
	return d.dir.Readdirnames(-1)
}

func (d *osDisk) Sync() error { return d.dir.Sync() }

func (d *osDisk) Touch(name string, t time.Time) error {
	ts := []unix.Timespec{unix.NsecToTimespec(t.UnixNano()), unix.NsecToTimespec(t.UnixNano())}
	return d.err("touch", name, unix.UtimesNanoAt(d.fd(), name, ts, unix.AT_SYMLINK_NOFOLLOW))
}

func (d *osDisk) Close() error { return d.dir.Close() }

type osFile struct{ *os.File }

func (f osFile) OS() *os.File { return f.File }

func (f osFile) Sync() error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = c.Control(func(fd uintptr) {
		_, serr = retryEINTR(func() (int, error) { return 0, unix.Fdatasync(int(fd)) })
	})
	if err == nil && serr != nil {
		err = &os.PathError{Op: "fdatasync", Path: f.Name(), Err: serr}
	}
	return err
}

// identity is what tells that a finished file was not touched since: nobody
// can set a file's change time.
type identity struct {
	Inode uint64 `json:"inode"`
	Size  int64  `json:"size"`
	Mtime int64  `json:"mtime_ns"`
	Ctime int64  `json:"ctime_ns"`
}

func identityOf(f file) (identity, error) {
	fi, err := f.Stat()
	if err != nil {
		return identity{}, err
	}
	id := identity{Size: fi.Size(), Mtime: fi.ModTime().UnixNano()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		id.Inode, id.Ctime = st.Ino, st.Ctim.Nano()
	}
	return id, nil
}
