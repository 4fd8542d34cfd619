package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/sylabs/sif/v2/pkg/sif"

	"github.com/sregfs/sregfs/image/squashfs"
)

// The SIF header's fields that must be sane before the library may read it: it
// takes memory for as many descriptors as the header says.
// https://github.com/apptainer/sif/blob/main/pkg/sif/sif.go
const (
	sifMagicAt       = 32
	sifMagic         = "SIF_MAGIC\x00"
	sifTotalAt       = 88
	sifOffsetAt      = 96
	sifHeadSize      = 128
	sifDescriptor    = 585
	sifMaxDescriptor = 4096 // Singularity makes 48
)

func sifMagicIn(head []byte) bool {
	return len(head) >= sifMagicAt+len(sifMagic) && string(head[sifMagicAt:sifMagicAt+len(sifMagic)]) == sifMagic
}

// sifImage is a SIF's layout and the objects that Inspect looks for.
type sifImage struct {
	layout Layout
	// metadata and deffile are where those objects' content is, zero where there
	// are none.
	metadata, deffile Range
}

// openSIF reads the descriptors, and the superblock of the primary partition.
func openSIF(w *window) (sifImage, error) {
	s := sifImage{layout: Layout{Kind: SIF}}
	if err := checkSIFHead(w); err != nil {
		return s, err
	}
	f, err := sif.LoadContainer(readOnly{w})
	if err != nil {
		if w.ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return s, err
	}
	s.layout.Size = f.DescriptorsOffset() + f.DescriptorsSize()
	var objectErr error
	f.WithDescriptors(func(d sif.Descriptor) bool {
		objectErr = s.add(d)
		return objectErr != nil
	})
	if objectErr != nil {
		return s, objectErr
	}
	if s.layout.Arch == "" && f.PrimaryArch() != "unknown" {
		s.layout.Arch = f.PrimaryArch()
	}
	l := &s.layout
	if l.FSType == "squashfs" && l.FSOffset < w.size {
		room := l.FSSize
		switch err := probeFS(w, l); {
		case errors.Is(err, squashfs.ErrNotSquashfs):
			return s, fmt.Errorf("%w: primary partition: %w", ErrCorrupt, err)
		case err != nil:
			return s, err
		case l.FSSize > room:
			return s, fmt.Errorf("%w: file system of %d bytes in a partition of %d", ErrCorrupt, l.FSSize, room)
		}
	}
	if l.Size > w.size {
		return s, &TruncatedError{Have: w.size, Want: l.Size}
	}
	return s, nil
}

func checkSIFHead(w *window) error {
	if w.size < sifHeadSize {
		return &TruncatedError{Have: w.size, Want: sifHeadSize}
	}
	b := make([]byte, sifHeadSize)
	if err := w.readFull(b, 0); err != nil {
		return fmt.Errorf("read the SIF header: %w", err)
	}
	total := int64(binary.LittleEndian.Uint64(b[sifTotalAt:]))
	off := int64(binary.LittleEndian.Uint64(b[sifOffsetAt:]))
	if total < 0 || total > sifMaxDescriptor || off < sifHeadSize || off > 1<<60 {
		return fmt.Errorf("%w: %d SIF descriptors at %d", ErrCorrupt, total, off)
	}
	if end := off + total*sifDescriptor; end > w.size {
		return &TruncatedError{Have: w.size, Want: end}
	}
	return nil
}

// add takes one object into account.
func (s *sifImage) add(d sif.Descriptor) error {
	l := &s.layout
	at := Range{Off: d.Offset(), Len: d.Size()}
	if at.Off < 0 || at.Len < 0 || at.End() < 0 {
		return fmt.Errorf("%w: object %d of %d bytes at %d", ErrCorrupt, d.ID(), at.Len, at.Off)
	}
	l.Size = max(l.Size, at.End())
	switch d.DataType() {
	case sif.DataSignature:
		l.Signed = true
	case sif.DataDeffile:
		if s.deffile == (Range{}) {
			s.deffile = at
		}
	case sif.DataGenericJSON:
		if d.Name() == metadataObject {
			s.metadata = at
		}
	case sif.DataPartition:
		fs, part, arch, err := d.PartitionMetadata()
		if err != nil || part != sif.PartPrimSys || l.FSType != "" {
			// Overlays, data, and the systems of other architectures.
			return nil
		}
		l.FSOffset, l.FSSize = at.Off, at.Len
		if arch != "unknown" {
			l.Arch = arch
		}
		switch fs {
		case sif.FsSquash:
			l.FSType = "squashfs"
		case sif.FsExt3:
			l.FSType = "ext3"
		case sif.FsImmuObj:
			l.FSType = "archive"
		case sif.FsEncryptedSquashfs:
			l.FSType, l.Encrypted = "encrypted-squashfs", true
		default:
			l.FSType = "raw"
		}
	}
	return nil
}

// readOnly gives the SIF library, which asks for a file to write to, what it
// uses for reading.
type readOnly struct{ io.ReaderAt }

var errReadOnly = errors.New("image is read-only")

func (readOnly) Read([]byte) (int, error)       { return 0, errReadOnly }
func (readOnly) Write([]byte) (int, error)      { return 0, errReadOnly }
func (readOnly) Seek(int64, int) (int64, error) { return 0, errReadOnly }
func (readOnly) Truncate(int64) error           { return errReadOnly }
