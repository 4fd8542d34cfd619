package gdrivetest

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
)

// inMemory is the size up to which content is kept in memory rather than in a
// file.
const inMemory = 1 << 20

// content is immutable bytes with their checksums.
type content struct {
	r           io.ReaderAt
	size        int64
	md5, sha256 string
	close       func() error // frees it; may be nil
}

func bytesContent(data []byte) *content {
	m, s := md5.Sum(data), sha256.Sum256(data)
	return &content{r: bytes.NewReader(data), size: int64(len(data)), md5: hex.EncodeToString(m[:]), sha256: hex.EncodeToString(s[:])}
}

// fileContent serves a file where it lies; it is read once for its checksums.
func fileContent(name string) (*content, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	m, s := md5.New(), sha256.New()
	n, err := io.Copy(io.MultiWriter(m, s), f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return &content{r: f, size: n, md5: hexSum(m), sha256: hexSum(s), close: f.Close}, nil
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// spool collects an upload's bytes, in memory while there are few of them.
// It is used by one goroutine at a time.
type spool struct {
	dir  string
	buf  []byte
	file *os.File
	n    int64
	md5  hash.Hash
	sha  hash.Hash
}

func newSpool(dir string) *spool {
	return &spool{dir: dir, md5: md5.New(), sha: sha256.New()}
}

func (s *spool) Write(p []byte) (int, error) {
	if s.file == nil && s.n+int64(len(p)) > inMemory {
		f, err := os.CreateTemp(s.dir, "content-")
		if err != nil {
			return 0, err
		}
		if _, err := f.Write(s.buf); err != nil {
			f.Close()
			return 0, err
		}
		s.file, s.buf = f, nil
	}
	if s.file != nil {
		if n, err := s.file.WriteAt(p, s.n); err != nil {
			return n, err
		}
	} else {
		s.buf = append(s.buf, p...)
	}
	s.md5.Write(p)
	s.sha.Write(p)
	s.n += int64(len(p))
	return len(p), nil
}

// content ends the writing.
func (s *spool) content() *content {
	c := &content{size: s.n, md5: hexSum(s.md5), sha256: hexSum(s.sha)}
	if s.file != nil {
		f := s.file
		c.r = f
		c.close = func() error {
			err := f.Close()
			os.Remove(f.Name())
			return err
		}
	} else {
		c.r = bytes.NewReader(s.buf)
	}
	return c
}

func (s *spool) discard() {
	if s.file != nil {
		s.file.Close()
		os.Remove(s.file.Name())
		s.file = nil
	}
}
