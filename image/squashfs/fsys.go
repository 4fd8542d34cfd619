package squashfs

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

var (
	_ iofs.StatFS     = (*FS)(nil)
	_ iofs.ReadDirFS  = (*FS)(nil)
	_ iofs.ReadFileFS = (*FS)(nil)
	_ iofs.ReadLinkFS = (*FS)(nil)
)

// MaxReadFile is the size above which ReadFile refuses.
const MaxReadFile = 64 << 20

// find resolves name for the act op, whose error names both.
func (f *FS) find(op, name string, follow bool) (*inode, error) {
	if !iofs.ValidPath(name) {
		return nil, &iofs.PathError{Op: op, Path: name, Err: iofs.ErrInvalid}
	}
	ino, err := f.resolve(name, follow)
	if err != nil {
		return nil, &iofs.PathError{Op: op, Path: name, Err: plain(err)}
	}
	return ino, nil
}

// plain is err, or the bare fs.ErrNotExist that io/fs's users compare with.
func plain(err error) error {
	if errors.Is(err, iofs.ErrNotExist) {
		return iofs.ErrNotExist
	}
	return err
}

// Open opens a file or a directory. A file is also an io.ReaderAt and an
// io.Seeker; reading devices, pipes and sockets is fs.ErrInvalid. Closing it
// releases nothing and may be left out.
func (f *FS) Open(name string) (iofs.File, error) {
	ino, err := f.find("open", name, true)
	if err != nil {
		return nil, err
	}
	info := info{name: path.Base(name), ino: ino}
	if ino.mode.IsDir() {
		return &openDir{fs: f, info: info, path: name}, nil
	}
	return newFile(f, info, name), nil
}

// Stat describes what name leads to.
func (f *FS) Stat(name string) (iofs.FileInfo, error) {
	ino, err := f.find("stat", name, true)
	if err != nil {
		return nil, err
	}
	return info{name: path.Base(name), ino: ino}, nil
}

// Lstat describes name itself, a symbolic link too.
func (f *FS) Lstat(name string) (iofs.FileInfo, error) {
	ino, err := f.find("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return info{name: path.Base(name), ino: ino}, nil
}

// ReadLink returns a symbolic link's target as it stands there.
func (f *FS) ReadLink(name string) (string, error) {
	ino, err := f.find("readlink", name, false)
	if err != nil {
		return "", err
	}
	if ino.mode.Type() != iofs.ModeSymlink {
		return "", &iofs.PathError{Op: "readlink", Path: name, Err: iofs.ErrInvalid}
	}
	return ino.target, nil
}

// ReadFile returns the content of a file of at most MaxReadFile bytes; a larger
// one is ErrTooLarge. Open has no such limit.
func (f *FS) ReadFile(name string) ([]byte, error) {
	ino, err := f.find("read", name, true)
	if err != nil {
		return nil, err
	}
	if ino.size > MaxReadFile {
		return nil, &iofs.PathError{Op: "read", Path: name, Err: fmt.Errorf("%d bytes: %w", ino.size, ErrTooLarge)}
	}
	// The size is the file's own claim, so memory is taken as bytes come.
	return io.ReadAll(newFile(f, info{name: path.Base(name), ino: ino}, name))
}

// ReadDir returns a directory's entries, sorted by name. One with more than a
// million is ErrTooLarge.
func (f *FS) ReadDir(name string) ([]iofs.DirEntry, error) {
	ino, err := f.find("readdir", name, true)
	if err != nil {
		return nil, err
	}
	return f.readDir(ino, name)
}

func (f *FS) readDir(dir *inode, name string) ([]iofs.DirEntry, error) {
	fail := func(err error) ([]iofs.DirEntry, error) {
		return nil, &iofs.PathError{Op: "readdir", Path: name, Err: err}
	}
	if !dir.mode.IsDir() {
		return fail(fmt.Errorf("not a directory: %w", iofs.ErrInvalid))
	}
	var list []iofs.DirEntry
	err := f.scan(dir, "", func(e dirent) bool {
		list = append(list, entry{fs: f, dirent: e})
		return len(list) <= maxEntries
	})
	if err == nil && len(list) > maxEntries {
		err = fmt.Errorf("more than %d entries: %w", maxEntries, ErrTooLarge)
	}
	if err != nil {
		return fail(err)
	}
	slices.SortFunc(list, func(a, b iofs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, nil
}

// entry is an fs.DirEntry.
type entry struct {
	fs *FS
	dirent
}

func (e entry) Name() string        { return e.name }
func (e entry) IsDir() bool         { return e.mode.IsDir() }
func (e entry) Type() iofs.FileMode { return e.mode.Type() }
func (e entry) String() string      { return iofs.FormatDirEntry(e) }

func (e entry) Info() (iofs.FileInfo, error) {
	ino, err := e.fs.inode(e.ref)
	if err != nil {
		return nil, &iofs.PathError{Op: "stat", Path: e.name, Err: err}
	}
	return info{name: e.name, ino: ino}, nil
}

// info is an fs.FileInfo.
type info struct {
	name string
	ino  *inode
}

func (i info) Name() string        { return i.name }
func (i info) Size() int64         { return i.ino.size }
func (i info) Mode() iofs.FileMode { return i.ino.mode }
func (i info) ModTime() time.Time  { return i.ino.mtime }
func (i info) IsDir() bool         { return i.ino.mode.IsDir() }
func (i info) Sys() any            { return nil }
func (i info) String() string      { return iofs.FormatFileInfo(i) }

// openDir is an fs.ReadDirFile. It lists all at the first ReadDir.
type openDir struct {
	fs   *FS
	info info
	path string
	list []iofs.DirEntry
	read bool
}

func (d *openDir) Stat() (iofs.FileInfo, error) { return d.info, nil }
func (d *openDir) Close() error                 { return nil }

func (d *openDir) Read([]byte) (int, error) {
	return 0, &iofs.PathError{Op: "read", Path: d.path, Err: errors.New("is a directory")}
}

func (d *openDir) ReadDir(n int) ([]iofs.DirEntry, error) {
	if !d.read {
		list, err := d.fs.readDir(d.info.ino, d.path)
		if err != nil {
			return nil, err
		}
		d.list, d.read = list, true
	}
	if n <= 0 || n > len(d.list) {
		if n > 0 && len(d.list) == 0 {
			return nil, io.EOF
		}
		n = len(d.list)
	}
	list := d.list[:n:n]
	d.list = d.list[n:]
	return list, nil
}
