package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sregfs/sregfs/image/squash"
)

// Names in layers that mean something (OCI image specification, layer.md,
// "Whiteouts"; AUFS wrote more of the second kind, which are no files).
const (
	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh."
	opaqueMark     = ".wh..wh..opq"
)

// maxPath is the longest name of an entry, that of Linux.
const maxPath = 4096

// xattrRecord begins the pax records that hold extended attributes.
const xattrRecord = "SCHILY.xattr."

// Scan reads the layer once: it checks size, digest and diff id, writes the
// data file to data, in order, and returns the Contents. It uses some 5 MB of
// memory besides (zstd's window not counted), in six goroutines that have
// ended when it returns.
//
// What it has written is to be trusted only when it succeeds. Errors are
// *LayerError; they wrap ErrCorrupt or ErrUnsupported, or what the layer's
// reader, data, or the context returned.
func Scan(ctx context.Context, layer Layer, opts ScanOptions, data io.Writer) (*Contents, error) {
	return scan(ctx, layer, opts, nil, data)
}

// Rescan reads a layer again whose data file was lost, and whose Contents Scan
// returned in the past. Each byte that it writes to data has been checked
// before, so that readers may use it while the rest still arrives.
func Rescan(ctx context.Context, layer Layer, known *Contents, limits Limits, data io.Writer) error {
	if known.Lazy {
		return &LayerError{Layer: layer.Digest, Err: unsupported("contents from a table of contents cannot be scanned again")}
	}
	_, err := scan(ctx, layer, ScanOptions{Codec: known.Codec, Limits: limits}, known, data)
	return err
}

// ScanAll scans several layers, at most parallel at a time; create gives the
// writer for the data file of the i-th. The first failure ends all.
func ScanAll(ctx context.Context, layers []Layer, opts ScanOptions, parallel int, create func(i int) (io.Writer, error)) ([]*Contents, error) {
	out := make([]*Contents, len(layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(parallel, 1))
	for i, l := range layers {
		g.Go(func() error {
			w, err := create(i)
			if err != nil {
				return &LayerError{Layer: l.Digest, Err: err}
			}
			out[i], err = Scan(ctx, l, opts, w)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return out, nil
}

// scanner is the state of one scan.
type scanner struct {
	layer   Layer
	limits  Limits
	data    *squash.DataWriter
	list    []byte
	entries int
	logical int64
	last    string // the name of the last entry
	path    string // of the entry at hand, for errors
}

func scan(ctx context.Context, layer Layer, opts ScanOptions, known *Contents, data io.Writer) (*Contents, error) {
	s := &scanner{layer: layer, limits: opts.Limits.withDefaults()}
	c, err := s.scan(ctx, opts.Codec, known, data)
	if err != nil {
		return nil, &LayerError{Layer: layer.Digest, Path: s.path, Err: err}
	}
	return c, nil
}

// scan sets up the stages, waits for them, and judges.
func (s *scanner) scan(ctx context.Context, codec squash.Codec, known *Contents, data io.Writer) (*Contents, error) {
	size := s.layer.Size
	if size < 0 || size > (math.MaxInt64-s.limits.Slack)/s.limits.Ratio-1 {
		return nil, corrupt("a size of %d bytes", size)
	}
	limit := size*s.limits.Ratio + s.limits.Slack
	blobSum, err := newDigester(s.layer.Digest)
	if err != nil {
		return nil, err
	}
	diffSum, err := newDigester(s.layer.DiffID)
	if err != nil {
		return nil, fmt.Errorf("diff id: %w", err)
	}
	body, err := s.layer.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening: %w", err)
	}
	blob := newReadAhead(ctx, body, size, blobSum)
	plain, err := decompress(ctx, blob)
	var archive *readAhead
	var store *storer
	if err == nil {
		archive = newReadAhead(ctx, plain, limit, diffSum)
		store = newStorer(data, known.expected())
		err = s.run(ctx, archive, codec, store)
		if err == nil {
			// The decompressor may have left bytes that the digest covers.
			_, err = io.Copy(io.Discard, blob)
		}
	}
	// Each stage waits for the one before it, so they end in that order.
	blob.cancel(errStopped)
	body.Close()
	blob.stop()
	expanded := int64(0)
	if archive != nil {
		archive.stop()
		plain.Close()
		expanded = archive.n
		if e := store.close(); e != nil {
			err = e
		}
	}

	var sink *sinkError
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.As(err, &sink):
		return nil, err
	case blob.err != nil && blob.err != errStopped:
		return nil, fmt.Errorf("reading: %w", blob.err)
	case blob.n > size:
		return nil, corrupt("more bytes than the %d of the manifest", size)
	case blob.err == nil && blob.n < size:
		return nil, corrupt("%d bytes, not the %d of the manifest", blob.n, size)
	case expanded > limit:
		return nil, corrupt("%d bytes expand to more than %d", size, limit)
	case err != nil:
		return nil, err
	}
	s.path = ""
	if err := blobSum.check("blob"); err != nil {
		return nil, err
	}
	if err := diffSum.check("archive"); err != nil {
		return nil, err
	}
	if known != nil && !bytes.Equal(s.list, known.list) {
		return nil, corrupt("entries differ from those that were found before")
	}
	return &Contents{
		Digest: s.layer.Digest, DiffID: s.layer.DiffID, Codec: codec,
		DataSize: s.data.Size(), Entries: s.entries,
		index: s.last == indexFile, list: slices.Clip(s.list), sums: store.sums,
	}, nil
}

// expected are the checksums that a data file must have; nil for the first.
func (c *Contents) expected() [][32]byte {
	if c == nil {
		return nil
	}
	return append([][32]byte{}, c.sums...)
}

// run reads the archive to its end, and what follows it.
func (s *scanner) run(ctx context.Context, archive io.Reader, codec squash.Codec, store io.Writer) error {
	var err error
	if s.data, err = squash.NewDataWriter(store, codec); err != nil {
		return err
	}
	tr := tar.NewReader(archive)
	content := &contextReader{ctx, tr}
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return archiveError(err)
		}
		s.path = h.Name
		if err := s.member(h, content); err != nil {
			return err
		}
	}
	s.path = ""
	if err := s.data.Flush(); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, archive); err != nil {
		return archiveError(err)
	}
	return nil
}

// contextReader ends when its context does. A hole of a sparse file is read
// without the archive, which would tell.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// archiveError makes an error of the tar reader one of ours, unless it comes
// from further below.
func archiveError(err error) error {
	var sink *sinkError
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnsupported) || errors.As(err, &sink) {
		return err
	}
	return corrupt("archive: %w", err)
}

// member takes one member of the archive in.
func (s *scanner) member(h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader, 'V':
		// Docker and containerd pass over global records too; V is GNU tar's
		// volume label.
		return nil
	}
	e, err := headerEntry(h)
	if err != nil {
		return err
	}
	if e == nil {
		return nil
	}
	s.entries++
	if err := s.limits.check(s.entries, len(s.list)); err != nil {
		return err
	}
	s.last = e.name
	if e.kind == kindFile || e.kind == kindIndex {
		if s.logical += e.size; e.size > s.limits.Logical || s.logical > s.limits.Logical {
			return unsupported("files of more than %d bytes", s.limits.Logical)
		}
		if e.offset, e.blocks, err = s.data.File(e.size, content); err != nil {
			return archiveError(err)
		}
	}
	s.list = appendEntry(s.list, e)
	return nil
}

// headerEntry makes an entry of a header; nil stands for one that means
// nothing.
func headerEntry(h *tar.Header) (*entry, error) {
	e := &entry{name: clean(h.Name), mode: uint32(h.Mode & 0o7777)}
	if done, err := e.checkName(); done || err != nil {
		return e.orNil(), err
	}
	if h.Uid < 0 || h.Gid < 0 || h.Uid > math.MaxUint32 || h.Gid > math.MaxUint32 {
		return nil, corrupt("owner %d:%d", h.Uid, h.Gid)
	}
	e.uid, e.gid, e.mtime = uint32(h.Uid), uint32(h.Gid), clampTime(h.ModTime)
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, xattrRecord); ok {
			e.addXattr(name, value)
		}
	}
	e.sortXattrs()
	switch h.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		e.setFile(h.Size)
	case tar.TypeDir:
		e.kind = kindDir
	case tar.TypeSymlink:
		e.kind, e.target = kindSymlink, h.Linkname
	case tar.TypeLink:
		e.kind, e.target = kindHardlink, clean(h.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		e.kind = kindChar
		if h.Typeflag == tar.TypeBlock {
			e.kind = kindBlock
		}
		if err := e.setDevice(h.Devmajor, h.Devminor); err != nil {
			return nil, err
		}
	case tar.TypeFifo:
		e.kind = kindFIFO
	default:
		return nil, unsupported("archive member of type %q", h.Typeflag)
	}
	return e, e.check()
}

// checkName looks at the name alone: it refuses what cannot be one and finds
// whiteouts. done tells that nothing else of the entry counts; an entry without
// a kind is then none at all.
func (e *entry) checkName() (done bool, err error) {
	if len(e.name) > maxPath {
		return true, unsupported("name of %d bytes", len(e.name))
	}
	dir, base := split(e.name)
	for part := range strings.SplitSeq(e.name, "/") {
		if len(part) > squash.MaxName {
			return true, unsupported("name of %d bytes", len(part))
		}
	}
	if strings.Contains(e.name, "\x00") {
		return true, corrupt("NUL in a name")
	}
	switch {
	case base == opaqueMark:
		e.kind, e.name = kindOpaque, dir
		return true, nil
	case strings.HasPrefix(base, aufsPrefix):
		// In the root it is AUFS's own folder, whose files hard links may
		// name; the flattening drops it at the layer's end.
		return dir != "", nil
	case strings.HasPrefix(base, whiteoutPrefix):
		base = base[len(whiteoutPrefix):]
		if base == "" || base == "." || base == ".." {
			return true, corrupt("whiteout of %q", base)
		}
		e.kind, e.name = kindWhiteout, join(dir, base)
		return true, nil
	}
	return false, nil
}

// orNil is nil for an entry without a kind.
func (e *entry) orNil() *entry {
	if e.kind == 0 {
		return nil
	}
	return e
}

// split takes a cleaned path apart.
func split(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}

// join puts one together.
func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

// addXattr adds an extended attribute that squashfs has room for. Others, like
// POSIX ACLs, cannot be kept, and Apptainer's images lack them too. SELinux's
// labels are left out as there: they are those of the machine that built the
// layer.
func (e *entry) addXattr(name, value string) {
	if name == "security.selinux" {
		return
	}
	if x := (squash.Xattr{Name: name, Value: value}); squash.XattrAllowed(x) {
		e.xattrs = append(e.xattrs, x)
	}
}

func (e *entry) sortXattrs() {
	slices.SortFunc(e.xattrs, func(a, b squash.Xattr) int { return strings.Compare(a.Name, b.Name) })
}

// setFile makes it a regular file.
func (e *entry) setFile(size int64) {
	e.kind, e.size = kindFile, size
	switch {
	case e.name == indexFile, size == 1 && (e.name == prefetchLandmark || e.name == noPrefetchLandmark):
		e.kind = kindIndex
	}
}

// setDevice sets a device's numbers.
func (e *entry) setDevice(major, minor int64) error {
	if major < 0 || minor < 0 || major >= 1<<12 || minor >= 1<<20 {
		return unsupported("device %d:%d", major, minor)
	}
	e.major, e.minor = uint32(major), uint32(minor)
	return nil
}

// check refuses what no file system could hold.
func (e *entry) check() error {
	if e.name == "" && e.kind != kindDir {
		return corrupt("the root is no directory")
	}
	if e.kind == kindSymlink {
		if e.target == "" || strings.Contains(e.target, "\x00") {
			return corrupt("symbolic link to %q", e.target)
		}
		if len(e.target) > squash.MaxTarget {
			return unsupported("symbolic link to a name of %d bytes", len(e.target))
		}
	}
	if e.kind == kindHardlink && len(e.target) > maxPath {
		return unsupported("hard link to a name of %d bytes", len(e.target))
	}
	if e.size < 0 {
		return corrupt("file of %d bytes", e.size)
	}
	return nil
}

// clampTime is t in what squashfs has for times, 1970 to 2106. (Other programs
// wrap around; then a file of 1969 is one of 2106.)
func clampTime(t time.Time) uint32 {
	return uint32(min(max(t.Unix(), 0), math.MaxUint32))
}
