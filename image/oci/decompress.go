package oci

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

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
