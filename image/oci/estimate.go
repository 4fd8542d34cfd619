package oci

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// Estimate guesses the size of the image that the layers make, for a stat
// before anything is known of them. For each layer it takes, in this order:
// what the builder noted, what the end of a gzip stream says (RFC 1952, ISIZE:
// one small range), or 2.5 times its compressed size. The guess is good to some
// per cent where the first two hold, and says nothing of files that one layer
// hides of another. A layer whose end cannot be read is no error; that ctx is
// done is one.
func Estimate(ctx context.Context, layers []Layer) (int64, error) {
	total := int64(64 << 10)
	for _, l := range layers {
		n := estimateLayer(ctx, l)
		if ctx.Err() != nil {
			return 0, fmt.Errorf("estimating the size: %w", context.Cause(ctx))
		}
		total += n + n/200
	}
	return (total + 4095) &^ 4095, nil
}

func estimateLayer(ctx context.Context, l Layer) int64 {
	size := max(l.Size, 0)
	guess := size * 5 / 2
	if n, err := strconv.ParseInt(l.Annotations[uncompressedBytes], 10, 64); err == nil && n > 0 {
		return n
	}
	if strings.HasSuffix(l.MediaType, ".tar") {
		return size
	}
	if l.ReadRange == nil || size < 64 || strings.HasSuffix(l.MediaType, "zstd") {
		return guess
	}
	body, err := l.ReadRange(ctx, size-64, 64)
	if err != nil {
		return guess
	}
	defer body.Close()
	tail := make([]byte, 64)
	if _, err := io.ReadFull(body, tail); err != nil {
		return guess
	}
	if _, _, _, err := new(estargz.GzipDecompressor).ParseFooter(tail[64-estargz.FooterSize:]); err == nil {
		return guess // the last of many streams, which says nothing
	}
	// The length modulo 4 GiB. An archive's is a multiple of 512; one that
	// does not fit is the last of several streams', or no gzip at all.
	n := int64(binary.LittleEndian.Uint32(tail[60:]))
	if n%512 != 0 {
		return guess
	}
	for n < size {
		n += 1 << 32
	}
	if n > 1032*size { // more than deflate can
		return guess
	}
	return n
}
