package image

import (
	"bytes"
	"io"
	"testing"
)

func TestWindowBeyondTheEnd(t *testing.T) {
	file := bytes.Repeat([]byte("0123456789"), 10_000)
	for _, off := range []int64{0, windowSize - 1, windowSize + 1, int64(len(file)) - 1, int64(len(file))} {
		w := newWindow(t.Context(), bytes.NewReader(file), int64(len(file)))
		p := make([]byte, 5*windowSize)
		n, err := w.ReadAt(p, off)
		if err != io.EOF || !bytes.Equal(p[:n], file[off:]) {
			t.Errorf("ReadAt(%d) = %d, %v; want %d, EOF", off, n, err, int64(len(file))-off)
		}
	}
}
