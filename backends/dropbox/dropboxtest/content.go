package dropboxtest

import (
	"bytes"
	"encoding/hex"
	"hash"
	"io"
	"os"

	"github.com/sregfs/sregfs/backends"
)

// blob is the immutable content of one or more revisions.
type blob struct {
	io.ReaderAt
	size  int64
	hash  string // content_hash
	close func()
}

func newHash() hash.Hash { return backends.NewHash(backends.DropboxHash) }

// memory is a blob of data, which is not copied.
func memory(data []byte) *blob {
	h := newHash()
	h.Write(data)
	return &blob{bytes.NewReader(data), int64(len(data)), hex.EncodeToString(h.Sum(nil)), func() {}}
}

// keepInMemory is the size up to which what is uploaded gets no file, so that
// thousands of small images cost no descriptors.
const keepInMemory = 1 << 20

// receive reads a request's body into a blob and checks it against the hash
// that the caller sent, if any.
func (s *Server) receive(r io.Reader, limit int64, hash string) (*blob, *apiError, error) {
	h := newHash()
	body := io.TeeReader(io.LimitReader(r, limit+1), h)
	small, err := io.ReadAll(io.LimitReader(body, keepInMemory+1))
	if err != nil {
		return nil, nil, err
	}
	b := &blob{size: int64(len(small)), close: func() {}}
	if len(small) <= keepInMemory {
		b.ReaderAt = bytes.NewReader(small)
	} else {
		f, err := s.tempFile()
		if err != nil {
			return nil, nil, err
		}
		b.ReaderAt, b.close = f, func() { f.Close() }
		n, err := io.CopyBuffer(f, io.MultiReader(bytes.NewReader(small), onlyReader{body}), make([]byte, 256<<10))
		if err != nil {
			f.Close()
			return nil, nil, err
		}
		b.size = n
	}
	b.hash = hex.EncodeToString(h.Sum(nil))
	switch {
	case b.size > limit:
		b.close()
		return nil, refuse("payload_too_large"), nil
	case hash != "" && hash != b.hash:
		b.close()
		return nil, refuse("content_hash_mismatch"), nil
	}
	return b, nil, nil
}

type onlyReader struct{ io.Reader }

// tempFile is a file that is gone with its descriptor.
func (s *Server) tempFile() (*os.File, error) {
	f, err := os.CreateTemp(s.dir, "content")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}
