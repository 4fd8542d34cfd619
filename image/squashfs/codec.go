package squashfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/anchore/go-lzo"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
)

// codec decompresses blocks. It is safe for concurrent use.
type codec interface {
	// decode decompresses the whole of src into dst and returns how much that
	// was. More than dst holds is an error.
	decode(dst, src []byte) (int, error)
	// stream decompresses the n bytes that src gives, and reads no more of them
	// than needed, give or take a buffer. A result that has a Close() wants it
	// called at the end; leaving it out costs only memory that is collected.
	stream(src io.Reader, n int) (io.Reader, error)
}

// maxWindow bounds how far back compressed data may refer. Blocks have at most
// a MiB, but some writers declare their level's usual window.
const maxWindow = 8 << 20

func newCodec(c Compressor, blockSize int) (codec, error) {
	switch c {
	case Gzip:
		return streamed(func(src io.Reader) (io.Reader, error) { return zlib.NewReader(src) }), nil
	case LZMA:
		return streamed(func(src io.Reader) (io.Reader, error) {
			return lzma.ReaderConfig{DictCap: maxWindow}.NewReader(src)
		}), nil
	case XZ:
		return streamed(newXZ), nil
	case Zstd:
		all, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(uint64(max(blockSize, metaSize))))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return zstdCodec{all}, nil
	case LZ4:
		return whole{blockSize, func(dst, src []byte) (int, error) { return lz4.UncompressBlock(src, dst) }}, nil
	case LZO:
		return whole{blockSize, func(dst, src []byte) (int, error) { return lzo.Decompress(src, dst) }}, nil
	}
	return nil, fmt.Errorf("squashfs with %v: %w", c, errors.ErrUnsupported)
}

// streamed is the codec of a format that is read as a stream.
type streamed func(src io.Reader) (io.Reader, error)

func (open streamed) decode(dst, src []byte) (int, error) {
	r, err := open(bytes.NewReader(src))
	if err != nil {
		return 0, err
	}
	return readBlock(dst, r)
}

func (open streamed) stream(src io.Reader, n int) (io.Reader, error) {
	return open(bufio.NewReaderSize(src, min(n, step)))
}

// readBlock reads r to its end, which checks its checksum, into dst.
func readBlock(dst []byte, r io.Reader) (int, error) {
	n, err := io.ReadFull(r, dst)
	switch err {
	case io.EOF, io.ErrUnexpectedEOF:
		return n, nil
	case nil:
		var one [1]byte
		if _, err := io.ReadFull(r, one[:]); err != io.EOF {
			return 0, errTooMuch
		}
	}
	return n, err
}

var errTooMuch = errors.New("too many bytes in it")

// whole is the codec of a format without a stream.
type whole struct {
	blockSize  int
	decompress func(dst, src []byte) (int, error)
}

func (w whole) decode(dst, src []byte) (int, error) { return w.decompress(dst, src) }

func (w whole) stream(src io.Reader, n int) (io.Reader, error) {
	in := make([]byte, n)
	if _, err := io.ReadFull(src, in); err != nil {
		return nil, err
	}
	out := make([]byte, w.blockSize)
	k, err := w.decompress(out, in)
	if err != nil {
		return nil, err
	}
	return bytes.NewReader(out[:k]), nil
}

// zstdCodec decodes small blocks with one decoder, since making one takes
// longer than the block.
type zstdCodec struct {
	all *zstd.Decoder
}

func (z zstdCodec) decode(dst, src []byte) (int, error) {
	out, err := z.all.DecodeAll(src, dst[:0])
	if err != nil {
		return 0, err
	}
	if len(out) > len(dst) {
		return 0, errTooMuch
	}
	return len(out), nil // in dst, which was large enough
}

func (z zstdCodec) stream(src io.Reader, n int) (io.Reader, error) {
	return zstd.NewReader(bufio.NewReaderSize(src, min(n, step)), zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
}
