// Package squash lays out a squashfs 4.0 file system without copying any file
// data: from a tree of inodes whose contents lie elsewhere it computes the
// superblock, the metadata and the map that says which bytes of which source
// stand at which offset. An image can so be served, or written out, before or
// while its data arrive.
//
// It does no I/O, knows nothing of containers or tar archives, and its result
// depends on its input alone: no clock, no library's version. Start at Layout;
// DataWriter prepares a source in the form that Layout expects.
//
// The format is the kernel's (Documentation/filesystems/squashfs.rst and
// fs/squashfs/squashfs_fs.h). Two things are chosen for lazy reading. Metadata
// stand at the end, since the kernel requires each table to end where the next
// begins and the last at bytes_used. And each source's data, each file of 1
// MiB or more, and the metadata begin on a 4 KiB page: a page that holds the
// end of one and the start of the other would make the reader of the second
// wait for the first.
package squash

import (
	"errors"
	"fmt"
)

const (
	// LayoutVersion changes whenever the same tree would give other bytes.
	// It belongs in the key of everything that is kept by content.
	LayoutVersion = 2

	// BlockSize is the size of a data block. The kernel reads small files
	// with 128 KiB nearly three times as fast as with 1 MiB.
	BlockSize = 128 << 10
	// PageSize is what the parts of an image are aligned to at least.
	PageSize = 4096
	// PartSize is what the data of each source, and the metadata, begin on. Who
	// fetches an image in pieces of this size gets the metadata without data,
	// and each source's data without another's.
	PartSize = 32 << 10
	// AlignedFileSize is the size from which on a file begins on a page.
	AlignedFileSize = 1 << 20
	// BlockStored marks, in a block's word, one that is not compressed.
	BlockStored = 1 << 24

	// MaxName is the longest name of an entry, in bytes. Squashfs could hold
	// one more, Linux could not.
	MaxName = 255
	// MaxTarget is the longest target of a symbolic link, in bytes.
	MaxTarget = 4095
	// MaxDepth is how many directories may lie inside each other.
	MaxDepth = 2048
)

// The bits of Inode.Mode that tell the type, as in stat(2).
const (
	ModeType    = 0o170000
	ModeFIFO    = 0o010000
	ModeChar    = 0o020000
	ModeDir     = 0o040000
	ModeBlock   = 0o060000
	ModeRegular = 0o100000
	ModeSymlink = 0o120000
	ModeSocket  = 0o140000
	modePerm    = 0o007777
)

// ErrLimit is wrapped by errors about a tree that squashfs, or Linux reading
// it, cannot express: a name that is too long, too many owners.
var ErrLimit = errors.New("beyond what squashfs can hold")

// Codec is how the blocks of a source are kept.
type Codec uint8

const (
	// Plain keeps blocks as they are.
	Plain Codec = iota
	// Zstd compresses each block on its own, where that makes it smaller.
	Zstd
)

// String is the codec's name in settings and keys.
func (c Codec) String() string {
	switch c {
	case Plain:
		return "plain"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("codec(%d)", uint8(c))
}

// Inode is a file of any type. Which fields count depends on the type in Mode.
// Layout keeps notes in it, so that a tree must not be laid out by two
// goroutines at once; doing so again later is fine.
type Inode struct {
	// Mode is the type and the permissions, as in stat(2).
	Mode uint32
	// UID and GID are numbers; nothing is looked up.
	UID, GID uint32
	// MTime is in seconds since 1970. All that the format has is 32 bits
	// without a sign: 1970 to 2106.
	MTime uint32
	// Major and Minor are a device's numbers.
	Major, Minor uint32
	// Target is where a symbolic link points.
	Target string
	// Xattrs are the extended attributes, in any order, each name once.
	// Names that do not begin with user., trusted. or security. are refused.
	Xattrs []Xattr

	// Size is a regular file's length.
	Size int64
	// Source and Offset say where its blocks begin, one after the other.
	Source int
	Offset int64
	// Blocks has one word for each block of BlockSize: the number of bytes
	// that are kept of it, with BlockStored where they are not compressed, or
	// 0 for a hole. Nil stands for a file that is kept plainly and whole.
	Blocks []uint32

	// Entries are a directory's names, in any order, each once. Layout sorts
	// them in place. The same inode under several names is a hard link; a
	// directory may have only one name.
	Entries []Entry

	owner *layout
	num   uint32
	nlink uint32
	start int64  // of the data in the file system
	ref   uint64 // where the inode is, see metaWriter.ref
}

// Entry is one name in a directory.
type Entry struct {
	// Name is any bytes but NUL and slash.
	Name  string
	Inode *Inode
}

// Xattr is one extended attribute.
type Xattr struct {
	// Name includes its prefix: "security.capability".
	Name  string
	Value string
}

// Segment says that Length bytes of the file system from Offset are those of
// Source from SourceOffset.
type Segment struct {
	Offset       int64
	Length       int64
	Source       int
	SourceOffset int64
}

// Image is a laid-out file system: the superblock at 0, the segments in
// ascending order, the metadata at MetadataOffset. What none of them covers is
// zero.
type Image struct {
	Superblock     []byte
	Segments       []Segment
	Metadata       []byte
	MetadataOffset int64
	// Size is a multiple of PageSize, which loop devices need.
	Size int64
	// Inodes is how many there are.
	Inodes int
}

// Options are what the same tree can be laid out with.
type Options struct {
	// Codec is what the blocks of the sources may be compressed with.
	Codec Codec
}

// isDir reports whether i is a directory.
func (i *Inode) isDir() bool { return i.Mode&ModeType == ModeDir }

// blockCount is how many blocks a file of size bytes has.
func blockCount(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// stored is how many bytes of the source the file takes.
func (i *Inode) stored() int64 {
	if i.Blocks == nil {
		return i.Size
	}
	var n int64
	for _, b := range i.Blocks {
		n += int64(b &^ BlockStored)
	}
	return n
}

// align rounds n up to a page.
func align(n int64) int64 { return (n + PageSize - 1) &^ (PageSize - 1) }

// alignPart rounds n up to a multiple of PartSize.
func alignPart(n int64) int64 { return (n + PartSize - 1) &^ (PartSize - 1) }
