package cache

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// flushEvery is how long a block that arrived may wait for its place in the
// map: what a kill at any moment can cost.
const flushEvery = time.Second

// markDirty says that l has something to save. It must be called without
// locks.
func (c *Cache) markDirty(l *live) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.soil(l)
}

// soil is markDirty for who holds c.mu.
func (c *Cache) soil(l *live) {
	if !c.dirty[l] && l.e.live == l {
		c.dirty[l] = true
		l.busy++
		select {
		case c.flushNow <- struct{}{}:
		default:
		}
	}
}

// flusher saves what arrived, a while after it did.
func (c *Cache) flusher() {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.flushNow:
		}
		if sleep(c.ctx, flushEvery) != nil {
			return
		}
		c.flushAll()
	}
}

// flushAll saves everything that is unsaved now.
func (c *Cache) flushAll() {
	c.mu.Lock()
	var ls []*live
	for l := range c.dirty {
		ls = append(ls, l)
	}
	c.mu.Unlock()
	for _, l := range ls {
		c.settle(l)
	}
}

// settle saves l if it is dirty, and lets go of it.
func (c *Cache) settle(l *live) {
	c.mu.Lock()
	was := c.dirty[l]
	delete(c.dirty, l)
	c.mu.Unlock()
	if err := l.flush(); err != nil {
		c.diskTrouble(l.key, err)
	}
	if was {
		c.letGo(l)
	}
}

// flush makes the blocks that arrived durable, and only then says in the map
// that they are there.
func (l *live) flush() error {
	l.flushing.Lock()
	defer l.flushing.Unlock()
	if err := l.unseal(); err != nil {
		return err
	}
	l.mu.Lock()
	blocks := l.unsaved
	l.unsaved = nil
	l.mu.Unlock()
	if len(blocks) == 0 {
		return nil
	}
	if err := l.withData(func(f file) error { return f.Sync() }); err != nil {
		return fmt.Errorf("save what was fetched: %w", errors.Join(err, l.unkept(blocks, err)))
	}
	err := l.describe(nil)
	if err == nil {
		err = l.saveMap(blocks)
	}
	if err != nil {
		l.mu.Lock()
		l.unsaved = append(l.unsaved, blocks...)
		l.mu.Unlock()
	}
	return err
}

// unkept forgets blocks that could not be made durable: what the kernel could not
// write it may have lost, and it says so only once. The caller holds l.flushing.
func (l *live) unkept(blocks []int, err error) error {
	l.mu.Lock()
	l.pump.full = err
	for _, b := range blocks {
		if l.recorded.has(b) {
			l.forgetBlock(b)
		}
	}
	l.mu.Unlock()
	return l.unseal()
}

// unseal takes back in the description that the object is complete, if it says
// so and it is not. What fails is tried again with the next flush. The caller
// holds l.flushing.
func (l *live) unseal() error {
	l.mu.Lock()
	unsealed := l.unsealed
	l.unsealed = false
	l.mu.Unlock()
	if !unsealed {
		return nil
	}
	err := l.describe(func(m *meta) { m.Complete, m.File = false, identity{} })
	if err != nil {
		l.mu.Lock()
		l.unsealed = true
		l.mu.Unlock()
	}
	return err
}

// describe writes the description after change has been made to it, or, with
// a nil change, when it is not on disk yet. The caller holds l.flushing.
func (l *live) describe(change func(*meta)) error {
	c := l.c
	c.mu.Lock()
	m, saved := l.e.m, l.e.saved
	c.mu.Unlock()
	if change == nil && saved {
		return nil
	}
	if !saved {
		// The map's name becomes durable together with the description's.
		f, err := c.disk.Open(l.e.name+mapSuffix, os.O_CREATE)
		if err != nil {
			return fmt.Errorf("make a map: %w", err)
		}
		f.Close()
	}
	if change != nil {
		change(&m)
	}
	if err := writeMeta(c.disk, l.e.name, &m); err != nil {
		return fmt.Errorf("save an object's description: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l.e.m, l.e.saved = m, true
	return nil
}

// saveMap writes the slots of these blocks, whose bytes are durable.
func (l *live) saveMap(blocks []int) error {
	f, err := l.c.disk.Open(l.e.name+mapSuffix, os.O_CREATE)
	if err != nil {
		return fmt.Errorf("save the map: %w", err)
	}
	defer f.Close()
	slices.Sort(blocks)
	blocks = slices.Compact(blocks)
	var buf []byte
	for i := 0; i < len(blocks); {
		first := blocks[i]
		buf = buf[:0]
		l.mu.Lock()
		for ; i < len(blocks) && blocks[i] == first+len(buf)/slotSize && len(buf) < 64<<10; i++ {
			// A block that was dropped since has no slot, whatever it had.
			buf = append(buf, make([]byte, slotSize)...)
			if b := blocks[i]; l.recorded.has(b) {
				putSlot(buf[len(buf)-slotSize:], l.nonce, b, l.crc[b].Load())
			}
		}
		l.mu.Unlock()
		if _, err := f.WriteAt(buf, int64(first)*slotSize); err != nil {
			return fmt.Errorf("save the map: %w", err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("save the map: %w", err)
	}
	return nil
}

// diskTrouble notes that the cache's disk failed. Readers are served all the
// same, so this is the only place that tells.
func (c *Cache) diskTrouble(key string, err error) {
	c.stats.diskErrors.Add(1)
	now := time.Now().UnixNano()
	if last := c.troubleTold.Load(); now-last > int64(time.Minute) && c.troubleTold.CompareAndSwap(last, now) {
		c.log.Error("the cache disk failed; reads go on without it", "key", key, "error", err)
		if c.opts.OnDiskTrouble != nil {
			c.opts.OnDiskTrouble(err)
		}
	}
}
