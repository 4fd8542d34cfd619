package cache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync"
)

// Writer takes the bytes of an object that is computed here rather than
// fetched, in order. Nothing of it is visible before Commit. Its methods are
// safe for concurrent use.
type Writer struct {
	c   *Cache
	ctx context.Context
	key string
	tmp string
	f   file
	// inner: nobody outside wants to know what it is; see Build.
	inner bool

	// writing serializes Write. With it held, crc has the checksums of the blocks
	// that were written whole, and tail that of what there is of the next.
	writing sync.Mutex
	crc     []uint32
	tail    uint32

	mu      sync.Mutex
	pos     int64 // how much was written
	charged int64
	done    bool
}

// Create begins an object of that key. The caller ends it with Commit or
// Abort; writes fail once ctx is done.
func (c *Cache) Create(ctx context.Context, key string) (*Writer, error) {
	if key == "" {
		return nil, errors.New("create a cached object: no key")
	}
	tmp := tmpPrefix + rand.Text()
	f, err := c.disk.Open(tmp, os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, fmt.Errorf("create the cached object %s: %w", key, err)
	}
	return &Writer{c: c, ctx: ctx, key: key, tmp: tmp, f: f}, nil
}

// Write appends p. Room is made before; without room it fails with ErrNoRoom.
func (w *Writer) Write(p []byte) (int, error) {
	w.writing.Lock()
	defer w.writing.Unlock()
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	off, err := w.reach(int64(len(p)))
	if err != nil {
		return 0, err
	}
	n, err := w.f.WriteAt(p, off)
	if err != nil {
		err = fmt.Errorf("write the cached object %s: %w", w.key, err)
	}
	w.sum(p[:n], off)
	w.mu.Lock()
	w.pos += int64(n)
	w.mu.Unlock()
	return n, err
}

// sum takes p, at off, into the checksums while it is in the processor's cache.
func (w *Writer) sum(p []byte, off int64) {
	for len(p) > 0 {
		k := min(int64(len(p)), blockSize-off%blockSize)
		w.tail = crc32.Update(w.tail, castagnoli, p[:k])
		p, off = p[k:], off+k
		if off%blockSize == 0 {
			w.crc, w.tail = append(w.crc, w.tail), 0
		}
	}
}

// ReadAt reads what has been written. It fails with ErrClosed, or as a closed
// file does, from Commit or Abort on.
func (w *Writer) ReadAt(p []byte, off int64) (int, error) {
	if w.committed() {
		return 0, fmt.Errorf("read what was written of %s: %w", w.key, ErrClosed)
	}
	return w.f.ReadAt(p, off)
}

// reach makes room for n bytes more and returns where they go.
func (w *Writer) reach(n int64) (off int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return 0, fmt.Errorf("write the cached object %s: %w", w.key, ErrClosed)
	}
	if need := w.pos + n - w.charged; need > 0 {
		if w.c.charge(need+roomStep, false) == nil {
			need += roomStep
		} else if err := w.c.charge(need, false); err != nil {
			return 0, err
		}
		w.charged += need
	}
	return w.pos, nil
}

// Abort drops what was written. After Commit it does nothing.
func (w *Writer) Abort() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return
	}
	w.done = true
	w.f.Close()
	if err := w.c.disk.Remove(w.tmp); err != nil {
		w.c.diskTrouble(w.key, err)
	}
	w.c.room.give(w.charged, false)
}

// Commit makes what was written the object; size is how much that has to be. The
// object is complete at once; it becomes durable, and its checksums known if
// anybody wants them (see Build), a moment later. A crash before that leaves
// nothing. When it fails, the Writer has been aborted.
func (w *Writer) Commit(size int64) error {
	err := w.commit(size)
	if err != nil {
		w.Abort()
		return fmt.Errorf("commit the cached object %s: %w", w.key, err)
	}
	return nil
}

func (w *Writer) commit(size int64) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.done:
		return ErrClosed
	case size != w.pos:
		return fmt.Errorf("%d bytes were written, not %d", w.pos, size)
	case size > maxSize:
		return fmt.Errorf("it cannot have %d bytes", size)
	}
	crc := w.crc
	if size%blockSize > 0 {
		crc = append(crc, w.tail)
	}
	l, err := w.c.install(w.key, size, w.tmp, crc, w.charged, w.inner)
	if err != nil {
		return err
	}
	w.done = true
	w.f.Close()
	w.c.letGo(l)
	return nil
}

// checksums computes the checksum of each block of f.
func checksums(f file, size int64) ([]uint32, error) {
	crc := make([]uint32, (size+blockSize-1)/blockSize)
	buf := make([]byte, hashStep*blockSize)
	for b := 0; b < len(crc); {
		n := min(int64(len(buf)), size-int64(b)*blockSize)
		if _, err := f.ReadAt(buf[:n], int64(b)*blockSize); err != nil {
			return nil, err
		}
		for p := buf[:n]; len(p) > 0; b++ {
			k := min(len(p), blockSize)
			crc[b] = crc32.Checksum(p[:k], castagnoli)
			p = p[k:]
		}
	}
	return crc, nil
}

// install makes the file tmp, whose blocks have these checksums and which is
// charged with so many bytes, the complete object of that key. The object is
// returned held.
func (c *Cache) install(key string, size int64, tmp string, crc []uint32, charged int64, inner bool) (*live, error) {
	name := objectName(key)
	for {
		c.mu.Lock()
		e := c.find(name)
		if c.closed {
			c.mu.Unlock()
			return nil, ErrClosed
		}
		switch {
		case e != nil && e.live != nil && e.live.refs == 0 && c.dirty[e.live]:
			l := e.live
			c.mu.Unlock()
			c.settle(l)
			continue
		case e != nil && e.live != nil:
			l := e.live
			if l.size != size {
				c.mu.Unlock()
				return nil, fmt.Errorf("%w: its size is %d, not %d", ErrInUse, l.size, size)
			}
			l.busy++
			c.mu.Unlock()
			if err := l.become(tmp, crc, charged, inner); err != nil {
				c.letGo(l)
				return nil, err
			}
			return l, nil
		case e != nil:
			c.startRemoval(e)
			c.mu.Unlock()
			if err := c.removeFiles(e); err != nil {
				return nil, err
			}
			continue
		}
		e = &entry{name: name, gate: make(chan struct{}),
			m: meta{Version: formatVersion, Key: key, Size: size, Block: blockSize, Nonce: newNonce()}}
		c.entries[name] = e
		c.mu.Unlock()
		l := c.load(e)
		l.ctx, l.cancel = context.WithCancelCause(c.ctx)
		l.cancel(ErrClosed) // no handle yet, so nothing to fetch for
		c.mu.Lock()
		e.live = l
		l.busy++
		c.mu.Unlock()
		err := l.become(tmp, crc, charged, inner)
		c.mu.Lock()
		close(e.gate)
		e.gate = nil
		c.mu.Unlock()
		if err != nil {
			c.letGo(l)
			return nil, err
		}
		return l, nil
	}
}

// become puts the file tmp, whose blocks have these checksums, in the place of
// l's data.
func (l *live) become(tmp string, crc []uint32, charged int64, inner bool) error {
	c := l.c
	l.flushing.Lock()
	l.mu.Lock()
	complete := l.complete.Load()
	l.seal.restart = l.seal.restart || !complete // so that it stays so meanwhile
	l.mu.Unlock()
	if complete {
		// The kernel may be reading its file (Object.File), which holds the same
		// bytes.
		l.flushing.Unlock()
		if err := c.disk.Remove(tmp); err != nil {
			return err
		}
		c.room.give(charged, false)
		return nil
	}
	err := c.disk.Rename(tmp, l.e.name+dataSuffix)
	if err != nil {
		l.flushing.Unlock()
		return err
	}
	c.fds.forget(l)
	// What transfers hold for blocks that they have not written is theirs to
	// give back.
	owed := int64(0)
	for b := range l.blocks {
		if l.paid.set(b) {
			owed += int64(l.blockLen(b))
		}
	}
	l.mu.Lock()
	owed -= l.prepaid
	l.prepaid = 0
	l.mu.Unlock()
	c.mu.Lock()
	if l.e.charged == 0 {
		owed += overhead(l.size)
	}
	l.e.charged += owed
	l.e.m.Inner = inner
	delete(c.corrupt, l.e.name)
	delete(c.strikes, l.e.name)
	c.mu.Unlock()
	c.room.give(charged-owed, false)
	l.mu.Lock()
	l.gen.Add(1)
	l.unsaved = l.unsaved[:0]
	for b := range l.blocks {
		l.crc[b].Store(crc[b])
		l.recorded.set(b)
		l.ready.set(b)
		l.unsaved = append(l.unsaved, b)
	}
	l.present = l.blocks
	l.unread.Store(false)
	l.err = nil
	l.complete.Store(true)
	l.seal.restart, l.seal.done, l.seal.inner = true, false, inner
	l.tell()
	l.hashOn()
	l.mu.Unlock()
	l.flushing.Unlock()
	c.markDirty(l)
	return nil
}

func (w *Writer) committed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done
}
