package squash

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// builder makes trees for tests; its data lie in memory.
type builder struct {
	t    testing.TB
	src  []*bytes.Buffer
	data []*DataWriter
}

func newBuilder(t testing.TB, codec Codec, sources int) *builder {
	b := &builder{t: t}
	for range sources {
		buf := new(bytes.Buffer)
		w, err := NewDataWriter(buf, codec)
		if err != nil {
			t.Fatal(err)
		}
		b.src, b.data = append(b.src, buf), append(b.data, w)
	}
	return b
}

// file is an inode with content in the given source.
func (b *builder) file(source int, content []byte) *Inode {
	b.t.Helper()
	off, blocks, err := b.data[source].File(int64(len(content)), bytes.NewReader(content))
	if err != nil {
		b.t.Fatal(err)
	}
	return &Inode{Mode: ModeRegular | 0o644, Size: int64(len(content)), Source: source, Offset: off, Blocks: blocks}
}

func dir(entries ...Entry) *Inode { return &Inode{Mode: ModeDir | 0o755, Entries: entries} }

// image lays the tree out and puts the whole file together.
func (b *builder) image(root *Inode, opts Options) []byte {
	b.t.Helper()
	for _, w := range b.data {
		if err := w.Flush(); err != nil {
			b.t.Fatal(err)
		}
	}
	img, err := Layout(root, opts)
	if err != nil {
		b.t.Fatalf("Layout: %v", err)
	}
	out := make([]byte, img.Size)
	copy(out, img.Superblock)
	copy(out[img.MetadataOffset:], img.Metadata)
	end := int64(len(img.Superblock))
	for _, s := range img.Segments {
		if s.Offset < end || s.Length <= 0 {
			b.t.Fatalf("segment %+v overlaps what ends at %d", s, end)
		}
		end = s.Offset + s.Length
		copy(out[s.Offset:end], b.src[s.Source].Bytes()[s.SourceOffset:])
	}
	if end > img.MetadataOffset || img.MetadataOffset%PartSize != 0 || img.Size%PageSize != 0 {
		b.t.Fatalf("data end at %d, metadata at %d, size %d", end, img.MetadataOffset, img.Size)
	}
	return out
}

// noise is n bytes that do not compress.
func noise(n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(n)})
	p := make([]byte, n)
	r.Read(p)
	return p
}

func TestLayoutIsDeterministic(t *testing.T) {
	make := func(shuffle bool) []byte {
		b := newBuilder(t, Plain, 2)
		shared := b.file(1, noise(5000))
		shared.Xattrs = []Xattr{{"user.b", "2"}, {"user.a", "1"}}
		var entries []Entry
		for i := range 600 {
			entries = append(entries, Entry{fmt.Sprintf("f%d", i), b.file(i%2, noise(i*7))})
		}
		entries = append(entries, Entry{"link", shared}, Entry{"sub", dir(Entry{"link", shared})})
		if shuffle {
			rand.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
			slices.Reverse(shared.Xattrs)
		}
		root := dir(entries...)
		first := b.image(root, Options{})
		if again := b.image(root, Options{}); !bytes.Equal(first, again) {
			t.Error("the same tree laid out twice differs")
		}
		return first
	}
	if !bytes.Equal(make(false), make(true)) {
		t.Error("the order of the entries shows in the image")
	}
}

func TestPlacement(t *testing.T) {
	b := newBuilder(t, Plain, 2)
	root := dir(
		Entry{"big", b.file(0, noise(AlignedFileSize))},
		Entry{"dead", b.file(0, noise(100))},
		Entry{"late", b.file(1, noise(10))},
		Entry{"small", b.file(0, noise(10))},
	)
	b.image(root, Options{})
	root.Entries = slices.DeleteFunc(root.Entries, func(e Entry) bool { return e.Name == "dead" })
	img, err := Layout(root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []Segment{
		{Offset: PartSize, Length: AlignedFileSize, Source: 0, SourceOffset: 0},
		{Offset: PartSize + AlignedFileSize, Length: 10, Source: 0, SourceOffset: AlignedFileSize + 100},
		{Offset: 2*PartSize + AlignedFileSize, Length: 10, Source: 1, SourceOffset: 0},
	}
	if !slices.Equal(img.Segments, want) {
		t.Errorf("segments = %+v, want %+v", img.Segments, want)
	}
	if want := int64(3*PartSize + AlignedFileSize); img.MetadataOffset != want {
		t.Errorf("metadata at %d, want %d", img.MetadataOffset, want)
	}
}

func TestLayoutRefuses(t *testing.T) {
	loop := dir()
	loop.Entries = []Entry{{"loop", loop}}
	twice := dir()
	deep := dir()
	for range MaxDepth + 1 {
		deep = dir(Entry{"d", deep})
	}
	many := dir()
	for i := range uint32(1 << 16) {
		many.Entries = append(many.Entries, Entry{fmt.Sprint(i), &Inode{Mode: ModeFIFO, UID: i}})
	}
	if _, err := Layout(dir(many.Entries[:1<<16-1]...), Options{}); err != nil {
		t.Errorf("Layout with %d owners: %v", 1<<16-1, err)
	}
	one := func(name string, ino *Inode) *Inode { return dir(Entry{name, ino}) }
	link := func(target string) *Inode { return &Inode{Mode: ModeSymlink, Target: target} }
	cases := []struct {
		name  string
		root  *Inode
		limit bool
	}{
		{"nil", nil, false},
		{"root is a file", &Inode{Mode: ModeRegular}, false},
		{"no inode", one("a", nil), false},
		{"no type", one("a", &Inode{Mode: 0o644}), false},
		{"empty name", one("", dir()), false},
		{"dot", one(".", dir()), false},
		{"dot dot", one("..", dir()), false},
		{"slash", one("a/b", dir()), false},
		{"NUL", one("a\x00b", dir()), false},
		{"name too long", one(strings.Repeat("n", MaxName+1), dir()), true},
		{"name twice", dir(Entry{"a", dir()}, Entry{"a", dir()}), false},
		{"directory inside itself", loop, false},
		{"directory under two names", dir(Entry{"a", twice}, Entry{"b", twice}), false},
		{"too deep", deep, true},
		{"too many owners", many, true},
		{"empty target", one("l", link("")), true},
		{"target too long", one("l", link(strings.Repeat("t", MaxTarget+1))), true},
		{"device number", one("d", &Inode{Mode: ModeChar, Major: 1 << 12}), true},
		{"negative size", one("f", &Inode{Mode: ModeRegular, Size: -1}), false},
		{"blocks missing", one("f", &Inode{Mode: ModeRegular, Size: 1, Blocks: []uint32{}}), false},
		{"block too long", one("f", &Inode{Mode: ModeRegular, Size: 1, Blocks: []uint32{2}}), false},
		{"stored block too short", one("f", &Inode{Mode: ModeRegular, Size: 2, Blocks: []uint32{1 | BlockStored}}), false},
		{"xattr of another kind", one("f", &Inode{Mode: ModeFIFO, Xattrs: []Xattr{{"system.posix_acl_access", ""}}}), true},
		{"xattr twice", one("f", &Inode{Mode: ModeFIFO, Xattrs: []Xattr{{"user.a", ""}, {"user.a", "x"}}}), false},
		{"xattr too large", one("f", &Inode{Mode: ModeFIFO, Xattrs: []Xattr{{"user.a", strings.Repeat("x", 1<<16+1)}}}), true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := Layout(c.root, Options{})
			if err == nil || errors.Is(err, ErrLimit) != c.limit {
				t.Errorf("Layout = %v, want an error with ErrLimit: %v", err, c.limit)
			}
		})
	}
}

func TestDataWriter(t *testing.T) {
	hole := make([]byte, BlockSize)
	cases := []struct {
		name    string
		codec   Codec
		content []byte
		blocks  []uint32
		stored  int64
	}{
		{"empty", Plain, nil, nil, 0},
		{"one byte", Plain, noise(1), nil, 1},
		{"a block", Plain, noise(BlockSize), nil, BlockSize},
		{"a block and a byte", Plain, noise(BlockSize + 1), nil, BlockSize + 1},
		{"short zeros are data", Plain, make([]byte, 100), nil, 100},
		{"a hole", Plain, hole, []uint32{0}, 0},
		{"data, hole, data", Plain, slices.Concat(noise(BlockSize), hole, noise(5)),
			[]uint32{BlockSize | BlockStored, 0, 5 | BlockStored}, BlockSize + 5},
		{"zstd gives up", Zstd, noise(BlockSize), []uint32{BlockSize | BlockStored}, BlockSize},
		{"zstd hole", Zstd, hole, []uint32{0}, 0},
		{"zstd empty", Zstd, nil, nil, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			w, err := NewDataWriter(&out, c.codec)
			if err != nil {
				t.Fatal(err)
			}
			_, blocks, err := w.File(int64(len(c.content)), bytes.NewReader(c.content))
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(blocks, c.blocks) || (blocks == nil) != (c.blocks == nil) {
				t.Errorf("blocks = %x, want %x", blocks, c.blocks)
			}
			if w.Size() != c.stored || int64(out.Len()) != c.stored {
				t.Errorf("Size = %d, written %d, want %d", w.Size(), out.Len(), c.stored)
			}
		})
	}
}

func TestDataWriterAligns(t *testing.T) {
	for _, codec := range []Codec{Plain, Zstd} {
		var out bytes.Buffer
		w, err := NewDataWriter(&out, codec)
		if err != nil {
			t.Fatal(err)
		}
		big := noise(AlignedFileSize)
		for _, content := range [][]byte{noise(3), big, noise(5)} {
			off, _, err := w.File(int64(len(content)), bytes.NewReader(content))
			if err != nil {
				t.Fatal(err)
			}
			if len(content) == len(big) && off != PageSize {
				t.Errorf("%v: a large file begins at %d, want %d", codec, off, PageSize)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if got := out.Bytes()[PageSize:]; !bytes.Equal(got[:len(big)], big) || !bytes.Equal(got[len(big):], noise(5)) {
			t.Errorf("%v: contents are not where they should be", codec)
		}
	}
}

func TestDataWriterFailures(t *testing.T) {
	w, err := NewDataWriter(io.Discard, Plain)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.File(10, strings.NewReader("short")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short content: %v, want io.ErrUnexpectedEOF", err)
	}
	if _, _, err := w.File(-1, strings.NewReader("")); err == nil {
		t.Error("negative size: no error")
	}
	if _, err := NewDataWriter(io.Discard, 9); err == nil {
		t.Error("unknown codec: no error")
	}
	full := errors.New("disk full")
	w, err = NewDataWriter(writerFunc(func([]byte) (int, error) { return 0, full }), Plain)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.File(2*dataBuffer, neverEnding('x')); !errors.Is(err, full) {
		t.Errorf("failing writer: %v, want its error", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

type neverEnding byte

func (b neverEnding) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b)
	}
	return len(p), nil
}

func FuzzLayoutNames(f *testing.F) {
	f.Add("a", "b", "target", "user.x")
	f.Add("\xff", strings.Repeat("x", 255), "..", "security.capability")
	f.Fuzz(func(t *testing.T, a, b, target, xattr string) {
		file := &Inode{Mode: ModeRegular, Xattrs: []Xattr{{xattr, a}}}
		root := dir(Entry{a, dir(Entry{b, file})}, Entry{b, &Inode{Mode: ModeSymlink, Target: target}}, Entry{"hard", file})
		img, err := Layout(root, Options{})
		if err == nil && img.Inodes != 4 {
			t.Errorf("%d inodes, want 4", img.Inodes)
		}
	})
}
