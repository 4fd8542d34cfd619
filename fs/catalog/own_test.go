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
}

func (l *lateFeed) Changes(ctx context.Context, cursor string, wait time.Duration) (backends.Changes, error) {
	changes, err := l.MemoryStore.Changes(ctx, cursor, wait)
	if len(changes.List) == 0 {
		return changes, err
	}
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
			feed := &lateFeed{backendtest.Memory(), make(chan struct{}), make(chan struct{})}
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
