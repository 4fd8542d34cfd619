package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// open is Object without the sentence around its errors.
func (c *Cache) open(spec Spec) (*Object, error) {
	if spec.Size > maxSize {
		return nil, fmt.Errorf("%d bytes are more than the cache takes of one object", spec.Size)
	}
	name := objectName(spec.Key)
	for {
		c.mu.Lock()
		if err := c.corrupt[name]; err != nil {
			c.mu.Unlock()
			return nil, err
		}
		e := c.find(name)
		if c.closed {
			c.mu.Unlock()
			return nil, ErrClosed
		}
		switch {
		case e != nil && spec.Size >= 0 && e.m.Size != spec.Size:
			if e.live != nil {
				c.mu.Unlock()
				return nil, fmt.Errorf("%w: its size is %d, not %d", ErrInUse, e.m.Size, spec.Size)
			}
			// The key means other bytes than it did: those here are useless.
			c.startRemoval(e)
			c.mu.Unlock()
			c.log.Warn("a cached object has another size than it should and was dropped", "key", spec.Key, "size", e.m.Size, "want", spec.Size)
			if err := c.removeFiles(e); err != nil {
				return nil, err
			}
			continue
		case e == nil && (spec.Fetcher == nil || spec.Size < 0):
			c.mu.Unlock()
			return nil, ErrNotCached
		case e == nil:
			e = &entry{name: name, m: meta{Version: formatVersion, Key: spec.Key, Size: spec.Size, Block: blockSize, Nonce: newNonce()}}
			c.entries[name] = e
		}
		if e.live == nil {
			c.unlist(e)
			e.gate = make(chan struct{})
			c.mu.Unlock()
			l := c.load(e)
			c.mu.Lock()
			e.live = l
			close(e.gate)
			e.gate = nil
		}
		o := c.handle(e.live, spec)
		c.mu.Unlock()
		return o, nil
	}
}

// load makes the state of an object that was idle. What cannot be read of it
// counts as absent.
func (c *Cache) load(e *entry) *live {
	n := e.m.blocks()
	l := &live{
		c: c, e: e, key: e.m.Key, size: e.m.Size, blocks: n, nonce: e.m.Nonce,
		recorded: newBitmap(n), ready: newBitmap(n), asked: newBitmap(n), paid: newBitmap(n),
		crc:     make([]atomic.Uint32, n),
		waiters: map[*waiter]struct{}{}, handles: map[*Object]struct{}{},
		changed: make(chan struct{}),
		guess:   guess{open: newBitmap(n), reach: 2},
		seal:    seal{inner: e.m.Inner},
	}
	if e.saved {
		// What cannot be opened, a planted link for one, gives way.
		_, err := l.data()
		if err != nil {
			err = errors.Join(err, c.disk.Remove(e.name+dataSuffix))
		}
		if err == nil && e.m.Complete && c.untouched(l) {
			// All is here. The kernel reads it without us, so the map, which is
			// the larger the object is, can wait for who does not.
			for b := range n {
				l.recorded.set(b)
				l.paid.set(b)
			}
			l.present = n
			l.unread.Store(true)
			l.complete.Store(true)
			l.seal.done = true
			return l
		}
		if err == nil {
			err = l.eachSlot(e.m, func(b int, crc uint32) {
				l.crc[b].Store(crc)
				l.recorded.set(b)
				l.paid.set(b)
				l.present++
			})
		}
		if err != nil {
			c.log.Warn("a cached object is unreadable and will be fetched again", "key", l.key, "error", err)
		}
	}
	l.prepaid = max(0, e.charged-l.paidBytes())
	if e.m.Complete {
		c.log.Info("a cached object was changed from outside and will be checked", "key", l.key)
		l.unsealed = true
	}
	return l
}

// paidBytes is what the blocks in paid take, and the description.
func (l *live) paidBytes() int64 {
	n := overhead(l.size)
	for b := range l.blocks {
		if l.paid.has(b) {
			n += int64(l.blockLen(b))
		}
	}
	return n
}

// eachSlot is readMap of l's map, which gives way if it cannot be opened.
func (l *live) eachSlot(m meta, present func(block int, crc uint32)) error {
	f, err := l.c.disk.Open(l.e.name+mapSuffix, 0)
	if err != nil {
		return errors.Join(err, l.c.disk.Remove(l.e.name+mapSuffix))
	}
	defer f.Close()
	return readMap(f, &m, present)
}

// learn reads the map of an object that was complete when it was loaded. What
// it has no checksum of is forgotten, and fetched again.
func (l *live) learn() {
	if !l.unread.Load() {
		return
	}
	l.learning.Lock()
	defer l.learning.Unlock()
	if !l.unread.Load() {
		return
	}
	l.c.mu.Lock()
	m := l.e.m
	l.c.mu.Unlock()
	slots := newBitmap(l.blocks)
	crcs := make([]uint32, l.blocks)
	err := l.eachSlot(m, func(b int, crc uint32) {
		crcs[b] = crc
		slots.set(b)
	})
	if err != nil {
		l.c.log.Warn("the map of a cached object is unreadable, and what it lacks will be fetched again", "key", l.key, "error", err)
	}
	lost := false
	l.mu.Lock()
	if l.unread.Load() { // else it was dropped meanwhile
		for b := range l.blocks {
			if slots.has(b) {
				l.crc[b].Store(crcs[b])
			} else {
				l.forgetBlock(b)
				lost = true
			}
		}
		l.unread.Store(false)
	}
	l.mu.Unlock()
	if lost {
		l.c.markDirty(l)
	}
}

// untouched reports whether l's data file is the one that was completed.
func (c *Cache) untouched(l *live) bool {
	var id identity
	err := l.withData(func(f file) (err error) {
		id, err = identityOf(f)
		return err
	})
	return err == nil && id == l.e.m.File
}

// handle makes a handle of l. The caller holds c.mu.
func (c *Cache) handle(l *live, spec Spec) *Object {
	o := &Object{l: l}
	l.refs++
	l.doomed.Store(false)
	l.e.wake()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx == nil || l.ctx.Err() != nil {
		l.ctx, l.cancel = context.WithCancelCause(c.ctx)
	}
	if spec.Fetcher != nil {
		l.fetcher, l.exact, l.extent = spec.Fetcher, spec.Exact, spec.Extent
		l.pump.err = nil
	}
	if spec.Sum.New != nil && spec.Sum.Hex != "" {
		l.sum = spec.Sum
	}
	l.handles[o] = struct{}{}
	l.hashOn()
	return o
}

// release ends a handle.
func (c *Cache) release(o *Object) {
	l := o.l
	c.mu.Lock()
	defer c.mu.Unlock()
	l.refs--
	l.mu.Lock()
	delete(l.handles, o)
	if l.refs == 0 {
		l.cancel(ErrClosed)
		l.pump.reset()
	}
	l.mu.Unlock()
	if l.refs == 0 {
		l.e.used = time.Now()
		c.sched.cancel(l)
		l.abandon()
		if l.owing() {
			c.soil(l) // the disk has refused it; it may not any more
		}
	}
	c.unload(l)
}

// owing reports whether l has something to save.
func (l *live) owing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.unsaved) > 0 || l.unsealed
}

// abandon fails whoever still waits, which is only a reader whose handle or
// cache was closed under it, and forgets the transfers that never started.
func (l *live) abandon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := range l.waiters {
		w.fail(ErrClosed)
		delete(l.waiters, w)
	}
	keep := l.transfers[:0]
	for _, t := range l.transfers {
		if t.started {
			keep = append(keep, t)
		}
	}
	l.transfers = keep
}

// hold keeps l loaded while work on it goes on without a handle. It fails when
// l was unloaded already.
func (c *Cache) hold(l *live) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.e.live != l {
		return false
	}
	l.busy++
	return true
}

func (c *Cache) letGo(l *live) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l.busy--
	c.unload(l)
}

// becomesIdle returns what is closed when nobody uses e any more, or somebody
// has opened it again. The caller holds c.mu.
func (e *entry) becomesIdle() <-chan struct{} {
	if e.idle == nil {
		e.idle = make(chan struct{})
	}
	return e.idle
}

// wake ends the wait for e to become idle. The caller holds c.mu.
func (e *entry) wake() {
	if e.idle != nil {
		close(e.idle)
		e.idle = nil
	}
}

// unload makes l idle when nobody uses it. The caller holds c.mu.
func (c *Cache) unload(l *live) {
	e := l.e
	if l.refs > 0 || l.busy > 0 || e.live != l {
		return
	}
	e.cached = l.cachedBytes()
	l.closeFile()
	c.spill.forget(l)
	c.stats.hits.Add(l.hits.Load())
	e.live = nil
	e.wake()
	if c.closed {
		return // the disk is closed; the next Open sweeps
	}
	if !e.saved {
		// Nothing of it ever reached the disk, or nothing that counts.
		delete(c.entries, e.name)
		c.room.give(e.charged, false)
		if err := removeObject(c.disk, e.name); err != nil {
			c.log.Warn("an empty object could not be removed", "key", l.key, "error", err)
		}
		return
	}
	c.noteUse(e)
	c.list(e)
}

// noteUse makes e.used durable, or tries to.
func (c *Cache) noteUse(e *entry) {
	if err := c.disk.Touch(e.name+mapSuffix, e.used); err != nil && !errors.Is(err, os.ErrNotExist) {
		c.log.Debug("the time of use could not be noted", "key", e.m.Key, "error", err)
	}
}

// Stat says how much of an object is here: how many bytes are on disk, its
// size, and whether it is complete and checked. For an unknown key it is zero,
// -1, false. It waits for nothing but local disk, and that only right after
// Open.
func (c *Cache) Stat(key string) (cached, size int64, complete bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.find(objectName(key))
	if e == nil {
		return 0, -1, false
	}
	if l := e.live; l != nil {
		return l.cachedBytes(), l.size, l.complete.Load()
	}
	return e.cached, e.m.Size, e.m.Complete
}

// Completed returns what is known of a complete object; ok is false for one
// that is not complete, whose checksums are still being computed, or that Build
// made.
func (c *Cache) Completed(key string) (done Completed, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.find(objectName(key))
	if e == nil || !e.m.Complete || e.m.SHA256 == "" {
		return Completed{}, false
	}
	return Completed{Key: key, Size: e.m.Size, MD5: e.m.MD5, SHA256: e.m.SHA256}, true
}

// Remove deletes an object, its pin included, and forgets that its content was
// found corrupt. It fails with ErrInUse while the object is open or when it is
// opened meanwhile, and does nothing when the key is unknown.
func (c *Cache) Remove(key string) error {
	name := objectName(key)
	for {
		c.mu.Lock()
		e := c.find(name)
		if e != nil && e.live != nil {
			l := e.live
			if l.refs > 0 {
				c.mu.Unlock()
				return fmt.Errorf("remove the cached object %s: %w", key, ErrInUse)
			}
			// Closed a moment ago: its last blocks are being saved, or it is
			// being hashed.
			idle := e.becomesIdle()
			l.doomed.Store(true) // under c.mu: whoever opens it undoes it
			c.mu.Unlock()
			c.settle(l)
			<-idle
			continue
		}
		delete(c.corrupt, name)
		if e != nil {
			c.startRemoval(e)
		}
		c.mu.Unlock()
		if e != nil {
			if err := c.removeFiles(e); err != nil {
				return fmt.Errorf("remove the cached object %s: %w", key, err)
			}
		}
		return c.Pin(key, false)
	}
}

// Pin keeps an object, present or not yet, from being evicted, or no longer.
// It is durable when Pin returns.
func (c *Cache) Pin(key string, on bool) error {
	name := objectName(key)
	c.mu.Lock()
	defer c.mu.Unlock() // held over I/O: pins are rare, and their order counts
	e := c.find(name)
	if c.pins[name] == on {
		return nil
	}
	var err error
	if on {
		err = replaceFile(c.disk, name+pinSuffix, []byte(key+"\n"))
	} else if err = c.disk.Remove(name + pinSuffix); err == nil || errors.Is(err, os.ErrNotExist) {
		err = c.disk.Sync()
	}
	if err != nil {
		return fmt.Errorf("pin the cached object %s: %w", key, err)
	}
	if on {
		c.pins[name] = true
		if e != nil {
			c.unlist(e)
		}
	} else {
		delete(c.pins, name)
		if e != nil {
			c.list(e)
		}
	}
	return nil
}

// Pinned reports whether key is pinned.
func (c *Cache) Pinned(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pins[objectName(key)]
}
