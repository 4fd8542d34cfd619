package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// content is n reproducible random bytes.
func content(n int, seed uint64) []byte {
	b := make([]byte, n)
	var s [32]byte
	s[0], s[1] = byte(seed), byte(seed>>8)
	rand.NewChaCha8(s).Read(b)
	return b
}

// source is a Fetcher of bytes in memory, with a link before it and faults on
// demand.
type source struct {
	data []byte
	// rtt passes before a request is answered.
	rtt time.Duration
	// pipe is shared by the sources of one link; nil for an infinite one.
	pipe *pipe
	// fault may replace a request's body or fail it.
	fault func(req int, off, n int64, body io.Reader) (io.Reader, error)

	mu       sync.Mutex
	requests []Range
	served   int64
	open     int
}

func (s *source) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s.mu.Lock()
	req := len(s.requests)
	s.requests = append(s.requests, Range{off, n})
	s.mu.Unlock()
	if s.rtt > 0 {
		if err := sleep(ctx, s.rtt); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var r io.Reader = bytes.NewReader(s.data[off : off+n])
	if s.fault != nil {
		var err error
		if r, err = s.fault(req, off, n, r); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	s.open++
	s.mu.Unlock()
	return &body{ctx: ctx, s: s, r: r}, nil
}

type body struct {
	ctx    context.Context
	s      *source
	r      io.Reader
	closed bool
}

func (b *body) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if b.s.pipe != nil {
		p = p[:min(len(p), 16<<10)]
	}
	n, err := b.r.Read(p)
	if b.s.pipe != nil && n > 0 {
		if err := b.s.pipe.take(b.ctx, n); err != nil {
			return 0, err
		}
	}
	b.s.mu.Lock()
	b.s.served += int64(n)
	b.s.mu.Unlock()
	return n, err
}

func (b *body) Close() error {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	if !b.closed {
		b.closed = true
		b.s.open--
	}
	return nil
}

func (s *source) count() (requests int, served int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests), s.served
}

// pipe is a link of so many bytes a second that all bodies share.
type pipe struct {
	rate float64
	mu   sync.Mutex
	free time.Time
}

func (p *pipe) take(ctx context.Context, n int) error {
	p.mu.Lock()
	now := time.Now()
	if p.free.Before(now) {
		p.free = now
	}
	p.free = p.free.Add(time.Duration(float64(n) / p.rate * float64(time.Second)))
	wait := p.free.Sub(now)
	p.mu.Unlock()
	return sleep(ctx, wait)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func openCache(t testing.TB, dir string, o Options) *Cache {
	t.Helper()
	if o.Log == nil {
		o.Log = quiet()
	}
	c, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return c
}

func openObject(t testing.TB, c *Cache, spec Spec) *Object {
	t.Helper()
	o, err := c.Object(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

func sha(b []byte) Sum {
	h := sha256.Sum256(b)
	return Sum{Hex: hex.EncodeToString(h[:]), New: sha256.New}
}

// mustRead reads n bytes at off and compares them with want, the whole object.
func mustRead(t testing.TB, o *Object, want []byte, off, n int) {
	t.Helper()
	p := make([]byte, n)
	if _, err := o.ReadAt(context.Background(), p, int64(off)); err != nil {
		t.Fatalf("ReadAt(%d bytes, %d): %v", n, off, err)
	}
	if !bytes.Equal(p, want[off:off+n]) {
		t.Fatalf("ReadAt(%d bytes, %d): wrong bytes", n, off)
	}
}
