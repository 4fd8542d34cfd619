package cache

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Options say how a cache behaves. The zero value is usable.
type Options struct {
	// Limit is how many bytes the cache may take on disk, data, maps and
	// reservations together; 0 for no limit.
	Limit int64
	// Parallel is how many transfers run at once, over all objects. One of
	// them is kept free for demand reads when there are two or more. Default 9.
	Parallel int
	// ReadAhead is the most that is fetched ahead of a sequential reader, in
	// bytes. Default 32 MiB; negative for none.
	ReadAhead int64
	// FetchTimeout is how long a transfer may give nothing before it is cut
	// and tried again. Default one minute.
	FetchTimeout time.Duration
	// Log takes what no caller gets as an error. Default slog.Default().
	Log *slog.Logger
	// OnComplete is called once for each object that became complete, after
	// it was checked and is durable, from a goroutine that holds no locks; not
	// for those that Build made. Close waits for it.
	OnComplete func(Completed)
	// OnDiskTrouble is called, once a minute at most and maybe with locks held,
	// when the disk does not do what the cache needs: reads go on without it.
	// Nil for nobody.
	OnDiskTrouble func(err error)
}

// Completed is what is known of an object when all of it is here.
type Completed struct {
	Key  string
	Size int64
	// MD5 and SHA256 are in hexadecimal.
	MD5, SHA256 string
}

// Fetcher is where the bytes of one version of one object come from.
type Fetcher interface {
	// Fetch returns a reader of the n bytes from off, all within the object,
	// of exactly the version that the object's key names. It may be called
	// concurrently. ctx holds until the reader is closed. A body that breaks
	// off is asked for again from where it stopped, a few times; an error of
	// Fetch itself is handed to the readers as it is.
	Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// Spec says what an object is and where it comes from.
type Spec struct {
	// Key names the content: two specs of one key are the same bytes.
	Key string
	// Size in bytes, at most 1 TiB. It may be negative when the key is known to
	// the cache.
	Size int64
	// Sum is what the whole must hash to. Without one, a complete object is
	// trusted as far as its transfers are.
	Sum Sum
	// Fetcher may be nil: then only what is here can be read.
	Fetcher Fetcher
	// Exact: the Fetcher has no round trip that neighbours of a demanded block
	// would save, and they may be long in coming, so that none is asked for with
	// it. The object is hashed when all of it is here, not as it comes. A body may
	// be silent for longer than Options.FetchTimeout while there is progress
	// behind it: the Fetcher itself ends what stands still.
	Exact bool
	// Extent returns where the file within the object ends that off lies in, so
	// that whoever reads that file is not read ahead beyond it. Nil where that
	// is not known. It is called with locks held and must not wait.
	Extent func(off int64) (end int64)
}

// Sum is an expected checksum: Hex in lower-case hexadecimal, by the hash that
// New makes. The zero Sum expects nothing.
type Sum struct {
	Hex string
	New func() hash.Hash
}

// Cache is a directory of objects. Its methods are safe for concurrent use.
type Cache struct {
	opts  Options
	log   *slog.Logger
	disk  disk
	lock  *os.File
	room  room
	sched *scheduler
	fds   fdTable
	spill overflow
	stats counters
	// troubleTold is when a failing disk was last logged, in Unix nanoseconds.
	troubleTold atomic.Int64

	// ctx ends when the cache closes; wg counts every goroutine.
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	// flushNow wakes the flusher.
	flushNow chan struct{}
	// scanned is closed when every entry has been read, or when the cache is
	// being closed.
	scanned chan struct{}
	// evicting is held, over I/O, by the one who makes room.
	evicting sync.Mutex

	mu        sync.Mutex
	closed    bool
	entries   map[string]*entry // by objectName
	pins      map[string]bool   // by objectName
	lru       list.List         // idle, unpinned entries, most recent first
	evictable int64             // their charge
	strikes   map[string]int    // by objectName: failed so often
	corrupt   map[string]error  // by objectName: failed twice in this run
	dirty     map[*live]bool    // have blocks that the map does not show
	builds    map[string]*building
}

// entry is an object that is on disk, open or not. Its fields are guarded by
// Cache.mu.
type entry struct {
	name string
	m    meta
	// cached is how many bytes are present; for an open object see live.
	cached int64
	// charged is what it holds of the room.
	charged int64
	// live is the open object's state; nil when it is idle.
	live *live
	// elem is its place in Cache.lru, when it may be evicted.
	elem *list.Element
	// gate is closed when the loading or removal under way has ended; nil
	// without one.
	gate chan struct{}
	// idle is closed when live is unloaded or opened again; nil when nobody
	// waits for that.
	idle chan struct{}
	// unread: that it exists is all that is known yet.
	unread bool
	// saved: the description is on disk.
	saved bool
	// used is when it was last closed.
	used time.Time
}

// Open opens the cache in dir, making it when it is missing (mode 0700, its
// parents too). Only one process may have it open: others get ErrLocked. A
// cache of a newer format is refused with ErrVersion. What an interrupted run
// left half-made is removed. Symbolic links inside dir are never followed.
func Open(dir string, o Options) (*Cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the cache directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the cache directory private: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	if err := checkVersion(dir); err != nil {
		lock.Close()
		return nil, err
	}
	d, err := openDisk(filepath.Join(dir, "objects"))
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("open the cache: %w", err)
	}
	c, err := open(d, o)
	if err != nil {
		d.Close()
		lock.Close()
		return nil, fmt.Errorf("open the cache %s: %w", dir, err)
	}
	c.lock = lock
	return c, nil
}

// open is Open on a disk, without lock and version.
func open(d disk, o Options) (*Cache, error) {
	if o.Parallel <= 0 {
		o.Parallel = 9
	}
	if o.ReadAhead == 0 {
		o.ReadAhead = 32 << 20
	}
	o.ReadAhead = max(o.ReadAhead, 0)
	if o.FetchTimeout <= 0 {
		o.FetchTimeout = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	c := &Cache{
		opts: o, log: o.Log, disk: d,
		room:     room{limit: max(o.Limit, 0)},
		fds:      fdTable{max: maxOpenFiles()},
		flushNow: make(chan struct{}, 1),
		scanned:  make(chan struct{}),
		entries:  map[string]*entry{},
		pins:     map[string]bool{},
		strikes:  map[string]int{},
		corrupt:  map[string]error{},
		dirty:    map[*live]bool{},
		builds:   map[string]*building{},
	}
	c.sched = newScheduler(o.Parallel, c.wg.Go)
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	if err := c.scan(); err != nil {
		c.cancel(err)
		return nil, err
	}
	c.wg.Go(c.flusher)
	c.wg.Go(func() {
		// A limit that was lowered holds from the start.
		if err := c.charge(0, false); err != nil && c.ctx.Err() == nil {
			c.log.Warn("the cache is over its limit and nothing in it can be evicted", "error", err)
		}
	})
	return c, nil
}

// lockDir takes the lock that keeps a second process out. The kernel drops it
// when this process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	_, err = retryEINTR(func() (int, error) { return 0, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err == unix.EWOULDBLOCK {
		holder := make([]byte, 32)
		n, _ := f.ReadAt(holder, 0)
		f.Close()
		who := ""
		if pid, err := strconv.Atoi(strings.TrimSpace(string(holder[:n]))); err == nil {
			who = fmt.Sprintf(" (process %d)", pid)
		}
		return nil, fmt.Errorf("open the cache %s: %w%s; stop it, or choose another cache directory", dir, ErrLocked, who)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	// The number only serves the sentence above.
	f.Truncate(0)
	f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return f, nil
}

// checkVersion reads the file "version" of dir, or writes it into a new cache.
func checkVersion(dir string) error {
	root, err := openDisk(dir)
	if err != nil {
		return fmt.Errorf("open the cache: %w", err)
	}
	defer root.Close()
	b, err := readAll(root, "version", 4096)
	if errors.Is(err, os.ErrNotExist) {
		err = replaceFile(root, "version", fmt.Appendf(nil, "%s %d\n", formatName, formatVersion))
		if err != nil {
			return fmt.Errorf("make the cache: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the cache: %w", err)
	}
	v, ok := strings.CutPrefix(strings.TrimSpace(string(b)), formatName+" ")
	n, err := strconv.Atoi(v)
	switch {
	case !ok || err != nil:
		return fmt.Errorf("open the cache %s: its file \"version\" is not a cache's; choose another directory", dir)
	case n > formatVersion:
		return fmt.Errorf("open the cache %s: %w (%d, this one knows %d); use the newer program or another cache directory", dir, ErrVersion, n, formatVersion)
	}
	return nil
}

// maxOpenFiles leaves most of the process's descriptors to others.
func maxOpenFiles() int {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 128
	}
	return int(min(max(r.Cur/4, 16), 1024))
}

// scan looks which objects there are and removes what belongs to none.
func (c *Cache) scan() error {
	files, err := c.disk.Names()
	if err != nil {
		return err
	}
	objects := map[string]bool{}
	for _, file := range files {
		if name, suffix, ok := splitName(file); ok {
			switch suffix {
			case metaSuffix:
				objects[name] = true
			case pinSuffix:
				c.pins[name] = true
			}
		}
	}
	for _, file := range files {
		name, suffix, ok := splitName(file)
		orphan := ok && !objects[name] && suffix != pinSuffix
		if orphan || strings.HasPrefix(file, tmpPrefix) {
			if err := c.disk.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	for name := range objects {
		c.entries[name] = &entry{name: name, unread: true}
	}
	c.wg.Go(func() { c.readEntries(slices.Collect(maps.Keys(objects))) })
	return nil
}

// readEntries reads what is known of all these objects, and when that is done
// lets charge know how full the cache is. Until then an object is read when it
// is asked for.
func (c *Cache) readEntries(names []string) {
	defer close(c.scanned)
	for _, name := range names {
		if c.ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		c.find(name)
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var idle []*entry
	for el := c.lru.Front(); el != nil; el = el.Next() {
		idle = append(idle, el.Value.(*entry))
	}
	slices.SortFunc(idle, func(a, b *entry) int {
		return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.name, b.name))
	})
	for _, e := range idle {
		c.lru.MoveToFront(e.elem)
	}
}

// find returns the entry of that name, read and with nothing under way on it,
// or nil. The caller holds c.mu, which find may give up for a while: for local
// work of a moment, a map being read or files removed.
func (c *Cache) find(name string) *entry {
	for {
		e := c.entries[name]
		switch {
		case e == nil:
			return nil
		case e.gate != nil:
			gate := e.gate
			c.mu.Unlock()
			<-gate
			c.mu.Lock()
		case e.unread:
			e.gate = make(chan struct{})
			c.mu.Unlock()
			known, err := loadEntry(c.disk, name)
			if err != nil {
				c.log.Warn("a cached object is unreadable and was removed", "error", err)
				if err := removeObject(c.disk, name); err != nil {
					c.log.Warn("what is left of it could not be removed", "error", err)
				}
			}
			c.mu.Lock()
			close(e.gate)
			e.gate, e.unread = nil, false
			if err != nil {
				delete(c.entries, name)
				return nil
			}
			e.m, e.cached, e.charged, e.used, e.saved = known.m, known.cached, known.charged, known.used, true
			c.room.add(e.charged)
			c.list(e)
		default:
			return e
		}
	}
}

// loadEntry reads an idle object's description.
func loadEntry(d disk, name string) (*entry, error) {
	m, err := readMeta(d, name)
	if err != nil {
		return nil, err
	}
	e := &entry{name: name, m: m, saved: true}
	mf, err := d.Open(name+mapSuffix, os.O_CREATE)
	if err != nil {
		return nil, err
	}
	defer mf.Close()
	fi, err := mf.Stat()
	if err != nil {
		return nil, err
	}
	e.used = fi.ModTime()
	e.charged = overhead(m.Size)
	if m.Complete {
		e.cached = m.Size
		e.charged += m.Size
		return e, nil
	}
	err = readMap(mf, &m, func(b int, _ uint32) { e.cached += min(blockSize, m.Size-int64(b)*blockSize) })
	if err != nil {
		return nil, err
	}
	e.charged += max(e.cached, allocated(d, name))
	return e, nil
}

// allocated is what an object's data take on disk: more than what is recorded
// when a crash came between the two. It is at most the object's size.
func allocated(d disk, name string) int64 {
	f, err := d.Open(name+dataSuffix, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	return allocatedBytes(f)
}

// removeObject deletes an object's files, if they exist.
func removeObject(d disk, name string) error {
	for _, suffix := range []string{metaSuffix, mapSuffix, dataSuffix} {
		if err := d.Remove(name + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Close stops all transfers, writes down what arrived, and waits for
// everything that the cache started. Open handles fail with ErrClosed from
// then on; files that Object.File gave are closed.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	c.cancel(ErrClosed)
	c.sched.close()
	c.mu.Lock()
	for _, e := range c.entries {
		if e.live != nil {
			e.live.abandon()
		}
	}
	c.mu.Unlock()
	c.wg.Wait()
	c.flushAll()
	c.mu.Lock()
	for _, e := range c.entries {
		if e.live != nil {
			e.live.closeFile()
			e.used = time.Now()
			c.noteUse(e)
		}
	}
	c.mu.Unlock()
	err := c.disk.Close()
	if c.lock != nil {
		if cerr := c.lock.Close(); err == nil {
			err = cerr
		}
	}
	return err
}
