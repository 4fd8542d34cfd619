package catalog

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/image/oci"
)

// stargz makes an image of one eStargz layer of many small files; each range
// that is asked of the layer is told to asked.
func stargz(t *testing.T, files int, asked func(off, n int64)) *assembly {
	t.Helper()
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	rnd := rand.NewChaCha8([32]byte{1})
	for i := range files {
		p := make([]byte, 9000)
		_, _ = rnd.Read(p)
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint("f", i), Mode: 0o644, Size: int64(len(p))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(plain.Bytes()), 0, int64(plain.Len())))
	if err != nil {
		t.Fatal(err)
	}
	defer built.Close()
	blob, err := io.ReadAll(built)
	if err != nil {
		t.Fatal(err)
	}
	sum := backends.NewHash(backends.SHA256)
	sum.Write(blob)
	l := oci.Layer{
		Digest: fmt.Sprintf("sha256:%x", sum.Sum(nil)), DiffID: built.DiffID().String(), Size: int64(len(blob)),
		Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: built.TOCDigest().String()},
		ReadRange: func(_ context.Context, off, n int64) (io.ReadCloser, error) {
			asked(off, n)
			return io.NopCloser(bytes.NewReader(blob[off : off+n])), nil
		},
	}
	contents, err := oci.ScanTOC(t.Context(), l, oci.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	lazy, err := oci.NewLazy(l, contents)
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{"os": "linux", "architecture": "amd64",
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{l.DiffID}}})
	if err != nil {
		t.Fatal(err)
	}
	im, err := oci.Assemble(t.Context(), config, []*oci.Contents{contents}, oci.Options{Source: "lab/x"})
	if err != nil {
		t.Fatal(err)
	}
	return &assembly{image: im, layers: []*layer{{source: l, contents: contents, lazy: lazy}}}
}

// TestLazyLayerInOneRequest: a range of the image is one range of the layer,
// however small the pieces in which it is read, and no byte of the layer is
// asked for that the range does not touch.
func TestLazyLayerInOneRequest(t *testing.T) {
	var requests int
	var bytesAsked int64
	a := stargz(t, 200, func(_, n int64) { requests++; bytesAsked += n })
	want := make([]byte, a.image.Size())
	if _, err := a.image.ReadAt(t.Context(), &assemblyReader{a: a, ctx: t.Context()}, want, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	s, ok := a.image.Segment(0)
	if !ok {
		t.Fatal("no layer's data in the image")
	}
	for _, c := range []struct {
		what     string
		off, n   int64
		requests int
		bytes    int64 // at most
	}{
		{"all of it", 0, a.image.Size(), 1, 200 * 9200},
		{"a part of the data", s.Offset + 100_000, 300_000, 1, 36 * 9200},
		{"what comes before the data", 0, s.Offset, 0, 0},
		{"what comes after the data", s.Offset + s.Length, a.image.Size() - s.Offset - s.Length, 0, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			lazy, err := oci.NewLazy(a.layers[0].source, a.layers[0].contents)
			if err != nil {
				t.Fatal(err)
			}
			l := a.layers[0]
			fresh := &assembly{image: a.image, layers: []*layer{{source: l.source, contents: l.contents, lazy: lazy}}}
			requests, bytesAsked = 0, 0
			r, err := fresh.Fetch(t.Context(), c.off, c.n)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got := make([]byte, c.n)
			for at := 0; at < len(got); at += 32 << 10 {
				if _, err := io.ReadFull(r, got[at:min(at+32<<10, len(got))]); err != nil {
					t.Fatalf("at %d: %v", at, err)
				}
			}
			if !bytes.Equal(got, want[c.off:c.off+c.n]) {
				t.Error("other bytes than one read gives")
			}
			if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("at the end: %d bytes, %v", n, err)
			}
			if requests != c.requests || bytesAsked > c.bytes {
				t.Errorf("%d requests for %d bytes; want %d for at most %d", requests, bytesAsked, c.requests, c.bytes)
			}
		})
	}
}

// TestDamagedWhileOpen: what goes bad of a container image's file while that is
// open is made again.
func TestDamagedWhileOpen(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, nil)
	a := stargz(t, 100, func(int64, int64) {})
	data := make([]byte, a.image.Size())
	if _, err := a.image.ReadAt(t.Context(), &assemblyReader{a: a, ctx: t.Context()}, data, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	cl := &Client{Name: "lab", cat: c, log: c.log}
	img := backends.Image{Ref: backends.Ref{Collection: "x", Name: "y", Tag: "v1"}, Revision: "sha256:1", Layered: true}
	key := cl.CacheKey(img)
	w, err := c.opts.Cache.Create(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if c.assemblies.ready == nil {
		c.assemblies.ready = map[string]*assembly{}
	}
	c.assemblies.ready[key] = a
	content, err := cl.openAs(t.Context(), img, oci.Plain)
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	files, err := filepath.Glob(filepath.Join(dir, "objects/objects/*.data"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.Truncate(files[0], 512<<10); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if _, err := content.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("right: %v, %v", bytes.Equal(got, data), err)
	}
}

// layers is a store of one container image, whose blobs are counted as they are
// opened.
type layers struct {
	backends.Store
	manifest backends.Manifest
	blobs    map[string][]byte
	opened   atomic.Int64
}

func (s *layers) Manifest(context.Context, backends.Image) (backends.Manifest, error) {
	return s.manifest, nil
}

func (s *layers) OpenBlob(_ context.Context, _ backends.Image, digest string, off, n int64) (io.ReadCloser, error) {
	if off == 0 {
		s.opened.Add(1)
	}
	blob := s.blobs[digest][off:]
	if n >= 0 {
		blob = blob[:n]
	}
	return io.NopCloser(bytes.NewReader(blob)), nil
}

// TestTooMuchToKnow: layers each of which is within the limits are not all read
// before it turns out that together they are not.
func TestTooMuchToKnow(t *testing.T) {
	const files, many, fit = 100, 40, 16
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	write := func(name string) {
		t.Helper()
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Format: tar.FormatPAX}); err != nil {
			t.Fatal(err)
		}
	}
	gzipped := func(p []byte) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write(p)
		_ = z.Close()
		return b.Bytes()
	}
	folders := strings.Repeat(strings.Repeat("n", 249)+"/", 15)
	for i := range files {
		write(fmt.Sprint(folders, i))
	}
	common, sum := gzipped(plain.Bytes()), sha256.New()
	sum.Write(plain.Bytes())
	state, err := sum.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	s := &layers{Store: backendtest.Memory(), blobs: map[string][]byte{}}
	var ids []string
	for i := range many {
		// They differ in what follows, which is a gzip stream of its own.
		plain.Reset()
		write(fmt.Sprint("layer", i))
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		plain.Write(make([]byte, 1024))
		if err := sum.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
			t.Fatal(err)
		}
		sum.Write(plain.Bytes())
		blob := slices.Concat(common, gzipped(plain.Bytes()))
		l := backends.Layer{Digest: sha(blob), DiffID: fmt.Sprintf("sha256:%x", sum.Sum(nil)), Size: int64(len(blob))}
		s.blobs[l.Digest], ids, s.manifest.Layers = blob, append(ids, l.DiffID), append(s.manifest.Layers, l)
	}
	if s.manifest.Config, err = json.Marshal(map[string]any{"rootfs": map[string]any{"diff_ids": ids}}); err != nil {
		t.Fatal(err)
	}
	cat := open(t, t.TempDir(), map[string]backends.Store{"mem": s})
	cat.limits.Metadata = fit * files * (len(folders) + 20)
	_, err = cat.Client("mem").assemble(t.Context(), backends.Image{Ref: red, Layered: true}, "key", oci.Plain)
	if !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("assemble = %v, want %v", err, oci.ErrUnsupported)
	}
	if n := s.opened.Load(); n < fit || n > fit+2*layersAtOnce {
		t.Errorf("read %d layers of which about %d fit", n, fit)
	}
}
