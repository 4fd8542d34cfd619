package dropbox

import (
	"context"
	"errors"
	"time"

	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/auth"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/pacer"
)

// The bounds of a longpoll's time-out, and the longest that Dropbox adds to it
// by chance (ListFolderLongpollArg's documentation).
const (
	minPoll    = 30 * time.Second
	maxPoll    = 480 * time.Second
	pollJitter = 90 * time.Second
)

// Cursor returns the change feed's present position.
func (s *Store) Cursor(ctx context.Context) (string, error) {
	arg := files.NewListFolderArg("")
	arg.Recursive = true
	cctx, c := newCall(ctx)
	res, err := s.files.ListFolderGetLatestCursorContext(cctx, arg)
	if err != nil {
		return "", s.fail(ctx, "watch", backends.Ref{}, c, err)
	}
	return res.Cursor, nil
}

// Changes waits by longpoll, no sooner than Dropbox has asked for after the
// last one, and returns what the feed then tells. A deletion carries the Key
// alone: path_lower.
func (s *Store) Changes(ctx context.Context, cursor string, wait time.Duration) (backends.Changes, error) {
	if err := s.await(ctx, cursor, wait); err != nil {
		return backends.Changes{}, err
	}
	changes := backends.Changes{Cursor: cursor}
	for more := true; more; {
		cctx, c := newCall(ctx)
		page, err := s.files.ListFolderContinueContext(cctx, files.NewListFolderContinueArg(changes.Cursor))
		if err != nil {
			return backends.Changes{}, s.watchError(ctx, c, err)
		}
		for _, m := range page.Entries {
			ch, ok, err := s.change(ctx, m)
			if err != nil {
				return backends.Changes{}, s.fail(ctx, "watch", backends.Ref{}, nil, err)
			}
			if ok {
				changes.List = append(changes.List, ch)
			}
		}
		changes.Cursor, more = page.Cursor, page.HasMore
	}
	return changes, nil
}

// change is what an entry of the feed tells; ok is false when it is nothing
// that concerns images.
func (s *Store) change(ctx context.Context, m files.IsMetadata) (ch backends.Change, ok bool, err error) {
	switch m := m.(type) {
	case *files.FolderMetadata:
		s.spelling.learn(m) // it comes before what lies in it
		spelled, _ := s.spelling.folder(m.PathLower, m.PathDisplay)
		return backends.Change{Entry: folder(m, spelled)}, m.PathLower != "", nil
	case *files.FileMetadata:
		if !isImage(m) {
			return gone(m.PathLower) // whatever stood there before
		}
		collection, err := s.collection(ctx, m, "")
		if err != nil {
			return ch, false, err
		}
		img := image(m, collection)
		if rank(img) > 0 {
			// Another file may stand for the reference.
			first, err := s.lookUp(ctx, "watch", img.Ref)
			if err != nil && !notThere(err) {
				return ch, false, err
			}
			if first != nil && first.PathLower != m.PathLower {
				img.Ref.Version = img.Revision
			}
		}
		return backends.Change{Entry: backends.Entry{Image: img}}, true, nil
	case *files.DeletedMetadata:
		s.spelling.forget(m.PathLower)
		return gone(m.PathLower)
	}
	return ch, false, nil // of a kind that there was not when this was written
}

// gone is the deletion of a path. One without a path deletes nothing: as a Key
// it would stand for everything.
func gone(lower string) (backends.Change, bool, error) {
	return backends.Change{Deleted: true, Entry: backends.Entry{Image: backends.Image{Key: lower}}}, lower != "", nil
}

// await returns when there is something behind cursor, or after about wait.
func (s *Store) await(ctx context.Context, cursor string, wait time.Duration) error {
	until := time.Now().Add(wait)
	s.mu.Lock()
	notYet := s.pollNotYet
	s.mu.Unlock()
	if notYet.After(until) {
		notYet = until // a plain look at the feed is allowed at any time
	}
	if err := sleepUntil(ctx, notYet); err != nil {
		return &backends.Error{Op: "watch", Client: s.client, Err: err}
	}
	wait = time.Until(until)
	if wait <= 0 {
		return nil
	}
	ask := min(max(wait, minPoll), maxPoll)
	arg := files.NewListFolderLongpollArg(cursor)
	arg.Timeout = uint64(ask / time.Second)
	// A connection that died silently must not hold the feed up for ever.
	limit := min(wait, ask+pollJitter)
	if wait >= minPoll {
		limit = ask + pollJitter
	}
	pctx, cancel := context.WithTimeout(pacer.LongPoll(ctx), limit)
	defer cancel()
	cctx, c := newCall(pctx)
	res, err := s.files.ListFolderLongpollContext(cctx, arg)
	switch {
	case err != nil && ctx.Err() == nil && pctx.Err() != nil && !errors.As(err, new(*pacer.Error)):
		return nil // time is up
	case err != nil:
		return s.watchError(ctx, c, err)
	}
	if res.Backoff > 0 {
		s.mu.Lock()
		s.pollNotYet = time.Now().Add(time.Duration(min(res.Backoff, 3600)) * time.Second)
		s.mu.Unlock()
	}
	return nil
}

// watchError is fail for the calls that take a cursor. A cursor that is not
// one, or leads to a folder that is gone, is as bad as an expired one.
func (s *Store) watchError(ctx context.Context, c *call, err error) error {
	expired := hasTag(err, files.ListFolderContinueErrorReset) || notFound(err) ||
		errors.As(err, new(auth.BadRequest)) && ctx.Err() == nil && !s.tokenIsGarbage(ctx)
	if expired {
		return &backends.Error{Op: "watch", Client: s.client, Err: backends.ErrCursorReset}
	}
	return s.fail(ctx, "watch", backends.Ref{}, c, err)
}

func sleepUntil(ctx context.Context, at time.Time) error {
	d := time.Until(at)
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
