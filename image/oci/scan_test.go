package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/sregfs/sregfs/image/squash"
)

func noise(n int) string {
	r := rand.NewChaCha8([32]byte{byte(n)})
	p := make([]byte, n)
	r.Read(p)
	return string(p)
}

func TestScanFormats(t *testing.T) {
	members := []member{folder("d"), file("d/a", noise(300_000)), file("d/b", "small"), symlink("l", "d/a")}
	plain := archive(t, members...)
	long := slices.Concat(plain, make([]byte, 100_000))
	want, err := flat(t, layerOf(plain, plain))
	if err != nil {
		t.Fatal(err)
	}
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0}, "abc"...)
	half := len(plain) / 2
	cases := map[string][2][]byte{
		"plain":                {plain, plain},
		"gzip":                 {gzipped(plain), plain},
		"zstd":                 {zstded(plain), plain},
		"gzip members":         {slices.Concat(gzipped(plain[:half]), gzipped(nil), gzipped(plain[half:])), plain},
		"zstd frames":          {slices.Concat(skippable, zstded(plain[:half]), skippable, zstded(plain[half:])), plain},
		"long trailer":         {gzipped(long), long},
		"no trailer":           {gzipped(plain[:len(plain)-1024]), plain[:len(plain)-1024]},
		"half a trailer":       {gzipped(plain[:len(plain)-512]), plain[:len(plain)-512]},
		"gzip, trailer behind": {slices.Concat(gzipped(plain), gzipped(make([]byte, 4096))), slices.Concat(plain, make([]byte, 4096))},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := flat(t, layerOf(c[0], c[1]))
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("scan: %v, %d entries, want %d", err, len(got), len(want))
			}
		})
	}
	if got, err := flat(t, layerOf(nil, nil)); err != nil || len(got) != 0 {
		t.Errorf("empty blob: %v, %v", got, err)
	}
}

// TestScanTarDialects reads what archive/tar itself does not write.
func TestScanTarDialects(t *testing.T) {
	t.Run("GNU long names and base-256", func(t *testing.T) {
		long := strings.Repeat("directory/", 30) + "file"
		got, err := flat(t, layer(t,
			file(long, "x").with(func(h *tar.Header) { h.Format = tar.FormatGNU; h.Uid = 1 << 25 }),
			symlink("l", strings.Repeat("t", 500)).with(func(h *tar.Header) { h.Format = tar.FormatGNU })))
		if err != nil || got[long] != `file 644 33554432:0 "x"` || got["l"] != "-> "+strings.Repeat("t", 500) {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("global header", func(t *testing.T) {
		got, err := flat(t, layer(t,
			member{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "git"}}},
			file("a", "x")))
		if err != nil || len(got) != 1 {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("old GNU sparse", func(t *testing.T) { testSparse(t, oldGNUSparse()) })
	t.Run("pax 1.0 sparse", func(t *testing.T) { testSparse(t, paxSparse()) })
}

// The sparse file is 300,000 bytes long; "data" stands at 0 and at 262144.
const sparseSize, sparseAt = 300_000, 262_144

func testSparse(t *testing.T, archive []byte) {
	t.Helper()
	s := scanLayers(t, layerOf(gzipped(archive), archive))
	tr := newTree(squash.Inode{})
	if err := flatten(t.Context(), tr, s.contents); err != nil {
		t.Fatal(err)
	}
	i := tr.root.children["sparse"].inode
	if want := []uint32{squash.BlockSize | squash.BlockStored, 0, (sparseSize - sparseAt) | squash.BlockStored}; i.Size != sparseSize || !slices.Equal(i.Blocks, want) {
		t.Fatalf("size %d, blocks %x, want %x", i.Size, i.Blocks, want)
	}
	data := s.data[0].Bytes()
	if got := string(data[:4]) + string(data[squash.BlockSize:][:4]); got != "datadata" {
		t.Errorf("data are %q", got)
	}
}

func oldGNUSparse() []byte {
	block := make([]byte, 512)
	copy(block, "sparse")
	copy(block[100:], "0000644\x000000000\x000000000\x00")
	copy(block[124:], fmt.Sprintf("%011o\x00", 8)) // what is stored
	copy(block[136:], "00000000000\x00")
	block[156] = tar.TypeGNUSparse
	copy(block[257:], "ustar  \x00")
	for i, v := range []int{0, 4, sparseAt, 4} {
		copy(block[386+12*i:], fmt.Sprintf("%011o\x00", v))
	}
	copy(block[483:], fmt.Sprintf("%011o\x00", sparseSize))
	return slices.Concat(checksummed(block), pad([]byte("datadata")), make([]byte, 1024))
}

func paxSparse() []byte {
	record := func(k, v string) string {
		s := " " + k + "=" + v + "\n"
		n := len(s)
		for len(fmt.Sprint(n))+len(s) != n {
			n = len(fmt.Sprint(n)) + len(s)
		}
		return fmt.Sprint(n) + s
	}
	records := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") +
		record("GNU.sparse.name", "sparse") + record("GNU.sparse.realsize", fmt.Sprint(sparseSize))
	header := func(name string, typ byte, size int) []byte {
		block := make([]byte, 512)
		copy(block, name)
		copy(block[100:], "0000644\x000000000\x000000000\x00")
		copy(block[124:], fmt.Sprintf("%011o\x00", size))
		copy(block[136:], "00000000000\x00")
		block[156] = typ
		copy(block[257:], "ustar\x0000")
		return checksummed(block)
	}
	sparseMap := pad([]byte(fmt.Sprintf("2\n0\n4\n%d\n4\n", sparseAt)))
	return slices.Concat(header("x", tar.TypeXHeader, len(records)), pad([]byte(records)),
		header("GNUSparseFile.0/sparse", tar.TypeReg, 512+8), sparseMap, pad([]byte("datadata")), make([]byte, 1024))
}

func checksummed(block []byte) []byte {
	copy(block[148:], "        ")
	sum := 0
	for _, b := range block {
		sum += int(b)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	return block
}

func pad(p []byte) []byte { return append(p, make([]byte, -len(p)&511)...) }

func TestScanRefuses(t *testing.T) {
	good := archive(t, file("a", noise(200_000)))
	blob := gzipped(good)
	change := func(f func(*Layer)) Layer {
		l := layerOf(blob, good)
		f(&l)
		return l
	}
	wrongSum := slices.Clone(blob)
	wrongSum[len(wrongSum)-8] ^= 1 // gzip's own checksum
	flipped := slices.Clone(good)
	flipped[0] ^= 1
	broken := errors.New("connection lost")
	failing := func(after int64) func(context.Context) (io.ReadCloser, error) {
		return func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(blob[:after]), iotest.ErrReader(broken))), nil
		}
	}
	one := func(members ...member) Layer { return layer(t, members...) }
	cases := []struct {
		name  string
		layer Layer
		kind  error
		says  string
	}{
		{"wrong digest", change(func(l *Layer) { l.Digest = sha([]byte("x")) }), ErrCorrupt, "blob has the digest"},
		{"wrong diff id", change(func(l *Layer) { l.DiffID = sha([]byte("x")) }), ErrCorrupt, "archive has the digest"},
		{"no diff id", change(func(l *Layer) { l.DiffID = "" }), ErrUnsupported, "digest"},
		{"no digest", change(func(l *Layer) { l.Digest = "sha256:zz" }), ErrCorrupt, "digest"},
		{"digest in capitals", change(func(l *Layer) { l.Digest = strings.ToUpper(l.Digest) }), ErrUnsupported, "digest"},
		{"too short", change(func(l *Layer) { l.Size++ }), ErrCorrupt, "bytes, not the"},
		{"too long", change(func(l *Layer) { l.Size-- }), ErrCorrupt, "more bytes than"},
		{"negative size", change(func(l *Layer) { l.Size = -1 }), ErrCorrupt, "a size of -1"},
		{"absurd size", change(func(l *Layer) { l.Size = 1 << 62 }), ErrCorrupt, "a size of"},
		{"truncated gzip", layerOf(blob[:len(blob)/2], good), ErrCorrupt, "unexpected EOF"},
		{"truncated zstd", layerOf(zstded(good)[:1000], good), ErrCorrupt, "unexpected EOF"},
		{"truncated archive", layerOf(gzipped(good[:len(good)/2]), good[:len(good)/2]), ErrCorrupt, "unexpected EOF"},
		{"wrong gzip checksum", layerOf(wrongSum, good), ErrCorrupt, "checksum"},
		{"wrong header checksum", layerOf(gzipped(flipped), flipped), ErrCorrupt, "header"},
		{"no archive", layerOf([]byte("<html>404</html>"), []byte("<html>404</html>")), ErrCorrupt, "archive"},
		{"xz", layerOf([]byte("\xfd7zXZ\x00..."), nil), ErrUnsupported, "xz"},
		{"bzip2", layerOf([]byte("BZh91AY"), nil), ErrUnsupported, "bzip2"},
		{"connection lost at once", change(func(l *Layer) { l.Open = failing(0) }), broken, "reading"},
		{"connection lost later", change(func(l *Layer) { l.Open = failing(100_000) }), broken, "reading"},
		{"cannot open", change(func(l *Layer) {
			l.Open = func(context.Context) (io.ReadCloser, error) { return nil, broken }
		}), broken, "opening"},
		{"whiteout of the folder above", one(file("a/.wh...", "")), ErrCorrupt, "whiteout"},
		{"whiteout of nothing", one(file("a/.wh.", "")), ErrCorrupt, "whiteout"},
		{"root is a file", one(file("./", "").with(func(h *tar.Header) { h.Name = "./." })), ErrCorrupt, "root"},
		{"long name", one(file(strings.Repeat("n", 256), "")), ErrUnsupported, "name of 256"},
		{"long path", one(file(strings.Repeat("n/", 2500)+"n", "")), ErrUnsupported, "name of"},
		{"long target", one(symlink("l", strings.Repeat("t", 4096))), ErrUnsupported, "4096"},
		{"empty target", one(symlink("l", "")), ErrCorrupt, "link"},
		{"device number", one(member{Header: tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1 << 20}}), ErrUnsupported, "device"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			_, err := Scan(t.Context(), c.layer, ScanOptions{}, io.Discard)
			var le *LayerError
			if !errors.Is(err, c.kind) || !errors.As(err, &le) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Scan = %v, want %v saying %q", err, c.kind, c.says)
			}
			if errors.Is(c.kind, broken) && (errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnsupported)) {
				t.Errorf("Scan = %v: a lost connection is not the image's fault", err)
			}
			// One that has done its work still counts for a moment.
			for i := 0; runtime.NumGoroutine() > before && i < 1000; i++ {
				time.Sleep(time.Millisecond)
			}
			if after := runtime.NumGoroutine(); after > before {
				t.Errorf("%d goroutines left", after-before)
			}
		})
	}
}

// TestZstdFrames follows streams of every structure, and counts what windows
// are held.
func TestZstdFrames(t *testing.T) {
	encode := func(p []byte, opts ...zstd.EOption) []byte {
		var b bytes.Buffer
		w, err := zstd.NewWriter(&b, append(opts, zstd.WithEncoderConcurrency(1))...)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(p)
		w.Close()
		return b.Bytes()
	}
	text := []byte(strings.Repeat("0123456789", 100_000) + noise(300_000) + strings.Repeat("a", 300_000))
	small, middle, large := zstd.WithWindowSize(1<<20), zstd.WithWindowSize(16<<20), zstd.WithWindowSize(64<<20)
	cases := map[string]struct {
		blob []byte
		want int
		held int64
	}{
		"one":         {encode(text, small), 1, 0},
		"no checksum": {slices.Concat(encode(text, small, zstd.WithEncoderCRC(false)), encode(text, small)), 2, 0},
		"middle":      {slices.Concat(encode(text, small), encode(text, middle)), 2, middleWindow},
		"growing":     {slices.Concat(encode(text, middle), encode(text, large), encode(text, middle)), 3, largestWindow},
		"empty":       {slices.Concat(encode(nil, small, zstd.WithZeroFrames(true)), zstded(nil), encode(text, small)), 1, 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			z := &zstdFrames{ctx: t.Context(), r: bufio.NewReader(iotest.HalfReader(bytes.NewReader(c.blob)))}
			passed, err := io.ReadAll(z)
			if err != nil || !bytes.Equal(passed, c.blob) {
				t.Errorf("%d bytes passed on, %v; want %d", len(passed), err, len(c.blob))
			}
			if z.held != c.held {
				t.Errorf("windows of %d bytes held, want %d", z.held, c.held)
			}
			z.hold(0)
			d, err := decompress(t.Context(), bytes.NewReader(c.blob))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(d); err != nil || !bytes.Equal(got, bytes.Repeat(text, c.want)) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			d.Close()
			if !windows.TryAcquire(largestWindow) {
				t.Fatal("a window is still held")
			}
			windows.Release(largestWindow)
		})
	}
}

func TestScanBombs(t *testing.T) {
	small := Limits{Entries: 100, Metadata: 50_000, Logical: 64 << 20, Ratio: 10, Slack: 1 << 20}
	zeros := archive(t, file("zeros", strings.Repeat("\x00", 32<<20)))
	var many []member
	for i := range 101 {
		many = append(many, folder(fmt.Sprint(i)))
	}
	trailing := append(archive(t, file("a", "")), make([]byte, 32<<20)...)
	huge := oldGNUSparse()
	copy(huge[483:], "77777777777\x00") // 8 GiB
	checksummed(huge[:512])
	for name, c := range map[string]struct {
		layer Layer
		kind  error
	}{
		"gzip":      {layerOf(gzipped(zeros), zeros), ErrCorrupt},
		"zstd":      {layerOf(zstded(zeros), zeros), ErrCorrupt},
		"behind it": {layerOf(gzipped(trailing), trailing), ErrCorrupt},
		"entries":   {layer(t, many...), ErrUnsupported},
		"names": {layer(t, func() (m []member) {
			for i := range 30 {
				m = append(m, folder(fmt.Sprint(strings.Repeat("long/", 400), i)))
			}
			return m
		}()...), ErrUnsupported},
		"a sparse file": {layerOf(gzipped(huge), huge), ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Scan(t.Context(), c.layer, ScanOptions{Limits: small}, io.Discard)
			if !errors.Is(err, c.kind) {
				t.Errorf("Scan = %v, want %v", err, c.kind)
			}
		})
	}
}

func TestScanKeepsZerosOut(t *testing.T) {
	s := scanLayers(t, layer(t, file("zeros", strings.Repeat("\x00", 16<<20)), file("x", "1")))
	if got := s.data[0].Len(); got != 1 {
		t.Errorf("data file of %d bytes, want 1", got)
	}
}

func TestScanCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	blob := gzipped(archive(t, file("a", noise(1<<20))))
	l := layerOf(blob, nil)
	pr, pw := io.Pipe()
	l.Open = func(context.Context) (io.ReadCloser, error) {
		context.AfterFunc(ctx, func() { pw.CloseWithError(ctx.Err()) })
		return pr, nil
	}
	go func() {
		pw.Write(blob[:300_000])
		cancel()
	}()
	if _, err := Scan(ctx, l, ScanOptions{}, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("Scan = %v, want context.Canceled", err)
	}
}

// TestScanCancelledInHole: nothing is read of the layer while a hole of some
// hundred gigabytes is gone through.
func TestScanCancelledInHole(t *testing.T) {
	hole := oldGNUSparse()
	copy(hole[483:], "\x80\x00\x00\x00\x00\x00\x00\x3f\x00\x00\x00\x00") // 252 GiB in base 256
	checksummed(hole[:512])
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := Scan(ctx, layerOf(hole, hole), ScanOptions{}, io.Discard)
		done <- err
	}()
	time.Sleep(100 * time.Millisecond)
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Scan = %v, want context.Canceled", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Scan goes on after its context is done")
	}
}

type fullDisk struct{ left int }

func (f *fullDisk) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

var errFull = errors.New("disk full")

func TestScanDiskFull(t *testing.T) {
	for _, left := range []int{0, 2 << 20} {
		_, err := Scan(t.Context(), layer(t, file("a", noise(5<<20))), ScanOptions{}, &fullDisk{left})
		if !errors.Is(err, errFull) || errors.Is(err, ErrCorrupt) {
			t.Errorf("Scan = %v, want the writer's error", err)
		}
	}
}

func TestScanIsDeterministic(t *testing.T) {
	members := []member{file("a", noise(3<<20)), file("b", "x").with(func(h *tar.Header) {
		h.PAXRecords = map[string]string{}
		for i := range 20 {
			h.PAXRecords[fmt.Sprintf("SCHILY.xattr.user.%d", i)] = "v"
		}
	})}
	plain := archive(t, members...)
	for _, codec := range []squash.Codec{squash.Plain, squash.Zstd} {
		var first []byte
		for _, blob := range [][]byte{plain, gzipped(plain), zstded(plain), gzipped(plain)} {
			var data bytes.Buffer
			l := layerOf(blob, plain)
			c, err := Scan(t.Context(), l, ScanOptions{Codec: codec}, &data)
			if err != nil {
				t.Fatal(err)
			}
			c.Digest = "" // of the blob
			b, err := c.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			all := slices.Concat(b, data.Bytes())
			if first == nil {
				first = all
			}
			if !bytes.Equal(all, first) {
				t.Errorf("%v: the same archive gave other bytes", codec)
			}
		}
	}
}

func TestRescan(t *testing.T) {
	members := []member{file("a", noise(3<<20)), file("b", "x")}
	l := layer(t, members...)
	s := scanLayers(t, l)
	var again bytes.Buffer
	if err := Rescan(t.Context(), l, s.contents[0], Limits{}, &again); err != nil || !bytes.Equal(again.Bytes(), s.data[0].Bytes()) {
		t.Errorf("Rescan: %v, %d bytes, want %d", err, again.Len(), s.data[0].Len())
	}
	// A registry that now has other bytes must not get one of them out.
	members[0].body = "X" + members[0].body[1:]
	evil := layer(t, members...)
	again.Reset()
	if err := Rescan(t.Context(), evil, s.contents[0], Limits{}, &again); !errors.Is(err, ErrCorrupt) || again.Len() != 0 {
		t.Errorf("Rescan of other bytes: %v, %d bytes out", err, again.Len())
	}
	members[0].body = noise(3 << 20)[:3<<20-1] + "X"
	evil = layer(t, members...)
	again.Reset()
	if err := Rescan(t.Context(), evil, s.contents[0], Limits{}, &again); !errors.Is(err, ErrCorrupt) || !bytes.HasPrefix(s.data[0].Bytes(), again.Bytes()) {
		t.Errorf("Rescan of another end: %v, or bytes that were not checked", err)
	}
}

func TestContentsRoundTrip(t *testing.T) {
	s := scanLayers(t, layer(t, folder("d"), file("d/a", noise(1<<20)), symlink("l", "x"), hardlink("h", "d/a"), fifo("f"), file(".wh.gone", ""),
		file("zeros", strings.Repeat("\x00", 1<<20)+"x")))
	b, err := s.contents[0].MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var got Contents
	if err := got.UnmarshalBinary(b); err != nil || !reflect.DeepEqual(&got, s.contents[0]) {
		t.Errorf("%v\n got %+v\nwant %+v", err, got, *s.contents[0])
	}
	for i := range b {
		bad := slices.Clone(b)
		bad[i] ^= 0x10
		if err := new(Contents).UnmarshalBinary(bad); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d changed: %v, want ErrCorrupt", i, err)
		}
	}
	if err := new(Contents).UnmarshalBinary(nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("nothing: %v, want ErrCorrupt", err)
	}
}

func FuzzScan(f *testing.F) {
	plain := archive(f, folder("d"), file("d/a", "x"), symlink("l", "d"), hardlink("l/h", "d/a"), file("d/.wh.a", ""))
	f.Add(plain)
	f.Add(gzipped(plain))
	f.Add(zstded(plain))
	f.Add(oldGNUSparse())
	f.Add(paxSparse())
	limits := Limits{Entries: 1000, Metadata: 1 << 20, Logical: 4 << 20, Ratio: 100, Slack: 1 << 20}
	f.Fuzz(func(t *testing.T, blob []byte) {
		// The diff id cannot be known here, so look behind its check.
		s := &scanner{limits: limits}
		plain, err := decompress(t.Context(), bytes.NewReader(blob))
		if err != nil {
			return
		}
		defer plain.Close()
		if s.run(t.Context(), io.LimitReader(plain, 8<<20), squash.Plain, io.Discard) != nil {
			return
		}
		c := &Contents{DiffID: "x", list: s.list}
		tr := newTree(squash.Inode{})
		if flatten(t.Context(), tr, []*Contents{c, c}) != nil {
			return
		}
		if _, err := squash.Layout(tr.finish(), squash.Options{}); err != nil && !errors.Is(err, squash.ErrLimit) {
			t.Errorf("a tree that was accepted cannot be laid out: %v", err)
		}
	})
}

func FuzzContents(f *testing.F) {
	f.Add(appendEntry(nil, &entry{kind: kindFile, name: "a", size: 1 << 20, blocks: []uint32{1, 0, 0, 5}, chunks: []chunk{{size: 5, end: 9}}}))
	f.Add(appendEntry(appendEntry(nil, &entry{kind: kindHardlink, name: "a", target: "b"}), &entry{kind: kindOpaque}))
	f.Fuzz(func(t *testing.T, list []byte) {
		d := decoder{b: list}
		var e entry
		var again []byte
		for d.entry(&e) {
			again = appendEntry(again, &e)
		}
		d2 := decoder{b: again}
		for d2.entry(&e) {
		}
		if d2.err != nil {
			t.Errorf("what was read cannot be read again: %v", d2.err)
		}
	})
}
