package catalog

import (
	"context"
	"slices"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// ownAct is what this program last did under a name.
type ownAct struct {
	img     backends.Image // what it left there, nothing if gone
	gone    bool
	id, key string // of the object
	at      time.Time
}

// A change feed may tell of a name's past after our own act on it, having been
// asked before. Such a change is checked against the store; ownKept is for how
// long one may come.
const (
	ownKept = 5 * time.Minute
	ownMost = 1000
)

// acted notes that this program left img under its name or, with gone, took it
// away. It is called before that is put into the index.
func (cl *Client) acted(img backends.Image, gone bool) {
	s := &cl.state
	s.order.Lock()
	defer s.order.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own == nil || len(s.own) >= ownMost {
		s.own = map[backends.Ref]ownAct{}
	}
	s.own[img.Ref.Latest()] = ownAct{img: img, gone: gone, id: img.ID, key: img.Key, at: time.Now()}
}

// checked returns the changes without those that speak against what this
// program did a moment ago. For them the store is asked what is true.
func (cl *Client) checked(ctx context.Context, changes []backends.Change) []backends.Change {
	for ref, act := range cl.doubtful(changes) {
		now, err := cl.ask(ctx, ref.Dir(), ref)
		if err != nil && !isNotExist(err) {
			continue // then what was told is the best that is known
		}
		changes = slices.DeleteFunc(slices.Clone(changes), func(c backends.Change) bool { return act.contradicts(ref, c) || isGone(now, c) })
	}
	return changes
}

// isGone reports whether a change tells that an image is gone which was found a
// moment ago, as it tells of our own deletion before another's push.
func isGone(now backends.Image, c backends.Change) bool {
	told := c.Entry.Image
	return c.Deleted && (told.ID != "" && told.ID == now.ID || told.ID == "" && told.Key != "" && told.Key == now.Key)
}

// doubtful are the acts that changes speak against.
func (cl *Client) doubtful(changes []backends.Change) map[backends.Ref]ownAct {
	acts := map[backends.Ref]ownAct{}
	s := &cl.state
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, act := range s.own {
		if time.Since(act.at) > ownKept {
			delete(s.own, ref)
		} else if slices.ContainsFunc(changes, func(c backends.Change) bool { return act.contradicts(ref, c) }) {
			acts[ref] = act
		}
	}
	return acts
}

// contradicts reports whether a change speaks against the act on ref.
func (a ownAct) contradicts(ref backends.Ref, c backends.Change) bool {
	told := c.Entry.Image
	if c.Deleted {
		return !a.gone && (told.ID != "" && told.ID == a.id || told.ID == "" && told.Key != "" && told.Key == a.key)
	}
	return told.Ref == ref && (a.gone || told.Revision != a.img.Revision)
}
