package image

import (
	"context"
	"fmt"
	"io"

	"github.com/sregfs/sregfs/image/internal/lru"
)

const (
	// windowSize is what is read at a time, from multiples of it on. It divides
	// the 128 KiB that remote images are fetched in, so that no read touches
	// two of those where one would do.
	windowSize  = 64 << 10
	windowsKept = 32
	// maxFetched bounds what is read to look at one image. Ordinary ones need
	// less than a hundredth of it.
	maxFetched = 64 << 20
)

// errTooMuch ends the reading of an image that sends us all over itself.
var errTooMuch = fmt.Errorf("%w: it takes too many reads", ErrCorrupt)

// window reads a file in windows, keeps the last ones, and stops when its
// context is done. It fulfils io.ReaderAt for the file's size bytes.
type window struct {
	ctx  context.Context
	r    io.ReaderAt
	size int64
	kept *lru.Cache[int64, []byte]
	left int64 // of maxFetched
}

func newWindow(ctx context.Context, r io.ReaderAt, size int64) *window {
	return &window{ctx: ctx, r: r, size: size, kept: lru.New[int64, []byte](windowsKept), left: maxFetched}
}

// ReadAt implements io.ReaderAt, for one goroutine at a time.
func (w *window) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d", off)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= w.size {
			return done, io.EOF
		}
		b, err := w.windows(at/windowSize, (min(off+int64(len(p)), w.size)-1)/windowSize)
		if err != nil {
			return done, err
		}
		done += copy(p[done:], b[at%windowSize:])
	}
	return done, nil
}

// windows returns the window n and perhaps those behind it up to last, read at
// once where none of them is kept.
func (w *window) windows(n, last int64) ([]byte, error) {
	if b, ok := w.kept.Get(n); ok {
		return b, nil
	}
	end := n + 1
	for end <= last && end-n < windowsKept/2 {
		if _, ok := w.kept.Get(end); ok {
			break
		}
		end++
	}
	if err := w.ctx.Err(); err != nil {
		return nil, err
	}
	b := make([]byte, min(end*windowSize, w.size)-n*windowSize)
	if w.left -= int64(len(b)); w.left < 0 {
		return nil, errTooMuch
	}
	if k, err := w.r.ReadAt(b, n*windowSize); k < len(b) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	for i := int64(0); i < end-n; i++ {
		part := b[i*windowSize:]
		w.kept.Add(n+i, part[:min(len(part), windowSize)])
	}
	return b, nil
}

// readFull fills p from off on.
func (w *window) readFull(p []byte, off int64) error {
	n, err := w.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
