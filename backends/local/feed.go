package local

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// feed is the change feed's log. A cursor is ID.NUMBER: the feed's identity,
// since nothing is known of what happened while no feed was running, and the
// number of changes before it.
type feed struct {
	starting chan struct{} // room for who starts the watcher

	mu      sync.Mutex
	id      string // "" until the watcher runs
	log     []backends.Change
	dropped int           // changes that are no longer in log
	err     error         // why the folder cannot be looked at now
	changed chan struct{} // closed and replaced when any of these changes
	stopped context.CancelFunc
	done    chan struct{} // closed when the watcher has ended
}

// maxLog is how many changes are kept for cursors that fall behind.
const maxLog = 1 << 16

func newFeed() *feed {
	return &feed{starting: make(chan struct{}, 1), changed: make(chan struct{})}
}

// Cursor returns the feed's position. The first call starts the feed, which
// walks the folder once.
func (s *Store) Cursor(ctx context.Context) (string, error) {
	cursor, err := s.cursor(ctx)
	return cursor, s.fail("watch", backends.Ref{}, err)
}

func (s *Store) cursor(ctx context.Context) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	f := s.feed
	select {
	case f.starting <- struct{}{}:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	defer func() { <-f.starting }()
	f.mu.Lock()
	running := f.id != ""
	f.mu.Unlock()
	if !running {
		w := newWatcher(s)
		if err := w.begin(ctx); err != nil {
			w.close()
			return "", err
		}
		f.mu.Lock()
		f.id = rand.Text()
		run, cancel := context.WithCancel(context.Background())
		f.stopped, f.done = cancel, make(chan struct{})
		f.mu.Unlock()
		go func() { defer close(f.done); w.run(run) }()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.position(), nil
}

// position is the cursor behind all that is known. f.mu is held.
func (f *feed) position() string {
	return fmt.Sprintf("%s.%d", f.id, f.dropped+len(f.log))
}

// Changes waits for the watcher.
func (s *Store) Changes(ctx context.Context, cursor string, wait time.Duration) (backends.Changes, error) {
	ch, err := s.feed.since(ctx, cursor, wait)
	return ch, s.fail("watch", backends.Ref{}, err)
}

func (f *feed) since(ctx context.Context, cursor string, wait time.Duration) (backends.Changes, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for waited := false; ; {
		if err := ctx.Err(); err != nil {
			return backends.Changes{}, err
		}
		f.mu.Lock()
		id, number, _ := strings.Cut(cursor, ".")
		n, err := strconv.Atoi(number)
		n -= f.dropped
		if err != nil || id != f.id || n < 0 || n > len(f.log) {
			f.mu.Unlock()
			return backends.Changes{}, backends.ErrCursorReset
		}
		ch := backends.Changes{List: append([]backends.Change(nil), f.log[n:]...), Cursor: f.position()}
		broken, changed := f.err, f.changed
		f.mu.Unlock()
		switch {
		case len(ch.List) > 0:
			return ch, nil
		case broken != nil:
			return backends.Changes{}, broken
		case waited:
			return ch, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			waited = true
		case <-ctx.Done():
		}
	}
}

// add tells of changes, and whether the folder can be looked at.
func (f *feed) add(list []backends.Change, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(list) == 0 && (err == nil) == (f.err == nil) {
		return
	}
	f.err = err
	f.log = append(f.log, list...)
	if over := len(f.log) - maxLog; over > 0 {
		f.log = append([]backends.Change(nil), f.log[over:]...)
		f.dropped += over
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// stop ends the watcher and waits for it.
func (f *feed) stop() {
	f.mu.Lock()
	cancel, done := f.stopped, f.done
	f.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
}
