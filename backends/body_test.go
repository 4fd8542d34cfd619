package backends

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestBody(t *testing.T) {
	broken := errors.New("connection reset")
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		body io.Reader
		n    int64
		want string
		err  error
	}{
		"exact":            {context.Background(), strings.NewReader("image"), 5, "image", nil},
		"longer is cut":    {context.Background(), strings.NewReader("image and more"), 5, "image", nil},
		"nothing":          {context.Background(), strings.NewReader("image"), 0, "", nil},
		"short":            {context.Background(), strings.NewReader("ima"), 5, "ima", io.ErrUnexpectedEOF},
		"broken":           {context.Background(), io.MultiReader(strings.NewReader("ima"), iotest.ErrReader(broken)), 5, "ima", broken},
		"broken is cut":    {context.Background(), iotest.ErrReader(broken), 5, "", io.ErrUnexpectedEOF},
		"error at the end": {context.Background(), iotest.DataErrReader(strings.NewReader("image")), 5, "image", nil},
		"cancelled":        {ended, iotest.ErrReader(broken), 5, "", context.Canceled},
	} {
		b := Body(c.ctx, io.NopCloser(c.body), c.n, nil)
		got, err := io.ReadAll(b)
		if string(got) != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: read %q, %v; want %q, %v", name, got, err, c.want, c.err)
		}
	}
	explained := errors.New("the line is bad")
	b := Body(context.Background(), io.NopCloser(iotest.ErrReader(broken)), 1, func(error) error { return explained })
	if _, err := io.ReadAll(b); !errors.Is(err, explained) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("explained: %v", err)
	}
}
