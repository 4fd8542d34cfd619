package squashfs

import (
	"encoding/binary"
	"fmt"
	iofs "io/fs"
	"time"
)

// The types of inodes. The extended ones are larger by extended.
const (
	typeDir = 1 + iota
	typeFile
	typeSymlink
	typeBlock
	typeChar
	typeFifo
	typeSocket
	extended = 7
)

// maxTarget is Linux's PATH_MAX, the longest target that can be followed.
const maxTarget = 4096

// inode is what an inode says. Which of the groups below are set depends on
// its type.
type inode struct {
	mode   iofs.FileMode
	mtime  time.Time
	number uint32
	size   int64 // of the content; of the listing, of the target

	// A directory: where its listing is, and its index.
	dirBlock uint32
	dirOff   uint16
	index    cursor
	indexes  int

	// A file: where its first block is, its tail in a fragment, and the list
	// of its blocks' sizes.
	start   int64
	frag    uint32
	fragOff uint32
	sizes   cursor

	// A symbolic link.
	target string
}

// modeOf is the type's part of a mode.
func modeOf(typ uint16) (iofs.FileMode, bool) {
	if typ > extended {
		typ -= extended
	}
	switch typ {
	case typeDir:
		return iofs.ModeDir, true
	case typeFile:
		return 0, true
	case typeSymlink:
		return iofs.ModeSymlink, true
	case typeBlock:
		return iofs.ModeDevice, true
	case typeChar:
		return iofs.ModeDevice | iofs.ModeCharDevice, true
	case typeFifo:
		return iofs.ModeNamedPipe, true
	case typeSocket:
		return iofs.ModeSocket, true
	}
	return 0, false
}

// inode reads the inode that ref refers to, in the way of Superblock.Root.
func (f *FS) inode(ref uint64) (*inode, error) {
	c := cursor{fs: f, pos: f.sb.InodeTable + int64(ref>>16), off: int(ref & 0xffff)}
	ino, err := f.readInode(&c)
	if err != nil {
		return nil, fmt.Errorf("inode %#x: %w", ref, err)
	}
	return ino, nil
}

func (f *FS) readInode(c *cursor) (*inode, error) {
	le := binary.LittleEndian
	var b [40]byte // the longest fixed part
	if err := c.read(b[:16]); err != nil {
		return nil, err
	}
	typ := le.Uint16(b[0:])
	mode, ok := modeOf(typ)
	if !ok {
		return nil, fmt.Errorf("%w: inode of type %d", ErrCorrupt, typ)
	}
	perm := le.Uint16(b[2:])
	mode |= iofs.FileMode(perm & 0o777)
	for bit, m := range map[uint16]iofs.FileMode{
		0o4000: iofs.ModeSetuid, 0o2000: iofs.ModeSetgid, 0o1000: iofs.ModeSticky,
	} {
		if perm&bit != 0 {
			mode |= m
		}
	}
	ino := &inode{
		mode:   mode,
		mtime:  time.Unix(int64(le.Uint32(b[8:])), 0),
		number: le.Uint32(b[12:]),
	}
	fixed := func(n int) error { return c.read(b[:n]) }
	switch typ {
	case typeDir:
		if err := fixed(16); err != nil {
			return nil, err
		}
		ino.dirBlock = le.Uint32(b[0:])
		ino.size = int64(le.Uint16(b[8:]))
		ino.dirOff = le.Uint16(b[10:])
	case typeDir + extended:
		if err := fixed(24); err != nil {
			return nil, err
		}
		ino.size = int64(le.Uint32(b[4:]))
		ino.dirBlock = le.Uint32(b[8:])
		ino.indexes = int(le.Uint16(b[16:]))
		ino.dirOff = le.Uint16(b[18:])
		ino.index = *c
	case typeFile:
		if err := fixed(16); err != nil {
			return nil, err
		}
		ino.start = int64(le.Uint32(b[0:]))
		ino.frag, ino.fragOff = le.Uint32(b[4:]), le.Uint32(b[8:])
		ino.size = int64(le.Uint32(b[12:]))
		ino.sizes = *c
	case typeFile + extended:
		if err := fixed(40); err != nil {
			return nil, err
		}
		ino.start = int64(le.Uint64(b[0:]))
		ino.size = int64(le.Uint64(b[8:]))
		ino.frag, ino.fragOff = le.Uint32(b[28:]), le.Uint32(b[32:])
		ino.sizes = *c
	case typeSymlink, typeSymlink + extended:
		if err := fixed(8); err != nil {
			return nil, err
		}
		n := le.Uint32(b[4:])
		if n > maxTarget {
			return nil, fmt.Errorf("link to a name of %d bytes: %w", n, ErrTooLarge)
		}
		target := make([]byte, n)
		if err := c.read(target); err != nil {
			return nil, err
		}
		ino.size, ino.target = int64(n), string(target)
	}
	if ino.mode.IsDir() {
		// The listing's size counts three bytes for "." and "..", which are
		// not in it.
		ino.size = max(0, ino.size-3)
	}
	if ino.size < 0 || ino.start < 0 {
		return nil, fmt.Errorf("%w: file of %d bytes at %d", ErrCorrupt, ino.size, ino.start)
	}
	return ino, nil
}
