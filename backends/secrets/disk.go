package secrets

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lockWait is how long a writer waits for another process to finish. A write
// takes milliseconds; whoever holds the lock longer is stopped or stuck.
const lockWait = 10 * time.Second

// lock takes the sidecar lock file at path and returns what frees it. The
// secrets file itself cannot carry the lock, since a write replaces it. The
// lock file stays: removing it would let two processes lock two files.
func lock(path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(lockWait)
	for {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { file.Close() }, nil
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOLCK), errors.Is(err, unix.EOPNOTSUPP):
			// Cluster file systems mounted without locks: the write is still
			// atomic, and two at the same moment are rare.
			slog.Warn("secrets are written without a lock, which this file system does not offer", "file", path)
			return func() { file.Close() }, nil
		case errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(deadline), errors.Is(err, unix.EINTR):
			time.Sleep(5 * time.Millisecond)
		default:
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// replace puts data in place of the file at path: whole or not at all, with
// mode 0600 from its first moment on.
func replace(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".tmp*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if _, err = tmp.Write(data); err != nil {
		return err
	}
	if err = tmp.Sync(); err != nil {
		return err
	}
	if err = tmp.Close(); err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
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

// resolve follows the links at path's end to the file that is to be replaced,
// which need not exist.
func resolve(path string) (string, error) {
	for range 40 {
		target, err := os.Readlink(path)
		if errors.Is(err, iofs.ErrNotExist) || errors.Is(err, unix.EINVAL) {
			return path, nil
		}
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	return "", &iofs.PathError{Op: "readlink", Path: path, Err: unix.ELOOP}
}

// tighten closes the file at path to everybody but its owner.
func tighten(path string) {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o077 == 0 || !info.Mode().IsRegular() {
		return
	}
	was := fmt.Sprintf("%04o", info.Mode().Perm())
	if err := os.Chmod(path, info.Mode().Perm()&0o700); err != nil {
		slog.Warn("secrets can be read by others", "file", path, "mode", was, "err", err)
		return
	}
	slog.Warn("secrets could be read by others, closed to them", "file", path, "mode", was)
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stampOfInfo(info)
}

func stampOfInfo(info iofs.FileInfo) stamp {
	s := stamp{size: info.Size(), mtime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = st.Ino
	}
	return s
}
