package oci

import (
	"encoding/binary"
	"math"
	"strings"

	"github.com/sregfs/sregfs/image/squash"
)

// entry is one member of a layer, as it stands there: names are cleaned, but
// nothing is resolved. Which fields count depends on kind.
type entry struct {
	kind         entryKind
	name         string // as clean makes it
	mode         uint32 // permissions alone
	uid, gid     uint32
	mtime        uint32
	target       string // of a symlink as it is, of a hard link as clean makes it
	major, minor uint32
	xattrs       []squash.Xattr

	size   int64
	offset int64 // in the data file
	blocks []uint32
	chunks []chunk
}

type entryKind uint8

const (
	kindFile entryKind = iota + 1
	kindDir
	kindSymlink
	kindHardlink
	kindChar
	kindBlock
	kindFIFO
	kindWhiteout // name is what it removes
	kindOpaque   // name is the directory
	kindIndex    // a file that only eStargz has use for
	kindLast     = kindIndex
)

// chunk is a piece of a file in a layer that is read lazily.
type chunk struct {
	size   int64
	offset int64 // of the compressed stream in the blob
	end    int64 // and where that ends at the latest
	inner  int64 // of the piece in the stream
	sum    [32]byte
	zeros  bool // the piece is nowhere, it is all zeros
}

// clean makes a layer's name a path from the root: without a leading slash,
// without empty, "." and ".." elements. The last go as far up as the root and
// no further. The root itself is "".
func clean(name string) string {
	if !strings.Contains(name, "//") && !strings.Contains(name, "./") && !strings.HasPrefix(name, "/") &&
		!strings.HasSuffix(name, "/") && !strings.HasSuffix(name, ".") {
		return name
	}
	var out []string
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
		default:
			out = append(out, part)
		}
	}
	return strings.Join(out, "/")
}

// appendEntry appends e in the form that nextEntry reads.
func appendEntry(b []byte, e *entry) []byte {
	b = append(b, byte(e.kind))
	b = appendString(b, e.name)
	if e.kind == kindWhiteout || e.kind == kindOpaque {
		return b
	}
	for _, v := range []uint32{e.mode, e.uid, e.gid, e.mtime} {
		b = binary.AppendUvarint(b, uint64(v))
	}
	b = binary.AppendUvarint(b, uint64(len(e.xattrs)))
	for _, x := range e.xattrs {
		b = appendString(appendString(b, x.Name), x.Value)
	}
	switch e.kind {
	case kindSymlink, kindHardlink:
		b = appendString(b, e.target)
	case kindChar, kindBlock:
		b = binary.AppendUvarint(b, uint64(e.major))
		b = binary.AppendUvarint(b, uint64(e.minor))
	case kindFile, kindIndex:
		b = binary.AppendUvarint(b, uint64(e.size))
		b = binary.AppendUvarint(b, uint64(e.offset))
		b = appendRuns(b, e.blocks)
		b = binary.AppendUvarint(b, uint64(len(e.chunks)))
		for _, c := range e.chunks {
			b = appendChunk(b, c)
		}
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendRuns appends block words as runs of equal ones.
func appendRuns(b []byte, words []uint32) []byte {
	var runs []byte
	n := 0
	for i := 0; i < len(words); n++ {
		k := i
		for k < len(words) && words[k] == words[i] {
			k++
		}
		runs = binary.AppendUvarint(binary.AppendUvarint(runs, uint64(words[i])), uint64(k-i))
		i = k
	}
	return append(binary.AppendUvarint(b, uint64(n)), runs...)
}

func appendChunk(b []byte, c chunk) []byte {
	b = binary.AppendUvarint(b, uint64(c.size))
	if c.zeros {
		return append(b, 1)
	}
	b = append(b, 0)
	b = binary.AppendUvarint(b, uint64(c.offset))
	b = binary.AppendUvarint(b, uint64(c.end))
	b = binary.AppendUvarint(b, uint64(c.inner))
	return append(b, c.sum[:]...)
}

// decoder reads what the append functions wrote. After an error, err is set
// and everything reads as zero.
type decoder struct {
	b   []byte
	err error
}

// fail notes that the bytes are no good.
func (d *decoder) fail() {
	if d.err == nil {
		d.err = corrupt("stored contents cannot be read")
	}
	d.b = nil
}

func (d *decoder) uint(limit uint64) uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > limit {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint32() uint32 { return uint32(d.uint(math.MaxUint32)) }
func (d *decoder) int64() int64   { return int64(d.uint(math.MaxInt64)) }

// count reads the length of a list whose members take at least size bytes.
func (d *decoder) count(size int) int { return int(d.uint(uint64(len(d.b) / size))) }

func (d *decoder) bytes(n int) []byte {
	if n > len(d.b) {
		d.fail()
		return make([]byte, min(n, 64))
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) string() string {
	n := d.count(1)
	if d.err != nil {
		return ""
	}
	return string(d.bytes(n))
}

// runs reads block words for a file of size bytes.
func (d *decoder) runs(size int64) []uint32 {
	n := d.count(2)
	if n == 0 {
		return nil
	}
	all := min(uint64(size)/squash.BlockSize+1, 1<<24)
	var words []uint32
	for range n {
		word, k := d.uint32(), d.uint(all-uint64(len(words)))
		for range k {
			words = append(words, word)
		}
	}
	return words
}

func (d *decoder) chunk() chunk {
	c := chunk{size: d.int64()}
	if c.zeros = d.bytes(1)[0] != 0; c.zeros {
		return c
	}
	c.offset, c.end, c.inner = d.int64(), d.int64(), d.int64()
	copy(c.sum[:], d.bytes(len(c.sum)))
	return c
}

// entry reads the next entry into e, and reports whether there was one.
func (d *decoder) entry(e *entry) bool {
	if d.err != nil || len(d.b) == 0 {
		return false
	}
	*e = entry{kind: entryKind(d.bytes(1)[0]), name: d.string()}
	if e.kind == 0 || e.kind > kindLast {
		d.fail()
		return false
	}
	if e.kind == kindWhiteout || e.kind == kindOpaque {
		return d.err == nil
	}
	e.mode, e.uid, e.gid, e.mtime = d.uint32(), d.uint32(), d.uint32(), d.uint32()
	for range d.count(2) {
		e.xattrs = append(e.xattrs, squash.Xattr{Name: d.string(), Value: d.string()})
	}
	switch e.kind {
	case kindSymlink, kindHardlink:
		e.target = d.string()
	case kindChar, kindBlock:
		e.major, e.minor = d.uint32(), d.uint32()
	case kindFile, kindIndex:
		e.size, e.offset = d.int64(), d.int64()
		e.blocks = d.runs(e.size)
		for range d.count(2) {
			e.chunks = append(e.chunks, d.chunk())
		}
	}
	return d.err == nil
}
