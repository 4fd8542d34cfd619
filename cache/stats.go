package cache

import "sync/atomic"

// Stats are figures of a cache since it was opened, and of what is in it now.
type Stats struct {
	// Used is what objects take of the limit, in bytes, Reserved what Reserve
	// holds; Limit is 0 for none.
	Used, Reserved, Limit int64
	// Objects on disk, whole or in part.
	Objects int
	// Hits are reads that needed nothing from outside, Misses the others.
	Hits, Misses int64
	// Requests are calls of Fetch, Fetched the bytes that they brought, and
	// Retries the requests that went on from where a body broke off.
	Requests, Fetched, Retries int64
	Evictions                  int64
	// VerifyFailures are whole objects that did not match their checksum,
	// BadBlocks blocks on disk that did not match theirs.
	VerifyFailures, BadBlocks int64
	// Uncached counts blocks that could not be kept, for want of room or
	// because the disk failed; DiskErrors the failures.
	Uncached, DiskErrors int64
}

type counters struct {
	hits, misses, requests, fetched, retries, evictions atomic.Int64
	verifyFailures, badBlocks, uncached, diskErrors     atomic.Int64
	revoked                                             atomic.Int64 // no part of Stats
}

// Stats returns the figures of now.
func (c *Cache) Stats() Stats {
	s := Stats{
		Limit:          c.room.limit,
		Hits:           c.stats.hits.Load(),
		Misses:         c.stats.misses.Load(),
		Requests:       c.stats.requests.Load(),
		Fetched:        c.stats.fetched.Load(),
		Retries:        c.stats.retries.Load(),
		Evictions:      c.stats.evictions.Load(),
		VerifyFailures: c.stats.verifyFailures.Load(),
		BadBlocks:      c.stats.badBlocks.Load(),
		Uncached:       c.stats.uncached.Load(),
		DiskErrors:     c.stats.diskErrors.Load(),
	}
	s.Used, s.Reserved = c.room.figures()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		if e.live != nil {
			s.Hits += e.live.hits.Load()
		}
	}
	s.Objects = len(c.entries)
	return s
}

// Revoked counts how often bytes that may have been read by then turned out to
// be wrong. It changes once they are gone: a read that begins after it was
// looked at brings none of those that it counts.
func (c *Cache) Revoked() int64 { return c.stats.revoked.Load() }
