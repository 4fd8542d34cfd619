package backends

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

// TestDropboxHash computes the hash as Dropbox's page describes it, block by
// block, and compares.
func TestDropboxHash(t *testing.T) {
	for _, n := range []int{0, 1, dropboxBlock - 1, dropboxBlock, dropboxBlock + 1, 2 * dropboxBlock} {
		data := bytes.Repeat([]byte{7, 1, 3}, n/3+1)[:n]
		var sums []byte
		for rest := data; len(rest) > 0; {
			k := min(len(rest), dropboxBlock)
			s := sha256.Sum256(rest[:k])
			sums = append(sums, s[:]...)
			rest = rest[k:]
		}
		want := sha256.Sum256(sums)
		h := NewHash(DropboxHash)
		for i := 0; i < n; i += 1 << 20 {
			h.Write(data[i:min(n, i+1<<20)])
			h.Sum(nil) // must not disturb what follows
		}
		if got := SumOf(DropboxHash, h).Hex; got != hex.EncodeToString(want[:]) {
			t.Errorf("%d bytes: got %s, want %x", n, got, want)
		}
	}
}
