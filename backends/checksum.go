package backends

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"hash"
)

// The checksum algorithms that stores keep.
const (
	MD5    = "md5"
	SHA256 = "sha256"
	// DropboxHash is Dropbox's content hash: the SHA-256 of the SHA-256 sums
	// of the content's blocks of 4 MiB
	// (https://www.dropbox.com/developers/reference/content-hash).
	DropboxHash = "dropbox"
)

// Checksum is a content's checksum in one of the algorithms above, in
// lower-case hexadecimal. The zero value means that none is known.
type Checksum struct {
	Algorithm string `json:"algorithm,omitempty"`
	Hex       string `json:"hex,omitempty"`
}

// IsZero reports whether no checksum is known.
func (c Checksum) IsZero() bool { return c.Hex == "" }

// String is ALGORITHM:HEX, or "" for the zero value.
func (c Checksum) String() string {
	if c.IsZero() {
		return ""
	}
	return c.Algorithm + ":" + c.Hex
}

// NewHash returns a hash of the named algorithm, nil for one that is unknown.
func NewHash(algorithm string) hash.Hash {
	switch algorithm {
	case MD5:
		return md5.New()
	case SHA256:
		return sha256.New()
	case DropboxHash:
		return &dropboxHash{overall: sha256.New(), block: sha256.New()}
	}
	return nil
}

// SumOf is the Checksum of what was written to h, which NewHash made.
func SumOf(algorithm string, h hash.Hash) Checksum {
	return Checksum{Algorithm: algorithm, Hex: hex.EncodeToString(h.Sum(nil))}
}

const dropboxBlock = 4 << 20

type dropboxHash struct {
	overall, block hash.Hash
	n              int // bytes in block
}

func (d *dropboxHash) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if d.n == dropboxBlock {
			d.overall.Write(d.block.Sum(nil))
			d.block.Reset()
			d.n = 0
		}
		k := min(len(p), dropboxBlock-d.n)
		d.block.Write(p[:k])
		d.n += k
		p = p[k:]
	}
	return total, nil
}

func (d *dropboxHash) Sum(b []byte) []byte {
	if d.n == 0 {
		return d.overall.Sum(b)
	}
	// A copy of the outer state lets writing go on after Sum, as hash.Hash
	// promises; SHA-256 is always cloneable.
	c, err := d.overall.(hash.Cloner).Clone()
	if err != nil {
		panic("backends: sha256 state cannot be cloned: " + err.Error())
	}
	c.Write(d.block.Sum(nil))
	return c.Sum(b)
}

func (d *dropboxHash) Reset()         { d.overall.Reset(); d.block.Reset(); d.n = 0 }
func (d *dropboxHash) Size() int      { return sha256.Size }
func (d *dropboxHash) BlockSize() int { return sha256.BlockSize }
