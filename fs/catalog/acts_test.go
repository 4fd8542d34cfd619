package catalog

import (
	"context"
	"errors"
	iofs "io/fs"
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
)

// impatient is a store whose caller is interrupted just when an act is done.
type impatient struct {
	*backendtest.MemoryStore
	interrupt context.CancelFunc
}

func (s *impatient) Remove(ctx context.Context, img backends.Image) error {
	defer s.interrupt()
	return s.MemoryStore.Remove(ctx, img)
}

func (s *impatient) Rename(ctx context.Context, img backends.Image, to backends.Ref) (backends.Image, error) {
	defer s.interrupt()
	return s.MemoryStore.Rename(ctx, img, to)
}

func (s *impatient) MakeCollection(ctx context.Context, name string) error {
	defer s.interrupt()
	return s.MemoryStore.MakeCollection(ctx, name)
}

func (s *impatient) RemoveCollection(ctx context.Context, name string) error {
	defer s.interrupt()
	return s.MemoryStore.RemoveCollection(ctx, name)
}

// TestInterruptedWhenDone: what the store has done is no failure, and the tree
// shows it.
func TestInterruptedWhenDone(t *testing.T) {
	store := &impatient{MemoryStore: backendtest.Memory()}
	cl := open(t, t.TempDir(), map[string]backends.Store{"mem": store}).Client("mem")
	img, err := push(t, cl, red, squash(t, 1, 1000), 1000)
	if err != nil {
		t.Fatal(err)
	}
	do := func(what string, act func(ctx context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		store.interrupt = cancel
		if err := act(ctx); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	blue := red
	blue.Tag = "blue"
	do("rename", func(ctx context.Context) (err error) {
		img, err = cl.Rename(ctx, img, blue)
		return err
	})
	if _, err := cl.Lookup(t.Context(), red.Dir(), red); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("the old name: %v", err)
	}
	if _, err := cl.Lookup(t.Context(), blue.Dir(), blue); err != nil {
		t.Errorf("the new name: %v", err)
	}
	do("remove", func(ctx context.Context) error { return cl.Remove(ctx, img) })
	if _, err := cl.Lookup(t.Context(), blue.Dir(), blue); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("what was removed: %v", err)
	}
	do("mkdir", func(ctx context.Context) error { return cl.MakeCollection(ctx, "another") })
	do("rmdir", func(ctx context.Context) error { return cl.RemoveCollection(ctx, "another") })
}
