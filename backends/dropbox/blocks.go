package dropbox

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"sync"
)

// block is the unit of content hashes
// (https://www.dropbox.com/developers/reference/content-hash).
const block = 4 << 20

// blockSums keeps the sums of a content's blocks, from which its parts' and its
// own content hash are made without reading it twice. It is safe for concurrent
// use.
type blockSums struct {
	mu   sync.Mutex
	sums map[int64][sha256.Size]byte // by offset
}

func newBlockSums() *blockSums {
	return &blockSums{sums: make(map[int64][sha256.Size]byte)}
}

// add sums up the blocks of r[off:off+n] and returns that part's content hash.
// off is a multiple of block, and so is n but in the last part.
func (b *blockSums) add(r io.ReaderAt, off, n int64) (string, error) {
	overall, one := sha256.New(), sha256.New()
	buf := make([]byte, min(n, 256<<10))
	for end := off + n; off < end; off += block {
		one.Reset()
		size := min(block, end-off)
		if m, err := io.CopyBuffer(onlyWriter{one}, io.NewSectionReader(r, off, size), buf); err != nil {
			return "", err
		} else if m < size {
			return "", io.ErrUnexpectedEOF
		}
		var sum [sha256.Size]byte
		one.Sum(sum[:0])
		overall.Write(sum[:])
		b.mu.Lock()
		b.sums[off] = sum
		b.mu.Unlock()
	}
	return hex.EncodeToString(overall.Sum(nil)), nil
}

// save returns the sums of the first n bytes' blocks, all of which were added.
func (b *blockSums) save(n int64) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	var sums []byte
	for off := int64(0); off < n; off += block {
		sum := b.sums[off]
		sums = append(sums, sum[:]...)
	}
	return sums
}

// restore takes back what save returned.
func (b *blockSums) restore(sums []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for off := int64(0); len(sums) >= sha256.Size; off += block {
		b.sums[off] = [sha256.Size]byte(sums)
		sums = sums[sha256.Size:]
	}
}

// whole is the content hash of the first size bytes, whose blocks were all
// added.
func (b *blockSums) whole(size int64) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	overall := sha256.New()
	for off := int64(0); off < size; off += block {
		sum := b.sums[off]
		overall.Write(sum[:])
	}
	return hex.EncodeToString(overall.Sum(nil))
}

// onlyWriter hides a hash's other methods, so that io.CopyBuffer uses the
// buffer.
type onlyWriter struct{ io.Writer }
