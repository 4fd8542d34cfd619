// Package cache keeps objects, which are immutable byte sequences named by a
// key, as sparse files on a local disk, and fetches what is missing of them in
// ranges: each byte once, however many readers wait for it.
//
// It promises that no byte is served that is not the object's: a block counts
// as present only when its bytes are durable, its checksum is recorded and
// looked at before the first use after a restart, and a whole object is
// checked against the hash that its Spec names before it is trusted. The size
// limit is hard: room is reserved before bytes are written. When the disk is
// full or broken, reads go on without it.
//
// The package knows nothing of file systems in user space, of stores or of
// images; it asks a Fetcher for bytes. Start at Cache.Object and
// Object.ReadAt; the path of a read is Object.ReadAt (hit), Object.read (miss),
// live.run (transfer), live.arrived (block on disk, readers woken). What lies
// on disk is described in docs/cache-format.md and written down in layout.go.
//
// Lock order: Cache.evicting, live.flushing, Object.mu, Cache.mu, live.mu, then
// one of the leaves scheduler.mu, room.mu, overflow.mu, link.mu, fdTable.mu. No
// lock is held over I/O except where the comment of the field says so.
package cache
