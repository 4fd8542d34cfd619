package catalog

import (
	"context"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
)

// lateFeed is a store whose change feed is told step by step.
type lateFeed struct {
	*backendtest.MemoryStore
	asked chan struct{}
	tell  chan struct{}
	// first is told before what the store tells next; then it is told no more.
	first []backends.Change
}

func (l *lateFeed) Changes(ctx context.Context, cursor string, wait time.Duration) (backends.Changes, error) {
	changes, err := l.MemoryStore.Changes(ctx, cursor, wait)
	if len(changes.List) == 0 {
		return changes, err
	}
	changes.List, l.first = append(l.first, changes.List...), nil
	select {
	case l.asked <- struct{}{}:
	case <-ctx.Done():
	}
	select {
	case <-l.tell:
	case <-ctx.Done():
	}
	return changes, err
}

// What this program did is not undone by a feed that tells of the time before.
func TestFeedBehindOwnActs(t *testing.T) {
	old, now := squash(t, 1, 1000), squash(t, 2, 2000)
	for name, c := range map[string]struct {
		act  func(t *testing.T, cl *Client) // after old was pushed, and told of late
		want int64                          // the size that must be found, -1 for nothing
	}{
		"overwritten": {func(t *testing.T, cl *Client) {
			if _, err := push(t, cl, red, now, 1<<20); err != nil {
				t.Fatal(err)
			}
		}, 2000},
		"removed": {func(t *testing.T, cl *Client) {
			img, err := cl.Find(t.Context(), red)
			if err == nil {
				err = cl.Remove(t.Context(), img)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, -1},
		"renamed": {func(t *testing.T, cl *Client) {
			img, err := cl.Find(t.Context(), red)
			if err == nil {
				_, err = cl.Rename(t.Context(), img, backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "blue"})
			}
			if err != nil {
				t.Fatal(err)
			}
		}, -1},
	} {
		t.Run(name, func(t *testing.T) {
			feed := &lateFeed{MemoryStore: backendtest.Memory(), asked: make(chan struct{}), tell: make(chan struct{})}
			cat := open(t, t.TempDir(), map[string]backends.Store{"mem": feed})
			cl := cat.Client("mem")
			cat.Start()
			if err := cl.Listed(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := feed.MakeCollection(t.Context(), "pusheen"); err != nil {
				t.Fatal(err)
			}
			<-feed.asked
			if _, err := push(t, cl, red, old, 1<<20); err != nil {
				t.Fatal(err)
			}
			feed.tell <- struct{}{} // of the collection
			<-feed.asked            // the feed holds old
			c.act(t, cl)
			feed.tell <- struct{}{}
			<-feed.asked // old has been told, and the act not yet
			img, err := cl.Find(t.Context(), red)
			switch {
			case c.want < 0 && !isNotExist(err):
				t.Errorf("found %v, %v", img.Size, err)
			case c.want >= 0 && (err != nil || img.Size != c.want):
				t.Errorf("found %d bytes, %v, want %d", img.Size, err, c.want)
			}
		})
	}
}

// Another's push is not undone by the news of this program's own deletion before
// it, however the feed puts them together.
func TestPushAfterOwnRemoval(t *testing.T) {
	feed := &lateFeed{MemoryStore: backendtest.Memory(), asked: make(chan struct{}), tell: make(chan struct{})}
	cat := open(t, t.TempDir(), map[string]backends.Store{"mem": feed})
	cl := cat.Client("mem")
	cat.Start()
	if err := cl.Listed(t.Context()); err != nil {
		t.Fatal(err)
	}
	told := func() { feed.tell <- struct{}{} }
	if err := feed.MakeCollection(t.Context(), "pusheen"); err != nil {
		t.Fatal(err)
	}
	<-feed.asked
	img, err := push(t, cl, red, squash(t, 1, 1000), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	told()
	<-feed.asked
	told() // of the push
	if err := feed.MakeCollection(t.Context(), "busy"); err != nil {
		t.Fatal(err)
	}
	<-feed.asked
	if err := cl.Remove(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	other := feed.Put(red, squash(t, 2, 2000), nil)
	feed.first = []backends.Change{{Deleted: true, Entry: backends.Entry{Image: backends.Image{ID: other.ID, Key: other.Key}}}}
	told()
	<-feed.asked
	told() // of the deletion and of the other's push
	if err := feed.MakeCollection(t.Context(), "done"); err != nil {
		t.Fatal(err)
	}
	<-feed.asked
	found, ok, err := cat.Index().Lookup(t.Context(), "mem", red.Dir(), red.File(), false)
	if err != nil || !ok || found.Size != 2000 {
		t.Errorf("found %v, %d bytes, %v; want the other's push", ok, found.Size, err)
	}
	told()
}
