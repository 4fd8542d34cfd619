package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"

	"github.com/sregfs/sregfs/image/squash"
)

// lazyLayer is a layer in one of the lazy formats, made by the library that
// defined the first of them. requests counts the ranges that are asked for.
func lazyLayer(t testing.TB, format string, chunkSize int, members ...member) (l Layer, requests *atomic.Int64, fetched *atomic.Int64) {
	t.Helper()
	plain := archive(t, members...)
	opts := []estargz.Option{estargz.WithChunkSize(chunkSize)}
	metadata := map[string]string{}
	switch format {
	case "estargz":
		opts = append(opts, estargz.WithCompressionLevel(gzip.BestSpeed))
	case "estargz, packed":
		opts = append(opts, estargz.WithMinChunkSize(50_000))
	case "zstd:chunked":
		opts = append(opts, estargz.WithCompression(&zstdCompression{
			&zstdchunked.Compressor{CompressionLevel: zstd.SpeedFastest, Metadata: metadata}, &zstdchunked.Decompressor{}}))
	default:
		t.Fatalf("no such format: %s", format)
	}
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(plain), 0, int64(len(plain))), opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	b, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	l = layerOf(b, nil)
	l.DiffID = blob.DiffID().String()
	l.Annotations = map[string]string{tocDigest: blob.TOCDigest().String()}
	if format == "zstd:chunked" {
		// As skopeo and podman write it.
		l.Annotations = metadata
	}
	requests, fetched = new(atomic.Int64), new(atomic.Int64)
	read := l.ReadRange
	l.ReadRange = func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		requests.Add(1)
		fetched.Add(n)
		return read(ctx, off, n)
	}
	return l, requests, fetched
}

type zstdCompression struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

var lazyFormats = []string{"estargz", "estargz, packed", "zstd:chunked"}

func lazyMembers() []member {
	out := []member{folder("d").with(func(h *tar.Header) { h.Mode = 0o1777 }),
		file("d/large", noise(700_017)), file("d/x", "x").with(func(h *tar.Header) {
			h.Mode, h.Uid, h.Gid = 0o4755, 7, 8
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\xff\x00", "SCHILY.xattr.user.a": "b"}
		}), symlink("l", "d"), hardlink("h", "d/x"), fifo("f"), file("empty", ""), file("d/.wh.gone", ""), file("o/.wh..wh..opq", ""),
		{Header: tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}}}
	for i := range 40 {
		out = append(out, file(fmt.Sprintf("many/%d", i), noise(i*97)))
	}
	return out
}

// TestTOCEqualsScan reads the same layer both ways.
func TestTOCEqualsScan(t *testing.T) {
	below := layer(t, file("d/gone", "1"), file("o/gone", "2"), file("kept", "3"))
	for _, format := range lazyFormats {
		t.Run(format, func(t *testing.T) {
			l, requests, _ := lazyLayer(t, format, 100_000, lazyMembers()...)
			s := scanLayers(t, below, l)
			tr := newTree(squash.Inode{})
			if err := flatten(t.Context(), tr, s.contents); err != nil {
				t.Fatal(err)
			}
			want := s.describe(t, tr.root)

			requests.Store(0)
			c, err := ScanTOC(t.Context(), l, Limits{})
			if err != nil {
				t.Fatalf("ScanTOC: %v", err)
			}
			if n := requests.Load(); n != 1 {
				t.Errorf("%d requests for a small table of contents, want 1", n)
			}
			b, err := c.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			var stored Contents
			if err := stored.UnmarshalBinary(b); err != nil || !reflect.DeepEqual(&stored, c) {
				t.Errorf("stored contents differ (%v)", err)
			}
			z, err := NewLazy(l, &stored)
			if err != nil {
				t.Fatal(err)
			}
			data := readLazy(t, z, 0, z.Size())
			s = scanned{[]*Contents{s.contents[0], c}, []*bytes.Buffer{s.data[0], bytes.NewBuffer(data)}}
			tr = newTree(squash.Inode{})
			if err := flatten(t.Context(), tr, s.contents); err != nil {
				t.Fatal(err)
			}
			got := s.describe(t, tr.root)
			for _, name := range slices.Sorted(maps.Keys(want)) {
				if got[name] != want[name] {
					t.Errorf("%s = %.200s, want %.200s", name, got[name], want[name])
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d entries, want %d", len(got), len(want))
			}
		})
	}
}

func readLazy(t testing.TB, z *Lazy, off, n int64) []byte {
	t.Helper()
	r, err := z.Fetch(t.Context(), off, n)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := io.ReadAll(r)
	if err != nil || int64(len(p)) != n {
		t.Fatalf("Fetch(%d, %d): %d bytes, %v", off, n, len(p), err)
	}
	return p
}

func TestLazyReads(t *testing.T) {
	for _, format := range lazyFormats {
		t.Run(format, func(t *testing.T) {
			l, _, _ := lazyLayer(t, format, 100_000, lazyMembers()...)
			c, err := ScanTOC(t.Context(), l, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			z, err := NewLazy(l, c)
			if err != nil {
				t.Fatal(err)
			}
			all := readLazy(t, z, 0, z.Size())
			for _, m := range lazyMembers() {
				n := int64(len(m.body))
				at := int64(bytes.Index(all, []byte(m.body)))
				if at < 0 {
					t.Errorf("the data of %s are not there", m.Name)
				}
				if bytes.Count(all, []byte(m.body)) > 1 {
					continue // it is part of another's
				}
				for _, off := range []int64{at, at + n/2, at + n - 1} {
					if end := z.Extent(off); end != at+n {
						t.Errorf("%s, %d bytes at %d: Extent(%d) = %d", m.Name, n, at, off, end)
					}
				}
			}
			if end := z.Extent(z.Size()); end != z.Size() {
				t.Errorf("Extent at the end = %d of %d", end, z.Size())
			}
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(1, uint64(i)))
					for range 20 {
						off := rnd.Int64N(z.Size())
						n := rnd.Int64N(min(z.Size()-off, 300_000) + 1)
						if got := readLazy(t, z, off, n); !bytes.Equal(got, all[off:off+n]) {
							t.Errorf("range %d+%d differs", off, n)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// TestTOCInProportion: of a layer without many files little more than its table
// of contents is fetched for it.
func TestTOCInProportion(t *testing.T) {
	l, requests, fetched := lazyLayer(t, "estargz", 1<<20, file("a", noise(1<<20)))
	if _, err := ScanTOC(t.Context(), l, Limits{}); err != nil {
		t.Fatal(err)
	}
	if n, b := requests.Load(), fetched.Load(); n != 1 || b > minTail {
		t.Errorf("%d requests for %d bytes, want 1 for %d at most", n, b, minTail)
	}
}

// TestLazyFetchesOnce reads a chunk in small pieces, and two at once.
func TestLazyFetchesOnce(t *testing.T) {
	l, requests, fetched := lazyLayer(t, "estargz", 1<<20, file("a", noise(1<<20)), file("b", noise(5000)), file("c", noise(1<<20)))
	c, err := ScanTOC(t.Context(), l, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	z, err := NewLazy(l, c)
	if err != nil {
		t.Fatal(err)
	}
	requests.Store(0)
	fetched.Store(0)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for off := int64(0); off < 1<<20; off += 64 << 10 {
				readLazy(t, z, off, 64<<10)
			}
		})
	}
	wg.Wait()
	if n, b := requests.Load(), fetched.Load(); n != 1 || b > 1<<20+1<<14 {
		t.Errorf("%d requests of %d bytes for a chunk of 1 MiB, want 1", n, b)
	}
	requests.Store(0)
	readLazy(t, z, 0, z.Size())
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests for neighbours, want 1", n)
	}
}

// TestLazyGaps reads a layer as skopeo makes it: compressed headers lie between
// the files, and a file's first chunk is said to end where the file does.
func TestLazyGaps(t *testing.T) {
	var blob []byte
	frame := func(text string) (off, end int64) {
		off = int64(len(blob))
		blob = append(blob, zstded([]byte(text))...)
		return off, int64(len(blob))
	}
	var want strings.Builder
	z := &Lazy{held: map[int]*inflated{}}
	for i := range 20 {
		frame(fmt.Sprint("header ", i))
		first := len(z.chunks)
		for k := range 3 {
			text := noise(3000 + 100*i + k)
			off, end := frame(text)
			z.chunks = append(z.chunks, lazyChunk{chunk: chunk{size: int64(len(text)), offset: off, sum: sha256.Sum256([]byte(text))},
				at: int64(want.Len())})
			z.chunks[first].end = end
			want.WriteString(text)
		}
	}
	z.size = int64(want.Len())
	requests, fetched := 0, int64(0)
	z.layer.ReadRange = func(_ context.Context, off, n int64) (io.ReadCloser, error) {
		requests, fetched = requests+1, fetched+n
		return io.NopCloser(bytes.NewReader(blob[off : off+n])), nil
	}
	if err := z.index(int64(len(blob))); err != nil {
		t.Fatal(err)
	}
	if got := readLazy(t, z, 0, 3000); string(got) != want.String()[:3000] {
		t.Error("the first chunk has other bytes than were stored")
	}
	if requests != 1 || fetched > 4000 {
		t.Errorf("%d requests of %d bytes for a chunk of 3000, want 1 for that alone", requests, fetched)
	}
	requests, fetched = 0, 0
	if got := readLazy(t, z, 3000, z.size-3000); string(got) != want.String()[3000:] {
		t.Error("other bytes than were stored")
	}
	if requests != 1 || fetched > int64(len(blob)) {
		t.Errorf("%d requests of %d bytes for all the rest of %d, want 1", requests, fetched, len(blob))
	}
}

func TestTOCRefuses(t *testing.T) {
	l, _, _ := lazyLayer(t, "estargz", 1<<20, file("a", "x"))
	with := func(change func(*Layer)) Layer {
		c := l
		c.Annotations = maps.Clone(l.Annotations)
		change(&c)
		return c
	}
	odd, _, _ := lazyLayer(t, "estargz", 1<<20, file("\xff", "x"))
	cases := map[string]struct {
		layer Layer
		kind  error
	}{
		"ordinary layer":       {layer(t, file("a", "x")), ErrNoTOC},
		"ordinary, but pinned": {func() Layer { o := layer(t, file("a", "x")); o.Annotations = l.Annotations; return o }(), ErrNoTOC},
		"not pinned":           {with(func(l *Layer) { l.Annotations = nil }), ErrNoTOC},
		"no ranges":            {with(func(l *Layer) { l.ReadRange = nil }), ErrNoTOC},
		"name not UTF-8":       {odd, ErrNoTOC},
		"negative size":        {with(func(l *Layer) { l.Size = -1 }), ErrCorrupt},
		"another table":        {with(func(l *Layer) { l.Annotations[tocDigest] = sha(nil) }), ErrCorrupt},
		"no digest": {with(func(l *Layer) {
			l.Annotations = map[string]string{chunkedSum: "x", chunkedPlace: "0:10:10:1"}
		}), ErrUnsupported},
		"place outside": {with(func(l *Layer) {
			l.Annotations = map[string]string{chunkedSum: sha(nil), chunkedPlace: "0:99999999:10:1"}
		}), ErrCorrupt},
		"place is no number": {with(func(l *Layer) {
			l.Annotations = map[string]string{chunkedSum: sha(nil), chunkedPlace: "x:1:10:1"}
		}), ErrCorrupt},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := ScanTOC(t.Context(), c.layer, Limits{})
			if !errors.Is(err, c.kind) {
				t.Errorf("ScanTOC = %v, want %v", err, c.kind)
			}
		})
	}
}

// TestTOCEntriesRefused feeds tables that no builder makes.
func TestTOCEntriesRefused(t *testing.T) {
	sum := strings.Repeat("0", 64)
	cases := map[string]struct {
		entries string
		kind    error
	}{
		"no JSON":             {`{`, ErrCorrupt},
		"another version":     {``, ErrNoTOC},
		"chunk of no file":    {`{"type":"chunk","chunkSize":1}`, ErrCorrupt},
		"file without end":    {`{"type":"reg","name":"a","size":9,"chunkSize":5,"chunkDigest":"sha256:` + sum + `"}`, ErrCorrupt},
		"chunk beyond":        {`{"type":"reg","name":"a","size":4,"chunkSize":5,"chunkDigest":"sha256:` + sum + `"}`, ErrCorrupt},
		"no checksum":         {`{"type":"reg","name":"a","size":4,"offset":1}`, ErrNoTOC},
		"huge chunk":          {`{"type":"reg","name":"a","size":99999999,"digest":"sha256:` + sum + `"}`, ErrNoTOC},
		"negative size":       {`{"type":"reg","name":"a","size":-4}`, ErrCorrupt},
		"negative offset":     {`{"type":"reg","name":"a","size":4,"offset":-1,"digest":"sha256:` + sum + `"}`, ErrCorrupt},
		"unknown type":        {`{"type":"door","name":"a"}`, ErrNoTOC},
		"owner":               {`{"type":"dir","name":"a","uid":-1}`, ErrCorrupt},
		"time":                {`{"type":"dir","name":"a","modtime":"noon"}`, ErrCorrupt},
		"replaced characters": {`{"type":"dir","name":"\ud800"}`, ErrNoTOC},
		"more than the limit": {`{"type":"reg","name":"a","size":9999999999999,"chunkType":"zeros"}`, ErrUnsupported},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := &tocScanner{limits: Limits{}.withDefaults()}
			text := `{"version":1,"entries":[` + c.entries + `]}`
			if c.entries == "" {
				text = `{"version":2}`
			}
			if err := s.decode(t.Context(), strings.NewReader(text)); !errors.Is(err, c.kind) {
				t.Errorf("decode = %v, want %v", err, c.kind)
			}
		})
	}
}

// TestTOCChunksAreBounded gives a file more chunks than there is room for.
func TestTOCChunksAreBounded(t *testing.T) {
	const n = 10_000
	var b strings.Builder
	fmt.Fprintf(&b, `{"version":1,"entries":[{"type":"reg","name":"a","size":%d,"chunkSize":1,"chunkType":"zeros"}`, n)
	for i := 1; i < n; i++ {
		fmt.Fprintf(&b, `,{"type":"chunk","chunkOffset":%d,"chunkSize":1,"chunkType":"zeros"}`, i)
	}
	b.WriteString("]}")
	s := &tocScanner{limits: Limits{Metadata: 10_000}.withDefaults()}
	if err := s.decode(t.Context(), strings.NewReader(b.String())); !errors.Is(err, ErrUnsupported) {
		t.Errorf("decode = %v, want %v", err, ErrUnsupported)
	}
}

// TestTOCZerosAreBounded gives many files chunks of zeros, which take no room in
// the list, but in memory.
func TestTOCZerosAreBounded(t *testing.T) {
	const files, n = 200, 200
	var b strings.Builder
	b.WriteString(`{"version":1,"entries":[{"type":"dir","name":"d"}`)
	for i := range files {
		fmt.Fprintf(&b, `,{"type":"reg","name":"%d","size":%d,"chunkSize":1,"chunkType":"zeros"}`, i, n)
		for k := 1; k < n; k++ {
			fmt.Fprintf(&b, `,{"type":"chunk","chunkOffset":%d,"chunkSize":1,"chunkType":"zeros"}`, k)
		}
	}
	b.WriteString("]}")
	for metadata, want := range map[int]error{140_000: ErrUnsupported, 2_000_000: nil} {
		s := &tocScanner{limits: Limits{Metadata: metadata}.withDefaults()}
		if err := s.decode(t.Context(), strings.NewReader(b.String())); !errors.Is(err, want) {
			t.Errorf("with at most %d bytes: decode = %v, want %v", metadata, err, want)
		}
	}
}

// TestTOCEntriesTakeLittleMemory decodes a table of one endless name, which
// compresses to nearly nothing.
func TestTOCEntriesTakeLittleMemory(t *testing.T) {
	for _, before := range []string{`{"version":1,"entries":[{"type":"dir","name":"`, `{"version":1,"entries":[{"xattrs":{"`, `{"x":"`} {
		var start, end runtime.MemStats
		runtime.ReadMemStats(&start)
		s := &tocScanner{limits: Limits{}.withDefaults()}
		err := s.decode(t.Context(), io.MultiReader(strings.NewReader(before), io.LimitReader(letters{}, 128<<20)))
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("decode = %.100v, want %v", err, ErrCorrupt)
		}
		runtime.ReadMemStats(&end)
		if n := end.TotalAlloc - start.TotalAlloc; n > 8*maxTOCEntry {
			t.Errorf("%s…: took %d bytes", before, n)
		}
	}
}

// TestTOCWindow has a table of some bytes ask for the largest window.
func TestTOCWindow(t *testing.T) {
	text := `{"version":1,"entries":[]}`
	block := len(text)<<3 | 1                                   // the last one, stored
	raw := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, (29 - 10) << 3, // a frame with a window of 2^29 bytes
		byte(block), byte(block >> 8), byte(block >> 16)}
	raw = append(raw, text...)
	l := layerOf(raw, nil)
	l.Annotations = map[string]string{chunkedSum: sha(raw), chunkedPlace: fmt.Sprintf("0:%d:%d:1", len(raw), len(text))}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := ScanTOC(t.Context(), l, Limits{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("ScanTOC = %v, want %v", err, ErrCorrupt)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 2*middleWindow {
		t.Errorf("took %d bytes", n)
	}
}

// TestLazyWindow: a file's stream with a large window waits for its share of what
// there is for all.
func TestLazyWindow(t *testing.T) {
	text := []byte("some file's content")
	block := len(text)<<3 | 1                                   // the last one, stored
	raw := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, (24 - 10) << 3, // a frame with a window of 2^24 bytes
		byte(block), byte(block >> 8), byte(block >> 16)}
	raw = append(raw, text...)
	z := &Lazy{chunks: []lazyChunk{{chunk: chunk{size: int64(len(text)), sum: sha256.Sum256(text)}}}}
	u := unit{end: int64(len(raw)), chunks: []int{0}}
	if err := windows.Acquire(t.Context(), largestWindow-middleWindow+1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if got, err := z.inflate(ctx, u, raw); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without room: %v, %v, want to wait", got, err)
	}
	windows.Release(largestWindow - middleWindow + 1)
	if got, err := z.inflate(t.Context(), u, raw); err != nil || !bytes.Equal(got[0], text) {
		t.Errorf("with room: %v, %v", got, err)
	}
	if !windows.TryAcquire(largestWindow) {
		t.Fatal("room was not given back")
	}
	windows.Release(largestWindow)
}

// letters never ends.
type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

func TestLazyCorruptChunk(t *testing.T) {
	for _, format := range lazyFormats {
		l, _, _ := lazyLayer(t, format, 1<<20, file("a", noise(100_000)), file("b", noise(200_000)))
		c, err := ScanTOC(t.Context(), l, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		read := l.ReadRange
		l.ReadRange = func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
			body, err := read(ctx, off, n)
			if err != nil {
				return nil, err
			}
			p, err := io.ReadAll(body)
			p[len(p)/2] ^= 1
			return io.NopCloser(bytes.NewReader(p)), err
		}
		z, err := NewLazy(l, c)
		if err != nil {
			t.Fatal(err)
		}
		r, err := z.Fetch(t.Context(), 0, 100_000)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := io.ReadAll(r); !errors.Is(err, ErrCorrupt) || len(p) > 0 {
			t.Errorf("%s: %d bytes, %v; want none and ErrCorrupt", format, len(p), err)
		}
		broken := errors.New("gone")
		l.ReadRange = func(context.Context, int64, int64) (io.ReadCloser, error) { return nil, broken }
		if z, err = NewLazy(l, c); err != nil {
			t.Fatal(err)
		}
		if r, err = z.Fetch(t.Context(), 0, 1); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: Read = %v, want the layer's own error", format, err)
		}
	}
}

func FuzzTOC(f *testing.F) {
	f.Add([]byte(`{"version":1,"entries":[{"type":"reg","name":"a","size":5,"offset":3,"chunkSize":2,"chunkDigest":"sha256:` + strings.Repeat("0", 64) +
		`"},{"type":"chunk","name":"a","offset":9,"chunkOffset":2,"chunkDigest":"sha256:` + strings.Repeat("1", 64) + `"},{"type":"hardlink","name":"b","linkName":"a"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s := &tocScanner{limits: Limits{Entries: 1000, Metadata: 1 << 20, Logical: 1 << 30, Ratio: 1, Slack: 1}}
		if s.decode(t.Context(), bytes.NewReader(text)) != nil {
			return
		}
		l := Layer{ReadRange: func(_ context.Context, off, n int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(make([]byte, n))), nil
		}}
		z, err := NewLazy(l, &Contents{Lazy: true, DataSize: s.data, payload: 1 << 20, list: s.list})
		if err != nil {
			return
		}
		if r, err := z.Fetch(t.Context(), 0, min(z.Size(), 1<<20)); err == nil {
			io.Copy(io.Discard, r)
		}
	})
}

// TestLazyStreams reads the first chunk of a range while the rest of the one
// request for it has not come.
func TestLazyStreams(t *testing.T) {
	l, requests, _ := lazyLayer(t, "estargz", 1<<20, file("a", noise(5000)), file("b", noise(5000)), file("c", noise(5000)))
	c, err := ScanTOC(t.Context(), l, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	read, came := l.ReadRange, make(chan struct{})
	l.ReadRange = func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		body, err := read(ctx, off, n)
		if err != nil {
			return nil, err
		}
		// The last chunk needs all of it.
		last := &gated{ReadCloser: body, ctx: ctx, gate: came, free: n - 4000}
		return last, nil
	}
	z, err := NewLazy(l, c)
	if err != nil {
		t.Fatal(err)
	}
	requests.Store(0)
	r, err := z.Fetch(t.Context(), 0, z.Size())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, z.Size())
	if _, err := io.ReadFull(r, got[:10_000]); err != nil {
		t.Fatalf("the first two files, while the third is on its way: %v", err)
	}
	close(came)
	if _, err := io.ReadFull(r, got[10_000:]); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, []byte(noise(5000)+noise(5000)+noise(5000))) {
		t.Error("other bytes than were stored")
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

// gated gives its first bytes, and the others when the gate is opened.
type gated struct {
	io.ReadCloser
	ctx  context.Context
	gate chan struct{}
	free int64
}

func (g *gated) Read(p []byte) (int, error) {
	if g.free == 0 {
		select {
		case <-g.gate:
			return g.ReadCloser.Read(p)
		case <-g.ctx.Done():
			return 0, g.ctx.Err()
		}
	}
	n, err := g.ReadCloser.Read(p[:min(int64(len(p)), g.free)])
	g.free -= int64(n)
	return n, err
}

// TestLazyManyReaders: what one reader's request brought is still there when
// others have fetched more than is held for all.
func TestLazyManyReaders(t *testing.T) {
	var members []member
	for i := range 24 {
		members = append(members, file(fmt.Sprint(i), noise(1<<20)))
	}
	l, requests, _ := lazyLayer(t, "estargz", 1<<20, members...)
	c, err := ScanTOC(t.Context(), l, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	z, err := NewLazy(l, c)
	if err != nil {
		t.Fatal(err)
	}
	requests.Store(0)
	const part = 3 << 20
	var readers []io.ReadCloser
	for off := int64(0); off < z.Size(); off += part {
		r, err := z.Fetch(t.Context(), off, part)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		readers = append(readers, r)
	}
	for range part >> 20 {
		for i, r := range readers {
			if _, err := io.CopyN(io.Discard, r, 1<<20); err != nil {
				t.Fatalf("reader %d: %v", i, err)
			}
		}
	}
	if n := requests.Load(); n != int64(len(readers)) {
		t.Errorf("%d requests of %d readers, want one each", n, len(readers))
	}
}

// TestLazyClose: a reader that is given up ends its request; another that waits
// for the same chunk gets it all the same, whatever the request failed with.
func TestLazyClose(t *testing.T) {
	for _, failure := range []error{context.Canceled, context.DeadlineExceeded, errors.New("connection closed")} {
		l, _, _ := lazyLayer(t, "estargz", 1<<20, file("a", noise(5000)))
		c, err := ScanTOC(t.Context(), l, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		read, first, asked, waited := l.ReadRange, true, make(chan struct{}), make(chan struct{})
		l.ReadRange = func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
			if first {
				first = false
				close(asked)
				<-ctx.Done()
				<-waited
				return nil, failure
			}
			return read(ctx, off, n)
		}
		z, err := NewLazy(l, c)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		given, err := z.Fetch(ctx, 0, z.Size())
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { io.ReadAll(given) })
		<-asked
		wg.Go(func() {
			r, err := z.Fetch(t.Context(), 0, z.Size())
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			time.AfterFunc(50*time.Millisecond, func() { close(waited) }) // it waits by then
			if got, err := io.ReadAll(r); err != nil || string(got) != noise(5000) {
				t.Errorf("after %v: %d bytes, %v", failure, len(got), err)
			}
		})
		cancel()
		wg.Wait()
		given.Close()
	}
}

// TestLazyOwnFailure: a request that fails as if its reader had been given up,
// which it was not, is an error.
func TestLazyOwnFailure(t *testing.T) {
	l, _, _ := lazyLayer(t, "estargz", 1<<20, file("a", noise(5000)))
	c, err := ScanTOC(t.Context(), l, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	l.ReadRange = func(context.Context, int64, int64) (io.ReadCloser, error) { return nil, context.Canceled }
	z, err := NewLazy(l, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	r, err := z.Fetch(ctx, 0, z.Size())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("Read = %v, want the layer's own error at once", err)
	}
}
