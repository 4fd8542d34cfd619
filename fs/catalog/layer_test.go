package catalog

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/image/oci"
)

func sha(p []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(p)) }

// blobLayer is the layer that is this tar archive, as it is.
func blobLayer(blob []byte) oci.Layer {
	return oci.Layer{
		Digest: sha(blob), DiffID: sha(blob), Size: int64(len(blob)),
		Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob)), nil },
		ReadRange: func(_ context.Context, off, n int64) (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(bytes.NewReader(blob), off, n)), nil
		},
	}
}

// TestTableInAFile: what one manifest takes for the table of contents of a layer,
// which is a file in it, is not that of another whose manifest points to none.
func TestTableInAFile(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	const evil = "evil"
	data := enc.EncodeAll([]byte(evil), nil)
	text := fmt.Sprintf(`{"version":1,"entries":[{"type":"reg","name":"bin/sh","mode":493,"size":%d,"offset":512,"digest":%q}]}`,
		len(evil), sha([]byte(evil)))
	table := enc.EncodeAll([]byte(text), nil)
	var blob bytes.Buffer
	w := tar.NewWriter(&blob)
	for _, f := range []struct{ name, body string }{{"upload", string(data) + string(table)}, {"bin/sh", "good"}} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	cat := open(t, t.TempDir(), map[string]backends.Store{"mem": backendtest.Memory()})
	cl := cat.Client("mem")
	pinned := &layer{source: blobLayer(blob.Bytes())}
	pinned.source.Annotations = map[string]string{
		"io.github.containers.zstd-chunked.manifest-checksum": sha(table),
		"io.github.containers.zstd-chunked.manifest-position": fmt.Sprintf("%d:%d:%d:1", 512+len(data), len(table), len(text)),
	}
	if c, err := cl.learnLayer(t.Context(), pinned, oci.Plain); err != nil || !c.Lazy || c.Entries != 1 {
		t.Fatalf("the layer with a pinned table: %+v, %v; want to read it lazily", c, err)
	}
	cat.work.Wait() // the table is noted
	honest := &layer{source: blobLayer(blob.Bytes())}
	c, err := cl.learnLayer(t.Context(), honest, oci.Plain)
	if err != nil {
		t.Fatal(err)
	}
	if c.Lazy || honest.lazy != nil || c.Entries != 2 {
		t.Errorf("the layer without: lazy %t, %d entries; want what is in the archive", c.Lazy, c.Entries)
	}
}
