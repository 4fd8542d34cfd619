//go:build integration

package integration

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// stargz is a layer as the eStargz builder makes it.
type stargz struct {
	blob   []byte
	diffID v1.Hash
	toc    string
}

func (l stargz) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.blob))
	return h, err
}
func (l stargz) DiffID() (v1.Hash, error) { return l.diffID, nil }
func (l stargz) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.blob)), nil
}
func (l stargz) Uncompressed() (io.ReadCloser, error) { return gzip.NewReader(bytes.NewReader(l.blob)) }
func (l stargz) Size() (int64, error)                 { return int64(len(l.blob)), nil }
func (l stargz) MediaType() (types.MediaType, error)  { return types.OCILayer, nil }

// stargzOf makes one of entries.
func stargzOf(t *testing.T, entries ...entry) stargz {
	t.Helper()
	rc, err := layerOf(t, entries...).Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	b, err := estargz.Build(io.NewSectionReader(bytes.NewReader(plain), 0, int64(len(plain))), estargz.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	l := stargz{toc: b.TOCDigest().String()}
	if l.blob, err = io.ReadAll(b); err != nil {
		t.Fatal(err)
	}
	if l.diffID, err = v1.NewHash(b.DiffID().String()); err != nil {
		t.Fatal(err)
	}
	return l
}

// pushStargz stores an image of one layer with a table of contents, which runs
// true.
func (r *registry) pushStargz(image string, entries ...entry) {
	r.t.Helper()
	l := stargzOf(r.t, entries...)
	img, err := mutate.Append(empty.Image, mutate.Addendum{Layer: l, MediaType: types.OCILayer,
		Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: l.toc}})
	if err == nil {
		img = mutate.MediaType(img, types.OCIManifestSchema1)
		img, err = mutate.ConfigFile(img, configFile(r.t, img, v1.Config{Cmd: []string{"/bin/true"}}))
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.push(image, img)
}

// TestLazyLayers: images whose layers have tables of contents start after a
// hundredth of their bytes or so, in either format, and read as what they are.
func TestLazyLayers(t *testing.T) {
	run := apptainer(t)
	files := 4_000
	if long() {
		files = 20_000
	}
	list := append(busyboxEntries(t), folder("many/", 0o755))
	for i := range files {
		if i%200 == 0 {
			list = append(list, folder(fmt.Sprintf("many/%03d/", i/200), 0o755))
		}
		list = append(list, regular(fmt.Sprintf("many/%03d/%05d", i/200, i), 0o644, randomText(byte(i), 8_000+i%14_000)))
	}
	r := startRegistry(t, registryOptions{})
	r.pushStargz("library/lazy:estargz", list...)
	r.push("library/plain:1", imageOf(t, v1.Config{Cmd: []string{"/bin/true"}}, layerOf(t, list...)))
	shell(t, nil, "skopeo copy -q --insecure-policy --src-tls-verify=false --dest-tls-verify=false --dest-compress-format zstd:chunked docker://%s/library/plain:1 docker://%s/library/lazy:zstd", r.host, r.host)
	// The table of contents takes some 62 bytes a file, the program 1.1 MB; the
	// rest is what the kernel reads around what it needs.
	most := int64(2_300_000 + 62*files)
	for _, tag := range []string{"estargz", "zstd"} {
		t.Run(tag, func(t *testing.T) {
			f := behind(t, r)
			d := f.mount(t)
			file := "lab/library/lazy:" + tag + ".simg"
			before := f.bytes()
			d.run("%s exec --no-privs %s true", run, file)
			n := f.bytes() - before
			t.Logf("the first exec fetched %d bytes of an image of %s", n, d.run("stat -c %%s %s", file))
			if n > most {
				t.Errorf("the first exec fetched %d bytes, want %d at most", n, most)
			}
			// Chunks are checked, and the right ones.
			for _, i := range []int{0, files / 2, files - 1} {
				name := fmt.Sprintf("many/%03d/%05d", i/200, i)
				d.run("%s exec --no-privs %s cat /%s > %s/file", run, file, name, d.home)
				if got := d.run("cat %s/file", d.home); got != randomText(byte(i), 8_000+i%14_000) {
					t.Errorf("%s reads as other bytes", name)
				}
			}
			// All of it comes in few requests.
			asked := f.requests(blobs)
			d.run("cat %s > /dev/null", file)
			n = int64(f.requests(blobs) - asked)
			t.Logf("reading all of it took %d requests", n)
			if n > int64(files)/20 {
				t.Errorf("reading %d files took %d requests", files, n)
			}
		})
	}
}

// TestLazyPassthrough: an image whose layers are read lazily is written out in
// the background while it is open, once a good part of it was read; the kernel
// reads it itself from the next open on.
func TestLazyPassthrough(t *testing.T) {
	r := startRegistry(t, registryOptions{})
	list := busyboxEntries(t)
	for i := range 24 {
		list = append(list, regular(fmt.Sprintf("data%02d", i), 0o644, randomText(byte(i), 500_000)))
	}
	r.pushStargz("library/lazy:1", list...)
	f := behind(t, r)
	d := f.mount(t)
	const file = "lab/library/lazy:1.simg"
	start := d.status()
	open, err := os.Open(filepath.Join(d.dir, file))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if _, err := io.CopyN(io.Discard, open, 6<<20); err != nil {
		t.Fatal(err)
	}
	d.eventually("the whole image to be here", func() error {
		if where, _, err := d.try("getfattr --only-values -n user.sregistry.location %s", file); err != nil || where != "local" {
			return fmt.Errorf("location %q: %v", where, err)
		}
		return nil
	})
	open.Close()
	before, asked := d.status(), f.requests(blobs)
	if n := before.Opens.Daemon - start.Opens.Daemon; n == 0 {
		t.Error("the first open was the kernel's, of what was not here")
	}
	sum := d.run("for n in 1 2 3; do sha256sum < %s; done | uniq", file)
	after := d.status()
	kernel, daemon := after.Opens.Kernel-before.Opens.Kernel, after.Opens.Daemon-before.Opens.Daemon
	if out, passes := d.passesThrough(); passes && (kernel != 3 || daemon != 0) || !passes && kernel != 0 {
		t.Errorf("the kernel read %d opens by itself, the daemon %d; doctor says %s", kernel, daemon, out)
	}
	if n := f.requests(blobs) - asked; n > 0 {
		t.Errorf("%d requests for what was here", n)
	}
	if want := f.mount(t).run("sha256sum < %s", file); sum != want {
		t.Errorf("it reads as %s, want %s", sum, want)
	}
}
