package squashfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	iofs "io/fs"
	"strings"
)

const (
	// maxName is the longest name of squashfs.
	maxName = 256
	// maxEntries bounds what is returned of one directory.
	maxEntries = 1 << 20
)

// dirent is one entry of a directory.
type dirent struct {
	name string
	mode iofs.FileMode // its type
	ref  uint64        // its inode
}

// scan gives the entries of dir to visit in the directory's order, from the
// last indexed run that does not begin behind from ("" for all), until visit
// returns false.
func (f *FS) scan(dir *inode, from string, visit func(dirent) bool) error {
	c := cursor{fs: f, pos: f.sb.DirTable + int64(dir.dirBlock), off: int(dir.dirOff)}
	left := dir.size
	if from != "" && dir.indexes > 0 {
		var err error
		if left, err = f.jump(&c, dir, from); err != nil {
			return err
		}
	}
	le := binary.LittleEndian
	buf := make([]byte, 12+maxName)
	for left > 0 {
		head := buf[:12]
		if err := c.read(head); err != nil {
			return err
		}
		left -= int64(len(head))
		count := le.Uint32(head[0:])
		if count >= 256 {
			return fmt.Errorf("%w: directory run of %d entries", ErrCorrupt, count)
		}
		block := uint64(le.Uint32(head[4:])) << 16
		for range count + 1 {
			if err := c.read(buf[:8]); err != nil {
				return err
			}
			offset, typ, n := le.Uint16(buf[0:]), le.Uint16(buf[4:]), int(le.Uint16(buf[6:]))+1
			if n > maxName {
				return fmt.Errorf("%w: name of %d bytes", ErrCorrupt, n)
			}
			name := buf[8 : 8+n]
			if err := c.read(name); err != nil {
				return err
			}
			if left -= int64(8 + n); left < 0 {
				return fmt.Errorf("%w: directory runs over its end", ErrCorrupt)
			}
			mode, ok := modeOf(typ)
			if !ok || !validName(name) {
				return fmt.Errorf("%w: directory entry %.64q of type %d", ErrCorrupt, name, typ)
			}
			if !visit(dirent{name: string(name), mode: mode, ref: block | uint64(offset)}) {
				return nil
			}
		}
	}
	return nil
}

// validName keeps out names that are no single step of a path.
func validName(name []byte) bool {
	s := string(name)
	return s != "." && s != ".." && !bytes.ContainsAny(name, "/\x00")
}

// jump moves c, which is at the start of dir's listing, to the last indexed
// run that does not begin behind name, and returns how much is left from there.
func (f *FS) jump(c *cursor, dir *inode, name string) (int64, error) {
	le := binary.LittleEndian
	index := dir.index
	start, skipped := *c, int64(0)
	buf := make([]byte, 12+maxName)
	for range dir.indexes {
		if err := index.read(buf[:12]); err != nil {
			return 0, err
		}
		at, block, n := int64(le.Uint32(buf[0:])), int64(le.Uint32(buf[4:])), int64(le.Uint32(buf[8:]))+1
		if n > maxName || at > dir.size {
			return 0, fmt.Errorf("%w: directory index of %d bytes at %d", ErrCorrupt, n, at)
		}
		first := buf[12 : 12+n]
		if err := index.read(first); err != nil {
			return 0, err
		}
		if string(first) > name {
			break
		}
		// The listing is contiguous, so its offset in the new block follows
		// from the distance: blocks are full but for the last one.
		skipped = at
		start = cursor{fs: f, pos: f.sb.DirTable + block, off: int((int64(dir.dirOff) + at) % metaSize)}
	}
	*c = start
	return dir.size - skipped, nil
}

// lookup finds name in dir. A name that is not there is fs.ErrNotExist. Every
// entry that it looks at is taken from budget.
func (f *FS) lookup(dir *inode, name string, budget *int) (dirent, error) {
	var found dirent
	err := f.scan(dir, name, func(e dirent) bool {
		if *budget--; *budget < 0 {
			return false
		}
		if e.name == name {
			found = e
		}
		// Directories are sorted; the kernel relies on the first byte alone,
		// and so may a writer.
		return found.name == "" && e.name[0] <= name[0]
	})
	switch {
	case err != nil:
	case *budget < 0:
		err = fmt.Errorf("directories on the way: %w", ErrTooLarge)
	case found.name == "":
		err = iofs.ErrNotExist
	}
	return found, err
}

const (
	// maxLinks is how many symbolic links Linux follows for one path.
	maxLinks = 40
	// maxScanned bounds the directory entries that are looked at for one path:
	// links of a thousand steps through a large directory, forty times over,
	// would go on for hours.
	maxScanned = 4 << 20
)

// resolve walks to name from the root. follow says whether a symbolic link at
// the end is followed too.
func (f *FS) resolve(name string, follow bool) (*inode, error) {
	root, err := f.inode(f.sb.Root)
	if err != nil {
		return nil, err
	}
	if !root.mode.IsDir() {
		return nil, fmt.Errorf("%w: the root is no directory", ErrCorrupt)
	}
	trail := []*inode{root} // from the root to where we are
	rest := strings.Split(name, "/")
	links, budget := 0, maxScanned
	for len(rest) > 0 {
		step := rest[0]
		rest = rest[1:]
		here := trail[len(trail)-1]
		if !here.mode.IsDir() {
			return nil, fmt.Errorf("%w: not a directory on the way", iofs.ErrNotExist)
		}
		switch step {
		case "", ".":
			continue
		case "..":
			trail = trail[:max(1, len(trail)-1)]
			continue
		}
		e, err := f.lookup(here, step, &budget)
		if err != nil {
			return nil, err
		}
		next, err := f.inode(e.ref)
		if err != nil {
			return nil, err
		}
		if next.mode.Type() != iofs.ModeSymlink || len(rest) == 0 && !follow {
			trail = append(trail, next)
			continue
		}
		if links++; links > maxLinks {
			return nil, fmt.Errorf("%w: more than %d symbolic links", iofs.ErrInvalid, maxLinks)
		}
		if strings.HasPrefix(next.target, "/") {
			trail = trail[:1]
		}
		rest = append(strings.Split(next.target, "/"), rest...)
	}
	return trail[len(trail)-1], nil
}
