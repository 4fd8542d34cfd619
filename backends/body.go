package backends

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Body is the reader that OpenRange returns over an HTTP answer: exactly n
// bytes of body. One that is longer is cut; one that breaks off, for whatever
// reason, ends with an error that wraps io.ErrUnexpectedEOF, and with the
// context's once ctx is done. explain, nil for none, names the cause of other
// failures in a client's own words. Closing it closes body.
func Body(ctx context.Context, body io.ReadCloser, n int64, explain func(error) error) io.ReadCloser {
	return &exactBody{ctx, body, n, explain}
}

type exactBody struct {
	ctx     context.Context
	body    io.ReadCloser
	left    int64
	explain func(error) error
}

func (b *exactBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.body.Read(p)
	b.left -= int64(n)
	switch {
	case err == nil:
	case b.left == 0:
		err = io.EOF
	case b.ctx.Err() != nil:
		err = b.ctx.Err()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = io.ErrUnexpectedEOF
	case b.explain != nil:
		err = fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, b.explain(err))
	default:
		err = fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
	}
	return n, err
}

func (b *exactBody) Close() error { return b.body.Close() }
