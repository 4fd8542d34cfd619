package oci

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/zstd"
	"github.com/sregfs/sregfs/image/squash"
)

// Contents is what there is to know of a layer beside the data of its files.
// It is small (some 30 bytes an entry when stored) and worth keeping for ever:
// with it an image can be opened before, or without, its layers being there.
// It is never changed once it has been made.
type Contents struct {
	// Digest is the blob's, DiffID the archive's. The Contents that ScanTOC
	// makes are not tied to the diff id, which cannot be checked then.
	Digest, DiffID string
	// Codec is how the data file keeps blocks.
	Codec squash.Codec
	// Lazy tells that they come from a table of contents: the data file is
	// that which Lazy serves, not that of Scan.
	Lazy bool
	// DataSize is the data file's length.
	DataSize int64
	// Entries is how many there are, whiteouts included.
	Entries int

	pin     string     // if Lazy, what the manifest says of the table
	payload int64      // if Lazy, where the files in the blob end
	index   bool       // an eStargz table ends the layer: it is no file of the image
	list    []byte     // the entries, see appendEntry
	sums    [][32]byte // SHA-256 of each sumBlock bytes of the data file; nil if Lazy
}

// sumBlock is how much of a data file one checksum covers.
const sumBlock = 128 << 10

// DataKey names the data file; see the function of that name.
func (c *Contents) DataKey() string {
	if c.Lazy {
		// A blob has one table, but a manifest may point to what is none.
		return fmt.Sprintf("%s-v%d-toc-%x", keyName(c.Digest), LayoutVersion, sha256.Sum256([]byte(c.pin)))
	}
	return DataKey(c.DiffID, c.Codec)
}

// contentsMagic begins stored Contents. The number is the format's version.
const contentsMagic = "sregfs layer 1\n"

// maxContents bounds what stored Contents may grow to when they are read.
const maxContents = 2 << 30

// MarshalBinary returns c in a compact form for UnmarshalBinary. It never
// fails.
func (c *Contents) MarshalBinary() ([]byte, error) {
	b := []byte(contentsMagic)
	b = binary.AppendUvarint(b, LayoutVersion)
	b = appendString(appendString(b, c.Digest), c.DiffID)
	b = append(b, byte(c.Codec), flag(c.Lazy), flag(c.index))
	b = binary.AppendUvarint(appendString(b, c.pin), uint64(c.payload))
	b = binary.AppendUvarint(b, uint64(c.DataSize))
	b = binary.AppendUvarint(b, uint64(c.Entries))
	b = binary.AppendUvarint(b, uint64(len(c.sums)))
	for _, s := range c.sums {
		b = append(b, s[:]...)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	b = enc.EncodeAll(c.list, b)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...), nil
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// UnmarshalBinary reads what MarshalBinary wrote. Anything else, what another
// LayoutVersion wrote included, is ErrCorrupt: the layer must be scanned again.
func (c *Contents) UnmarshalBinary(b []byte) error {
	body := len(b) - sha256.Size
	if body < len(contentsMagic) || string(b[:len(contentsMagic)]) != contentsMagic ||
		sha256.Sum256(b[:body]) != [32]byte(b[body:]) {
		return corrupt("not the stored contents of a layer")
	}
	d := decoder{b: b[len(contentsMagic):body]}
	if v := d.uint32(); v != LayoutVersion {
		return corrupt("contents of layout version %d, not %d", v, LayoutVersion)
	}
	n := Contents{Digest: d.string(), DiffID: d.string()}
	n.Codec, n.Lazy, n.index = squash.Codec(d.bytes(1)[0]), d.bytes(1)[0] != 0, d.bytes(1)[0] != 0
	n.pin = d.string()
	n.payload, n.DataSize, n.Entries = d.int64(), d.int64(), int(d.uint32())
	for range d.count(sha256.Size) {
		n.sums = append(n.sums, [32]byte(d.bytes(sha256.Size)))
	}
	if d.err != nil {
		return d.err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxContents))
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	defer dec.Close()
	if n.list, err = dec.DecodeAll(d.b, nil); err != nil {
		return corrupt("stored contents: %w", err)
	}
	*c = n
	return nil
}
