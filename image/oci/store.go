package oci

import (
	"crypto/sha256"
	"io"
	"sync"
)

// storeBuffer is how much goes to the caller's writer at once.
const storeBuffer = 8 * sumBlock

// storer writes a data file in a goroutine of its own, and takes the checksum
// of each block of it. Given the checksums of an earlier scan it writes no
// block that does not match.
type storer struct {
	w    io.Writer
	want [][32]byte // nil at a first scan

	cur  []byte
	full chan []byte
	free chan []byte
	done chan struct{}

	mu   sync.Mutex
	err  error // the first failure
	sums [][32]byte
}

// sinkError marks an error of the caller's writer.
type sinkError struct{ err error }

func (e *sinkError) Error() string { return "storing data: " + e.err.Error() }
func (e *sinkError) Unwrap() error { return e.err }

// newStorer starts the goroutine. The owner must call close.
func newStorer(w io.Writer, want [][32]byte) *storer {
	s := &storer{w: w, want: want, full: make(chan []byte), free: make(chan []byte, 2), done: make(chan struct{})}
	s.free <- nil
	s.free <- nil
	go s.run()
	return s
}

func (s *storer) run() {
	defer close(s.done)
	for buf := range s.full {
		if s.failure() == nil {
			if err := s.store(buf); err != nil {
				s.mu.Lock()
				s.err = err
				s.mu.Unlock()
			}
		}
		s.free <- buf
	}
}

// store checks and writes one buffer: whole blocks, unless it is the last.
func (s *storer) store(buf []byte) error {
	for at := 0; at < len(buf); at += sumBlock {
		sum := sha256.Sum256(buf[at:min(at+sumBlock, len(buf))])
		if s.want != nil && (len(s.sums) >= len(s.want) || s.want[len(s.sums)] != sum) {
			return corrupt("data differ from those that were checked before")
		}
		s.sums = append(s.sums, sum)
	}
	if _, err := s.w.Write(buf); err != nil {
		return &sinkError{err}
	}
	return nil
}

// failure is the first error so far.
func (s *storer) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Write takes p over; an error may be that of an earlier write.
func (s *storer) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if s.cur == nil {
			if err := s.failure(); err != nil {
				return 0, err
			}
			if s.cur = <-s.free; s.cur == nil {
				s.cur = make([]byte, 0, storeBuffer)
			}
			s.cur = s.cur[:0]
		}
		k := min(len(p), storeBuffer-len(s.cur))
		s.cur = append(s.cur, p[:k]...)
		p = p[k:]
		if len(s.cur) == storeBuffer {
			s.full <- s.cur
			s.cur = nil
		}
	}
	return n, nil
}

// close writes what is left, waits for the goroutine and returns its error.
func (s *storer) close() error {
	if len(s.cur) > 0 {
		s.full <- s.cur
		s.cur = nil
	}
	close(s.full)
	<-s.done
	return s.err
}
