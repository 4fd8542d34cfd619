package image_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sylabs/sif/v2/pkg/sif"

	"github.com/sregfs/sregfs/image"
	"github.com/sregfs/sregfs/image/imagetest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	return b
}

func probe(b []byte) (image.Layout, error) {
	return image.Probe(context.Background(), bytes.NewReader(b), int64(len(b)))
}

func object(t testing.TB, typ sif.DataType, content []byte, opts ...sif.DescriptorInputOpt) sif.DescriptorInput {
	t.Helper()
	d, err := sif.NewDescriptorInput(typ, bytes.NewReader(content), opts...)
	must(t, err)
	return d
}

func partition(t testing.TB, content []byte, fs sif.FSType, part sif.PartType, arch string) sif.DescriptorInput {
	t.Helper()
	return object(t, sif.DataPartition, content, sif.OptPartitionMetadata(fs, part, arch))
}

// ext3 makes an ext3 file system of 2 MiB.
func ext3(t testing.TB) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ext3")
	mkfs, err := exec.LookPath("mkfs.ext3")
	if err != nil {
		// Not in an ordinary user's PATH.
		mkfs = "/sbin/mkfs.ext3"
	}
	if out, err := exec.Command(mkfs, "-q", "-F", name, "2048").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext3: %v\n%s", err, out)
	}
	return read(t, name)
}

func TestProbe(t *testing.T) {
	bare := read(t, imagetest.Squashfs(t, imagetest.Opts{NoShell: true, Mksquashfs: []string{"-nopad"}}))
	zstd := read(t, imagetest.Squashfs(t, imagetest.Opts{NoShell: true, Compressor: "zstd"}))
	simg := read(t, imagetest.Simg(t, imagetest.Opts{NoShell: true}))
	ext := ext3(t)
	many := read(t, imagetest.SIF(t, imagetest.Opts{
		NoShell: true, Arch: "arm64", Deffile: "Bootstrap: docker\n",
		Before: []sif.DescriptorInput{partition(t, []byte("other system"), sif.FsSquash, sif.PartSystem, "ppc64le")},
		After: []sif.DescriptorInput{
			partition(t, ext, sif.FsExt3, sif.PartOverlay, "arm64"),
			object(t, sif.DataSignature, []byte("signature"), sif.OptSignatureMetadata(5, make([]byte, 20))),
		},
	}))
	for _, tc := range []struct {
		name string
		file []byte
		want image.Layout
	}{
		{"squashfs", bare, image.Layout{Kind: image.Squashfs, FSType: "squashfs", Compression: "gzip"}},
		{"zstd", zstd, image.Layout{Kind: image.Squashfs, FSType: "squashfs", Compression: "zstd"}},
		{"simg", simg, image.Layout{Kind: image.Simg, FSType: "squashfs", Compression: "gzip", FSOffset: 31}},
		{"other launch line", append([]byte("#!/opt/bin/singularity run-singularity\n"), bare...),
			image.Layout{Kind: image.Simg, FSType: "squashfs", Compression: "gzip", FSOffset: 39}},
		{"ext3", ext, image.Layout{Kind: image.Ext3, FSType: "ext3", FSSize: 2 << 20}},
		{"ext3 behind a launch line", append([]byte(imagetest.LaunchLine), ext...),
			image.Layout{Kind: image.Ext3, FSType: "ext3", FSOffset: 31, FSSize: 2 << 20}},
		{"SIF", read(t, imagetest.SIF(t, imagetest.Opts{NoShell: true})),
			image.Layout{Kind: image.SIF, FSType: "squashfs", Compression: "gzip", Arch: "amd64"}},
		{"SIF with signature, overlay and a second system", many,
			image.Layout{Kind: image.SIF, FSType: "squashfs", Compression: "gzip", Arch: "arm64", Signed: true}},
		{"encrypted SIF", read(t, imagetest.SIF(t, imagetest.Opts{Encrypted: true})),
			image.Layout{Kind: image.SIF, FSType: "encrypted-squashfs", Arch: "amd64", Encrypted: true, FSSize: 1 << 20}},
	} {
		got, err := probe(tc.file)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		// What the table cannot know is checked by what is there.
		if got.FSType == "squashfs" {
			sb := tc.file[got.FSOffset:]
			if string(sb[:4]) != "hsqs" || got.FSSize != int64(binary.LittleEndian.Uint64(sb[40:])) {
				t.Errorf("%s: no squashfs of %d bytes at %d", tc.name, got.FSSize, got.FSOffset)
			}
			if got.Tables.Off <= got.FSOffset || got.Tables.End() != got.FSOffset+got.FSSize {
				t.Errorf("%s: tables %v of a file system of %d bytes at %d", tc.name, got.Tables, got.FSSize, got.FSOffset)
			}
			tc.want.FSSize = got.FSSize
		}
		if got.Kind == image.SIF {
			tc.want.FSOffset = got.FSOffset
		}
		if pad := int64(len(tc.file)) - got.Size; pad < 0 || pad >= 4096 || got.Kind == image.SIF && pad != 0 {
			t.Errorf("%s: size %d of a file of %d", tc.name, got.Size, len(tc.file))
		}
		// Without what differs from run to run.
		short := func(l image.Layout) string {
			l.Size, l.Tables = 0, image.Range{}
			return fmt.Sprintf("%+v", l)
		}
		if g, w := short(got), short(tc.want); cutRoot(g) != cutRoot(w) {
			t.Errorf("%s:\ngot  %s\nwant %s", tc.name, g, w)
		}
	}
}

// cutRoot leaves out the unexported end of a printed Layout.
func cutRoot(s string) string { s, _, _ = strings.Cut(s, " root:"); return s }

// TestCutImages cuts images everywhere: none of the pieces is whole, none is
// taken for something else.
func TestCutImages(t *testing.T) {
	for name, file := range map[string][]byte{
		"squashfs": read(t, imagetest.Squashfs(t, imagetest.Opts{NoShell: true, Mksquashfs: []string{"-nopad"}})),
		"simg":     read(t, imagetest.Simg(t, imagetest.Opts{NoShell: true, Mksquashfs: []string{"-nopad"}})),
		"sif": read(t, imagetest.SIF(t, imagetest.Opts{NoShell: true, After: []sif.DescriptorInput{
			object(t, sif.DataSignature, []byte("signature"), sif.OptSignatureMetadata(5, make([]byte, 20)))}})),
		"ext3": ext3(t),
	} {
		if ok, err := image.Complete(bytes.NewReader(file), int64(len(file))); !ok || err != nil {
			t.Errorf("%s: Complete = %v, %v, want true", name, ok, err)
		}
		step := max(1, len(file)/500)
		for n := 1; n < len(file); n += step {
			ok, err := image.Complete(bytes.NewReader(file), int64(n))
			// An ext file system begins with a KiB of nothing, and a SIF that
			// lacks even its magic is a launch line.
			if name == "ext3" && n < 2048 && errors.Is(err, image.ErrNotImage) {
				continue
			}
			if ok || err != nil {
				t.Errorf("%s: Complete of %d bytes of %d = %v, %v, want false", name, n, len(file), ok, err)
			}
			_, err = probe(file[:n])
			var cut *image.TruncatedError
			if !errors.As(err, &cut) || cut.Have != int64(n) || cut.Want <= cut.Have || cut.Want > int64(len(file)) {
				t.Errorf("%s: Probe of %d bytes of %d: %v, want TruncatedError", name, n, len(file), err)
			}
		}
		if ok, err := image.Complete(bytes.NewReader(file), int64(len(file)-1)); ok || err != nil {
			t.Errorf("%s: Complete without the last byte = %v, %v, want false", name, ok, err)
		}
	}
}

func TestWhatIsNoImage(t *testing.T) {
	sifFile := read(t, imagetest.SIF(t, imagetest.Opts{NoShell: true}))
	at := func(off int, v uint64) []byte {
		b := bytes.Clone(sifFile)
		binary.LittleEndian.PutUint64(b[off:], v)
		return b
	}
	layout, err := probe(sifFile)
	must(t, err)
	badPartition := bytes.Clone(sifFile)
	badPartition[layout.FSOffset] = 0
	longPartition := bytes.Clone(sifFile)
	binary.LittleEndian.PutUint64(longPartition[layout.FSOffset+40:], uint64(layout.FSSize)+8192)
	for _, tc := range []struct {
		name string
		file []byte
		want error
	}{
		{"nothing", nil, image.ErrNotImage},
		{"text", []byte("hello\n"), image.ErrNotImage},
		{"script", []byte("#!/bin/sh\nexec true\n" + strings.Repeat("#", 5000)), image.ErrNotImage},
		{"script that speaks of it", []byte("#!/bin/sh\nexec run-singularity\n" + strings.Repeat("#", 5000)), image.ErrNotImage},
		{"zeros", make([]byte, 10_000), image.ErrNotImage},
		{"squashfs 3", append([]byte("hsqs"), make([]byte, 5000)...), image.ErrNotImage},
		{"SIF of many descriptors", at(88, 1<<40), image.ErrCorrupt},
		{"SIF of -1 descriptors", at(88, 1<<64-1), image.ErrCorrupt},
		{"SIF with descriptors nowhere", at(96, 1<<63-1), image.ErrCorrupt},
		{"SIF with descriptors in its head", at(96, 3), image.ErrCorrupt},
		{"SIF with few bytes of descriptors", at(104, 5), image.ErrCorrupt},
		{"SIF version", at(42, 0x3939), image.ErrCorrupt},
		{"SIF without its squashfs", badPartition, image.ErrCorrupt},
		{"SIF with a squashfs larger than its partition", longPartition, image.ErrCorrupt},
	} {
		if _, err := probe(tc.file); !errors.Is(err, tc.want) {
			t.Errorf("%s: Probe: %v, want %v", tc.name, err, tc.want)
		}
		if ok, err := image.Complete(bytes.NewReader(tc.file), int64(len(tc.file))); ok || !errors.Is(err, tc.want) {
			t.Errorf("%s: Complete: %v, %v, want %v", tc.name, ok, err, tc.want)
		}
		if _, err := image.Inspect(context.Background(), bytes.NewReader(tc.file), int64(len(tc.file))); !errors.Is(err, tc.want) {
			t.Errorf("%s: Inspect: %v, want %v", tc.name, err, tc.want)
		}
	}
}

func TestErrorsOfTheReader(t *testing.T) {
	file := read(t, imagetest.SIF(t, imagetest.Opts{NoShell: true, NoMetadata: true}))
	broken := errors.New("line is down")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := image.Inspect(ctx, bytes.NewReader(file), int64(len(file))); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v, want %v", err, context.Canceled)
	}
	if _, err := image.Inspect(context.Background(), brokenReader{broken}, int64(len(file))); !errors.Is(err, broken) {
		t.Errorf("broken: %v, want %v", err, broken)
	}
	// A file that is shorter than its size is told as what it is.
	short := bytes.NewReader(file[:len(file)/2])
	if _, err := image.Inspect(context.Background(), short, int64(len(file))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("shorter than its size: %v, want %v", err, io.ErrUnexpectedEOF)
	}
}

type brokenReader struct{ err error }

func (b brokenReader) ReadAt([]byte, int64) (int, error) { return 0, b.err }

func FuzzImage(f *testing.F) {
	small := imagetest.Opts{NoShell: true, Labels: map[string]string{"a": "b"}, Deffile: "Bootstrap: scratch\n",
		Mksquashfs: []string{"-nopad"}}
	f.Add(read(f, imagetest.Simg(f, small)))
	f.Add(read(f, imagetest.SIF(f, small)))
	small.NoMetadata, small.Compressor = true, "lzo"
	f.Add(read(f, imagetest.SIF(f, small)))
	f.Fuzz(func(t *testing.T, file []byte) {
		ctx, size := context.Background(), int64(len(file))
		l, err := image.Probe(ctx, bytes.NewReader(file), size)
		if err == nil && l.Size > size {
			t.Errorf("Probe takes %d bytes for an image of %d", size, l.Size)
		}
		end := int64(0)
		for _, r := range image.Hints(l, size) {
			if r.Off < end || r.Len <= 0 || r.End() > size {
				t.Errorf("Hints of %d bytes: %v", size, image.Hints(l, size))
			}
			end = r.End()
		}
		if ok, cerr := image.Complete(bytes.NewReader(file), size); ok != (err == nil) {
			t.Errorf("Complete = %v, %v where Probe says %v", ok, cerr, err)
		}
		image.Inspect(ctx, bytes.NewReader(file), size)
	})
}
