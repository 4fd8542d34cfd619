package local

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
)

// lockFile keeps the processes that change this folder apart.
const lockFile = "lock"

// exclusive lets one change at a time happen between looking at a name and
// taking it, in this process and, where the file system has locks, in all that
// use this store. What other programs do in the folder it cannot hold up.
func (s *Store) exclusive(ctx context.Context) (unlock func(), err error) {
	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	f, err := s.lock(ctx)
	if err != nil {
		<-s.busy
		return nil, err
	}
	return func() { f.Close(); <-s.busy }, nil
}

// lock takes the lock file, which closing it frees.
func (s *Store) lock(ctx context.Context) (*os.File, error) {
	if err := s.root.Mkdir(tempDir, 0o700); err != nil && !errors.Is(err, iofs.ErrExist) {
		return nil, err
	}
	f, err := s.root.OpenFile(path.Join(tempDir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return f, nil // or this file system has no locks
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		}
	}
}

// Remove deletes the file of img.
func (s *Store) Remove(ctx context.Context, img backends.Image) error {
	return s.fail("remove", img.Ref, s.remove(ctx, img))
}

func (s *Store) remove(ctx context.Context, img backends.Image) error {
	unlock, err := s.change(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	p, err := s.present(ctx, img)
	if err != nil {
		return err
	}
	if err := s.root.Remove(p); err != nil {
		return err
	}
	return s.left(p)
}

// change is exclusive for whom ctx has not ended yet.
func (s *Store) change(ctx context.Context) (func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.alive(); err != nil {
		return nil, err
	}
	return s.exclusive(ctx)
}

// present is the path of img's file, which may have another content by now.
func (s *Store) present(ctx context.Context, img backends.Image) (string, error) {
	if img.Key == "" {
		now, err := s.find(ctx, img.Ref)
		return pathOfKey(now.Key), err
	}
	p := pathOfKey(img.Key)
	_, _, isFile := refOf(p)
	if _, isRecord := recordRef(p); !isFile && !isRecord {
		return "", iofs.ErrNotExist
	}
	info, err := s.root.Lstat(p)
	if err == nil && info.IsDir() {
		err = iofs.ErrNotExist
	}
	return p, err
}

// left tidies up after the file p has gone: the folder of an image's tags goes
// with its last tag.
func (s *Store) left(p string) error {
	dir := path.Dir(p)
	if _, nested, _ := refOf(p); nested && s.root.Remove(dir) == nil {
		dir = path.Dir(dir)
	}
	return s.syncDir(dir)
}

// Rename gives the file the name of to. The file keeps its inode, and what is
// open of it stays open.
func (s *Store) Rename(ctx context.Context, img backends.Image, to backends.Ref) (backends.Image, error) {
	now, err := s.rename(ctx, img, to)
	return now, s.fail("rename", img.Ref, err)
}

func (s *Store) rename(ctx context.Context, img backends.Image, to backends.Ref) (backends.Image, error) {
	unlock, err := s.change(ctx)
	if err != nil {
		return backends.Image{}, err
	}
	defer unlock()
	from, err := s.present(ctx, img)
	if err != nil {
		return backends.Image{}, err
	}
	dest, _, err := s.destination(ctx, to)
	if err != nil {
		return backends.Image{}, err
	}
	_, isRecord := recordRef(from)
	if isRecord {
		if dest = recordPath(to); to.Version != "" {
			return backends.Image{}, fmt.Errorf("%w: a record has no version", backends.ErrInvalidName)
		}
	}
	if dest != from {
		if err := s.makeDirs(path.Dir(dest)); err != nil {
			return backends.Image{}, err
		}
		if err := s.root.Rename(from, dest); err != nil {
			return backends.Image{}, err
		}
		// The new name first: a crash between must not lose both.
		if err := errors.Join(s.syncDir(path.Dir(dest)), s.left(from)); err != nil {
			return backends.Image{}, err
		}
	}
	if isRecord {
		// The image's file, if there was one, is what was to be replaced.
		if now, err := s.find(ctx, to); err == nil && pathOfKey(now.Key) != dest {
			if err := s.root.Remove(pathOfKey(now.Key)); err != nil {
				return backends.Image{}, err
			}
		}
	} else if err := s.dropRecord(to); err != nil {
		return backends.Image{}, err
	}
	f, _, ok, err := s.look(dest)
	if err == nil && !ok {
		err = iofs.ErrNotExist
	}
	if err != nil {
		return backends.Image{}, err
	}
	return s.image(f), nil
}

// MakeCollection makes a folder.
func (s *Store) MakeCollection(ctx context.Context, name string) error {
	return s.fail("make collection "+name, backends.Ref{}, s.makeCollection(ctx, name))
}

func (s *Store) makeCollection(ctx context.Context, name string) error {
	if err := checkCollection(name); err != nil || name == "" {
		return errors.Join(err, emptyName(name))
	}
	unlock, err := s.change(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.makeDirs(path.Dir(name)); err != nil {
		return err
	}
	if err := s.root.Mkdir(name, 0o755); err != nil {
		return err
	}
	return s.syncDir(path.Dir(name))
}

func emptyName(name string) error {
	if name != "" {
		return nil
	}
	return fmt.Errorf("%w: it is empty", backends.ErrInvalidName)
}

// RemoveCollection removes a folder that has nothing in it, not even what is
// hidden.
func (s *Store) RemoveCollection(ctx context.Context, name string) error {
	return s.fail("remove collection "+name, backends.Ref{}, s.removeCollection(ctx, name))
}

func (s *Store) removeCollection(ctx context.Context, name string) error {
	if err := checkCollection(name); err != nil || name == "" {
		return iofs.ErrNotExist
	}
	unlock, err := s.change(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	info, err := s.root.Lstat(name)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return iofs.ErrNotExist
	}
	if err := s.root.Remove(name); err != nil {
		return err
	}
	return s.syncDir(path.Dir(name))
}
