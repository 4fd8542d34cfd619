package squashfs

import (
	"encoding/binary"
	"fmt"
)

// metaBlock is a decompressed metadata block and where the one behind it is.
type metaBlock struct {
	data []byte
	next int64
}

// metaBlock returns the metadata block at pos.
func (f *FS) metaBlock(pos int64) (metaBlock, error) {
	if b, ok := f.meta.Get(pos); ok {
		return b, nil
	}
	if pos < SuperblockSize || pos > f.sb.BytesUsed-2 {
		return metaBlock{}, fmt.Errorf("%w: metadata at %d of %d bytes", ErrCorrupt, pos, f.sb.BytesUsed)
	}
	// One read for the block's head and the block, whose length is not known
	// yet.
	buf := make([]byte, min(2+metaSize, f.sb.BytesUsed-pos))
	if err := readFull(f.r, buf, pos); err != nil {
		return metaBlock{}, fmt.Errorf("metadata at %d: %w", pos, err)
	}
	head := binary.LittleEndian.Uint16(buf)
	n, stored := int(head&0x7fff), head&0x8000 != 0
	if n == 0 || n > len(buf)-2 {
		return metaBlock{}, fmt.Errorf("%w: metadata block of %d bytes at %d", ErrCorrupt, n, pos)
	}
	b := metaBlock{data: buf[2 : 2+n : 2+n], next: pos + 2 + int64(n)}
	if !stored {
		out := make([]byte, metaSize)
		k, err := f.codec.decode(out, b.data)
		if err != nil || k == 0 {
			return metaBlock{}, fmt.Errorf("%w: metadata at %d: %w", ErrCorrupt, pos, orEmpty(err))
		}
		b.data = out[:k:k]
	}
	f.meta.Add(pos, b)
	return b, nil
}

// cursor reads a run of metadata blocks. A copy reads on its own.
type cursor struct {
	fs  *FS
	pos int64 // of the block
	off int   // in the block's data
}

// read fills p.
func (c *cursor) read(p []byte) error {
	for len(p) > 0 {
		b, err := c.fs.metaBlock(c.pos)
		if err != nil {
			return err
		}
		if c.off > len(b.data) {
			return fmt.Errorf("%w: offset %d in a metadata block of %d bytes", ErrCorrupt, c.off, len(b.data))
		}
		n := copy(p, b.data[c.off:])
		p = p[n:]
		if c.off += n; c.off == len(b.data) {
			c.pos, c.off = b.next, 0
		}
	}
	return nil
}
