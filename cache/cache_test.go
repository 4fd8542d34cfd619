package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"
)

func TestReadFillReopen(t *testing.T) {
	dir := t.TempDir()
	data := content(3<<20+123, 1)
	src := &source{data: data}
	done := make(chan Completed, 1)
	c := openCache(t, dir, Options{ReadAhead: -1, OnComplete: func(d Completed) { done <- d }})
	o := openObject(t, c, Spec{Key: "k", Size: int64(len(data)), Sum: sha(data), Fetcher: src})
	mustRead(t, o, data, 1000, 10)
	if n, b := src.count(); n != 1 || b != blockSize {
		t.Errorf("a small read made %d requests of %d bytes, want 1 of %d", n, b, blockSize)
	}
	mustRead(t, o, data, 0, len(data))
	if err := o.Fill(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, b := src.count(); b != int64(len(data)) {
		t.Errorf("fetched %d bytes, want each of %d once", b, len(data))
	}
	if !o.Complete() || o.Cached() != int64(len(data)) {
		t.Errorf("Complete %v, Cached %d after Fill", o.Complete(), o.Cached())
	}
	if d := <-done; d.SHA256 != sha(data).Hex || d.Size != int64(len(data)) || d.Key != "k" {
		t.Errorf("OnComplete got %+v", d)
	}
	f, ok := o.File()
	if !ok {
		t.Fatal("a complete object has no File")
	}
	got := make([]byte, len(data))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("File has other bytes (%v)", err)
	}
	o.Close()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	c = openCache(t, dir, Options{})
	if n, size, complete := c.Stat("k"); n != int64(len(data)) || size != n || !complete {
		t.Errorf("Stat after reopen: %d of %d, %v", n, size, complete)
	}
	o = openObject(t, c, Spec{Key: "k", Size: -1})
	if _, ok := o.File(); !ok {
		t.Error("no File after reopen")
	}
	mustRead(t, o, data, 0, len(data))
	if err := c.Remove("k"); !errors.Is(err, ErrInUse) {
		t.Errorf("Remove of an open object: %v", err)
	}
	o.Close()
	if err := c.Remove("k"); err != nil {
		t.Error(err)
	}
	if s := c.Stats(); s.Used != 0 || s.Objects != 0 {
		t.Errorf("after Remove: %+v", s)
	}
}

func TestReaderAtSemantics(t *testing.T) {
	data := content(100_000, 2)
	c := openCache(t, t.TempDir(), Options{})
	o := openObject(t, c, Spec{Key: "k", Size: int64(len(data)), Fetcher: &source{data: data}})
	for _, tc := range []struct {
		off, n, want int
		err          error
	}{
		{0, 0, 0, nil}, {0, 1, 1, nil}, {99_999, 1, 1, nil}, {99_999, 2, 1, io.EOF},
		{100_000, 1, 0, io.EOF}, {200_000, 10, 0, io.EOF}, {32767, 2, 2, nil},
		{65536, 65536, 34464, io.EOF}, {0, 100_000, 100_000, nil},
	} {
		p := make([]byte, tc.n)
		n, err := o.ReadAt(context.Background(), p, int64(tc.off))
		if n != tc.want || err != tc.err {
			t.Errorf("ReadAt(%d bytes, %d) = %d, %v, want %d, %v", tc.n, tc.off, n, err, tc.want, tc.err)
		} else if tc.off < len(data) && !bytes.Equal(p[:n], data[tc.off:tc.off+n]) {
			t.Errorf("ReadAt(%d bytes, %d): wrong bytes", tc.n, tc.off)
		}
	}
	if _, err := o.ReadAt(context.Background(), make([]byte, 1), -1); err == nil {
		t.Error("a negative offset was read")
	}
	o.Close()
	if _, err := o.ReadAt(context.Background(), make([]byte, 1), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("ReadAt after Close: %v", err)
	}
}

func TestEmptyObject(t *testing.T) {
	c := openCache(t, t.TempDir(), Options{})
	o := openObject(t, c, Spec{Key: "empty", Size: 0, Sum: sha(nil), Fetcher: &source{}})
	if err := o.Fill(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !o.Complete() {
		t.Error("not complete")
	}
}

func TestBuildAndAdopt(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir+"/cache", Options{})
	data := content(1<<20+5, 3)
	o, err := c.Build(context.Background(), "built", func(ctx context.Context, w *Writer) error {
		if _, err := w.Write(data); err != nil {
			return err
		}
		return w.Commit(int64(len(data)))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if !o.Complete() {
		t.Error("built and not complete")
	}
	mustRead(t, o, data, 0, len(data))

	path := dir + "/staged"
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Adopt("adopted", path, int64(len(data)), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("the adopted file is still there")
	}
	a := openObject(t, c, Spec{Key: "adopted", Size: -1})
	mustRead(t, a, data, 0, len(data))
	if !a.Complete() {
		t.Error("adopted and not complete")
	}
}
