package catalog

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache/staging"
)

// prefixSums hashes a file while it is written from start to end, so that a
// commit need not read it again. Any other order of writing breaks it, and the
// commit hashes the file.
type prefixSums struct {
	md5, sha256 hash.Hash
	n           int64
	broken      bool
}

func newPrefixSums() *prefixSums { return &prefixSums{md5: md5.New(), sha256: sha256.New()} }

func (s *prefixSums) wrote(p []byte, off int64) {
	switch {
	case s.broken:
	case off == s.n:
		s.md5.Write(p)
		s.sha256.Write(p)
		s.n += int64(len(p))
	default:
		s.broken = true
	}
}

func (s *prefixSums) truncated(size int64) {
	switch {
	case size == 0:
		*s = *newPrefixSums()
	case size < s.n:
		s.broken = true
	}
}

// whole returns both sums if they cover exactly size bytes.
func (s *prefixSums) whole(size int64) (md5sum, sha256sum string, ok bool) {
	if s.broken || s.n != size {
		return "", "", false
	}
	return hex.EncodeToString(s.md5.Sum(nil)), hex.EncodeToString(s.sha256.Sum(nil)), true
}

// aheadMin is how much must have been written before sending ahead begins:
// below it one request at the end is cheaper.
const aheadMin = 8 << 20

// aheadUpload sends the parts of a file that is still being written, so that
// the copy and the upload take their time together. It begins once aheadMin
// bytes have been written in order; what is written again after it was sent
// ends it, and the commit then sends everything anew.
type aheadUpload struct {
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // something was written, or it is time to finish
	done   chan struct{} // closed when nothing of it runs any more
	// stopLooking ends the look whether the store has such an image already.
	stopLooking context.CancelFunc

	// Guarded by Staged.mu.
	next   int64 // parts below it are sent or on their way
	finish bool  // no more will be written
	// sent is how many bytes the store has acknowledged, moved is closed and
	// replaced when they become more, and lead is how far a writer may be
	// ahead of them, 0 while that is not known.
	sent, lead int64
	moved      chan struct{}

	// journaled: the journal names this upload. over, guarded by journaling: it may
	// not name it any more.
	journaled  atomic.Bool
	journaling sync.Mutex
	over       bool

	// Owned by run until done is closed.
	up  backends.Upload
	err error
}

// wroteAhead takes notice of a write of n bytes at off. It is called with s.mu
// held, after s.sums was told.
func (s *Staged) wroteAhead(off int64) {
	switch a := s.ahead; {
	case a == nil:
		if !s.aheadTried && !s.sums.broken && s.sums.n >= aheadMin && !s.to.IsZero() && !s.cl.Local() {
			s.aheadTried = true
			s.startAhead()
		}
	case off < a.next || s.sums.broken:
		s.stopAhead()
	default:
		a.poke()
	}
}

func (a *aheadUpload) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (s *Staged) startAhead() {
	pusher, ok := backends.As[backends.Pusher](s.cl.Store)
	if !ok {
		return
	}
	a := &aheadUpload{wake: make(chan struct{}, 1), moved: make(chan struct{}), done: make(chan struct{})}
	a.ctx, a.cancel = context.WithCancel(s.cl.cat.ctx)
	looking, stopLooking := context.WithCancel(a.ctx)
	a.stopLooking = stopLooking
	s.ahead = a
	to := s.to
	s.cl.cat.work.Go(func() {
		defer close(a.done)
		defer stopLooking()
		like := s.cl.hasLike(looking, to, s.file)
		s.mu.Lock()
		late := a.finish // its digest is known sooner than whether there is one
		s.mu.Unlock()
		if like || late {
			a.err = errNotAhead
			return
		}
		if a.up, a.err = pusher.Begin(a.ctx, to, ""); a.err == nil {
			a.err = a.run(s)
		}
	})
}

// errNotAhead: what is written may be an image that the store has, and so need not
// be sent, which its digest tells when all of it is known.
var errNotAhead = errors.New("the store may have the image")

// run sends parts as they become whole, until finish or the end of a.ctx.
func (a *aheadUpload) run(s *Staged) error {
	size := a.up.PartSize()
	if size == 0 {
		return nil
	}
	if err := a.journal(s); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(a.ctx)
	g.SetLimit(max(1, a.up.Parallel()))
	s.mu.Lock()
	a.lead = max(aheadMin, size*int64(max(1, a.up.Parallel())+1))
	s.mu.Unlock()
	for ctx.Err() == nil {
		s.mu.Lock()
		part, whole, finish := a.next, a.next+size <= s.sums.n, a.finish
		if whole {
			a.next += size
		}
		s.mu.Unlock()
		switch {
		case whole:
			g.Go(func() error {
				if err := a.up.Part(ctx, part, s.file); err != nil {
					return err
				}
				s.mu.Lock()
				a.sent += size
				close(a.moved)
				a.moved = make(chan struct{})
				s.mu.Unlock()
				return a.journal(s)
			})
		case finish:
			return g.Wait()
		default:
			select {
			case <-a.wake:
			case <-ctx.Done():
			}
		}
	}
	return g.Wait()
}

// journal writes down how far the upload has got, for the next run: stores like
// registries take it up only exactly where it stands.
func (a *aheadUpload) journal(s *Staged) error {
	a.journaling.Lock()
	defer a.journaling.Unlock()
	if a.over {
		return context.Canceled
	}
	err := s.file.Update(func(m *staging.Meta) { m.UploadState = a.up.State() })
	if err == nil {
		a.journaled.Store(true)
	}
	return err
}

// pace lets a writer wait while it is further ahead of the store than what
// keeps the store busy: so programs that show how far a copy has got show how far
// the upload has, and an interrupted copy ends when it is interrupted. The wait
// ends with ctx, and with the upload, whatever becomes of it.
func (s *Staged) pace(ctx context.Context) {
	for {
		s.mu.Lock()
		a := s.ahead
		if a == nil || a.lead == 0 || s.sums.n-a.sent <= a.lead {
			s.mu.Unlock()
			return
		}
		moved := a.moved
		s.mu.Unlock()
		select {
		case <-moved:
		case <-a.done:
			return
		case <-ctx.Done():
			return
		}
	}
}

// stopAhead gives up what was sent ahead. It is called with s.mu held.
func (s *Staged) stopAhead() {
	a := s.ahead
	if a == nil {
		return
	}
	s.ahead, s.resumable = nil, false
	a.journaling.Lock()
	a.over = true
	a.journaling.Unlock()
	a.giveUp(s.cl.cat)
}

func (a *aheadUpload) giveUp(c *Catalog) {
	a.cancel()
	c.work.Go(func() {
		<-a.done
		a.abort()
	})
}

func (a *aheadUpload) abort() {
	if a.up != nil {
		abort(a.ctx, a.up)
	}
}

// current reports whether what the journal names as the upload holds parts of the
// file as it is, and not as it was before a change.
func (s *Staged) current() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resumable || s.ahead != nil && s.ahead.journaled.Load()
}

// takeAhead hands over the upload for the commit once its parts have arrived;
// nil when there is none, when it failed and everything has to be sent, or when
// ctx is done.
func (s *Staged) takeAhead(ctx context.Context) backends.Upload {
	s.mu.Lock()
	a := s.ahead
	s.ahead = nil
	if a != nil {
		a.finish = true
	}
	s.mu.Unlock()
	if a == nil {
		return nil
	}
	a.stopLooking()
	a.poke()
	select {
	case <-a.done:
	case <-ctx.Done():
		if s.cl.cat.ctx.Err() == nil { // else what was sent is for the next run
			a.giveUp(s.cl.cat)
		}
		return nil
	}
	if a.err != nil {
		s.cl.log.Debug("sending ahead failed; sending everything", "error", a.err)
		a.abort()
		return nil
	}
	return a.up
}
