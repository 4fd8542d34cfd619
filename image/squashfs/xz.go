package squashfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// The xz container is read here and not by ulikunitz/xz, which takes as large
// a dictionary as the block asks for, up to 4 GiB, and knows none of the
// filters for machine code that mksquashfs -Xbcj tries. LZMA2 itself is the
// library's. Sections are those of the .xz file format 1.2.1
// (https://tukaani.org/xz/xz-file-format.txt).

var errXZ = errors.New("xz: malformed")

const xzFilterLZMA2 = 0x21

// newXZ reads an .xz stream of one block, which is what a squashfs block is.
// The index behind it is not read: the kernel's block has all that it says.
func newXZ(src io.Reader) (io.Reader, error) {
	br, ok := src.(byteReader)
	if !ok {
		return nil, errors.New("xz: source reads no single bytes")
	}
	// 2.1.1 Stream header.
	var head [12]byte
	if _, err := io.ReadFull(br, head[:]); err != nil {
		return nil, err
	}
	if string(head[:6]) != "\xfd7zXZ\x00" || head[6] != 0 ||
		crc32.ChecksumIEEE(head[6:8]) != binary.LittleEndian.Uint32(head[8:]) {
		return nil, errXZ
	}
	check, err := newXZCheck(head[7])
	if err != nil {
		return nil, err
	}
	filters, err := readXZBlockHead(br)
	if err != nil {
		return nil, err
	}
	counted := &byteCounter{r: br}
	last := filters[len(filters)-1]
	if last.id != xzFilterLZMA2 || len(last.props) != 1 || last.props[0] > 40 {
		return nil, fmt.Errorf("%w: filter %#x at the end", errXZ, last.id)
	}
	// 5.3.1 LZMA2's dictionary size, which no block can make more use of than
	// a MiB.
	dict := uint64(2|last.props[0]&1) << (last.props[0]/2 + 11)
	data, err := lzma.Reader2Config{DictCap: int(min(max(dict, lzma.MinDictCap), maxBlockSize))}.NewReader2(counted)
	if err != nil {
		return nil, err
	}
	x := &xzReader{data: data, src: counted, check: check}
	if len(filters) == 1 {
		return x, nil
	}
	return newFiltered(x, filters[:len(filters)-1])
}

type byteReader interface {
	io.Reader
	io.ByteReader
}

type xzFilter struct {
	id    uint64
	props []byte
}

// readXZBlockHead reads section 3.1 and returns the filters in the order in
// which the encoder applied them.
func readXZBlockHead(r byteReader) ([]xzFilter, error) {
	size, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	if size == 0 {
		return nil, fmt.Errorf("%w: no block", errXZ)
	}
	b := make([]byte, (int(size)+1)*4)
	b[0] = size
	if _, err := io.ReadFull(r, b[1:]); err != nil {
		return nil, err
	}
	fields, sum := b[1:len(b)-4], b[len(b)-4:]
	if crc32.ChecksumIEEE(b[:len(b)-4]) != binary.LittleEndian.Uint32(sum) {
		return nil, fmt.Errorf("%w: checksum of the block's header", errXZ)
	}
	flags, rest := fields[0], fields[1:]
	number := func() uint64 {
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			rest, err = nil, errXZ
			return 0
		}
		rest = rest[n:]
		return v
	}
	if flags&0x40 != 0 {
		number() // compressed size
	}
	if flags&0x80 != 0 {
		number() // uncompressed size
	}
	var filters []xzFilter
	for range flags&3 + 1 {
		f := xzFilter{id: number()}
		n := number()
		if err != nil || n > uint64(len(rest)) {
			return nil, errXZ
		}
		f.props, rest = rest[:n], rest[n:]
		filters = append(filters, f)
	}
	return filters, nil
}

// newXZCheck is the checksum of section 2.1.1.2, nil for none; one that is not
// known to this package is not checked.
func newXZCheck(id byte) (hash.Hash, error) {
	switch id {
	case 0x01:
		return crc32.NewIEEE(), nil
	case 0x04:
		return crc64.New(crc64.MakeTable(crc64.ECMA)), nil
	}
	if id > 0x0f {
		return nil, errXZ
	}
	return nil, nil
}

// xzReader gives the block's data before its filters but LZMA2, and checks its
// checksum where there are none. (With filters, newFiltered does.)
type xzReader struct {
	data  io.Reader
	src   *byteCounter
	check hash.Hash
}

func (x *xzReader) Read(p []byte) (int, error) {
	n, err := x.data.Read(p)
	if x.check == nil {
		return n, err
	}
	x.check.Write(p[:n])
	if err == io.EOF {
		if e := x.verify(); e != nil {
			return n, e
		}
	}
	return n, err
}

// verify reads what follows the data: padding to a multiple of four bytes, and
// the checksum (sections 3.3 and 3.4), little-endian in both kinds.
func (x *xzReader) verify() error {
	tail := make([]byte, int(-x.src.n&3)+x.check.Size())
	if _, err := io.ReadFull(x.src, tail); err != nil {
		return err
	}
	got, want := tail[len(tail)-x.check.Size():], x.check.Sum(nil)
	for i := range want {
		if got[i] != want[len(want)-1-i] {
			return fmt.Errorf("%w: checksum", errXZ)
		}
	}
	return nil
}

// byteCounter counts what is read through it.
type byteCounter struct {
	r byteReader
	n int64
}

func (c *byteCounter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *byteCounter) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

// newFiltered undoes filters for machine code, last one first. They look
// ahead, so the block is read as a whole.
func newFiltered(x *xzReader, filters []xzFilter) (io.Reader, error) {
	check := x.check
	x.check = nil
	b, err := io.ReadAll(io.LimitReader(x, maxBlockSize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxBlockSize {
		return nil, errTooMuch
	}
	for i := len(filters) - 1; i >= 0; i-- {
		start := uint32(0)
		switch p := filters[i].props; len(p) {
		case 0:
		case 4:
			start = binary.LittleEndian.Uint32(p)
		default:
			return nil, errXZ
		}
		undo, ok := branchFilters[filters[i].id]
		if !ok {
			return nil, fmt.Errorf("xz filter %#x: %w", filters[i].id, errors.ErrUnsupported)
		}
		undo(b, start)
	}
	if check != nil {
		check.Write(b)
		x.check = check
		if err := x.verify(); err != nil {
			return nil, err
		}
	}
	return bytes.NewReader(b), nil
}
