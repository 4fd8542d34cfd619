package oci

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// commonWindow is how far back a zstd stream may look without asking; all
	// levels up to 19 keep to it.
	commonWindow = 8 << 20
	// largestWindow is what zstd itself accepts without being told to.
	largestWindow = 128 << 20
)

// largeWindow is held while a stream with a window beyond commonWindow is
// decompressed, so that parallel layers cannot take largestWindow each.
var largeWindow = make(chan struct{}, 1)

// decompress returns the archive in the blob r. Media types are often wrong
// about the compression, so that the first bytes decide. The caller closes the
// result.
func decompress(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, decompressError(err)
		}
		return &inflater{z, z.Close}, nil
	case len(magic) >= 4 && isZstd(binary.LittleEndian.Uint32(magic)):
		return newZstd(ctx, br)
	case bytes.HasPrefix(magic, []byte("BZh")):
		return nil, unsupported("layer compressed with bzip2")
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ")):
		return nil, unsupported("layer compressed with xz")
	}
	return io.NopCloser(br), nil
}

// isZstd reports whether a stream that begins so is zstd (RFC 8878, 3.1):
// a frame, or a skippable one.
func isZstd(magic uint32) bool { return magic == 0xfd2fb528 || magic&^0xf == 0x184d2a50 }

// newZstd returns a decompressor for zstd.
func newZstd(ctx context.Context, br *bufio.Reader) (io.ReadCloser, error) {
	window, release := uint64(commonWindow), func() {}
	var h zstd.Header
	start, err := br.Peek(zstd.HeaderMaxSize)
	if err != nil && err != io.EOF {
		return nil, err
	}
	// A skippable frame hides the first real one; such streams are made by
	// programs that keep to small windows.
	if h.Decode(start) == nil && !h.Skippable && h.WindowSize > commonWindow {
		select {
		case largeWindow <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		window, release = largestWindow, func() { <-largeWindow }
	}
	z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(window), zstd.WithDecoderMaxMemory(2*largestWindow))
	if err != nil {
		release()
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &inflater{z, func() error { z.Close(); release(); return nil }}, nil
}

// inflater translates a decompressor's errors.
type inflater struct {
	io.Reader
	close func() error
}

// Read passes on the decompressor's bytes.
func (i *inflater) Read(p []byte) (int, error) {
	n, err := i.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = decompressError(err)
	}
	return n, err
}

// Close lets go of the decompressor, not of its source.
func (i *inflater) Close() error { return i.close() }

// decompressError makes an error of a decompressor one of ours. Errors of its
// source end up here too; the scan asks the source itself.
func decompressError(err error) error {
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrUnknownDictionary) {
		return unsupported("zstd: %w", err)
	}
	return corrupt("decompressing: %w", err)
}
