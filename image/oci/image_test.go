package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sylabs/sif/v2/pkg/sif"

	"github.com/sregfs/sregfs/image/squash"
)

// assemble makes an image of the layers, and its bytes.
func assemble(t testing.TB, config map[string]any, opts Options, layers ...Layer) (*Image, scanned, []byte) {
	t.Helper()
	s := scanLayers(t, layers...)
	im, err := Assemble(t.Context(), configFor(t, config, layers...), s.contents, opts)
	if err != nil {
		t.Fatalf("Assemble: %v", err)
	}
	var b bytes.Buffer
	if err := im.Write(t.Context(), &b, s); err != nil {
		t.Fatalf("Write: %v", err)
	}
	if int64(b.Len()) != im.Size() {
		t.Fatalf("wrote %d bytes of %d", b.Len(), im.Size())
	}
	return im, s, b.Bytes()
}

func sampleLayers(t testing.TB) []Layer {
	return []Layer{
		layer(t, file("a", noise(300_000)), file("dead", noise(5000)), file("c", "c")),
		layer(t, file("big", noise(1<<20)), file(".wh.dead", ""), hardlink("d", "c")),
	}
}

func TestImageIsSIF(t *testing.T) {
	_, _, b := assemble(t, map[string]any{"Cmd": []string{"x"}, "Labels": map[string]string{"k": "v<"}, "Env": []string{"A=b"}},
		Options{Source: "docker.io/library/x:1"}, sampleLayers(t)...)
	f, err := sif.LoadContainer(sif.NewBuffer(b))
	if err != nil {
		t.Fatalf("sif: %v", err)
	}
	if f.PrimaryArch() != "amd64" || f.DescriptorsTotal() != 48 || f.DescriptorsFree() != 44 || f.DataOffset() != 32176 ||
		f.LaunchScript() != "#!/usr/bin/env run-singularity\n" || f.DataOffset()+f.DataSize() != int64(len(b)) {
		t.Errorf("header: %s, %d of %d free, data %d+%d of %d, %q", f.PrimaryArch(), f.DescriptorsFree(), f.DescriptorsTotal(),
			f.DataOffset(), f.DataSize(), len(b), f.LaunchScript())
	}
	var got []string
	f.WithDescriptors(func(d sif.Descriptor) bool {
		got = append(got, d.DataType().String()+" "+d.Name())
		if d.GroupID() != 1 || !d.CreatedAt().IsZero() && d.CreatedAt().Unix() != 0 {
			t.Errorf("object %d: group %d, made %v", d.ID(), d.GroupID(), d.CreatedAt())
		}
		return false
	})
	if want := "Def.FILE |JSON.Generic inspect-metadata.json|JSON.Generic oci-config.json|FS "; strings.Join(got, "|") != want {
		t.Errorf("objects are %q", got)
	}
	part, err := f.GetDescriptor(sif.WithPartitionType(sif.PartPrimSys))
	if err != nil {
		t.Fatal(err)
	}
	if fs, _, arch, err := part.PartitionMetadata(); err != nil || fs != sif.FsSquash || arch != "amd64" || part.Offset()%4096 != 0 {
		t.Errorf("partition: %v, %s at %d, %v", fs, arch, part.Offset(), err)
	}
	meta, err := f.GetDescriptor(sif.WithID(2))
	if err != nil {
		t.Fatal(err)
	}
	p, err := meta.GetData()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Data struct{ Attributes map[string]any }
		Type string
	}
	if err := json.Unmarshal(p, &doc); err != nil || doc.Type != "container" {
		t.Errorf("inspect-metadata.json: %s, %v", p, err)
	}
	labels, _ := doc.Data.Attributes["labels"].(map[string]any)
	if labels["k"] != "v<" || labels["org.label-schema.usage.singularity.deffile.from"] != "docker.io/library/x:1" ||
		labels["org.label-schema.build-date"] != "Thursday_2_January_2020_3:4:5_UTC" {
		t.Errorf("labels are %v", labels)
	}
}

func TestImageReadAt(t *testing.T) {
	im, s, want := assemble(t, nil, Options{}, sampleLayers(t)...)
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		off := r.Int64N(im.Size() + 10)
		p := bytes.Repeat([]byte{0xee}, r.IntN(200_000))
		n, err := im.ReadAt(t.Context(), s, p, off)
		rest := want[min(off, im.Size()):]
		if n != min(len(p), len(rest)) || !bytes.Equal(p[:n], rest[:n]) || (err == io.EOF) != (off >= im.Size() || n < len(p)) {
			t.Fatalf("ReadAt(%d bytes, %d) = %d, %v; want %d", len(p), off, n, err, min(len(p), len(rest)))
		}
	}
	if _, err := im.ReadAt(t.Context(), s, make([]byte, 1), -1); err == nil || err == io.EOF {
		t.Errorf("ReadAt(-1) = %v, want an error", err)
	}
	// Metadata are there while no layer is.
	broken := errors.New("not here yet")
	segs := im.Segments()
	if len(segs) == 0 {
		t.Fatal("no segments")
	}
	end := int64(0)
	for _, g := range segs {
		if g.Offset < end || g.Layer < 0 || g.Layer > 1 {
			t.Errorf("segment %+v after %d", g, end)
		}
		end = g.Offset + g.Length
		if _, err := im.ReadAt(t.Context(), failingData{broken}, make([]byte, 1), g.Offset); !errors.Is(err, broken) {
			t.Errorf("ReadAt in a layer = %v, want its error", err)
		}
	}
	last := segs[len(segs)-1]
	if _, err := im.ReadAt(t.Context(), failingData{broken}, make([]byte, im.Size()-last.Offset-last.Length), last.Offset+last.Length); err != nil {
		t.Errorf("ReadAt behind the layers = %v", err)
	}
	if _, err := im.ReadAt(t.Context(), failingData{broken}, make([]byte, segs[0].Offset), 0); err != nil {
		t.Errorf("ReadAt before the layers = %v", err)
	}
}

type failingData struct{ err error }

func (f failingData) ReadLayer(context.Context, int, []byte, int64) error { return f.err }

func TestImageIsDeterministic(t *testing.T) {
	layers := sampleLayers(t)
	_, _, a := assemble(t, nil, Options{Source: "x"}, layers...)
	_, _, b := assemble(t, nil, Options{Source: "x"}, layers...)
	if !bytes.Equal(a, b) {
		t.Error("the same image twice differs")
	}
	_, _, c := assemble(t, nil, Options{Source: "y"}, layers...)
	if bytes.Equal(a[48:64], c[48:64]) {
		t.Error("two images have one UUID")
	}
}

// TestLayoutVersion has the checksum of an image of this layout version. A
// change of the bytes needs another version, or caches would mix both.
func TestLayoutVersion(t *testing.T) {
	plain := archive(t, file("a", strings.Repeat("a", 200_000)), file("b", strings.Repeat("\x00", 200_000)), symlink("l", "a"), hardlink("h", "a"))
	_, _, b := assemble(t, map[string]any{"Cmd": []string{"x"}}, Options{Source: "x"}, layerOf(plain, plain))
	got := sha(b)
	if want := map[int]string{203: layoutSum203}[LayoutVersion]; got != want {
		t.Errorf("layout version %d makes %s, not %s", LayoutVersion, got, want)
	}
}

func TestWriteFile(t *testing.T) {
	im, s, want := assemble(t, nil, Options{}, sampleLayers(t)...)
	dir := t.TempDir()
	var files []*os.File
	for _, d := range s.data {
		f, err := os.CreateTemp(dir, "data")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(d.Bytes()); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	path := filepath.Join(dir, "image")
	if err := os.WriteFile(path, bytes.Repeat([]byte("old"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := im.WriteFile(t.Context(), f, files); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file differs (%v)", err)
	}
	if err := files[0].Truncate(10); err != nil {
		t.Fatal(err)
	}
	if err := im.WriteFile(t.Context(), f, files); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("WriteFile from a short data file = %v", err)
	}
	if err := im.WriteFile(t.Context(), f, files[:1]); err == nil {
		t.Error("WriteFile without a data file: no error")
	}
}

// TestCopyRange copies within one file to where it overlaps, which the kernel
// refuses, and stops when the context is done.
func TestCopyRange(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const n = 3 * copyBuffer
	content := noise(n + 1000)
	write := func() {
		t.Helper()
		if _, err := f.WriteAt([]byte(content), 0); err != nil {
			t.Fatal(err)
		}
	}
	write()
	if err := copyRange(t.Context(), f, 0, f, 1000, n); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, n)
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != content[1000:] {
		t.Errorf("other bytes than were copied (%v)", err)
	}
	write()
	if err := copyRange(t.Context(), f, 0, f, 1000, n+1); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("copyRange beyond the end = %v", err)
	}
	if err := copyRange(&endingContext{t.Context(), 2}, f, 0, f, 1000, n); !errors.Is(err, context.Canceled) {
		t.Errorf("copyRange = %v, want context.Canceled", err)
	}
}

// endingContext is done when it has been asked so often.
type endingContext struct {
	context.Context
	left int
}

func (c *endingContext) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

func TestAssembleRefuses(t *testing.T) {
	layers := sampleLayers(t)
	s := scanLayers(t, layers...)
	good := configFor(t, nil, layers...)
	cases := map[string]struct {
		config []byte
		layers []*Contents
	}{
		"no JSON":          {[]byte("{"), s.contents},
		"a layer too few":  {good, s.contents[:1]},
		"another order":    {good, []*Contents{s.contents[1], s.contents[0]}},
		"a huge config":    {append(good, bytes.Repeat([]byte(" "), maxConfig)...), s.contents},
		"Env is a number":  {bytes.Replace(good, []byte(`"config":null`), []byte(`"config":{"Env":1}`), 1), s.contents},
		"config is a list": {bytes.Replace(good, []byte(`"config":null`), []byte(`"config":[]`), 1), s.contents},
	}
	for name, c := range cases {
		if _, err := Assemble(t.Context(), c.config, c.layers, Options{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: Assemble = %v, want ErrCorrupt", name, err)
		}
	}
	for _, limits := range []Limits{{Entries: 5}, {Metadata: 20}} {
		if _, err := Assemble(t.Context(), good, s.contents, Options{Limits: limits}); !errors.Is(err, ErrUnsupported) {
			t.Errorf("beyond %+v: Assemble = %v, want ErrUnsupported", limits, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Assemble(ctx, good, s.contents, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: Assemble = %v", err)
	}
}

// TestAssembleBoundsHoles: files that are nothing but a hole take no room in a
// layer, but some in the image for each of their blocks.
func TestAssembleBoundsHoles(t *testing.T) {
	hole := oldGNUSparse()
	copy(hole[483:], "07777777777\x00") // 1 GiB
	checksummed(hole[:512])
	l := layerOf(gzipped(hole), hole)
	s := scanLayers(t, l)
	config := configFor(t, nil, l, l, l)
	layers := []*Contents{s.contents[0], s.contents[0], s.contents[0]}
	if _, err := Assemble(t.Context(), config, layers, Options{Limits: Limits{Logical: 3 << 30}}); err != nil {
		t.Errorf("Assemble: %v", err)
	}
	if _, err := Assemble(t.Context(), config, layers, Options{Limits: Limits{Logical: 2 << 30}}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("beyond the limit: Assemble = %v, want ErrUnsupported", err)
	}
}

// TestAssembleBoundsDirectories: a link of some bytes can lead through thousands
// of directories that no layer has an entry for.
func TestAssembleBoundsDirectories(t *testing.T) {
	members := []member{folder("d"), symlink("d/l", strings.Repeat("a/", 2000))}
	for i := range 10 {
		members = append(members, folder(fmt.Sprint("p", i)), hardlink(fmt.Sprintf("p%d/l", i), "d/l"), file(fmt.Sprintf("p%d/l/x", i), ""))
	}
	l := layer(t, members...)
	s := scanLayers(t, l)
	config := configFor(t, nil, l)
	for entries, want := range map[int]error{1000: ErrUnsupported, 25_000: nil} {
		if _, err := Assemble(t.Context(), config, s.contents, Options{Limits: Limits{Entries: entries}}); !errors.Is(err, want) {
			t.Errorf("with at most %d: Assemble = %v, want %v", entries, err, want)
		}
	}
}

// TestLinkToNoName: a link to what cannot be a file's name is left as it is.
func TestLinkToNoName(t *testing.T) {
	l := layer(t, symlink("etc/hosts", strings.Repeat("n", squash.MaxName+1)))
	s := scanLayers(t, l)
	if _, err := Assemble(t.Context(), configFor(t, nil, l), s.contents, Options{}); err != nil {
		t.Errorf("Assemble: %v", err)
	}
}

func TestZstdDataIsSmaller(t *testing.T) {
	l := layer(t, file("a", strings.Repeat("hello ", 1<<18)))
	var data bytes.Buffer
	c, err := Scan(t.Context(), l, ScanOptions{Codec: squash.Zstd}, &data)
	if err != nil {
		t.Fatal(err)
	}
	im, err := Assemble(t.Context(), configFor(t, nil, l), []*Contents{c}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if data.Len() > 1<<14 || im.Size() > 1<<18 || c.DataKey() == DataKey(l.DiffID, squash.Plain) {
		t.Errorf("data %d, image %d bytes, key %s", data.Len(), im.Size(), c.DataKey())
	}
}

// TestNoEntrypoint: a list of one empty word is none.
func TestNoEntrypoint(t *testing.T) {
	c, err := ParseConfig([]byte(`{"rootfs":{"diff_ids":[]},"config":{"Entrypoint":[""],"Cmd":["echo","hello"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{"": "hello\n", "echo there": "there\n"} {
		cmd := exec.Command("sh", append([]string{"-c", c.runscript(false), "sh"}, strings.Fields(args)...)...)
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("run with the arguments %q: %q, %v; want %q", args, out, err, want)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"config":{"Env":["A=b","PATH=x","B"],"Entrypoint":["a","b'c"],"Cmd":"x","Labels":{"a":"b"}},"rootfs":{"diff_ids":[]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := ParseConfig(raw)
		if err != nil || len(c.DiffIDs) > 0 {
			return
		}
		im, err := Assemble(t.Context(), raw, nil, Options{Source: string(raw)})
		if err != nil {
			t.Fatalf("Assemble: %v", err)
		}
		if _, err := im.ReadAt(t.Context(), scanned{}, make([]byte, im.Size()), 0); err != nil {
			t.Errorf("ReadAt: %v", err)
		}
	})
}

// layoutSum203 is what TestLayoutVersion expects of version 203.
const layoutSum203 = "sha256:d66d9fc92e93630f0837e5ee881cbe12e8814b3f967bd06de158999b25668ecd"
