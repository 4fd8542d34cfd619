package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/klauspost/compress/zstd"

	"github.com/sregfs/sregfs/image/squash"
)

// Files in the root of an eStargz layer that belong to the format.
const (
	indexFile          = estargz.TOCTarName
	prefetchLandmark   = estargz.PrefetchLandmark
	noPrefetchLandmark = estargz.NoPrefetchLandmark
)

// Annotations of a layer that pin its table of contents. Newer builders put
// zstd:chunked's under github.
const (
	tocDigest       = estargz.TOCJSONDigestAnnotation
	chunkedSum      = zstdchunked.ManifestChecksumAnnotation
	chunkedSumNew   = "io.github.containers.zstd-chunked.manifest-checksum"
	chunkedPlace    = zstdchunked.ManifestPositionAnnotation
	chunkedPlaceNew = "io.github.containers.zstd-chunked.manifest-position"
)

const (
	// One part in tocShare of the blob is read of its end at first, within
	// these limits: often enough all of a table of contents, else the last part
	// of it. Files of some kilobytes take about so much.
	tocShare         = 180
	minTail, maxTail = 16 << 10, 2 << 20
	// maxTOC is how large a table may be, as it is and as text. An entry takes
	// some 50 and 300 bytes.
	maxTOC, maxTOCText = 64 << 20, 1 << 30
	// maxChunk is the largest piece that is fetched and checked as a whole.
	maxChunk = 32 << 20
	// maxTOCEntry is how large the text of one entry may be, more than the names
	// and attributes of any file take: it is in memory as a whole.
	maxTOCEntry = 16 << 20
	// chunkBytes is what one counts for among the metadata, about as much as it
	// takes when it is stored.
	chunkBytes = 40
)

// ScanTOC makes the Contents of a layer from its table of contents, fetching
// nothing else. It fails with ErrNoTOC when the layer has none, when the
// manifest does not pin it by an annotation (it would be as good as the
// transport only), or when it cannot be exact: names that are not UTF-8 are
// lost in it, and chunks without checksums cannot be checked. Then Scan reads
// the layer whole. The diff id is not checked; the chunks are, one by one, as
// Lazy fetches them.
//
// What a table says need not be what a scan of the same layer would find
// (times are rounded, zeros are not left out), so an image should keep to the
// one that it was opened with.
func ScanTOC(ctx context.Context, layer Layer, limits Limits) (*Contents, error) {
	t := &tocScanner{layer: layer, limits: limits.withDefaults()}
	c, err := t.scan(ctx)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, &LayerError{Layer: layer.Digest, Path: t.path, Err: err}
	}
	return c, nil
}

// TOCKey names what ScanTOC makes of the layer: same key, same Contents, but for
// the diff id. The blob's digest alone does not decide that. A manifest may point
// to any place in a blob, a file within it included, and that must not become the
// table for those who do not.
func (l Layer) TOCKey() string {
	h := sha256.New()
	fmt.Fprintln(h, l.Size) // footers are looked for at the end
	for _, name := range []string{tocDigest, chunkedSumNew, chunkedSum, chunkedPlaceNew, chunkedPlace} {
		fmt.Fprintf(h, "%q\n", l.Annotations[name])
	}
	return fmt.Sprintf("%s %x", l.Digest, h.Sum(nil))
}

// tocScanner is the state of one call of ScanTOC.
type tocScanner struct {
	layer   Layer
	limits  Limits
	list    []byte
	entries int
	zeros   int // chunks of zeros of earlier files: three bytes of list, but as much memory as any
	logical int64
	data    int64 // the data file's length so far
	path    string
	cur     *entry // a regular file whose chunks may follow
	covered int64  // bytes of it that have a chunk
}

// tocPlace is where a table lies and what it must hash to.
type tocPlace struct {
	offset, size int64
	zstd         bool
	raw          string // digest of the bytes as they are, or
	text         string // of the JSON
}

func (t *tocScanner) scan(ctx context.Context) (*Contents, error) {
	l := t.layer
	if l.ReadRange == nil {
		return nil, fmt.Errorf("%w: the layer has no ranges", ErrNoTOC)
	}
	if l.Size < 0 {
		return nil, corrupt("a size of %d bytes", l.Size)
	}
	if _, err := newDigester(l.Digest); err != nil {
		return nil, err
	}
	place, raw, err := t.find(ctx)
	if err != nil {
		return nil, err
	}
	if place.raw != "" {
		sum, err := newDigester(place.raw)
		if err != nil {
			return nil, err
		}
		sum.Write(raw)
		if err := sum.check("table of contents"); err != nil {
			return nil, err
		}
	}
	text, err := place.decompress(raw)
	if err != nil {
		return nil, corrupt("table of contents: %w", err)
	}
	defer text.Close()
	sum := sha256.New()
	counted := io.LimitReader(text, maxTOCText)
	if err := t.decode(ctx, io.TeeReader(counted, sum)); err != nil {
		return nil, err
	}
	t.path = ""
	if place.text != "" && place.text != "sha256:"+hex.EncodeToString(sum.Sum(nil)) {
		return nil, corrupt("table of contents does not have the digest %s", place.text)
	}
	return &Contents{
		Digest: l.Digest, DiffID: l.DiffID, Lazy: true,
		DataSize: t.data, Entries: t.entries, payload: place.offset,
		pin:  fmt.Sprintf("%s %s %d", place.raw, place.text, place.offset),
		list: slices.Clip(t.list),
	}, nil
}

// find fetches the table of contents.
func (t *tocScanner) find(ctx context.Context) (tocPlace, []byte, error) {
	l := t.layer
	place := tocPlace{text: l.Annotations[tocDigest], raw: l.Annotations[chunkedSumNew]}
	if place.raw == "" {
		place.raw = l.Annotations[chunkedSum]
	}
	if place.text == "" && place.raw == "" {
		return place, nil, fmt.Errorf("%w: the manifest does not pin it", ErrNoTOC)
	}
	position := l.Annotations[chunkedPlaceNew]
	if position == "" {
		position = l.Annotations[chunkedPlace]
	}
	if position != "" && place.raw != "" {
		// offset:length:length as text:type
		parts := strings.Split(position, ":")
		if len(parts) != 4 || parts[3] != "1" {
			return place, nil, fmt.Errorf("%w: at %.100q", ErrNoTOC, position)
		}
		var err1, err2 error
		place.offset, err1 = strconv.ParseInt(parts[0], 10, 64)
		place.size, err2 = strconv.ParseInt(parts[1], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return place, nil, corrupt("place of the table of contents: %w", err)
		}
		place.zstd = true
		if err := t.checkPlace(place, l.Size); err != nil {
			return place, nil, err
		}
		raw, err := readRange(ctx, l, place.offset, place.size)
		return place, raw, err
	}

	n := min(l.Size, max(minTail, min(l.Size/tocShare, maxTail)))
	tail, err := readRange(ctx, l, l.Size-n, n)
	if err != nil {
		return place, nil, err
	}
	// The sizes that the footers have are the library's.
	footer := int64(estargz.FooterSize)
	if place.size = -1; n >= footer {
		_, place.offset, place.size, err = new(estargz.GzipDecompressor).ParseFooter(tail[n-footer:])
	}
	if err != nil || place.size < 0 {
		footer = zstdchunked.FooterSize
		if n < footer {
			return place, nil, fmt.Errorf("%w: the layer ends in no footer", ErrNoTOC)
		}
		if _, place.offset, place.size, err = new(zstdchunked.Decompressor).ParseFooter(tail[n-footer:]); err != nil {
			return place, nil, fmt.Errorf("%w: the layer ends in no footer: %w", ErrNoTOC, err)
		}
		place.zstd = true
	}
	end := l.Size - footer
	if place.size == 0 {
		place.size = end - place.offset
	}
	if err := t.checkPlace(place, end); err != nil {
		return place, nil, err
	}
	have := l.Size - n // tail is what follows
	if place.offset >= have {
		return place, tail[place.offset-have:][:place.size], nil
	}
	head, err := readRange(ctx, l, place.offset, min(place.size, have-place.offset))
	if err != nil {
		return place, nil, err
	}
	return place, append(head, tail[:max(0, place.offset+place.size-have)]...), nil
}

// decompress gives the text of the table, of which raw are the bytes.
func (p tocPlace) decompress(raw []byte) (io.ReadCloser, error) {
	if !p.zstd {
		return new(estargz.GzipDecompressor).DecompressTOC(bytes.NewReader(raw))
	}
	// The library's own takes as large a window as the table asks for.
	d, err := zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(middleWindow))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}

// checkPlace refuses a place that is not before end.
func (t *tocScanner) checkPlace(p tocPlace, end int64) error {
	if p.offset < 0 || p.size <= 0 || p.offset > end || p.size > end-p.offset {
		return corrupt("table of contents of %d bytes at %d of %d", p.size, p.offset, t.layer.Size)
	}
	if p.size > maxTOC {
		return fmt.Errorf("%w: it has %d bytes", ErrNoTOC, p.size)
	}
	return nil
}

// readRange reads exactly n bytes of the blob.
func readRange(ctx context.Context, l Layer, off, n int64) ([]byte, error) {
	body, err := l.ReadRange(ctx, off, n)
	if err != nil {
		return nil, fmt.Errorf("reading %d bytes at %d: %w", n, off, err)
	}
	defer body.Close()
	p := make([]byte, n)
	if _, err := io.ReadFull(body, p); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("reading %d bytes at %d: %w", n, off, err)
	}
	return p, nil
}

// tocEntry is an entry of the table, in both formats (stargz-snapshotter,
// docs/estargz.md; containers/storage, pkg/chunked/internal).
type tocEntry struct {
	Type        string            `json:"type"`
	Name        string            `json:"name"`
	LinkName    string            `json:"linkName"`
	Mode        int64             `json:"mode"`
	Size        int64             `json:"size"`
	UID         int64             `json:"uid"`
	GID         int64             `json:"gid"`
	ModTime     string            `json:"modtime"`
	DevMajor    int64             `json:"devMajor"`
	DevMinor    int64             `json:"devMinor"`
	Xattrs      map[string][]byte `json:"xattrs"`
	Digest      string            `json:"digest"`
	Offset      int64             `json:"offset"`
	EndOffset   int64             `json:"endOffset"`
	InnerOffset int64             `json:"innerOffset"`
	ChunkSize   int64             `json:"chunkSize"`
	ChunkOffset int64             `json:"chunkOffset"`
	ChunkDigest string            `json:"chunkDigest"`
	ChunkType   string            `json:"chunkType"`
}

// decode reads the table to its end, one entry at a time: as a whole it would
// take ten times its size.
func (t *tocScanner) decode(ctx context.Context, r io.Reader) error {
	// Its digest is what it stands by; the text need not be held to more than
	// that. Bytes that are not UTF-8 become U+FFFD, which entry refuses.
	text := &entryReader{r: r, left: maxTOCEntry}
	d := jsontext.NewDecoder(text, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if err := expectToken(d, jsontext.BeginObject); err != nil {
		return err
	}
	for d.PeekKind() == '"' {
		text.left = maxTOCEntry
		key, err := d.ReadToken()
		if err != nil {
			return corrupt("table of contents: %w", err)
		}
		if name := key.String(); name != "entries" {
			version, err := d.ReadValue()
			if err != nil {
				return corrupt("table of contents: %w", err)
			}
			if name == "version" && string(version) != "1" {
				return fmt.Errorf("%w: of version %.20s", ErrNoTOC, version)
			}
			continue
		}
		if err := expectToken(d, jsontext.BeginArray); err != nil {
			return err
		}
		for d.PeekKind() == '{' {
			text.left = maxTOCEntry
			var e tocEntry
			if err := json.UnmarshalDecode(d, &e); err != nil {
				return corrupt("table of contents: %w", err)
			}
			t.path = e.Name
			if err := t.entry(&e); err != nil {
				return err
			}
			if t.entries%1024 == 0 && ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		if err := expectToken(d, jsontext.EndArray); err != nil {
			return err
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if err := expectToken(d, jsontext.EndObject); err != nil {
		return err
	}
	// Its digest covers everything.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return corrupt("table of contents: %w", err)
	}
	return nil
}

// entryReader gives so many bytes, and then an error until it is allowed more.
type entryReader struct {
	r    io.Reader
	left int64
}

func (e *entryReader) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, unsupported("more than %d bytes for one entry", maxTOCEntry)
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	return n, err
}

func expectToken(d *jsontext.Decoder, want jsontext.Token) error {
	if got, err := d.ReadToken(); err != nil || got.Kind() != want.Kind() {
		return corrupt("table of contents: %v where %v belongs: %v", got, want, err)
	}
	return nil
}

// entry takes one entry of the table in.
func (t *tocScanner) entry(h *tocEntry) error {
	if h.Type == "chunk" {
		return t.chunk(h)
	}
	if err := t.flush(); err != nil {
		return err
	}
	if strings.ContainsRune(h.Name, '\uFFFD') || strings.ContainsRune(h.LinkName, '\uFFFD') {
		return fmt.Errorf("%w: a name is not UTF-8", ErrNoTOC)
	}
	e, err := h.entry()
	if err != nil || e == nil {
		return err
	}
	t.entries++
	if err := t.limits.check(t.entries, len(t.list)+chunkBytes*t.zeros); err != nil {
		return err
	}
	if e.kind != kindFile {
		if e.kind != kindIndex { // the format's own
			t.list = appendEntry(t.list, e)
		}
		return nil
	}
	if t.logical += e.size; e.size > t.limits.Logical || t.logical > t.limits.Logical {
		return unsupported("files of more than %d bytes", t.limits.Logical)
	}
	t.cur, t.covered = e, 0
	if e.size == 0 {
		return nil
	}
	// A file in one piece need not have its checksum twice.
	if h.ChunkDigest == "" && (h.ChunkSize == 0 || h.ChunkSize == h.Size) {
		h.ChunkDigest = h.Digest
	}
	return t.chunk(h)
}

// entry makes an entry of what the table says; nil stands for one that means
// nothing.
func (h *tocEntry) entry() (*entry, error) {
	e := &entry{name: clean(h.Name), mode: uint32(h.Mode & 0o7777)}
	if done, err := e.checkName(); done || err != nil {
		return e.orNil(), err
	}
	if h.UID < 0 || h.GID < 0 || h.UID > 1<<32-1 || h.GID > 1<<32-1 {
		return nil, corrupt("owner %d:%d", h.UID, h.GID)
	}
	e.uid, e.gid = uint32(h.UID), uint32(h.GID)
	if h.ModTime != "" {
		at, err := time.Parse(time.RFC3339Nano, h.ModTime)
		if err != nil {
			return nil, corrupt("time %.100q", h.ModTime)
		}
		e.mtime = clampTime(at)
	}
	for name, value := range h.Xattrs {
		e.addXattr(strings.TrimPrefix(name, xattrRecord), string(value))
	}
	e.sortXattrs()
	switch h.Type {
	case "dir":
		e.kind = kindDir
	case "reg":
		e.setFile(h.Size)
	case "symlink":
		e.kind, e.target = kindSymlink, h.LinkName
	case "hardlink":
		e.kind, e.target = kindHardlink, clean(h.LinkName)
	case "char", "block":
		e.kind = kindChar
		if h.Type == "block" {
			e.kind = kindBlock
		}
		if err := e.setDevice(h.DevMajor, h.DevMinor); err != nil {
			return nil, err
		}
	case "fifo":
		e.kind = kindFIFO
	default:
		return nil, fmt.Errorf("%w: entry of type %.100q", ErrNoTOC, h.Type)
	}
	return e, e.check()
}

// chunk takes a piece of the current file in.
func (t *tocScanner) chunk(h *tocEntry) error {
	if t.cur == nil || h.Name != "" && clean(h.Name) != t.cur.name {
		return corrupt("a chunk of no file")
	}
	c := chunk{size: h.ChunkSize, offset: h.Offset, end: h.EndOffset, inner: h.InnerOffset}
	left := t.cur.size - t.covered
	if c.size == 0 {
		c.size = left
	}
	if h.ChunkOffset != t.covered || c.size <= 0 || c.size > left {
		return corrupt("a chunk of %d bytes at %d of %d", c.size, h.ChunkOffset, t.cur.size)
	}
	if h.ChunkType == "zeros" {
		c.zeros = true
	} else {
		if c.size > maxChunk || c.inner < 0 || c.inner > maxChunk {
			return fmt.Errorf("%w: a chunk of %d bytes", ErrNoTOC, c.size)
		}
		if c.offset < 0 || c.end != 0 && c.end <= c.offset {
			return corrupt("a chunk from %d to %d of the blob", c.offset, c.end)
		}
		sum, ok := strings.CutPrefix(h.ChunkDigest, "sha256:")
		raw, err := hex.DecodeString(sum)
		if !ok || err != nil || len(raw) != len(c.sum) {
			return fmt.Errorf("%w: a chunk has the digest %.100q", ErrNoTOC, h.ChunkDigest)
		}
		c.sum = [32]byte(raw)
	}
	t.covered += c.size
	t.cur.chunks = append(t.cur.chunks, c)
	return t.limits.check(t.entries, len(t.list)+chunkBytes*(t.zeros+len(t.cur.chunks)))
}

// flush gives the current file its place in the data file, as a DataWriter
// would, but for zeros: which blocks are zeros is not known.
func (t *tocScanner) flush() error {
	e := t.cur
	if e == nil {
		return nil
	}
	t.cur = nil
	if t.covered != e.size {
		t.path = e.name
		return corrupt("chunks of %d bytes for a file of %d", t.covered, e.size)
	}
	if e.size >= squash.AlignedFileSize {
		t.data = (t.data + squash.PageSize - 1) &^ (squash.PageSize - 1)
	}
	for i := range e.chunks {
		if e.chunks[i].zeros {
			t.zeros++
		}
	}
	e.offset = t.data
	t.data += e.size
	t.list = appendEntry(t.list, e)
	return nil
}
