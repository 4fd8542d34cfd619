package cache

import (
	"fmt"
	"sync"
	"time"
)

// room is the account of what the cache may hold. What is charged here is
// charged before it is written, so that the limit is never passed.
type room struct {
	limit int64 // 0 for none

	mu       sync.Mutex
	used     int64 // blocks and descriptions of objects
	reserved int64 // held by Reserve
}

// take charges n bytes if they fit. spare is what could be evicted: when not
// even that would make them fit, hopeless is true.
func (r *room) take(n, spare int64, reserve bool) (ok, hopeless bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if total := r.used + r.reserved + n; r.limit > 0 && total > r.limit {
		return false, total-spare > r.limit
	}
	if reserve {
		r.reserved += n
	} else {
		r.used += n
	}
	return true, false
}

func (r *room) give(n int64, reserve bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if reserve {
		r.reserved -= n
	} else {
		r.used -= n
	}
}

// add charges what is there already.
func (r *room) add(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used += n
}

func (r *room) figures() (used, reserved int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.used, r.reserved
}

// overhead is what an object of that size takes besides its blocks: its
// description and its map, in blocks of the file system.
func overhead(size int64) int64 {
	const page = 4096
	slots := (size + blockSize - 1) / blockSize * slotSize
	return page + (slots+page-1)/page*page
}

// Reserve keeps n bytes of the limit free for files that lie outside of the
// cache, evicting for them as need be. It fails with ErrNoRoom, without
// evicting anything, when they cannot be had. release gives them back and may
// be called more than once.
func (c *Cache) Reserve(n int64) (release func(), err error) {
	if n < 0 {
		return nil, fmt.Errorf("reserve %d bytes: negative", n)
	}
	err = c.charge(n, true)
	if err != nil && c.ended() {
		err = c.charge(n, true)
	}
	if err != nil {
		return nil, err
	}
	var once sync.Once
	return func() { once.Do(func() { c.room.give(n, true) }) }, nil
}

// ended waits for the objects that nobody has open, but whose last transfers
// are still ending, since only then can they be evicted. It reports whether
// there were any. No lock may be held: what ends may want room itself.
func (c *Cache) ended() bool {
	var ending []<-chan struct{}
	c.mu.Lock()
	for _, e := range c.entries {
		if l := e.live; l != nil && l.refs == 0 {
			ending = append(ending, e.becomesIdle())
		}
	}
	c.mu.Unlock()
	enough := time.After(time.Second) // a store or the disk hangs
	for _, idle := range ending {
		select {
		case <-idle:
		case <-enough:
			return true
		}
	}
	return len(ending) > 0
}

// charge makes n bytes of room, evicting the least recently used objects. It
// must be called without locks, since it removes files.
func (c *Cache) charge(n int64, reserve bool) error {
	if c.room.limit > 0 {
		<-c.scanned
	}
	if ok, _ := c.room.take(n, 0, reserve); ok {
		return nil
	}
	// One at a time, so that two do not both evict where once is enough.
	c.evicting.Lock()
	defer c.evicting.Unlock()
	flushed := false
	for {
		c.mu.Lock()
		spare := c.evictable
		c.mu.Unlock()
		ok, hopeless := c.room.take(n, spare, reserve)
		if ok {
			return nil
		}
		if hopeless && !flushed {
			// Objects that were just closed cannot go before their last
			// blocks are on disk; see to that once.
			flushed = true
			c.flushAll()
			continue
		}
		if hopeless || !c.evictOldest() {
			return fmt.Errorf("make room for %d bytes: %w", n, ErrNoRoom)
		}
	}
}

// chargeInstead is charge of n bytes that are on disk already, in the place of
// the reservation that release gives back.
func (c *Cache) chargeInstead(n int64, release func()) error {
	if release == nil {
		return c.charge(n, false)
	}
	// In this order, so that nobody takes the room in between.
	c.room.add(n)
	release()
	err := c.charge(0, false)
	if err != nil {
		c.room.give(n, false)
	}
	return err
}

// evictOldest removes the least recently used object that may go. It reports
// whether trying again makes sense.
func (c *Cache) evictOldest() bool {
	c.mu.Lock()
	el := c.lru.Back()
	if el == nil {
		c.mu.Unlock()
		return false
	}
	e := el.Value.(*entry)
	c.startRemoval(e)
	c.mu.Unlock()
	if err := c.removeFiles(e); err != nil {
		c.log.Warn("an object could not be evicted", "key", e.m.Key, "error", err)
		return false
	}
	c.stats.evictions.Add(1)
	return true
}

// evictOne is evictOldest for those who do not make room.
func (c *Cache) evictOne() bool {
	c.evicting.Lock()
	defer c.evicting.Unlock()
	return c.evictOldest()
}

// startRemoval takes e, which is idle, out of the list of those that may be
// evicted, so that this caller alone removes it. The caller holds c.mu.
func (c *Cache) startRemoval(e *entry) {
	c.unlist(e)
	e.gate = make(chan struct{})
}

// removeFiles deletes e, the description first: without it, a crash leaves
// files that belong to nothing and are swept. A failure leaves e as it was, as
// if it had just been used: the others are tried first, and it when its turn comes.
func (c *Cache) removeFiles(e *entry) error {
	err := removeObject(c.disk, e.name)
	c.mu.Lock()
	if err == nil {
		delete(c.entries, e.name)
		c.room.give(e.charged, false)
	}
	close(e.gate)
	e.gate = nil
	if err != nil {
		c.list(e)
	}
	c.mu.Unlock()
	return err
}

// chargeObject makes room for n bytes of l, and for its description with the
// first of them.
func (c *Cache) chargeObject(l *live, n int64) error {
	c.mu.Lock()
	first := l.e.charged == 0
	if first {
		l.e.charged = overhead(l.size)
	}
	c.mu.Unlock()
	extra := int64(0)
	if first {
		extra = overhead(l.size)
	}
	err := c.charge(n+extra, false)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		l.e.charged += n
	case first:
		l.e.charged -= extra
	}
	return err
}

func (c *Cache) uncharge(l *live, n int64) {
	c.room.give(n, false)
	c.mu.Lock()
	defer c.mu.Unlock()
	l.e.charged -= n
}

// list makes e the most recently used of those that may be evicted, if it may
// be. The caller holds c.mu.
func (c *Cache) list(e *entry) {
	if e.elem != nil || e.live != nil || e.gate != nil || c.pins[e.name] {
		return
	}
	e.elem = c.lru.PushFront(e)
	c.evictable += e.charged
}

func (c *Cache) unlist(e *entry) {
	if e.elem == nil {
		return
	}
	c.lru.Remove(e.elem)
	e.elem = nil
	c.evictable -= e.charged
}
