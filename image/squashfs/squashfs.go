// Package squashfs reads squashfs 4.0 file systems through an io.ReaderAt, in
// few and small reads, as an io/fs.FS. It knows all compressors of mksquashfs:
// gzip, xz, zstd, lz4, lzo and the old lzma.
//
// It is made for looking at a few small files of a large image that is far
// away and may be hostile: metadata blocks are cached, a fragment block is
// decompressed no further than needed, every size is checked before memory is
// taken for it, and a file system takes a few MiB however large it is. It does
// not write, and leaves out owners, extended attributes and device numbers.
//
// Start with Open. The format is described in the Linux kernel's
// Documentation/filesystems/squashfs.rst and fs/squashfs/squashfs_fs.h.
package squashfs

import (
	"errors"
	"fmt"
	"io"

	"github.com/sregfs/sregfs/image/internal/lru"
)

var (
	// ErrNotSquashfs: the bytes are no squashfs 4.0.
	ErrNotSquashfs = errors.New("not squashfs")
	// ErrCorrupt: a squashfs that contradicts itself or cannot be decompressed.
	ErrCorrupt = errors.New("corrupt squashfs")
	// ErrTooLarge: a file, a directory or a link above this package's limits.
	ErrTooLarge = errors.New("too large")
)

// FS is a squashfs file system. It implements fs.FS, fs.StatFS, fs.ReadDirFS,
// fs.ReadFileFS and fs.ReadLinkFS: names are as fs.ValidPath wants them, and
// symbolic links are followed inside the file system, absolute ones from its
// root, as a process that has it as its root sees them. It is safe for
// concurrent use if its ReaderAt is.
type FS struct {
	r     io.ReaderAt
	sb    Superblock
	codec codec
	// meta and blocks are keyed by a block's position.
	meta   *lru.Cache[int64, metaBlock]
	blocks *lru.Cache[int64, *block]
}

// cachedBytes bounds the decompressed data blocks and fragments that are kept.
const (
	cachedBytes = 4 << 20
	cachedMeta  = 64
)

// Open reads the superblock of the file system that begins at r's first byte,
// of which size bytes are there; a file system that is larger than that is
// ErrCorrupt. Nothing else is read yet. The caller closes r after use.
// errors.ErrUnsupported is the error of an unknown compressor.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, SuperblockSize)
	if err := readFull(r, b, 0); err != nil {
		return nil, fmt.Errorf("superblock: %w", err)
	}
	sb, err := ParseSuperblock(b)
	if err != nil {
		return nil, err
	}
	if sb.BytesUsed > size {
		return nil, fmt.Errorf("%w: %d bytes of %d are there", ErrCorrupt, size, sb.BytesUsed)
	}
	c, err := newCodec(sb.Compressor, sb.BlockSize)
	if err != nil {
		return nil, err
	}
	return &FS{
		r: r, sb: sb, codec: c,
		meta:   lru.New[int64, metaBlock](cachedMeta),
		blocks: lru.New[int64, *block](min(16, cachedBytes/sb.BlockSize)),
	}, nil
}

// Superblock returns the file system's header.
func (f *FS) Superblock() Superblock { return f.sb }

// readFull fills p from off on; an early end is io.ErrUnexpectedEOF.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
