package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/cache/staging"
	"github.com/sregfs/sregfs/image"
)

// Staged is a file that is being written and will be pushed. Its bytes and its
// journal are on disk from the first write on. It is safe for concurrent use.
type Staged struct {
	cl   *Client
	file *staging.File

	mu    sync.Mutex
	to    backends.Ref // zero while the name is a temporary one
	dirty bool         // holds what no commit has brought to the remote
	mtime time.Time    // set by the user, zero for none
	sums  *prefixSums
	ahead *aheadUpload
	// aheadTried: sending ahead is begun once, after a rewrite not again.
	aheadTried bool
	flight     *flight // the commit under way; meanwhile the bytes stay as they are
	pushed     *backends.Image
	// resumable: the upload that the journal names holds parts of these very
	// bytes.
	resumable bool
	// leftover: an earlier run began the push.
	leftover bool
	// unwritten is why the last write failed that did.
	unwritten error
}

// flight is one commit that several callers may wait for.
type flight struct {
	cancel context.CancelFunc
	done   chan struct{}
	img    backends.Image
	err    error
}

// Stage begins a file that is to become the image to, or, with a zero to, one
// under a temporary name that a rename will decide.
func (cl *Client) Stage(ctx context.Context, to backends.Ref, tempName string) (*Staged, error) {
	if !cl.Writable() {
		return nil, cl.readOnly("push", to)
	}
	f, err := cl.cat.opts.Staging.Create(staging.Meta{
		Client: cl.Name, Collection: to.Collection, Name: to.Name, Tag: to.Tag, TempName: tempName,
	})
	if err != nil {
		return nil, &backends.Error{Op: "stage", Client: cl.Name, Ref: to, Err: err}
	}
	s := &Staged{cl: cl, file: f, to: to, sums: newPrefixSums()}
	return s, nil
}

// Edit begins a changed copy of an image: what is written replaces it.
func (cl *Client) Edit(ctx context.Context, img backends.Image, truncate bool) (*Staged, error) {
	s, err := cl.Stage(ctx, img.Ref.Latest(), "")
	if err != nil || truncate {
		return s, err
	}
	c, err := cl.Open(ctx, img)
	if err != nil {
		s.Discard()
		return nil, err
	}
	defer c.Close()
	s.aheadTried = true // what is only copied here is not sent ahead
	if _, err := io.Copy(io.NewOffsetWriter(s, 0), io.NewSectionReader(readerAt{ctx, c}, 0, c.Size())); err != nil {
		s.Discard()
		return nil, &backends.Error{Op: "copy for editing", Client: cl.Name, Ref: img.Ref, Err: err}
	}
	s.mu.Lock()
	s.dirty, s.aheadTried = false, false
	s.mu.Unlock()
	return s, nil
}

// Ref is the image that the file is to become, zero while it has a temporary
// name.
func (s *Staged) Ref() backends.Ref {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.to
}

// Size is the file's present size in bytes.
func (s *Staged) Size() int64 {
	n, err := s.file.Size()
	if err != nil {
		return 0 // it was let go of
	}
	return n
}

// ReadAt reads what was written.
func (s *Staged) ReadAt(p []byte, off int64) (int, error) { return s.file.ReadAt(p, off) }

// change takes s.mu for a change of the bytes. It waits for the push under way
// first: what a push was asked for is what it sends, to the last byte.
func (s *Staged) change(ctx context.Context) error {
	if err := s.settle(ctx); err != nil {
		return err
	}
	if s.pushed != nil {
		// The journal calls the bytes safe, which they are no more.
		if err := s.file.Update(func(m *staging.Meta) { m.State = staging.Writing }); err != nil {
			s.mu.Unlock()
			return err
		}
	}
	s.dirty, s.pushed, s.resumable = true, nil, false
	return nil
}

// settle takes s.mu when no push is under way.
func (s *Staged) settle(ctx context.Context) error {
	for {
		s.mu.Lock()
		f := s.flight
		if f == nil {
			return nil
		}
		s.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// WriteAt is Write without an end.
func (s *Staged) WriteAt(p []byte, off int64) (int, error) { return s.Write(s.cl.cat.ctx, p, off) }

// Write writes p at off, and sends whole parts ahead where the store takes
// them, at whose pace it goes on. While a push is under way it waits for its
// end, or until ctx is done.
func (s *Staged) Write(ctx context.Context, p []byte, off int64) (int, error) {
	if err := s.change(ctx); err != nil {
		return 0, err
	}
	n, err := s.file.WriteAt(p, off)
	if n > 0 {
		s.sums.wrote(p[:n], off)
		s.wroteAhead(off)
	}
	if err != nil {
		err = s.noRoom(err)
		s.unwritten = err
	}
	s.mu.Unlock()
	if err == nil {
		s.pace(ctx)
	}
	return n, err
}

// noRoom says what to do where the cache's limit is the matter. The caller holds s.mu.
func (s *Staged) noRoom(err error) error {
	if !errors.Is(err, cache.ErrNoRoom) {
		return err
	}
	return &backends.Error{Op: "write", Client: s.cl.Name, Ref: s.to, Err: err,
		Hint: "until it is pushed an image lies in the cache; make that larger with --cache-size, or close and unpin other images"}
}

// Truncate sets the file's size. It waits as Write does.
func (s *Staged) Truncate(ctx context.Context, size int64) error {
	if size == s.Size() {
		return nil
	}
	if err := s.change(ctx); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if err := s.file.Truncate(size); err != nil {
		return s.noRoom(err)
	}
	s.sums.truncated(size)
	if s.ahead != nil && size < s.ahead.next {
		s.stopAhead()
	}
	return nil
}

// SetModified sets the time that the image will have.
func (s *Staged) SetModified(t time.Time) {
	s.mu.Lock()
	s.mtime = t
	s.mu.Unlock()
}

// Modified is the file's modification time.
func (s *Staged) Modified() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mtime.IsZero() {
		return s.mtime
	}
	return s.file.Meta().Updated
}

// Dirty reports whether there is something to commit, or being committed.
func (s *Staged) Dirty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dirty
}

// Complete reports whether the bytes are a whole image as far as its own
// header tells. For contents of no known kind it is image.ErrNotImage, for one
// that is cut short an *image.TruncatedError, with why the rest could not be
// written where that is so.
func (s *Staged) Complete(ctx context.Context) error {
	_, err := image.Probe(ctx, s.file, s.Size())
	s.mu.Lock()
	defer s.mu.Unlock()
	if Truncated(err) && s.unwritten != nil {
		return fmt.Errorf("%w: %w", err, s.unwritten)
	}
	return err
}

// Truncated reports whether an error of Complete means that bytes are missing.
func Truncated(err error) bool {
	var cut *image.TruncatedError
	return errors.As(err, &cut)
}

// Commit pushes the file under its name: when it returns nil, the remote has
// it all. A caller whose ctx ends leaves; the push goes on, and a second
// Commit joins it: nothing is written meanwhile. After a failure the bytes stay
// and Commit may be tried again.
func (s *Staged) Commit(ctx context.Context) (backends.Image, error) {
	s.mu.Lock()
	if s.flight == nil {
		if s.pushed != nil && !s.dirty {
			img := *s.pushed
			s.mu.Unlock()
			return img, nil
		}
		ctx, cancel := context.WithCancel(s.cl.cat.ctx)
		f := &flight{cancel: cancel, done: make(chan struct{})}
		s.flight = f
		s.cl.cat.work.Go(func() {
			defer cancel()
			s.fly(ctx, f)
		})
	}
	f := s.flight
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.img, f.err
	case <-ctx.Done():
		return backends.Image{}, context.Cause(ctx)
	}
}

// fly pushes, and ends the flight.
func (s *Staged) fly(ctx context.Context, f *flight) {
	defer close(f.done)
	s.mu.Lock()
	mtime := s.mtime
	s.mu.Unlock()
	f.img, f.err = s.push(ctx, mtime)
	s.mu.Lock()
	s.flight = nil
	if f.err == nil {
		s.dirty, s.pushed = false, &f.img
	}
	later := s.mtime
	s.mu.Unlock()
	if f.err == nil && !later.Equal(mtime) {
		// It was set while the push was under way.
		_ = s.cl.SetModified(s.cl.cat.ctx, f.img, later)
	}
}

// Pushed is the image that the last commit made, false when something was
// written since or nothing was pushed.
func (s *Staged) Pushed() (backends.Image, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pushed == nil || s.dirty {
		return backends.Image{}, false
	}
	return *s.pushed, true
}

// Renamed follows the remote's renaming of the image that the file replaces or
// has become: the next commit goes to the new name.
func (s *Staged) Renamed(ctx context.Context, img backends.Image) error {
	if err := s.settle(ctx); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.to = img.Ref.Latest()
	if s.pushed != nil {
		s.pushed = &img
	}
	s.stopAhead()
	if err := s.journalName(); !errors.Is(err, staging.ErrClosed) {
		return err
	}
	return nil // it has ended, and goes nowhere any more
}

// journalName writes down where the file is to go.
func (s *Staged) journalName() error {
	to := s.to
	return s.file.Update(func(m *staging.Meta) { m.Collection, m.Name, m.Tag = to.Collection, to.Name, to.Tag })
}

// Settle returns when no commit is under way.
func (s *Staged) Settle(ctx context.Context) error {
	err := s.settle(ctx)
	if err == nil {
		s.mu.Unlock()
	}
	return err
}

// Pushing reports whether a commit is under way.
func (s *Staged) Pushing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flight != nil
}

// Abandon gives up the commit that is under way, if one is, and waits for its
// end: whoever waits for it gets context.Canceled, unless the remote had the
// file before.
func (s *Staged) Abandon(ctx context.Context) error {
	s.mu.Lock()
	f := s.flight
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	f.cancel()
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// CommitAs gives a file under a temporary name its final one and commits it.
func (s *Staged) CommitAs(ctx context.Context, to backends.Ref) (backends.Image, error) {
	if s.Ref() != to {
		if err := s.change(ctx); err != nil {
			return backends.Image{}, err
		}
		s.to = to
		s.stopAhead()
		err := s.journalName()
		s.mu.Unlock()
		if err != nil {
			return backends.Image{}, err
		}
	}
	return s.Commit(ctx)
}

// Finish ends a file that nobody has open any more. What was pushed moves into
// the cache. What nobody pushed stays on disk for the next mount if keep says
// so, unless nothing was written or all of it was taken away again.
func (s *Staged) Finish(keep bool) {
	_ = s.settle(context.Background()) // a push that is under way reads the file; leaves s.mu locked
	pushed, dirty := s.pushed, s.dirty
	s.stopAhead()
	s.mu.Unlock()
	cl := s.cl
	switch {
	case pushed != nil && !dirty:
		var take func(path string, release func()) error
		if c := cl.cat.opts.Cache; c != nil && !cl.Local() {
			size := s.Size()
			take = func(path string, release func()) error {
				return c.Adopt(pushed.ContentKey(cl.Name), path, size, release)
			}
		}
		if err := s.file.DiscardAfter(take); err != nil {
			cl.log.Warn("a pushed image is not kept in the cache", "image", pushed.Ref.String(), "error", err)
		}
	case keep && dirty && s.Size() > 0:
		if err := s.file.Release(); err != nil {
			cl.log.Warn("cannot close a staged file", "error", err)
		}
	default:
		s.Discard()
	}
}

// Discard drops the file.
func (s *Staged) Discard() {
	if err := s.file.Discard(); err != nil {
		s.cl.log.Warn("cannot remove a staged file", "error", err)
	}
}

// Sync makes what was written safe on this disk.
func (s *Staged) Sync() error { return s.file.Sync() }

// Fail notes why the bytes are kept that will not be committed.
func (s *Staged) Fail(why error) {
	err := s.file.Update(func(m *staging.Meta) { m.State, m.Error = staging.Failed, why.Error() })
	if err != nil {
		s.cl.log.Warn("cannot note why a staged file is kept", "error", err)
	}
}

// Failed is why the last commit failed, nil if none did.
func (s *Staged) Failed() error {
	m := s.file.Meta()
	if m.State != staging.Failed {
		return nil
	}
	return errors.New(m.Error)
}
