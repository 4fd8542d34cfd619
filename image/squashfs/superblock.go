package squashfs

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"time"
)

// SuperblockSize is the number of bytes that ParseSuperblock wants.
const SuperblockSize = 96

// Magic is what a little-endian squashfs begins with.
const Magic = "hsqs"

const (
	metaSize     = 8192 // most bytes of an uncompressed metadata block
	minBlockSize = 4 << 10
	maxBlockSize = 1 << 20
	// none marks a table, and noFragment a fragment, that is not there.
	none       = -1
	noFragment = 0xffffffff
)

// Compressor is the algorithm of all compressed blocks of a file system.
type Compressor uint16

// The compressors of squashfs 4.0.
const (
	Gzip Compressor = 1 + iota
	LZMA
	LZO
	XZ
	LZ4
	Zstd
)

// String is the name that mksquashfs -comp takes.
func (c Compressor) String() string {
	switch c {
	case Gzip:
		return "gzip"
	case LZMA:
		return "lzma"
	case LZO:
		return "lzo"
	case XZ:
		return "xz"
	case LZ4:
		return "lz4"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("compressor %d", uint16(c))
}

// Superblock is a file system's header, of which Inodes is what its maker says
// and not checked. Offsets count from its first byte; a table that is not
// there has -1.
type Superblock struct {
	Inodes     uint32
	Modified   time.Time
	BlockSize  int
	Fragments  uint32
	Compressor Compressor
	// Root is the root directory's inode: the position of its metadata block
	// in the inode table, shifted left by 16, and the offset in that block.
	Root uint64
	// BytesUsed is the file system's size without the padding behind it.
	BytesUsed                                    int64
	InodeTable, DirTable, FragTable, ExportTable int64
	IDTable, XattrTable                          int64
}

// ParseSuperblock reads the superblock at the start of b and checks that it
// does not contradict itself. The error wraps ErrNotSquashfs where b is no
// squashfs 4.0, ErrCorrupt where it is one that cannot be right, and
// io.ErrUnexpectedEOF where b is too short to tell.
func ParseSuperblock(b []byte) (Superblock, error) {
	if len(b) < SuperblockSize {
		return Superblock{}, fmt.Errorf("superblock: %w", io.ErrUnexpectedEOF)
	}
	le := binary.LittleEndian
	if string(b[:4]) != Magic {
		return Superblock{}, ErrNotSquashfs
	}
	if major, minor := le.Uint16(b[28:]), le.Uint16(b[30:]); major != 4 || minor != 0 {
		return Superblock{}, fmt.Errorf("%w 4.0 but %d.%d", ErrNotSquashfs, major, minor)
	}
	off := func(i int) int64 { return int64(le.Uint64(b[i:])) }
	sb := Superblock{
		Inodes:      le.Uint32(b[4:]),
		Modified:    time.Unix(int64(le.Uint32(b[8:])), 0),
		BlockSize:   int(le.Uint32(b[12:])),
		Fragments:   le.Uint32(b[16:]),
		Compressor:  Compressor(le.Uint16(b[20:])),
		Root:        le.Uint64(b[32:]),
		BytesUsed:   off(40),
		IDTable:     off(48),
		XattrTable:  off(56),
		InodeTable:  off(64),
		DirTable:    off(72),
		FragTable:   off(80),
		ExportTable: off(88),
	}
	bad := func(format string, args ...any) (Superblock, error) {
		return Superblock{}, fmt.Errorf("superblock: %w: "+format, append([]any{ErrCorrupt}, args...)...)
	}
	switch bs := sb.BlockSize; {
	case bs < minBlockSize || bs > maxBlockSize || bits.OnesCount(uint(bs)) != 1,
		1<<(le.Uint16(b[22:])&31) != bs:
		return bad("block size %d", bs)
	case sb.BytesUsed < SuperblockSize || sb.BytesUsed > 1<<60:
		return bad("size %d", sb.BytesUsed)
	case sb.InodeTable < SuperblockSize || sb.DirTable < sb.InodeTable || sb.BytesUsed < sb.DirTable:
		return bad("inode table at %d, directory table at %d of %d bytes", sb.InodeTable, sb.DirTable, sb.BytesUsed)
	case sb.Root&0xffff >= metaSize || int64(sb.Root>>16) > sb.DirTable-sb.InodeTable:
		return bad("root inode %#x", sb.Root)
	}
	for _, t := range []int64{sb.IDTable, sb.XattrTable, sb.FragTable, sb.ExportTable} {
		if t != none && (t < SuperblockSize || t > sb.BytesUsed) {
			return bad("table at %d of %d bytes", t, sb.BytesUsed)
		}
	}
	return sb, nil
}
