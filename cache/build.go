package cache

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// buildGrace is how long a build that nobody waits for any more goes on: a
// reader that was interrupted usually comes back.
const buildGrace = 30 * time.Second

// building is a build under way. Guarded by Cache.mu.
type building struct {
	waiting int
	cancel  context.CancelCauseFunc
	idle    *time.Timer
	done    chan struct{}
	err     error // set before done is closed
}

// Build opens the object of that key, computing it with build when it is not
// complete. However many ask at once, build runs once, on a context of its
// own; it must commit w. A caller whose ctx ends stops waiting; the build is
// cancelled when nobody has waited for it for half a minute. Its error goes to
// all who wait; the next caller builds anew.
//
// Such an object is of use within the program: OnComplete is not told of it, and
// its checksums stay unknown.
func (c *Cache) Build(ctx context.Context, key string, build func(ctx context.Context, w *Writer) error) (*Object, error) {
	name := objectName(key)
	for {
		if o, err := c.openComplete(ctx, key); o != nil || err != nil {
			return o, err
		}
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return nil, ErrClosed
		}
		b := c.builds[name]
		if b == nil {
			b = c.startBuild(name, key, build)
		}
		b.waiting++
		if b.idle != nil {
			b.idle.Stop()
			b.idle = nil
		}
		c.mu.Unlock()
		var err error
		select {
		case <-b.done:
			err = b.err
		case <-ctx.Done():
			err = ctx.Err()
		}
		c.mu.Lock()
		if b.waiting--; b.waiting == 0 {
			b.idle = time.AfterFunc(buildGrace, func() { b.cancel(context.Canceled) })
		}
		c.mu.Unlock()
		if err != nil {
			return nil, fmt.Errorf("build %s: %w", key, err)
		}
	}
}

// openComplete opens the object of that key if it is complete, or will be when
// it has been checked. It waits for that until ctx ends.
func (c *Cache) openComplete(ctx context.Context, key string) (*Object, error) {
	o, err := c.Object(Spec{Key: key, Size: -1})
	switch {
	case errors.Is(err, ErrNotCached), errors.Is(err, ErrCorrupt):
		return nil, nil
	case err != nil:
		return nil, err
	case o.Complete():
		return o, nil
	}
	defer o.Close()
	l := o.l
	l.mu.Lock()
	all := l.present == l.blocks
	l.mu.Unlock()
	if !all {
		return nil, nil
	}
	if err := o.Fill(ctx); err == nil {
		return c.Object(Spec{Key: key, Size: -1})
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("build %s: %w", key, err)
	}
	return nil, nil
}

// startBuild starts a build. The caller holds c.mu.
func (c *Cache) startBuild(name, key string, build func(context.Context, *Writer) error) *building {
	ctx, cancel := context.WithCancelCause(c.ctx)
	b := &building{cancel: cancel, done: make(chan struct{})}
	c.builds[name] = b
	c.wg.Go(func() {
		defer cancel(nil)
		w, err := c.Create(ctx, key)
		if err == nil {
			w.inner = true
			if err = build(ctx, w); err == nil && !w.committed() {
				err = errors.New("the build ended without a commit")
			}
			w.Abort()
		}
		c.mu.Lock()
		delete(c.builds, name)
		if b.idle != nil {
			b.idle.Stop()
		}
		c.mu.Unlock()
		b.err = err
		close(b.done)
	})
	return b
}
