// Package lru keeps the few values that were used last. It is meant for tens
// of entries, which it searches one by one.
package lru

import "sync"

// Cache maps keys to values and forgets the least recently used ones. It is
// safe for concurrent use.
type Cache[K comparable, V any] struct {
	mu      sync.Mutex
	entries []entry[K, V] // most recently used last
	max     int
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

// New makes a cache of at most max entries; max is at least 1.
func New[K comparable, V any](max int) *Cache[K, V] {
	return &Cache[K, V]{max: max}
}

// Get returns the value of key, which is then the most recently used one.
func (c *Cache[K, V]) Get(key K) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.touch(key) {
		var zero V
		return zero, false
	}
	return c.entries[len(c.entries)-1].value, true
}

// Add sets the value of key, and forgets the least recently used entry if the
// cache is full.
func (c *Cache[K, V]) Add(key K, value V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.touch(key) {
		c.entries[len(c.entries)-1].value = value
		return
	}
	if len(c.entries) == c.max {
		copy(c.entries, c.entries[1:])
		c.entries[len(c.entries)-1] = entry[K, V]{key, value}
		return
	}
	c.entries = append(c.entries, entry[K, V]{key, value})
}

// touch moves key's entry to the end; false when there is none.
func (c *Cache[K, V]) touch(key K) bool {
	for i := len(c.entries) - 1; i >= 0; i-- {
		if c.entries[i].key == key {
			e := c.entries[i]
			copy(c.entries[i:], c.entries[i+1:])
			c.entries[len(c.entries)-1] = e
			return true
		}
	}
	return false
}
