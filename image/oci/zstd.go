package oci

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"math"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/semaphore"
)

// A zstd decoder holds as many bytes as its stream may look back. All layers
// together get largestWindow for windows beyond commonWindow, or a few of them
// in parallel could take a gigabyte. Builders' usual levels need no more than
// commonWindow, their best middleWindow.
const (
	commonWindow  = 8 << 20
	middleWindow  = 32 << 20
	largestWindow = 128 << 20 // what zstd itself accepts without being told to
)

var windows = semaphore.NewWeighted(largestWindow)

// isZstd reports whether a stream that begins so is zstd (RFC 8878, 3.1):
// a frame, or a skippable one.
func isZstd(magic uint32) bool { return magic == 0xfd2fb528 || magic&^0xf == 0x184d2a50 }

// newZstd returns a decompressor for zstd.
func newZstd(ctx context.Context, br *bufio.Reader) (io.ReadCloser, error) {
	frames := &zstdFrames{ctx: ctx, r: br}
	z, err := zstd.NewReader(frames, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(largestWindow))
	if err != nil {
		return nil, decompressError(err)
	}
	return &inflater{z, func() error {
		z.Close()
		frames.hold(0)
		return nil
	}}, nil
}

// zstdFrames passes a zstd stream on, and waits before each frame until there
// is room for its window. It follows the frames' structure alone; what it
// cannot follow, the decompressor will refuse.
type zstdFrames struct {
	ctx  context.Context
	r    *bufio.Reader
	held int64 // of windows

	pass     int64 // bytes to pass on before the next look
	inFrame  bool  // what follows them is a block
	last     bool  // it was the frame's last block
	checksum bool  // the frame ends in one
}

// Read passes on bytes up to the next header.
func (z *zstdFrames) Read(p []byte) (int, error) {
	for z.pass == 0 {
		var err error
		if z.inFrame {
			err = z.block()
		} else {
			err = z.frame()
		}
		if err != nil {
			return 0, err
		}
	}
	n, err := z.r.Read(p[:min(int64(len(p)), z.pass)])
	z.pass -= int64(n)
	return n, err
}

// frame looks at a frame's header.
func (z *zstdFrames) frame() error {
	b, err := z.r.Peek(zstd.HeaderMaxSize)
	if len(b) == 0 {
		return err
	}
	var h zstd.Header
	switch err := h.Decode(b); {
	case err != nil:
		z.pass = math.MaxInt64
	case h.Skippable:
		z.pass = 8 + int64(h.SkippableSize)
	default:
		z.pass, z.inFrame, z.last, z.checksum = int64(h.HeaderSize), true, false, h.HasCheckSum
		if h.WindowSize > middleWindow {
			return z.hold(largestWindow)
		}
		if h.WindowSize > commonWindow {
			return z.hold(middleWindow)
		}
	}
	return nil
}

// block looks at a block's header, or for what ends the frame.
func (z *zstdFrames) block() error {
	if z.last {
		z.inFrame = false
		if z.checksum {
			z.pass = 4
		}
		return nil
	}
	b, err := z.r.Peek(3)
	if len(b) < 3 {
		z.pass = math.MaxInt64 // the stream ends here
		if len(b) == 0 {
			return err
		}
		return nil
	}
	head := binary.LittleEndian.Uint32([]byte{b[0], b[1], b[2], 0})
	z.last = head&1 != 0
	size := int64(head >> 3)
	if head>>1&3 == 1 { // one byte, repeated
		size = 1
	}
	z.pass = 3 + size
	return nil
}

// hold waits for room for a window of n bytes; it never shrinks but to 0.
func (z *zstdFrames) hold(n int64) error {
	if n != 0 && n <= z.held {
		return nil
	}
	if z.held > 0 {
		windows.Release(z.held)
		z.held = 0
	}
	if n == 0 {
		return nil
	}
	if err := windows.Acquire(z.ctx, n); err != nil {
		return err
	}
	z.held = n
	return nil
}
