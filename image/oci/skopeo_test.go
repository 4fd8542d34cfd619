//go:build integration

package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sregfs/sregfs/image/squash"
)

// TestSkopeoZstdChunked reads the layers that skopeo makes lazily and whole.
func TestSkopeoZstdChunked(t *testing.T) {
	layers := hardLayers(t)
	src, dst := ociLayout(t, configFor(t, nil, layers...), layers...), t.TempDir()
	if out, err := exec.Command("skopeo", "copy", "--insecure-policy", "--dest-compress-format", "zstd:chunked", "oci:"+src+":latest", "oci:"+dst+":latest").CombinedOutput(); err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
	blob := func(digest string) []byte {
		p, err := os.ReadFile(filepath.Join(dst, "blobs/sha256", strings.TrimPrefix(digest, "sha256:")))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	type descriptor struct {
		Digest      string
		MediaType   string
		Annotations map[string]string
	}
	var index struct{ Manifests []descriptor }
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	p, err := os.ReadFile(filepath.Join(dst, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(p, &index); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(blob(index.Manifests[0].Digest), &manifest); err != nil {
		t.Fatal(err)
	}
	config, err := ParseConfig(blob(manifest.Config.Digest))
	if err != nil {
		t.Fatal(err)
	}
	layers = nil
	for i, d := range manifest.Layers {
		l := layerOf(blob(d.Digest), nil)
		l.DiffID, l.Annotations = config.DiffIDs[i], d.Annotations
		layers = append(layers, l)
	}
	flatten := func(s scanned) map[string]string {
		tr := newTree(squash.Inode{})
		if err := flatten(t.Context(), tr, s.contents); err != nil {
			t.Fatal(err)
		}
		return s.describe(t, tr.root)
	}
	s := scanLayers(t, layers...)
	want := flatten(s)
	// The first layer has a name that is not UTF-8.
	if _, err := ScanTOC(t.Context(), layers[0], Limits{}); !errors.Is(err, ErrNoTOC) {
		t.Errorf("ScanTOC = %v, want ErrNoTOC", err)
	}
	for i, l := range layers[1:] {
		c, err := ScanTOC(t.Context(), l, Limits{})
		if err != nil {
			t.Fatalf("layer %d: %v, annotations %v", i+1, err, l.Annotations)
		}
		z, err := NewLazy(l, c)
		if err != nil {
			t.Fatal(err)
		}
		s.contents[i+1], s.data[i+1] = c, bytes.NewBuffer(readLazy(t, z, 0, z.Size()))
	}
	diff(t, flatten(s), want)
}
