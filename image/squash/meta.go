package squash

import "encoding/binary"

const (
	metaSize   = 8192           // bytes in a metadata block
	metaHeader = 2              // its length, before it
	metaStored = uint16(0x8000) // in the length: not compressed
	metaStride = metaSize + metaHeader
)

// metaWriter collects a table as metadata blocks. They are not compressed,
// because then block k begins at k*metaStride and every reference is
// arithmetic; metadata are half a per cent of an image.
type metaWriter struct {
	buf  []byte
	size int64 // without headers
}

// Write appends p and never fails.
func (m *metaWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		free := metaSize - int(m.size%metaSize)
		if free == metaSize {
			m.buf = append(m.buf, 0, 0)
		}
		k := min(free, len(p))
		m.buf = append(m.buf, p[:k]...)
		m.size += int64(k)
		p = p[k:]
	}
	return n, nil
}

// ref is where the next byte will stand, in the form that the format uses
// everywhere: the block's offset in the table and the byte's in the block.
func (m *metaWriter) ref() uint64 {
	return uint64(m.size/metaSize*metaStride)<<16 | uint64(m.size%metaSize)
}

// blocks is the number of blocks so far.
func (m *metaWriter) blocks() int { return int((m.size + metaSize - 1) / metaSize) }

// finish fills in the blocks' lengths and returns the table.
func (m *metaWriter) finish() []byte {
	for at, left := 0, m.size; left > 0; at, left = at+metaStride, left-metaSize {
		binary.LittleEndian.PutUint16(m.buf[at:], uint16(min(left, metaSize))|metaStored)
	}
	return m.buf
}

// appendIndex appends to b the offset of each of m's blocks, when the first is
// at start.
func (m *metaWriter) appendIndex(b []byte, start int64) []byte {
	for k := range m.blocks() {
		b = binary.LittleEndian.AppendUint64(b, uint64(start)+uint64(k)*metaStride)
	}
	return b
}
