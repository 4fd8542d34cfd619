// Package image tells what is inside a Singularity or Apptainer image: which
// kind it is, whether it is whole, where its file system lies, and what its
// maker wrote into it (labels, runscript and so on).
//
// It reads through an io.ReaderAt, a few 64 KiB pieces at places that depend
// only on the image, so that an image of any size can be looked at where it is.
// It knows nothing of stores, caches or FUSE, and runs nothing. Every image may
// be hostile: sizes are checked before memory is taken for them, and nothing
// that an image names is looked up outside of it.
//
// Start with Probe and Inspect.
package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/sregfs/sregfs/image/squashfs"
)

// Kind is how an image's file begins.
type Kind string

// The kinds of image files.
const (
	// SIF is the Singularity Image Format of Singularity 3 and Apptainer.
	SIF Kind = "sif"
	// Squashfs is a bare squashfs.
	Squashfs Kind = "squashfs"
	// Simg is a squashfs behind the launch line of Singularity 2.4 to 2.6.
	Simg Kind = "simg"
	// Ext3 is an ext file system, with or without a launch line before it, as
	// Singularity made until 2.3.
	Ext3 Kind = "ext3"
	// Unknown is no image.
	Unknown Kind = "unknown"
)

// Range is a run of bytes of an image's file.
type Range struct {
	Off, Len int64
}

// End is the first byte behind r.
func (r Range) End() int64 { return r.Off + r.Len }

// Layout is what an image's headers say of its file. Offsets count from the
// file's first byte. What headers do not say is zero.
type Layout struct {
	Kind Kind
	// Size is how long the file must be at least for the image to be whole.
	Size int64
	// FSOffset and FSSize are where the primary file system lies, FSType what
	// it is: "squashfs", "ext3", "encrypted-squashfs", "archive" or "raw".
	FSOffset, FSSize int64
	FSType           string
	// Arch is the architecture as Go names it, of a SIF.
	Arch string
	// Compression is the squashfs's compressor, as mksquashfs -comp names it.
	Compression string
	// Encrypted says that the primary file system needs a key.
	Encrypted bool
	// Signed says that a SIF holds a signature, whose it may ever be.
	Signed bool
	// Tables are the squashfs's inodes, directories and the tables behind them.
	Tables Range
	// root is where the root directory's inode is.
	root int64
}

var (
	// ErrNotImage: the file is none of the kinds above.
	ErrNotImage = errors.New("not a Singularity or Apptainer image")
	// ErrCorrupt: an image whose headers contradict themselves.
	ErrCorrupt = errors.New("corrupt image")
)

// TruncatedError is the error for a file that is shorter than the image in it.
type TruncatedError struct {
	Have int64 // the file's size
	Want int64 // the least that it would have to be
}

// Error says both sizes.
func (e *TruncatedError) Error() string {
	return fmt.Sprintf("image is truncated: %d bytes of at least %d are there", e.Have, e.Want)
}

const (
	launchLine = "#!/usr/bin/env run-singularity\n"
	// launcher is what a launch line holds and the file system follows, in the
	// first launchWithin bytes: as Singularity and Apptainer look for it.
	launcher     = " run-singularity"
	launchWithin = 2048

	extSuperblock = 1024 // offset in the file system
	extMinSize    = extSuperblock + 1024
)

// Probe tells an image's kind and layout by its headers: those of the file and,
// in a SIF, of its primary file system. size is the file's.
//
// The error is ErrNotImage for a file that is no image, ErrCorrupt for one
// whose headers cannot be right, a *TruncatedError for an image that is cut
// short, then with as much of the layout as is known, or r's own; all of them
// wrapped. Between reads it stops when ctx is done.
func Probe(ctx context.Context, r io.ReaderAt, size int64) (Layout, error) {
	l, err := probe(newWindow(ctx, r, size))
	if err != nil {
		err = fmt.Errorf("probe image: %w", err)
	}
	return l, err
}

func probe(w *window) (Layout, error) {
	head := make([]byte, min(w.size, launchWithin))
	if err := w.readFull(head, 0); err != nil {
		return Layout{Kind: Unknown}, fmt.Errorf("read its head: %w", err)
	}
	if sifMagicIn(head) {
		s, err := openSIF(w)
		return s.layout, err
	}
	l := Layout{Kind: Unknown}
	if !bytes.HasPrefix(head, []byte("#!")) {
		l.Kind = Squashfs
	} else if i := bytes.Index(head, []byte(launcher)); i >= 0 {
		l.Kind = Simg
		l.FSOffset = int64(i + len(launcher) + 1)
	}
	if l.Kind == Unknown || len(head) < int(l.FSOffset)+len(squashfs.Magic) {
		return Layout{Kind: Unknown}, noImage(head, w.size)
	}
	l.FSSize = max(0, w.size-l.FSOffset)
	err := probeFS(w, &l)
	switch {
	case errors.Is(err, squashfs.ErrNotSquashfs):
		return probeExt(w, l.FSOffset)
	case err != nil:
		return l, err
	}
	l.Size = l.FSOffset + l.FSSize
	if l.Size > w.size {
		return l, &TruncatedError{Have: w.size, Want: l.Size}
	}
	return l, nil
}

// noImage is the error for a file whose head shows no image: that it is cut
// short, if head is all there is of it and the beginning of one.
func noImage(head []byte, size int64) error {
	if len(head) == 0 || size > int64(len(head)) {
		return ErrNotImage
	}
	for _, begin := range []string{launchLine, squashfs.Magic} {
		if n := min(len(begin), len(head)); begin[:n] == string(head[:n]) {
			return &TruncatedError{Have: size, Want: int64(len(begin)) + squashfs.SuperblockSize}
		}
	}
	return ErrNotImage
}

// probeFS reads the superblock of the squashfs at l.FSOffset, where l.FSSize
// bytes are meant for it, and sets what it says, FSSize too.
func probeFS(w *window, l *Layout) error {
	b := make([]byte, squashfs.SuperblockSize)
	n := min(int64(len(b)), w.size-l.FSOffset)
	if err := w.readFull(b[:n], l.FSOffset); err != nil {
		return fmt.Errorf("read the superblock: %w", err)
	}
	if n < int64(len(b)) {
		if string(b[:4]) == squashfs.Magic {
			return &TruncatedError{Have: w.size, Want: l.FSOffset + int64(len(b))}
		}
		return squashfs.ErrNotSquashfs
	}
	sb, err := squashfs.ParseSuperblock(b)
	if errors.Is(err, squashfs.ErrCorrupt) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	} else if err != nil {
		return err
	}
	l.FSType, l.FSSize = "squashfs", sb.BytesUsed
	l.Compression = sb.Compressor.String()
	l.Tables = Range{Off: l.FSOffset + sb.InodeTable, Len: sb.BytesUsed - sb.InodeTable}
	l.root = l.Tables.Off + int64(sb.Root>>16)
	return nil
}

// probeExt looks for an ext2, 3 or 4 at off.
// https://www.kernel.org/doc/html/latest/filesystems/ext4/super.html
func probeExt(w *window, off int64) (Layout, error) {
	l := Layout{Kind: Unknown}
	if w.size < off+extMinSize {
		return l, ErrNotImage
	}
	b := make([]byte, 1024)
	if err := w.readFull(b, off+extSuperblock); err != nil {
		return l, fmt.Errorf("read the ext superblock: %w", err)
	}
	le := binary.LittleEndian
	blocks, shift := int64(le.Uint32(b[0x04:])), le.Uint32(b[0x18:])
	if le.Uint16(b[0x38:]) != 0xef53 || shift > 6 || blocks == 0 {
		return l, ErrNotImage
	}
	l = Layout{Kind: Ext3, FSType: "ext3", FSOffset: off, FSSize: blocks << (10 + shift)}
	l.Size = off + l.FSSize
	if l.Size > w.size {
		return l, &TruncatedError{Have: w.size, Want: l.Size}
	}
	return l, nil
}

// Complete reports whether a file of size bytes is a whole image: whether
// everything that its headers tell of is there. It cannot see that bytes in the
// middle were never written. A file that is no image, or whose headers cannot
// be right, is an error, as of Probe.
func Complete(r io.ReaderAt, size int64) (bool, error) {
	_, err := Probe(context.Background(), r, size)
	var cut *TruncatedError
	if errors.As(err, &cut) {
		return false, nil
	}
	return err == nil, err
}
