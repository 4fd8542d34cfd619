package oci

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/image/squash"
)

// Options are what one may want of an image.
type Options struct {
	// Source is the image's name for the definition and the labels, as in
	// docker://: "HOST/REPO:TAG". It is part of the image's bytes, so that an
	// image which several tags share wants "HOST/REPO@sha256:…".
	Source string
	// Arch is the architecture, in the Go toolchain's words; empty: as the
	// configuration says.
	Arch string
	// DockerCmd makes Cmd run rather than Entrypoint (SREGISTRY_DOCKER_CMD).
	DockerCmd bool
	// Limits bound the cost; only Entries, Metadata and Logical count here.
	Limits Limits
}

// Image is a Singularity image whose files' contents lie in the data files of
// its layers. It is immutable and safe for concurrent use.
type Image struct {
	size   int64
	pieces []piece // ascending; between them are zeros
	layers int
}

// piece is a part of the image.
type piece struct {
	offset, length int64
	memory         []byte // nil: a layer's
	layer          int
	source         int64 // offset in the layer's data file
}

// Segment says that Length bytes of the image from Offset are those of a
// layer's data file from LayerOffset.
type Segment struct {
	Offset      int64
	Length      int64
	Layer       int
	LayerOffset int64
}

// Data gives the bytes of data files. Layer i is that of the i-th Contents.
type Data interface {
	// ReadLayer fills p from off of the layer's data file, or fails.
	ReadLayer(ctx context.Context, layer int, p []byte, off int64) error
}

// Assemble makes an image of its configuration and its layers' Contents, the
// lowest first. It reads no layer. Errors wrap ErrCorrupt or ErrUnsupported, or
// are the context's. Memory: some 300 bytes a file while it runs, 70 after.
func Assemble(ctx context.Context, config []byte, layers []*Contents, opts Options) (*Image, error) {
	c, err := ParseConfig(config)
	if err != nil {
		return nil, err
	}
	if len(c.DiffIDs) != len(layers) {
		return nil, corrupt("%d layers, but the configuration has %d", len(layers), len(c.DiffIDs))
	}
	opts.Arch = cmp.Or(opts.Arch, c.Architecture, "amd64")
	codec := squash.Plain
	id := sha256.New()
	fmt.Fprintf(id, "%d\n%x\n%q %q %v\n", LayoutVersion, sha256.Sum256(config), opts.Source, opts.Arch, opts.DockerCmd)
	if err := opts.Limits.CheckAll(layers); err != nil {
		return nil, err
	}
	for i, l := range layers {
		if l.DiffID != c.DiffIDs[i] {
			return nil, corrupt("layer %d has the diff id %s, but the configuration has %s", i+1, l.DiffID, c.DiffIDs[i])
		}
		codec = max(codec, l.Codec)
		fmt.Fprintln(id, l.DataKey())
	}
	papers, err := newPaperwork(c, opts)
	if err != nil {
		return nil, err
	}
	made := squash.Inode{}
	if !c.Created.IsZero() {
		made.MTime = clampTime(c.Created)
	}
	t := newTree(made)
	limits := opts.Limits.withDefaults()
	t.room, t.dirs = limits.Logical, limits.Entries
	if err := flatten(ctx, t, layers); err != nil {
		return nil, err
	}
	t.layer = int32(len(layers)) + 1
	b := builder{tree: t, source: len(layers)}
	if err := b.add(papers); err != nil {
		return nil, err
	}
	fs, err := squash.Layout(t.finish(), squash.Options{Codec: codec})
	if err != nil {
		return nil, unsupported("%w", err)
	}
	inspect, err := papers.inspectJSON()
	if err != nil {
		return nil, err
	}
	head := sifHead(uuid(id.Sum(nil)), opts.Arch, []sifObject{
		{kind: sifDefinition, content: []byte(papers.definition)},
		{kind: sifJSON, name: "inspect-metadata.json", content: inspect},
		{kind: sifJSON, name: "oci-config.json", content: c.RawConfig},
	}, fs.Size)
	return newImage(head, fs, len(layers), b.data.Bytes()), nil
}

// uuid makes a UUID of a checksum (RFC 9562, 5.8: contents of one's own).
func uuid(sum []byte) (id [16]byte) {
	copy(id[:], sum)
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

// newImage puts the parts in order. The source after the layers' is what the
// builder made.
func newImage(head []byte, fs *squash.Image, layers int, made []byte) *Image {
	base := int64(len(head))
	im := &Image{size: base + fs.Size, layers: layers}
	add := func(off int64, b []byte) {
		im.pieces = append(im.pieces, piece{offset: off, length: int64(len(b)), memory: b})
	}
	add(0, head)
	add(base, fs.Superblock)
	for _, s := range fs.Segments {
		if s.Source == layers {
			add(base+s.Offset, made[s.SourceOffset:s.SourceOffset+s.Length])
			continue
		}
		im.pieces = append(im.pieces, piece{offset: base + s.Offset, length: s.Length, layer: s.Source, source: s.SourceOffset})
	}
	add(base+fs.MetadataOffset, fs.Metadata)
	return im
}

// Size is the image's length.
func (im *Image) Size() int64 { return im.size }

// Segments are the parts of the image that are layers' data, in ascending
// order.
func (im *Image) Segments() []Segment {
	var out []Segment
	for _, p := range im.pieces {
		if p.memory == nil {
			out = append(out, Segment{Offset: p.offset, Length: p.length, Layer: p.layer, LayerOffset: p.source})
		}
	}
	return out
}

// Segment returns the first of Segments that does not end before off.
func (im *Image) Segment(off int64) (s Segment, ok bool) {
	i := sort.Search(len(im.pieces), func(i int) bool { return im.pieces[i].offset+im.pieces[i].length > off })
	for ; i < len(im.pieces); i++ {
		if p := im.pieces[i]; p.memory == nil {
			return Segment{Offset: p.offset, Length: p.length, Layer: p.layer, LayerOffset: p.source}, true
		}
	}
	return Segment{}, false
}

// ReadAt reads like io.ReaderAt, taking the layers' bytes from data. Whatever
// lies outside the layers is answered at once.
func (im *Image) ReadAt(ctx context.Context, data Data, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading at %d", off)
	}
	if off >= im.size {
		return 0, io.EOF
	}
	var end error
	if rest := im.size - off; int64(len(p)) > rest {
		p, end = p[:rest], io.EOF
	}
	i := sort.Search(len(im.pieces), func(i int) bool { return im.pieces[i].offset+im.pieces[i].length > off })
	n := 0
	for n < len(p) {
		at := off + int64(n)
		if i == len(im.pieces) || im.pieces[i].offset >= off+int64(len(p)) {
			clear(p[n:])
			n = len(p)
			break
		}
		piece := &im.pieces[i]
		if at < piece.offset {
			gap := int(piece.offset - at)
			clear(p[n : n+gap])
			n += gap
			continue
		}
		k := int(min(int64(len(p)-n), piece.offset+piece.length-at))
		if err := piece.read(ctx, data, p[n:n+k], at-piece.offset); err != nil {
			return n, err
		}
		n += k
		i++
	}
	return n, end
}

// read fills b from off of the piece.
func (p *piece) read(ctx context.Context, data Data, b []byte, off int64) error {
	if p.memory != nil {
		copy(b, p.memory[off:])
		return nil
	}
	if err := data.ReadLayer(ctx, p.layer, b, p.source+off); err != nil {
		return fmt.Errorf("reading data of layer %d: %w", p.layer+1, err)
	}
	return nil
}

// copyBuffer is how much is copied at a time.
const copyBuffer = 1 << 20

// Write writes the whole image to w, in order.
func (im *Image) Write(ctx context.Context, w io.Writer, data Data) error {
	buf := make([]byte, min(copyBuffer, im.size))
	for off := int64(0); off < im.size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n, err := im.ReadAt(ctx, data, buf, off)
		if err != nil && err != io.EOF {
			return err
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return fmt.Errorf("writing the image: %w", err)
		}
	}
	return nil
}

// WriteFile makes dst the image, by copies within the kernel (which share the
// blocks where the file system can). layers are the data files. It does not
// sync dst.
func (im *Image) WriteFile(ctx context.Context, dst *os.File, layers []*os.File) error {
	if len(layers) != im.layers {
		return fmt.Errorf("%d data files for %d layers", len(layers), im.layers)
	}
	for _, size := range []int64{0, im.size} { // between the pieces nothing may stay
		if err := dst.Truncate(size); err != nil {
			return fmt.Errorf("writing the image: %w", err)
		}
	}
	for _, p := range im.pieces {
		if p.memory != nil {
			if _, err := dst.WriteAt(p.memory, p.offset); err != nil {
				return fmt.Errorf("writing the image: %w", err)
			}
			continue
		}
		if err := copyRange(ctx, dst, p.offset, layers[p.layer], p.source, p.length); err != nil {
			return fmt.Errorf("writing data of layer %d: %w", p.layer+1, err)
		}
	}
	return nil
}

// copyRange copies n bytes between files, through memory where the kernel
// cannot do it.
func copyRange(ctx context.Context, dst *os.File, to int64, src *os.File, from, n int64) error {
	var buf []byte // where the kernel cannot
	for n > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		k, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(min(n, 64<<20)), 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			if buf == nil {
				buf = make([]byte, min(n, copyBuffer))
			}
			b := buf[:min(n, copyBuffer)]
			if err := (Files{src}).ReadLayer(ctx, 0, b, from); err != nil {
				return err
			}
			if k, err = dst.WriteAt(b, to); err != nil {
				return err
			}
			from, to = from+int64(k), to+int64(k)
		case k == 0:
			return io.ErrUnexpectedEOF
		}
		n -= int64(k)
	}
	return nil
}

// Files are data files on this machine, as Data.
type Files []io.ReaderAt

// ReadLayer reads from the layer's file.
func (f Files) ReadLayer(_ context.Context, layer int, p []byte, off int64) error {
	n, err := f[layer].ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
