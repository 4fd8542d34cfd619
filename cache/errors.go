package cache

import "errors"

// What can be wrong, besides errors of the Fetcher, of contexts and of the
// operating system. All are wrapped with what was being done.
var (
	// ErrLocked: another process has this cache open.
	ErrLocked = errors.New("the cache is in use by another process")
	// ErrVersion: the cache was written by a newer version of this program.
	ErrVersion = errors.New("the cache has a format that this version does not know")
	// ErrCorrupt: an object was fetched twice and did not match its checksum.
	ErrCorrupt = errors.New("content does not match its checksum")
	// ErrInUse: the object is open.
	ErrInUse = errors.New("the object is in use")
	// ErrNoRoom: the size limit leaves no room, and nothing can be evicted.
	ErrNoRoom = errors.New("the cache is full and nothing in it can be evicted")
	// ErrNotCached: the bytes are not here and there is no Fetcher for them.
	ErrNotCached = errors.New("not in the cache")
	// ErrLength: a Fetcher gave more or fewer bytes than it was asked for.
	ErrLength = errors.New("wrong number of bytes")
	// ErrStalled: a Fetcher gave nothing for Options.FetchTimeout.
	ErrStalled = errors.New("no data arrived in time")
	// ErrClosed: the handle or the cache has been closed.
	ErrClosed = errors.New("already closed")
)
