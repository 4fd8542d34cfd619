package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"iter"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
)

func unixTime(ns int64) time.Time { return time.Unix(0, ns) }

// List walks the folder.
func (s *Store) List(ctx context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		fail := func(err error) { yield(backends.Entry{}, s.fail("list", backends.Ref{}, err)) }
		if err := s.alive(); err != nil {
			fail(err)
			return
		}
		// Names with a version, and records, wait for the end: what becomes of
		// them depends on the files beside them.
		later := map[backends.Ref][]found{}
		stopped := false
		err := s.walk(ctx, "", func(dir directory) error {
			if dir.collection && !yield(backends.Entry{Collection: dir.path}, nil) {
				stopped = true
				return errStop
			}
			for _, f := range dir.images {
				if f.ref.Version != "" || f.isRecord() {
					later[f.ref.Latest()] = append(later[f.ref.Latest()], f)
					continue
				}
				if !yield(backends.Entry{Image: s.image(f)}, nil) {
					stopped = true
					return errStop
				}
			}
			return nil
		})
		if stopped {
			return
		}
		if err != nil {
			fail(err)
			return
		}
		for ref, files := range later {
			list, err := s.lookAll(candidates(ref))
			if err != nil {
				fail(err)
				return
			}
			for _, img := range s.resolveBeside(len(list) > 0, files) {
				if !yield(backends.Entry{Image: img}, nil) {
					return
				}
			}
		}
	}
}

// resolveBeside is resolve for files beside which there is one with the bare
// name, or is not.
func (s *Store) resolveBeside(bare bool, files []found) []backends.Image {
	if !bare {
		return s.resolve(files)
	}
	var images []backends.Image
	for _, f := range files {
		if !f.isRecord() {
			images = append(images, s.image(f))
		}
	}
	return images
}

var errStop = errors.New("stop")

// alive fails when the folder itself was deleted: it is then not empty, but
// unknown.
func (s *Store) alive() error {
	info, err := s.root.Stat(".")
	if err != nil {
		return err
	}
	if linkCount(info) == 0 {
		return &backends.Error{Op: "open", Client: s.client,
			Err:  fmt.Errorf("%w: the folder %s was deleted", backends.ErrUnreachable, s.dir),
			Hint: "make it again and mount anew"}
	}
	return nil
}

// directory is one folder below the store's.
type directory struct {
	path       string // "" for the store's own
	collection bool   // it is one, not merely the folder of an image's tags
	images     []found
	dirs       []string // paths
}

// walk calls visit for the directory dir and all below it, each once. A
// directory that goes away meanwhile is no error; one that cannot be read is,
// since the listing would be short.
func (s *Store) walk(ctx context.Context, dir string, visit func(directory) error) error {
	d, err := s.readDir(ctx, dir)
	if errors.Is(err, iofs.ErrNotExist) && dir != "" {
		return nil
	}
	if err != nil {
		return err
	}
	if err := visit(d); err != nil {
		return err
	}
	for _, sub := range d.dirs {
		if err := s.walk(ctx, sub, visit); err != nil {
			return err
		}
	}
	return nil
}

// readDir reads one directory.
func (s *Store) readDir(ctx context.Context, dir string) (directory, error) {
	d := directory{path: dir}
	f, err := s.openDir(dir)
	if err != nil {
		return d, err
	}
	defer f.Close()
	var nested, others int
	for {
		if err := ctx.Err(); err != nil {
			return d, err
		}
		entries, err := f.ReadDir(512)
		for _, e := range entries {
			if !visible(dir, e.Name()) {
				continue
			}
			p := path.Join(dir, e.Name())
			if e.IsDir() {
				d.dirs = append(d.dirs, p)
				others++
				continue
			}
			img, isNested, ok, err := s.look(p)
			if err != nil {
				return d, err
			}
			if !ok {
				continue
			}
			if isNested {
				nested++
			} else {
				others++
			}
			d.images = append(d.images, img)
		}
		if err == io.EOF {
			d.collection = dir != "" && (nested == 0 || others > 0)
			return d, nil
		}
		if err != nil {
			return d, err
		}
	}
}

func (s *Store) openDir(dir string) (*os.File, error) {
	if dir == "" {
		dir = "."
	}
	return s.root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// look finds out which image the file p is. ok is false when it is none: by
// its name, because it is no regular file, because it has gone, or because it
// is a symbolic link out of the folder.
func (s *Store) look(p string) (f found, nested, ok bool, err error) {
	ref, nested, ok := refOf(p)
	recorded := false
	if !ok {
		if ref, recorded = recordRef(p); !recorded {
			return f, false, false, nil
		}
	}
	info, err := s.root.Lstat(p)
	if err == nil && info.Mode()&iofs.ModeSymlink != 0 {
		f.link = true
		if info, err = s.root.Stat(p); err != nil {
			// Dangling, circular, or leading out of the folder.
			s.log.Debug("a link is not followed", "client", s.client, "path", p, "err", err)
			return f, false, false, nil
		}
	}
	if errors.Is(err, iofs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return f, false, false, nil
	}
	if err != nil {
		return f, false, false, err
	}
	if !info.Mode().IsRegular() {
		return f, false, false, nil
	}
	f.path, f.ref, f.stamp = p, ref, stampOf(info)
	if recorded {
		if f.record, err = s.readRecord(p); err != nil || f.record == nil {
			return found{}, false, false, err
		}
	}
	return f, nested, true, nil
}

// lookAll looks at some paths and returns those that are images.
func (s *Store) lookAll(paths []string) (list []found, err error) {
	for _, p := range paths {
		f, _, ok, err := s.look(p)
		if err != nil && !errors.Is(err, unix.ENAMETOOLONG) {
			return nil, err
		}
		if ok {
			list = append(list, f)
		}
	}
	return list, nil
}

// Stat finds the file of ref.
func (s *Store) Stat(ctx context.Context, ref backends.Ref) (backends.Image, error) {
	if err := ctx.Err(); err != nil {
		return backends.Image{}, s.fail("stat", ref, err)
	}
	if err := s.alive(); err != nil {
		return backends.Image{}, s.fail("stat", ref, err)
	}
	img, err := s.find(ctx, ref)
	return img, s.fail("stat", ref, err)
}

// find is Stat without its wrapping.
func (s *Store) find(ctx context.Context, ref backends.Ref) (backends.Image, error) {
	if checkCollection(ref.Collection) != nil {
		return backends.Image{}, iofs.ErrNotExist // what cannot be kept is not here
	}
	bare := ref.Latest()
	list, err := s.lookAll(candidates(bare))
	if err != nil {
		return backends.Image{}, err
	}
	if f := best(list); f != nil && ref.Version == "" {
		return s.image(*f), nil
	}
	if ref.Version != "" {
		for _, f := range list {
			if f.stamp.String() == ref.Version {
				img := s.image(f)
				img.Ref.Version = ref.Version
				return img, nil
			}
		}
	}
	// What is left has its version in its name, which only a look into the
	// directories tells.
	var files []found
	for _, dir := range []string{bare.Collection, path.Join(bare.Collection, bare.Name)} {
		d, err := s.readDir(ctx, dir)
		if errors.Is(err, iofs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
			continue
		}
		if err != nil {
			return backends.Image{}, err
		}
		for _, f := range d.images {
			if f.ref.Latest() == bare && f.ref.Version != "" {
				files = append(files, f)
			}
		}
	}
	if f, _, ok, err := s.look(recordPath(bare)); err != nil && !errors.Is(err, unix.ENAMETOOLONG) {
		return backends.Image{}, err
	} else if ok {
		files = append(files, f)
	}
	for _, img := range s.resolveBeside(ref.Version != "", files) {
		if ref.Version == "" && img.Ref == bare {
			return img, nil
		}
		if ref.Version != "" && (img.Version == ref.Version || img.Revision == ref.Version) {
			img.Ref.Version = ref.Version
			return img, nil
		}
	}
	return backends.Image{}, iofs.ErrNotExist
}
