package backendtest

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// session is an upload as the store's far side knows it.
type session struct {
	id    string
	ref   backends.Ref
	mu    sync.Mutex
	parts map[int64][]byte // by offset
}

// Begin starts an upload or takes one up again.
func (m *MemoryStore) Begin(ctx context.Context, ref backends.Ref, resume string) (backends.Upload, error) {
	if err := m.begin(ctx, "push", ref); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	s := m.uploads[resume]
	if s == nil || s.ref != ref {
		m.serial++
		s = &session{id: fmt.Sprintf("upload-%d", m.serial), ref: ref, parts: map[int64][]byte{}}
		m.uploads[s.id] = s
	}
	return &upload{store: m, session: s}, nil
}

// Uploads is how many uploads have begun and neither been committed nor
// aborted.
func (m *MemoryStore) Uploads() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.uploads)
}

type upload struct {
	store   *MemoryStore
	session *session
}

func (u *upload) PartSize() int64 { return u.store.PartBytes }
func (u *upload) Parallel() int   { return max(1, u.store.Workers) }
func (u *upload) State() string   { return u.session.id }

func (u *upload) Sent() int64 {
	u.session.mu.Lock()
	defer u.session.mu.Unlock()
	var n int64
	for u.session.parts[n] != nil {
		n += u.store.PartBytes
	}
	return n
}

func (u *upload) Part(ctx context.Context, off int64, r io.ReaderAt) error {
	if off%u.store.PartBytes != 0 {
		return u.fail(fmt.Errorf("offset %d is no multiple of the parts' size", off))
	}
	buf := make([]byte, u.store.PartBytes)
	if err := readFull(ctx, r, buf, off); err != nil {
		return u.fail(err)
	}
	u.session.mu.Lock()
	defer u.session.mu.Unlock()
	u.session.parts[off] = buf
	return nil
}

func (u *upload) Commit(ctx context.Context, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
	data, err := u.assemble(ctx, r, size)
	if err != nil {
		return backends.Image{}, u.fail(err)
	}
	sum := md5.Sum(data)
	got := hex.EncodeToString(sum[:])
	if c.MD5 != "" && c.MD5 != got {
		return backends.Image{}, u.fail(fmt.Errorf("%w: MD5 is %s, not %s", backends.ErrCorrupt, got, c.MD5))
	}
	m := u.store
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return backends.Image{}, u.fail(err)
	}
	if m.uploads[u.session.id] != u.session {
		return backends.Image{}, u.fail(errForgotten)
	}
	if o := m.objects[m.key(u.session.ref)]; o != nil {
		if o.newest().md5 == got {
			delete(m.uploads, u.session.id)
			return m.image(o, o.newest()), nil
		}
		if c.Replaces == nil || c.Replaces.ID != o.id || c.Replaces.Revision != o.newest().revision {
			return backends.Image{}, u.fail(backends.ErrStale)
		}
	}
	if m.Capacity > 0 && m.used()+size > m.Capacity {
		return backends.Image{}, u.fail(backends.ErrNoSpace)
	}
	delete(m.uploads, u.session.id)
	return m.put(u.session.ref, data, c), nil
}

// assemble puts the parts and the rest together.
func (u *upload) assemble(ctx context.Context, r io.ReaderAt, size int64) ([]byte, error) {
	u.session.mu.Lock()
	defer u.session.mu.Unlock()
	data := make([]byte, size)
	for off := int64(0); off < size; off += u.store.PartBytes {
		to := data[off:min(off+u.store.PartBytes, size)]
		if part := u.session.parts[off]; len(part) == len(to) {
			copy(to, part)
		} else if err := readFull(ctx, r, to, off); err != nil {
			return nil, err
		}
	}
	return data, nil
}

func (u *upload) Abort(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return u.fail(err)
	}
	u.store.mu.Lock()
	defer u.store.mu.Unlock()
	delete(u.store.uploads, u.session.id)
	return nil
}

func (u *upload) fail(err error) error { return u.store.fail("push", u.session.ref, err) }

func readFull(ctx context.Context, r io.ReaderAt, buf []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := r.ReadAt(buf, off)
	if n == len(buf) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Cursor counts changes.
func (m *MemoryStore) Cursor(ctx context.Context) (string, error) {
	if err := m.begin(ctx, "watch", backends.Ref{}); err != nil {
		return "", err
	}
	defer m.mu.Unlock()
	return strconv.Itoa(m.forgotten + len(m.feed)), nil
}

// ForgetChanges makes every cursor that was given out so far too old.
func (m *MemoryStore) ForgetChanges() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgotten += len(m.feed) + 1
	m.feed = nil
	close(m.changed)
	m.changed = make(chan struct{})
}

// Changes waits for the feed to grow past cursor.
func (m *MemoryStore) Changes(ctx context.Context, cursor string, wait time.Duration) (backends.Changes, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		if err := m.begin(ctx, "watch", backends.Ref{}); err != nil {
			return backends.Changes{}, err
		}
		n, err := strconv.Atoi(cursor)
		n -= m.forgotten
		if err != nil || n < 0 || n > len(m.feed) {
			m.mu.Unlock()
			return backends.Changes{}, m.fail("watch", backends.Ref{}, backends.ErrCursorReset)
		}
		since := append([]backends.Change(nil), m.feed[n:]...)
		now := strconv.Itoa(m.forgotten + len(m.feed))
		changed := m.changed
		m.mu.Unlock()
		if len(since) > 0 {
			return backends.Changes{List: since, Cursor: now}, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return backends.Changes{Cursor: now}, nil
		case <-ctx.Done():
		}
	}
}
