package squashfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"sync"
)

// The bits of a data block's size.
const (
	storedBit = 1 << 24 // not compressed
	sizeMask  = storedBit - 1
)

// file is an open file that is no directory.
type file struct {
	fs   *FS
	info info
	path string

	mu  sync.Mutex
	off int64 // of Read
	// next is the block that sizes is at, which begins at pos.
	next  int64
	pos   int64
	sizes cursor
}

func newFile(f *FS, i info, path string) *file {
	return &file{fs: f, info: i, path: path, pos: i.ino.start, sizes: i.ino.sizes}
}

func (f *file) Stat() (iofs.FileInfo, error) { return f.info, nil }
func (f *file) Close() error                 { return nil }

func (f *file) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.readAt(p, f.off)
	f.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// ReadAt may be called from several goroutines, which then take turns.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.readAt(p, off)
}

func (f *file) Seek(offset int64, whence int) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += f.off
	case io.SeekEnd:
		offset += f.info.ino.size
	}
	if offset < 0 || whence < io.SeekStart || whence > io.SeekEnd {
		return 0, f.fail(iofs.ErrInvalid)
	}
	f.off = offset
	return offset, nil
}

func (f *file) fail(err error) error {
	return &iofs.PathError{Op: "read", Path: f.path, Err: err}
}

func (f *file) readAt(p []byte, off int64) (int, error) {
	size := f.info.ino.size
	switch {
	case !f.info.ino.mode.IsRegular() || off < 0:
		return 0, f.fail(iofs.ErrInvalid)
	case len(p) == 0:
		return 0, nil
	case off >= size:
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > size-off {
		p, end = p[:size-off], io.EOF
	}
	done, bs := 0, int64(f.fs.sb.BlockSize)
	for done < len(p) {
		n, in := off/bs, off%bs
		part := p[done:]
		part = part[:min(int64(len(part)), bs-in)]
		if err := f.readBlock(part, n, int(in)); err != nil {
			return done, f.fail(err)
		}
		done += len(part)
		off += int64(len(part))
	}
	return done, end
}

// readBlock fills p from the offset in of the file's n-th block, or of its
// tail in a fragment.
func (f *file) readBlock(p []byte, n int64, in int) error {
	ino, bs := f.info.ino, int64(f.fs.sb.BlockSize)
	if ino.frag != noFragment && n == ino.size/bs {
		pos, word, err := f.fs.fragment(ino.frag)
		if err != nil {
			return err
		}
		if int64(ino.fragOff) > bs {
			return fmt.Errorf("%w: offset %d in a fragment", ErrCorrupt, ino.fragOff)
		}
		return f.fs.readStored(p, pos, word, int(ino.fragOff)+in)
	}
	pos, word, err := f.locate(n)
	if err != nil {
		return err
	}
	if word&sizeMask == 0 {
		clear(p) // a hole
		return nil
	}
	return f.fs.readStored(p, pos, word, in)
}

// locate returns where the n-th block is and the word that tells its size. The
// list of sizes is walked, never held: a file of terabytes has a long one.
func (f *file) locate(n int64) (pos int64, word uint32, err error) {
	if n < f.next {
		f.next, f.pos, f.sizes = 0, f.info.ino.start, f.info.ino.sizes
	}
	for {
		here := f.sizes
		var b [4]byte
		if err := here.read(b[:]); err != nil {
			return 0, 0, err
		}
		word := binary.LittleEndian.Uint32(b[:])
		if f.next == n {
			return f.pos, word, nil
		}
		f.next++
		f.pos += int64(word & sizeMask)
		f.sizes = here
	}
}

// fragment returns where a fragment block is and the word that tells its size.
func (f *FS) fragment(n uint32) (pos int64, word uint32, err error) {
	const entry, perBlock = 16, metaSize / 16
	if f.sb.FragTable == none || n >= f.sb.Fragments {
		return 0, 0, fmt.Errorf("%w: fragment %d of %d", ErrCorrupt, n, f.sb.Fragments)
	}
	var b [entry]byte
	if err := readFull(f.r, b[:8], f.sb.FragTable+int64(n/perBlock)*8); err != nil {
		return 0, 0, fmt.Errorf("fragment table: %w", err)
	}
	c := cursor{fs: f, pos: int64(binary.LittleEndian.Uint64(b[:])), off: int(n%perBlock) * entry}
	if err := c.read(b[:]); err != nil {
		return 0, 0, fmt.Errorf("fragment table: %w", err)
	}
	return int64(binary.LittleEndian.Uint64(b[:])), binary.LittleEndian.Uint32(b[8:]), nil
}

// readStored fills p from the offset in of the content of the block at pos.
func (f *FS) readStored(p []byte, pos int64, word uint32, in int) error {
	n := int(word & sizeMask)
	if n > f.sb.BlockSize || pos < SuperblockSize || pos > f.sb.BytesUsed-int64(n) {
		return fmt.Errorf("%w: block of %d bytes at %d", ErrCorrupt, n, pos)
	}
	if word&storedBit != 0 {
		if in+len(p) > n {
			return fmt.Errorf("%w: block at %d has %d bytes, not %d", ErrCorrupt, pos, n, in+len(p))
		}
		return readFull(f.r, p, pos+int64(in))
	}
	b, ok := f.blocks.Get(pos)
	if !ok {
		b = &block{fs: f, pos: pos, size: n}
		f.blocks.Add(pos, b)
	}
	return b.read(p, in)
}

// block is a compressed block, decompressed as far as was asked for: a small
// file is often near the start of a large fragment block that is far away.
type block struct {
	fs   *FS
	pos  int64
	size int // compressed

	mu   sync.Mutex
	data []byte
	src  *source   // nil before the first read
	dec  io.Reader // nil when nothing more comes
	err  error     // why
}

// step is the least that is decompressed at a time.
const step = 32 << 10

// read fills p from the offset in of the decompressed block.
func (b *block) read(p []byte, in int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	want := in + len(p)
	if want > b.fs.sb.BlockSize {
		return fmt.Errorf("%w: %d bytes in the block at %d", ErrCorrupt, want, b.pos)
	}
	if b.src == nil {
		b.open()
	}
	for len(b.data) < want && b.dec != nil {
		b.more(want)
	}
	if len(b.data) < want {
		return fmt.Errorf("block at %d: %w", b.pos, b.err)
	}
	copy(p, b.data[in:])
	return nil
}

func (b *block) open() {
	b.src = &source{r: io.NewSectionReader(b.fs.r, b.pos, int64(b.size))}
	b.dec, b.err = b.fs.codec.stream(b.src, b.size)
	if b.err != nil {
		b.stop(b.err)
	}
}

// more decompresses until there are at least want bytes, or to the end.
func (b *block) more(want int) {
	old := len(b.data)
	grow := min(max(want-old, step), b.fs.sb.BlockSize-old)
	b.data = append(b.data, make([]byte, grow)...)
	n, err := io.ReadAtLeast(b.dec, b.data[old:], want-old)
	b.data = b.data[:old+n]
	if err != nil {
		b.stop(err)
	} else if len(b.data) == b.fs.sb.BlockSize {
		b.stop(io.EOF)
	}
}

// stop ends decompression for the reason err. A failure of the source is told
// as it is and may pass, so it is not remembered.
func (b *block) stop(err error) {
	if c, ok := b.dec.(interface{ Close() }); ok {
		c.Close()
	}
	b.dec = nil
	if b.src.err != nil {
		b.err, b.src, b.data = b.src.err, nil, nil
		return
	}
	b.err = fmt.Errorf("%w: %w", ErrCorrupt, orEmpty(err))
}

// source remembers its reader's failure, which a decoder would tell as its own.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// orEmpty stands in for an error where a decoder gave too little and none.
func orEmpty(err error) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("too few bytes in it")
	}
	return err
}
