package squash

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Sizes and flags of the superblock.
const (
	superblockSize = 96
	magic          = 0x73717368

	flagPlainInodes = 0x0001
	flagPlainData   = 0x0002
	flagNoFragments = 0x0010
	flagExportable  = 0x0080
	flagPlainXattrs = 0x0100
	flagNoXattrs    = 0x0200
	flagPlainIDs    = 0x0800

	// noTable stands in the superblock for a table that there is not.
	noTable = math.MaxUint64

	// The compressors' numbers. With Plain no block is compressed, and the
	// number is that of the one that every reader was built with.
	compressorGzip = 1
	compressorZstd = 6
)

// layout is the state of one call of Layout.
type layout struct {
	inodes metaWriter
	dirs   metaWriter
	xattrs xattrTable
	refs   []uint64 // of inode i+1

	ids   []uint32
	idNum map[uint32]uint16

	files []*Inode // regular ones that have data
	count uint32
	last  uint32 // the last inode that was written
}

// Layout computes the file system whose root directory is root. It fails with
// an error that names the path when the tree is malformed, and with one that
// wraps ErrLimit when the format cannot hold it. Memory: about the metadata's
// size, some 70 bytes a file, twice.
func Layout(root *Inode, opts Options) (*Image, error) {
	if root == nil || !root.isDir() {
		return nil, fmt.Errorf("squash: the root is no directory")
	}
	if opts.Codec > Zstd {
		return nil, fmt.Errorf("squash: no such codec: %v", opts.Codec)
	}
	l := &layout{
		xattrs: xattrTable{known: map[string]uint32{}},
		idNum:  map[uint32]uint16{},
	}
	if err := l.number(root, 0); err != nil {
		return nil, fmt.Errorf("squash: %w", err)
	}
	img := &Image{Inodes: int(l.count)}
	var end int64
	img.Segments, end = l.place()
	l.refs = make([]uint64, l.count)
	// The root's parent is, by convention, one more than the last inode.
	if err := l.writeDir(root, l.count+1); err != nil {
		return nil, fmt.Errorf("squash: %w", err)
	}
	img.MetadataOffset = alignPart(end)
	l.finish(img, root, opts)
	return img, nil
}

// number checks the tree, sorts its directories and numbers its inodes in the
// order in which writeDir writes them: for each directory first its
// directories, then its other entries, then itself, so that the entries of one
// directory are neighbours.
func (l *layout) number(dir *Inode, depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("directories deeper than %d: %w", MaxDepth, ErrLimit)
	}
	if dir.owner == l {
		return fmt.Errorf("a directory with two names")
	}
	l.adopt(dir)
	slices.SortFunc(dir.Entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	for i, e := range dir.Entries {
		if i > 0 && e.Name == dir.Entries[i-1].Name {
			return fmt.Errorf("%q: name twice", e.Name)
		}
		if err := checkEntry(e); err != nil {
			return fmt.Errorf("%.300q: %w", e.Name, err)
		}
		if !e.Inode.isDir() {
			continue
		}
		if err := l.number(e.Inode, depth+1); err != nil {
			return fmt.Errorf("%s/%w", e.Name, err)
		}
		dir.nlink++
	}
	for _, e := range dir.Entries {
		ino := e.Inode
		if ino.isDir() {
			continue
		}
		if ino.owner != l {
			l.adopt(ino)
			l.count++
			ino.num = l.count
			if ino.Mode&ModeType == ModeRegular && ino.stored() > 0 {
				l.files = append(l.files, ino)
			}
		}
		ino.nlink++
	}
	dir.nlink += 2
	if l.count >= math.MaxUint32-2 {
		return fmt.Errorf("%d inodes: %w", l.count, ErrLimit)
	}
	l.count++
	dir.num = l.count
	return nil
}

// adopt clears what an earlier layout noted in ino.
func (l *layout) adopt(ino *Inode) {
	ino.owner, ino.num, ino.nlink, ino.start, ino.ref = l, 0, 0, 0, 0
}

// checkEntry reports what is wrong with e.
func checkEntry(e Entry) error {
	switch {
	case e.Inode == nil:
		return fmt.Errorf("no inode")
	case e.Name == "" || e.Name == "." || e.Name == ".." || strings.ContainsAny(e.Name, "/\x00"):
		return fmt.Errorf("not a name")
	case len(e.Name) > MaxName:
		return fmt.Errorf("name of %d bytes: %w", len(e.Name), ErrLimit)
	}
	ino := e.Inode
	switch ino.Mode & ModeType {
	case ModeDir, ModeFIFO, ModeSocket:
	case ModeChar, ModeBlock:
		if ino.Major >= 1<<12 || ino.Minor >= 1<<20 {
			return fmt.Errorf("device %d:%d: %w", ino.Major, ino.Minor, ErrLimit)
		}
	case ModeSymlink:
		if ino.Target == "" || len(ino.Target) > MaxTarget {
			return fmt.Errorf("link to a target of %d bytes: %w", len(ino.Target), ErrLimit)
		}
	case ModeRegular:
		return checkFile(ino)
	default:
		return fmt.Errorf("mode %#o tells no type", ino.Mode)
	}
	return nil
}

// checkFile reports what is wrong with a regular file.
func checkFile(ino *Inode) error {
	if ino.Size < 0 || ino.Offset < 0 || ino.Source < 0 {
		return fmt.Errorf("negative size or place")
	}
	if ino.Blocks == nil {
		return nil
	}
	if int64(len(ino.Blocks)) != blockCount(ino.Size) {
		return fmt.Errorf("%d blocks for %d bytes", len(ino.Blocks), ino.Size)
	}
	left := ino.Size
	for i, b := range ino.Blocks {
		whole := min(left, BlockSize)
		n := int64(b &^ BlockStored)
		if b != 0 && (n == 0 || n > whole || b&BlockStored != 0 && n != whole) {
			return fmt.Errorf("block %d of %d bytes has the word %#x", i, whole, b)
		}
		left -= whole
	}
	return nil
}

// place gives each file its place, source by source and within a source as the
// data lie there, and returns the map and where the data end.
func (l *layout) place() ([]Segment, int64) {
	slices.SortStableFunc(l.files, func(a, b *Inode) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Offset, b.Offset))
	})
	var segs []Segment
	at, source := int64(superblockSize), -1
	for _, f := range l.files {
		switch {
		case f.Source != source:
			at, source = alignPart(at), f.Source
		case f.Size >= AlignedFileSize:
			at = align(at)
		}
		f.start = at
		n := f.stored()
		if k := len(segs) - 1; k >= 0 && segs[k].Source == f.Source &&
			segs[k].Offset+segs[k].Length == at && segs[k].SourceOffset+segs[k].Length == f.Offset {
			segs[k].Length += n
		} else {
			segs = append(segs, Segment{Offset: at, Length: n, Source: f.Source, SourceOffset: f.Offset})
		}
		at += n
	}
	return segs, at
}

// id returns the number of an owner.
func (l *layout) id(owner uint32) (uint16, error) {
	if n, ok := l.idNum[owner]; ok {
		return n, nil
	}
	// The superblock has their number in 16 bits, so that 65,536 would be none.
	if len(l.ids) == math.MaxUint16 {
		return 0, fmt.Errorf("more than %d different owners: %w", len(l.ids), ErrLimit)
	}
	n := uint16(len(l.ids))
	l.ids = append(l.ids, owner)
	l.idNum[owner] = n
	return n, nil
}

// finish puts the tables one after the other, each directly before the index
// of its own and that before the next table, as the kernel checks them.
func (l *layout) finish(img *Image, root *Inode, opts Options) {
	le := binary.LittleEndian
	var export, ids metaWriter
	for _, r := range l.refs {
		export.Write(le.AppendUint64(nil, r))
	}
	for _, id := range l.ids {
		ids.Write(le.AppendUint32(nil, id))
	}

	meta := l.inodes.finish()
	at := func() int64 { return img.MetadataOffset + int64(len(meta)) }
	dirTable := at()
	meta = append(meta, l.dirs.finish()...)
	exportBlocks := at()
	meta = append(meta, export.finish()...)
	exportTable := at()
	meta = export.appendIndex(meta, exportBlocks)
	idBlocks := at()
	meta = append(meta, ids.finish()...)
	idTable := at()
	meta = ids.appendIndex(meta, idBlocks)
	xattrTable := uint64(noTable)
	if n := len(l.xattrs.known); n > 0 {
		pairs := at()
		meta = append(meta, l.xattrs.pairs.finish()...)
		idBlocks := at()
		meta = append(meta, l.xattrs.ids.finish()...)
		xattrTable = uint64(at())
		meta = le.AppendUint64(meta, uint64(pairs))
		meta = le.AppendUint32(meta, uint32(n))
		meta = le.AppendUint32(meta, 0)
		meta = l.xattrs.ids.appendIndex(meta, idBlocks)
	}
	used := at()
	img.Metadata = meta
	img.Size = align(used)

	flags := uint16(flagPlainInodes | flagNoFragments | flagExportable | flagPlainIDs | flagPlainXattrs)
	compressor := uint16(compressorGzip)
	switch opts.Codec {
	case Plain:
		flags |= flagPlainData
	case Zstd:
		compressor = compressorZstd
	}
	if len(l.xattrs.known) == 0 {
		flags |= flagNoXattrs
	}
	sb := make([]byte, 0, superblockSize)
	sb = le.AppendUint32(sb, magic)
	sb = le.AppendUint32(sb, l.count)
	sb = le.AppendUint32(sb, 0) // time of making: none, so that it is the same everywhere
	sb = le.AppendUint32(sb, BlockSize)
	sb = le.AppendUint32(sb, 0) // fragments
	sb = le.AppendUint16(sb, compressor)
	sb = le.AppendUint16(sb, 17) // log2 of BlockSize
	sb = le.AppendUint16(sb, flags)
	sb = le.AppendUint16(sb, uint16(len(l.ids)))
	sb = le.AppendUint16(sb, 4) // version 4.0
	sb = le.AppendUint16(sb, 0)
	sb = le.AppendUint64(sb, root.ref)
	sb = le.AppendUint64(sb, uint64(used))
	sb = le.AppendUint64(sb, uint64(idTable))
	sb = le.AppendUint64(sb, xattrTable)
	sb = le.AppendUint64(sb, uint64(img.MetadataOffset)) // inodes
	sb = le.AppendUint64(sb, uint64(dirTable))
	sb = le.AppendUint64(sb, noTable) // fragments
	sb = le.AppendUint64(sb, uint64(exportTable))
	img.Superblock = sb
}
