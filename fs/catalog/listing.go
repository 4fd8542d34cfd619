package catalog

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/index"
)

const (
	// feedWait is how long one question to a change feed may stay open.
	feedWait = 90 * time.Second
	// firstListing is how long a directory may wait for a listing that has
	// never been made, knocking how long for a service that does not answer.
	firstListing = time.Minute
	knocking     = 5 * time.Second
	retryMin     = time.Second
	retryMax     = 2 * time.Minute
)

// listingState is how well a client's listing is known. The zero value must be
// initialised.
type listingState struct {
	mu sync.Mutex
	// known: a complete listing is in the index; unlisted: the store makes
	// none; live: its change feed is being followed.
	known, unlisted, live bool
	at                    time.Time // of the last complete listing or change
	err                   error     // why the last attempt failed
	attempt               chan struct{}
	used                  time.Time
	wake                  chan struct{} // asks follow to try now
	subscribers           []func(index.Diff)
	own                   map[backends.Ref]ownAct // the last acts of this program
	order                 sync.Mutex              // held while a feed's changes are put into the index; before mu
	cursor                string                  // of the feed, when the program began
}

func (s *listingState) init() {
	s.attempt = make(chan struct{})
	s.wake = make(chan struct{}, 1)
}

func (s *listingState) isKnown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// fresh reports whether what the listing lacks does not exist.
func (s *listingState) fresh(ttl time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known && !s.unlisted && (s.live || time.Since(s.at) < ttl)
}

// touch notes that somebody looks, so that the listing is worth renewing.
func (s *listingState) touch() {
	s.mu.Lock()
	s.used = time.Now()
	s.mu.Unlock()
}

func (s *listingState) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// ended records how an attempt to list ended and wakes who waits for it.
func (s *listingState) ended(err error, unlisted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	if err == nil {
		s.unlisted = unlisted
		s.known = s.known || !unlisted
		s.at = time.Now()
		select {
		case <-s.wake: // who asked for a listing meanwhile has one
		default:
		}
	}
	close(s.attempt)
	s.attempt = make(chan struct{})
}

func (s *listingState) setLive(live bool) {
	s.mu.Lock()
	s.live = live
	if live {
		s.at = time.Now()
	}
	s.mu.Unlock()
}

// changed tells the subscribers what became different in the tree.
func (s *listingState) changed(d index.Diff, err error) {
	if err != nil || len(d.Changed) == 0 && !d.Full {
		return
	}
	s.mu.Lock()
	subs := s.subscribers
	s.mu.Unlock()
	for _, f := range subs {
		f(d)
	}
}

// OnChange has f called, on any goroutine and without locks, after the meaning
// of names in the client's tree has changed. f must not block.
func (cl *Client) OnChange(f func(index.Diff)) {
	cl.state.mu.Lock()
	cl.state.subscribers = append(cl.state.subscribers, f)
	cl.state.mu.Unlock()
}

// ListingStatus is how well a client's listing is known.
type ListingStatus struct {
	Known    bool      // a complete listing is held
	Unlisted bool      // the store makes no listings
	Live     bool      // its change feed is being followed
	At       time.Time // when it was last known to be right
	Err      error     // why the last attempt failed
}

// Listing reports how well the client's listing is known.
func (cl *Client) Listing() ListingStatus {
	s := &cl.state
	s.mu.Lock()
	defer s.mu.Unlock()
	return ListingStatus{s.known, s.unlisted, s.live, s.at, s.err}
}

// Listed returns when a complete listing is held, at once if it ever was, or
// the reason why there is none.
func (cl *Client) Listed(ctx context.Context) error {
	s := &cl.state
	s.mu.Lock()
	s.used = time.Now()
	known, unlisted, attempt, stale := s.known, s.unlisted, s.attempt, !s.live && time.Since(s.at) > cl.cat.opts.TTL
	s.mu.Unlock()
	if known || unlisted {
		if stale {
			s.poke()
		}
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, firstListing, errMoment)
	defer cancel()
	if !cl.cat.started {
		return cl.Refresh(ctx)
	}
	s.poke()
	for waiting, began := true, time.Now(); waiting; {
		select {
		case <-ctx.Done():
			if err := cl.Unreachable(); err != nil && ctx.Err() == context.DeadlineExceeded {
				return err
			}
			return context.Cause(ctx)
		case <-attempt:
			waiting = false
		case <-time.After(time.Second):
			if err := cl.Unreachable(); err != nil && time.Since(began) > knocking {
				return err
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known || s.unlisted {
		return nil
	}
	return s.err
}

// Unreachable is why the service behind the client does not answer, as far as that
// is known without asking it; nil while it does.
func (cl *Client) Unreachable() error {
	r, ok := backends.As[backends.Reacher](cl.Store)
	if !ok {
		return nil
	}
	err := r.Unreachable()
	if err == nil {
		return nil
	}
	return &backends.Error{Op: "list", Client: cl.Name, Err: err}
}

// Refresh lists the client now and returns when that is done.
func (cl *Client) Refresh(ctx context.Context) error {
	_, err := cl.list(ctx)
	return err
}

// list makes a complete listing and puts it into the index; it returns the
// feed's cursor from before it began.
func (cl *Client) list(ctx context.Context) (cursor string, err error) {
	unlisted := false
	defer func() { cl.state.ended(err, unlisted) }()
	if w, ok := backends.As[backends.Watcher](cl.Store); ok {
		if cursor, err = w.Cursor(ctx); err != nil {
			return "", err
		}
	}
	diff, err := cl.cat.opts.Index.ReplaceListing(ctx, cl.Name, cl.Store.List(ctx), cursor)
	if errors.Is(err, errors.ErrUnsupported) {
		unlisted = true
		return "", nil
	}
	cl.state.changed(diff, err)
	return cursor, err
}

// recall takes up what an earlier run listed.
func (cl *Client) recall(ctx context.Context) error {
	known, err := cl.cat.opts.Index.Listing(ctx, cl.Name)
	cl.state.known, cl.state.at, cl.state.cursor = known.Known, known.At, known.Cursor
	return err
}

// follow keeps the client's listing right until ctx is done: by the store's
// change feed where it has one, otherwise by listing again when the listing is
// older than the time-to-live and somebody looks at it.
func (cl *Client) follow(ctx context.Context) {
	watcher, watched := backends.As[backends.Watcher](cl.Store)
	cursor, wait := cl.state.cursor, retryMin
	failed := func(what string, err error) {
		if ctx.Err() != nil {
			return
		}
		cl.log.Warn(what, "error", err, "retry_in", wait)
		select {
		case <-ctx.Done():
		case <-cl.state.wake:
		case <-time.After(wait):
		}
		wait = min(wait*2, retryMax)
	}
	// Nothing that happened before cursor is unseen: the listing is as live as
	// it will be, though the feed may have nothing to tell for hours.
	current := false
	for ctx.Err() == nil {
		if !watched || cursor == "" || !cl.state.isKnown() {
			c, err := cl.list(ctx)
			if err != nil {
				failed("cannot list", err)
				continue
			}
			cursor, wait = c, retryMin
			if watched && cl.state.isKnown() {
				current = true
				cl.state.setLive(true)
			}
		}
		if !watched {
			cl.rest(ctx)
			continue
		}
		open := feedWait
		if !current {
			open = 0 // first catch up
		}
		changes, err := watcher.Changes(ctx, cursor, open)
		if errors.Is(err, backends.ErrCursorReset) {
			cl.state.setLive(false)
			cursor, current = "", false
			continue
		}
		if err == nil && (len(changes.List) > 0 || changes.Cursor != cursor) {
			var diff index.Diff
			list := cl.checked(ctx, changes.List)
			cl.state.order.Lock()
			if len(cl.doubtful(list)) > 0 { // of what was done since
				cl.state.order.Unlock()
				list = cl.checked(ctx, list)
				cl.state.order.Lock()
			}
			diff, err = cl.cat.opts.Index.Apply(ctx, cl.Name, list, changes.Cursor)
			cl.state.order.Unlock()
			cl.state.changed(diff, err)
		}
		if err != nil {
			cl.state.setLive(false)
			current = false
			failed("cannot follow changes", err)
			continue
		}
		cl.state.setLive(true)
		current = true
		cursor, wait = changes.Cursor, retryMin
	}
}

// rest waits until the listing has outlived its time and somebody has looked
// at it since, or somebody asks for a new one.
func (cl *Client) rest(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-cl.state.wake:
			return
		case <-time.After(cl.cat.opts.TTL):
		}
		cl.state.mu.Lock()
		looked := cl.state.used.After(cl.state.at)
		cl.state.mu.Unlock()
		if looked {
			return
		}
	}
}
