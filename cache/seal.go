package cache

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
)

// hashStep is how many blocks are hashed at a time, and how many have to be
// there for it to be worth starting.
const hashStep = 32

// seal computes an object's checksums while its blocks arrive, and decides in
// the end whether it can be trusted. One goroutine at a time works on it; the
// hashes are its own, the rest is guarded by live.mu.
type seal struct {
	running bool
	// done: the checksums are known and the description says so.
	done bool
	// restart: something below next was dropped and fetched again.
	restart bool
	// inner: the object was built for use within the program (Build), and
	// whoever built it knows what it is. Nobody asks for its checksums; that its
	// blocks match theirs is enough.
	inner bool
	next  int // the first block that is not hashed

	md5, sha256, sum hash.Hash
}

func (s *seal) reset(sum Sum) {
	s.restart, s.next = false, 0
	s.md5, s.sha256, s.sum = nil, nil, nil
	if s.inner {
		return
	}
	s.md5, s.sha256 = md5.New(), sha256.New()
	if sum.New != nil {
		s.sum = sum.New()
	}
}

// hashOn starts hashing when there is enough to hash. The caller holds l.mu.
func (l *live) hashOn() {
	s := &l.seal
	if s.running || s.done || l.err != nil {
		return
	}
	all := l.present == l.blocks
	if !all && l.exact {
		return // it comes faster than it can be hashed: its readers go first
	}
	if !all && l.recorded.next(s.next, min(s.next+hashStep, l.blocks), false) < s.next+hashStep {
		return
	}
	s.running = true
	l.c.wg.Go(l.hashAlong)
}

// hashAlong hashes all that is there from seal.next on, and seals the object
// when that is everything.
func (l *live) hashAlong() {
	if !l.c.hold(l) {
		return // unloaded; the next to open the object starts again
	}
	done := l.hashAll()
	// Those who wait are told last, so that an object which they close then
	// is idle at once.
	l.c.letGo(l)
	if done == nil || !l.trust() {
		return
	}
	if done.fresh && l.c.opts.OnComplete != nil {
		l.c.opts.OnComplete(done.Completed)
	}
}

// sealed is an object that was found right.
type sealed struct {
	Completed
	fresh bool // not known before
}

// trust lets the kernel and the waiting see that the object is complete, unless
// a block was found damaged since it was checked.
func (l *live) trust() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seal.running = false
	if l.present < l.blocks || l.seal.restart {
		l.hashOn()
		return false
	}
	l.seal.done = true
	l.complete.Store(true)
	l.tell()
	return true
}

// hashAll is hashAlong's loop. It returns what is known of the object if it is
// complete now, otherwise nil.
func (l *live) hashAll() *sealed {
	buf := make([]byte, hashStep*blockSize)
	for {
		first, end := l.toHash()
		if first == end {
			return nil
		}
		if first < 0 {
			done, again := l.finishSeal()
			if !again {
				return done
			}
			l.c.markDirty(l)
			continue
		}
		n := 0
		l.learn()
		var sums [hashStep]uint32
		for b := first; b < end; b++ {
			k := l.blockLen(b)
			sums[b-first] = l.crc[b].Load()
			if !l.readBlock(b, buf[n:n+k]) {
				break // forgotten: it will be fetched, and hashing goes on then
			}
			n += k
		}
		for _, h := range []hash.Hash{l.seal.md5, l.seal.sha256, l.seal.sum} {
			if h != nil {
				h.Write(buf[:n])
			}
		}
		l.mu.Lock()
		l.seal.next = first + (n+blockSize-1)/blockSize
		for b := first; b < l.seal.next; b++ {
			// What was dropped while the others were read was hashed in vain.
			if !l.recorded.has(b) || l.crc[b].Load() != sums[b-first] {
				l.seal.restart = true
			}
		}
		l.mu.Unlock()
	}
}

// toHash says which blocks to hash next: none when first == end, in which case
// hashing has stopped; first < 0 when all are hashed.
func (l *live) toHash() (first, end int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.seal
	if s.sha256 == nil || s.restart {
		s.reset(l.sum)
	}
	if s.inner {
		// What was checked in this run, or has just been made, need not be read.
		s.next = l.ready.next(s.next, l.blocks, false)
	}
	if s.next == l.blocks && l.present == l.blocks {
		return -1, 0
	}
	end = l.recorded.next(s.next, min(s.next+hashStep, l.blocks), false)
	if l.c.ctx.Err() != nil || l.doomed.Load() || (l.ctx.Err() != nil && l.present < l.blocks) {
		end = s.next
	}
	if end == s.next {
		s.running = false
	}
	return s.next, end
}

// finishSeal checks the whole. It returns nil when it is not what it should
// be; again when hashing has to go on.
func (l *live) finishSeal() (done *sealed, again bool) {
	c, s := l.c, &l.seal
	done = &sealed{Completed: Completed{Key: l.key, Size: l.size}}
	hashed := s.sha256 != nil // else see seal.inner
	if hashed {
		done.MD5, done.SHA256 = hex.EncodeToString(s.md5.Sum(nil)), hex.EncodeToString(s.sha256.Sum(nil))
	}
	l.mu.Lock()
	want := l.sum.Hex
	if s.sum == nil && l.sum.New != nil && hashed {
		// The checksum became known after hashing began.
		s.restart = true
	}
	if s.restart {
		l.mu.Unlock()
		return nil, true
	}
	l.mu.Unlock()
	c.mu.Lock()
	before := l.e.m.SHA256
	c.mu.Unlock()
	if s.sum != nil {
		if have := hex.EncodeToString(s.sum.Sum(nil)); have != want {
			l.reject(fmt.Errorf("%w: it is %s, not %s", ErrCorrupt, have, want))
			return nil, false
		}
	} else if hashed && before != "" && before != done.SHA256 {
		l.reject(fmt.Errorf("%w: its SHA-256 is %s, not %s", ErrCorrupt, done.SHA256, before))
		return nil, false
	}

	err := l.flush()
	if err == nil {
		err = l.describeComplete(done.Completed)
	}
	if err != nil {
		c.diskTrouble(l.key, err)
	}
	c.mu.Lock()
	delete(c.strikes, l.e.name)
	c.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.present < l.blocks || s.restart {
		l.unsealed = true // the description says too much
		return nil, true
	}
	done.fresh = hashed && before != done.SHA256
	return done, false
}

// describeComplete makes it durable that the object is complete.
func (l *live) describeComplete(done Completed) error {
	l.flushing.Lock()
	defer l.flushing.Unlock()
	all := make([]int, l.blocks)
	for b := range all {
		all[b] = b
	}
	if err := l.saveMap(all); err != nil {
		return err
	}
	var id identity
	err := l.withData(func(f file) (err error) {
		id, err = identityOf(f)
		return err
	})
	if err != nil {
		return err
	}
	return l.describe(func(m *meta) {
		m.Complete, m.MD5, m.SHA256, m.File = true, done.MD5, done.SHA256, id
	})
}

// reject drops an object that does not match its checksum. The first time it
// is fetched again, the second time it is given up.
func (l *live) reject(err error) {
	c := l.c
	c.stats.verifyFailures.Add(1)
	err = fmt.Errorf("%s: %w", l.key, err)
	c.mu.Lock()
	c.strikes[l.e.name]++
	final := c.strikes[l.e.name] > 1
	if final {
		delete(c.strikes, l.e.name)
		c.corrupt[l.e.name] = err
	}
	c.mu.Unlock()
	if final {
		c.log.Error("an object was fetched twice and is corrupt; it will not be served", "key", l.key, "error", err)
		l.mu.Lock()
		l.err = err
		l.mu.Unlock()
	} else {
		c.log.Warn("an object does not match its checksum and is fetched again", "key", l.key, "error", err)
	}
	if err := l.drop(); err != nil {
		c.diskTrouble(l.key, err)
	}
	c.stats.revoked.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seal.reset(l.sum)
	l.seal.running = false
	if final {
		for w := range l.waiters {
			w.fail(err)
			delete(l.waiters, w)
		}
	} else {
		l.pump.bulk = true
		l.pumpOn()
	}
	l.tell()
}

// drop makes everything of l absent: first on disk, where a new nonce voids
// the map, then in memory. Of what is being written meanwhile, into either
// file, nothing is recorded: see arrived.
func (l *live) drop() error {
	l.flushing.Lock()
	defer l.flushing.Unlock()
	nonce := newNonce()
	err := l.describe(func(m *meta) {
		m.Nonce, m.Complete, m.MD5, m.SHA256, m.File = nonce, false, "", "", identity{}
	})
	if rerr := l.c.disk.Remove(l.e.name + dataSuffix); err == nil {
		err = rerr
	}
	l.c.fds.forget(l)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gen.Add(1)
	l.nonce = nonce
	l.complete.Store(false)
	for b := range l.blocks {
		l.ready.clear(b)
		l.recorded.clear(b)
	}
	l.present, l.unsaved, l.unsealed = 0, nil, false
	l.unread.Store(false)
	l.c.spill.forget(l)
	return err
}

// tell wakes those who wait for the whole object. The caller holds l.mu.
func (l *live) tell() {
	close(l.changed)
	l.changed = make(chan struct{})
}
