package catalog

import (
	"context"
	"encoding/json"
	"path"
	"sync"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/index"
)

// times holds the modification times that users gave to images after a push
// (rsync -t, touch). The remote keeps its own; these keep rsync from sending
// the same image again.
type times struct {
	mu sync.Mutex
	m  map[string]givenTime // by client/dir/file
}

// givenTime holds for one content of a name.
type givenTime struct {
	Content string    `json:"content"`
	Time    time.Time `json:"time"`
}

func (t *times) load(ctx context.Context, x *index.Index) error {
	t.m = map[string]givenTime{}
	for n, err := range x.Notes(ctx, noteTime) {
		if err != nil {
			return err
		}
		var g givenTime
		if json.Unmarshal(n.Data, &g) == nil && g.Content != "" {
			t.m[n.Key] = g
		}
	}
	return nil
}

func (t *times) get(key, content string) (time.Time, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g, ok := t.m[key]
	return g.Time, ok && g.Content == content
}

func (t *times) empty() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.m) == 0
}

func (t *times) set(ctx context.Context, x *index.Index, key string, g givenTime) error {
	data, err := json.Marshal(g)
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.m[key] = g
	t.mu.Unlock()
	return x.SetNote(ctx, noteTime, key, data)
}

func (t *times) move(ctx context.Context, x *index.Index, from, to, content string) {
	t.mu.Lock()
	g, ok := t.m[from]
	delete(t.m, from)
	t.mu.Unlock()
	if !ok {
		return
	}
	g.Content = content
	_ = x.SetNote(ctx, noteTime, from, nil)
	_ = t.set(ctx, x, to, g)
}

func (cl *Client) timeKey(ref backends.Ref) string {
	return path.Join(cl.Name, treePath(ref.Latest()))
}

// Modified is an image's modification time: the one that a user gave to this
// content, else the store's.
func (cl *Client) Modified(img backends.Image) time.Time {
	if !cl.cat.times.empty() { // as for most users, for a listing's sake
		if t, ok := cl.cat.times.get(cl.timeKey(img.Ref), img.ContentKey(cl.Name)); ok {
			return t
		}
	}
	if img.Modified.IsZero() {
		return img.Created
	}
	return img.Modified
}

// SetModified gives an image's present content a modification time, which
// stays on this machine.
func (cl *Client) SetModified(ctx context.Context, img backends.Image, t time.Time) error {
	return cl.cat.times.set(ctx, cl.cat.opts.Index, cl.timeKey(img.Ref), givenTime{img.ContentKey(cl.Name), t})
}
