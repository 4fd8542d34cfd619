package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/sregfs/sregfs/image/squash"
)

// member is one entry of a layer for tests.
type member struct {
	tar.Header
	body string
}

func file(name, body string) member {
	return member{tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg}, body}
}
func folder(name string) member {
	return member{tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeDir}, ""}
}

// symlink has the mode that Bazel gives it.
func symlink(name, target string) member {
	return member{tar.Header{Name: name, Linkname: target, Mode: 0o755, Typeflag: tar.TypeSymlink}, ""}
}
func hardlink(name, target string) member {
	return member{tar.Header{Name: name, Linkname: target, Mode: 0o644, Typeflag: tar.TypeLink}, ""}
}
func fifo(name string) member {
	return member{tar.Header{Name: name, Mode: 0o600, Typeflag: tar.TypeFifo}, ""}
}

// with changes a member.
func (m member) with(change func(*tar.Header)) member {
	change(&m.Header)
	return m
}

// archive is the tar archive of the members.
func archive(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatalf("%s: %v", m.Name, err)
		}
		if _, err := io.WriteString(w, m.body); err != nil {
			t.Fatalf("%s: %v", m.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(p []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(p)
	w.Close()
	return b.Bytes()
}

func zstded(p []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return w.EncodeAll(p, nil)
}

func sha(p []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(p)) }

// layerOf is the layer whose blob is given and holds the archive.
func layerOf(blob, archive []byte) Layer {
	return Layer{
		Digest: sha(blob), DiffID: sha(archive), Size: int64(len(blob)),
		Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob)), nil },
		ReadRange: func(_ context.Context, off, n int64) (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(bytes.NewReader(blob), off, n)), nil
		},
	}
}

// layer is a gzipped layer of the members.
func layer(t testing.TB, members ...member) Layer {
	t.Helper()
	a := archive(t, members...)
	return layerOf(gzipped(a), a)
}

// scanned are layers and their data files.
type scanned struct {
	contents []*Contents
	data     []*bytes.Buffer
}

func (s scanned) ReadLayer(_ context.Context, layer int, p []byte, off int64) error {
	b := s.data[layer].Bytes()
	if off+int64(len(p)) > int64(len(b)) {
		return io.ErrUnexpectedEOF
	}
	copy(p, b[off:])
	return nil
}

func scanLayers(t testing.TB, layers ...Layer) scanned {
	t.Helper()
	var s scanned
	for range layers {
		s.data = append(s.data, new(bytes.Buffer))
	}
	var err error
	s.contents, err = ScanAll(t.Context(), layers, ScanOptions{}, 4, func(i int) (io.Writer, error) { return s.data[i], nil })
	if err != nil {
		t.Fatalf("Scan: %v", err)
	}
	return s
}

// configFor is a configuration for the layers.
func configFor(t testing.TB, config map[string]any, layers ...Layer) []byte {
	t.Helper()
	ids := []string{}
	for _, l := range layers {
		ids = append(ids, l.DiffID)
	}
	b, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "created": "2020-01-02T03:04:05.678Z",
		"config": config, "rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// flat lays the layers over each other and describes each path in a line.
func flat(t *testing.T, layers ...Layer) (map[string]string, error) {
	t.Helper()
	s := scanLayers(t, layers...)
	tr := newTree(squash.Inode{MTime: 1})
	if err := flatten(t.Context(), tr, s.contents); err != nil {
		return nil, err
	}
	return s.describe(t, tr.root), nil
}

// describe gives a line for each path below n, "" for n itself left out when it
// is as made.
func (s scanned) describe(t *testing.T, n *node) map[string]string {
	out := map[string]string{}
	names := map[*squash.Inode]string{}
	var visit func(n *node, path string)
	visit = func(n *node, path string) {
		i := n.inode
		line := fmt.Sprintf("%o", i.Mode&0o7777)
		if i.UID != 0 || i.GID != 0 {
			line += fmt.Sprintf(" %d:%d", i.UID, i.GID)
		}
		switch i.Mode & squash.ModeType {
		case squash.ModeDir:
			line = "dir " + line
		case squash.ModeRegular:
			p := make([]byte, i.Size)
			if i.Blocks == nil && i.Source < len(s.data) {
				if err := s.ReadLayer(t.Context(), i.Source, p, i.Offset); err != nil {
					t.Errorf("%s: %v", path, err)
				}
			}
			line = fmt.Sprintf("file %s %q", line, p)
		case squash.ModeSymlink:
			line = "-> " + i.Target
			if perm := i.Mode &^ squash.ModeType; perm != 0o777 {
				line += fmt.Sprintf(" %o", perm)
			}
		case squash.ModeChar:
			line = fmt.Sprintf("char %s %d,%d", line, i.Major, i.Minor)
		case squash.ModeBlock:
			line = fmt.Sprintf("block %s %d,%d", line, i.Major, i.Minor)
		case squash.ModeFIFO:
			line = "fifo " + line
		}
		for _, x := range i.Xattrs {
			line += fmt.Sprintf(" %s=%q", x.Name, x.Value)
		}
		if path != "" {
			if first, ok := names[i]; ok {
				line = "same as " + first
			}
			names[i] = path
			out[path] = line
		}
		for _, name := range slices.Sorted(maps.Keys(n.children)) {
			visit(n.children[name], strings.TrimPrefix(path+"/"+name, "/"))
		}
	}
	visit(n, "")
	return out
}
