package fs

import (
	"context"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/fs/catalog"
)

// usageFresh is how long an account's usage is shown before it is asked for
// again; usageWait is how long df may wait for the first answer.
const (
	usageFresh = time.Minute
	usageWait  = 2 * time.Second
)

// usageCache holds each client's last known usage.
type usageCache struct {
	mu sync.Mutex
	m  map[string]*usageEntry
}

type usageEntry struct {
	usage backends.Usage
	known bool
	asked time.Time
	done  chan struct{} // closed when the question under way is answered
}

// get returns what is known of a client's usage, and asks in the background
// when that is old. Only the very first question is waited for, a moment.
func (u *usageCache) get(ctx context.Context, t *Tree, cl *catalog.Client) (backends.Usage, bool) {
	usager, ok := backends.As[backends.Usager](cl.Store)
	if !ok {
		return backends.Usage{}, false
	}
	u.mu.Lock()
	if u.m == nil {
		u.m = map[string]*usageEntry{}
	}
	e := u.m[cl.Name]
	if e == nil {
		e = &usageEntry{}
		u.m[cl.Name] = e
	}
	if e.done == nil && time.Since(e.asked) > usageFresh {
		e.asked, e.done = time.Now(), make(chan struct{})
		t.work.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			go func() {
				select {
				case <-t.quit: // nobody will read the answer
					cancel()
				case <-ctx.Done():
				}
			}()
			usage, err := usager.Usage(ctx)
			u.mu.Lock()
			defer u.mu.Unlock()
			if err == nil {
				e.usage, e.known = usage, true
			}
			close(e.done)
			e.done = nil
		})
	}
	known, usage, done := e.known, e.usage, e.done
	u.mu.Unlock()
	if known || done == nil {
		return usage, known
	}
	select {
	case <-done:
	case <-ctx.Done():
	case <-time.After(usageWait):
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return e.usage, e.known
}

// unlimited is shown as the size of an account without a limit.
const unlimited = 1 << 50

// statfs reports the space of some clients together.
func (t *Tree) statfs(ctx context.Context, clients []*catalog.Client, out *fuse.StatfsOut) {
	const block = 4096
	var total, used int64
	for _, cl := range clients {
		if u, ok := t.usage.get(ctx, t, cl); ok {
			used += u.Used
			if u.Total > 0 {
				total += max(u.Total, u.Used)
			} else {
				total += unlimited
			}
		}
	}
	out.Bsize, out.Frsize, out.NameLen = block, block, backends.MaxName
	out.Blocks = uint64(total) / block
	out.Bfree = uint64(max(total-used, 0)) / block
	out.Bavail = out.Bfree
	out.Files, out.Ffree = 1<<32, 1<<31
}
