package squash

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// dataBuffer is how much a DataWriter gathers before it writes.
const dataBuffer = 8 * BlockSize

var zeroBlock [BlockSize]byte

// DataWriter writes the contents of files one after the other in the form that
// a source of Layout has: blocks of zeros are left out, files from
// AlignedFileSize on begin on a page, blocks are compressed if that is asked
// for. What it writes is a function of the files alone.
type DataWriter struct {
	w     io.Writer
	codec Codec
	enc   *zstd.Encoder
	buf   []byte
	block []byte // with a codec: what is to be compressed
	size  int64
}

// NewDataWriter returns a writer onto w, which gets few large writes.
func NewDataWriter(w io.Writer, codec Codec) (*DataWriter, error) {
	d := &DataWriter{w: w, codec: codec, buf: make([]byte, 0, dataBuffer)}
	switch codec {
	case Plain:
	case Zstd:
		// The kernel refuses a frame whose window is larger than a block.
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithWindowSize(BlockSize), zstd.WithSingleSegment(true),
			zstd.WithEncoderCRC(false), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("squash: zstd: %w", err)
		}
		d.enc, d.block = enc, make([]byte, BlockSize)
	default:
		return nil, fmt.Errorf("squash: no such codec: %v", codec)
	}
	return d, nil
}

// Size is how many bytes have been written, or will be by Flush.
func (d *DataWriter) Size() int64 { return d.size }

// Flush writes what is still gathered. It must be called at the end.
func (d *DataWriter) Flush() error {
	if len(d.buf) == 0 {
		return nil
	}
	_, err := d.w.Write(d.buf)
	d.buf = d.buf[:0]
	return err
}

// File writes the next file, size bytes from r, and returns the Offset and the
// Blocks of its inode. It reads exactly size bytes; when r has less, the error
// is io.ErrUnexpectedEOF. After an error the writer is of no more use.
func (d *DataWriter) File(size int64, r io.Reader) (off int64, blocks []uint32, err error) {
	if size < 0 {
		return 0, nil, fmt.Errorf("squash: file of %d bytes", size)
	}
	if d.codec != Plain {
		blocks = []uint32{}
	}
	begun := false
	for done := int64(0); done < size; {
		n := int(min(size-done, BlockSize))
		block, err := d.read(r, n)
		if err != nil {
			return 0, nil, err
		}
		var word uint32
		if n < BlockSize || !bytes.Equal(block, zeroBlock[:]) {
			if !begun {
				begun = true
				if size >= AlignedFileSize {
					d.pad(n)
				}
				off = d.size
			}
			word = d.keep(n)
		}
		if blocks == nil && word == 0 {
			blocks = plainWords(done/BlockSize, blockCount(size))
		}
		if blocks != nil {
			blocks = append(blocks, word)
		}
		done += int64(n)
	}
	if len(blocks) == 0 {
		blocks = nil
	}
	return off, blocks, nil
}

// plainWords are the words of n whole blocks, with room for all.
func plainWords(n, all int64) []uint32 {
	w := make([]uint32, n, all)
	for i := range w {
		w[i] = BlockSize | BlockStored
	}
	return w
}

// read takes the next n bytes of r into the place from where keep takes them.
// Plainly that is behind what is gathered, so that nothing is copied.
func (d *DataWriter) read(r io.Reader, n int) ([]byte, error) {
	if cap(d.buf)-len(d.buf) < n+PageSize {
		if err := d.Flush(); err != nil {
			return nil, err
		}
	}
	b := d.block
	if d.codec == Plain {
		b = d.buf[len(d.buf):cap(d.buf)]
	}
	b = b[:n]
	if _, err := io.ReadFull(r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}

// pad moves the n bytes that were read on to the next page.
func (d *DataWriter) pad(n int) {
	gap := int(align(d.size) - d.size)
	if gap == 0 {
		return
	}
	at := len(d.buf)
	if d.codec == Plain {
		copy(d.buf[at+gap:at+gap+n], d.buf[at:at+n])
	}
	d.buf = append(d.buf, zeroBlock[:gap]...)
	d.size += int64(gap)
}

// keep takes over the n bytes that were read and returns the block's word.
func (d *DataWriter) keep(n int) uint32 {
	at := len(d.buf)
	word := uint32(n) | BlockStored
	switch d.codec {
	case Plain:
		d.buf = d.buf[:at+n]
	case Zstd:
		d.buf = d.enc.EncodeAll(d.block[:n], d.buf)
		if k := len(d.buf) - at; k < n {
			word = uint32(k)
		} else {
			d.buf = append(d.buf[:at], d.block[:n]...)
		}
	}
	d.size += int64(len(d.buf) - at)
	return word
}
