package cache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Writer takes the bytes of an object that is computed here rather than
// fetched. Nothing of it is visible before Commit. Its methods are safe for
// concurrent use.
type Writer struct {
	c   *Cache
	ctx context.Context
	key string
	tmp string
	f   file

	mu      sync.Mutex
	pos     int64 // of Write
	high    int64 // end of what was written
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

// Write appends to what Write wrote before.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	off := w.pos
	w.pos += int64(len(p))
	w.mu.Unlock()
	return w.WriteAt(p, off)
}

// WriteAt writes p at off. Room is made before; without room it fails with
// ErrNoRoom.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("write %s at %d: negative offset", w.key, off)
	}
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	if err := w.reach(off + int64(len(p))); err != nil {
		return 0, err
	}
	n, err := w.f.WriteAt(p, off)
	if err != nil {
		err = fmt.Errorf("write the cached object %s: %w", w.key, err)
	}
	return n, err
}

// reach makes room up to end.
func (w *Writer) reach(end int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return fmt.Errorf("write the cached object %s: %w", w.key, ErrClosed)
	}
	if need := end - w.charged; need > 0 {
		if w.c.charge(need+roomStep, false) == nil {
			need += roomStep
		} else if err := w.c.charge(need, false); err != nil {
			return err
		}
		w.charged += need
	}
	w.high = max(w.high, end)
	return nil
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

// Commit makes the first size bytes of what was written the object; what was
// never written is zeros. The object is complete at once; it becomes durable,
// and its checksums known, a moment later. A crash before that leaves nothing.
// When it fails, the Writer has been aborted.
func (w *Writer) Commit(size int64) error {
	err := w.commit(size)
	if err != nil {
		w.Abort()
		return fmt.Errorf("commit the cached object %s: %w", w.key, err)
	}
	return nil
}

func (w *Writer) commit(size int64) error {
	if size < 0 || size > maxSize {
		return fmt.Errorf("it cannot have %d bytes", size)
	}
	if err := w.reach(size); err != nil {
		return err
	}
	if err := w.f.Truncate(size); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return ErrClosed
	}
	l, err := w.c.install(w.key, size, w.tmp, w.f, w.charged)
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

// install makes the file tmp, which is open as f and charged with so many
// bytes, the complete object of that key. The object is returned held.
func (c *Cache) install(key string, size int64, tmp string, f file, charged int64) (*live, error) {
	crc, err := checksums(f, size)
	if err != nil {
		return nil, err
	}
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
			if err := l.become(tmp, crc, charged); err != nil {
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
		err := l.become(tmp, crc, charged)
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
func (l *live) become(tmp string, crc []uint32, charged int64) error {
	c := l.c
	l.flushing.Lock()
	err := c.disk.Rename(tmp, l.e.name+dataSuffix)
	if err != nil {
		l.flushing.Unlock()
		return err
	}
	c.fds.forget(l)
	c.mu.Lock()
	old := l.e.charged
	l.e.charged = l.size + overhead(l.size)
	give := old + charged - l.e.charged
	delete(c.corrupt, l.e.name)
	delete(c.strikes, l.e.name)
	c.mu.Unlock()
	c.room.give(give, false)
	l.mu.Lock()
	l.gen.Add(1)
	l.unsaved = l.unsaved[:0]
	for b := range l.blocks {
		l.crc[b].Store(crc[b])
		l.recorded.set(b)
		l.ready.set(b)
		l.paid.set(b)
		l.unsaved = append(l.unsaved, b)
	}
	l.present = l.blocks
	l.err = nil
	l.complete.Store(true)
	l.seal.restart, l.seal.done = true, false
	l.tell()
	l.hashOn()
	l.mu.Unlock()
	l.flushing.Unlock()
	c.markDirty(l)
	return nil
}

// Adopt makes a finished file of size bytes, which must be on disk and is
// nobody else's any more, the complete object of that key: by renaming it, or
// copying and removing it when it lies on another file system. It is durable
// when Adopt returns. When Adopt fails, the file is still where it was.
func (c *Cache) Adopt(key, path string, size int64) error {
	if err := c.adopt(key, path, size); err != nil {
		return fmt.Errorf("take %s into the cache as %s: %w", path, key, err)
	}
	return nil
}

func (c *Cache) adopt(key, path string, size int64) error {
	fd, err := retryEINTR(func() (int, error) { return unix.Open(path, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0) })
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	src := os.NewFile(uintptr(fd), path)
	defer src.Close()
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Size() != size {
		return fmt.Errorf("it has %d bytes, not %d", fi.Size(), size)
	}
	if err := src.Chmod(0o600); err != nil {
		return err
	}
	tmp := tmpPrefix + rand.Text()
	switch err := c.disk.Import(path, tmp); {
	case errors.Is(err, syscall.EXDEV):
		return c.adoptCopy(key, path, src, size)
	case err != nil:
		return err
	}
	if err = c.charge(size, false); err == nil {
		var l *live
		if l, err = c.install(key, size, tmp, osFile{src}, size); err == nil {
			err := l.flush()
			c.letGo(l)
			return err
		}
		c.room.give(size, false)
	}
	return errors.Join(err, c.disk.Export(tmp, path))
}

// adoptCopy is adopt across file systems.
func (c *Cache) adoptCopy(key, path string, src *os.File, size int64) error {
	w, err := c.Create(c.ctx, key)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, io.NewSectionReader(src, 0, size)); err != nil {
		w.Abort()
		return err
	}
	if err := w.Commit(size); err != nil {
		return err
	}
	o, err := c.Object(Spec{Key: key, Size: size})
	if err != nil {
		return err
	}
	defer o.Close()
	if err := o.l.flush(); err != nil {
		return err
	}
	return os.Remove(path)
}

// buildGrace is how long a build that nobody waits for any more goes on: a
// reader that was interrupted usually comes back.
const buildGrace = 30 * time.Second

// building is a build under way. Guarded by Cache.mu.
type building struct {
	waiting int
	cancel  context.CancelCauseFunc
	idle    *time.Timer
	done    chan struct{}
	err     error // set before done is closed
}

// Build opens the object of that key, computing it with build when it is not
// complete. However many ask at once, build runs once, on a context of its
// own; it must commit w. A caller whose ctx ends stops waiting; the build is
// cancelled when nobody has waited for it for half a minute. Its error goes to
// all who wait; the next caller builds anew.
func (c *Cache) Build(ctx context.Context, key string, build func(ctx context.Context, w *Writer) error) (*Object, error) {
	name := objectName(key)
	for {
		if o, err := c.openComplete(key); o != nil || err != nil {
			return o, err
		}
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return nil, ErrClosed
		}
		b := c.builds[name]
		if b == nil {
			b = c.startBuild(name, key, build)
		}
		b.waiting++
		if b.idle != nil {
			b.idle.Stop()
			b.idle = nil
		}
		c.mu.Unlock()
		var err error
		select {
		case <-b.done:
			err = b.err
		case <-ctx.Done():
			err = ctx.Err()
		}
		c.mu.Lock()
		if b.waiting--; b.waiting == 0 {
			b.idle = time.AfterFunc(buildGrace, func() { b.cancel(context.Canceled) })
		}
		c.mu.Unlock()
		if err != nil {
			return nil, fmt.Errorf("build %s: %w", key, err)
		}
	}
}

// openComplete opens the object of that key if it is complete.
func (c *Cache) openComplete(key string) (*Object, error) {
	o, err := c.Object(Spec{Key: key, Size: -1})
	switch {
	case errors.Is(err, ErrNotCached), errors.Is(err, ErrCorrupt):
		return nil, nil
	case err != nil:
		return nil, err
	case o.Complete():
		return o, nil
	}
	defer o.Close()
	l := o.l
	l.mu.Lock()
	all := l.present == l.blocks
	l.mu.Unlock()
	if all && o.Fill(c.ctx) == nil {
		return o.l.c.Object(Spec{Key: key, Size: -1})
	}
	return nil, nil
}

// startBuild starts a build. The caller holds c.mu.
func (c *Cache) startBuild(name, key string, build func(context.Context, *Writer) error) *building {
	ctx, cancel := context.WithCancelCause(c.ctx)
	b := &building{cancel: cancel, done: make(chan struct{})}
	c.builds[name] = b
	c.wg.Go(func() {
		defer cancel(nil)
		w, err := c.Create(ctx, key)
		if err == nil {
			if err = build(ctx, w); err == nil && !w.committed() {
				err = errors.New("the build ended without a commit")
			}
			w.Abort()
		}
		c.mu.Lock()
		delete(c.builds, name)
		if b.idle != nil {
			b.idle.Stop()
		}
		c.mu.Unlock()
		b.err = err
		close(b.done)
	})
	return b
}

func (w *Writer) committed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done
}
