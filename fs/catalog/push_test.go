package catalog

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/cache/staging"
)

// gate is a store whose calls of one name wait until it is opened.
type gate struct {
	backends.Store
	reached chan struct{} // takes one word for each call that waits
	open    chan struct{}
}

func (g *gate) Unwrap() backends.Store { return g.Store }

func gated(s backends.Store, op string, deaf bool) *gate {
	g := &gate{reached: make(chan struct{}, 100), open: make(chan struct{})}
	g.Store = backendtest.Wrap(s, func(ctx context.Context, c backendtest.Call) error {
		if c.Op != op {
			return nil
		}
		g.reached <- struct{}{}
		if deaf {
			<-g.open
			return nil
		}
		select {
		case <-g.open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return g
}

// stage begins a file and writes data into it.
func stage(t *testing.T, cl *Client, ref backends.Ref, data []byte) *Staged {
	t.Helper()
	s, err := cl.Stage(t.Context(), ref, "")
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(data); off += 128 << 10 {
		if _, err := s.WriteAt(data[off:min(off+128<<10, len(data))], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func mustHave(t *testing.T, cl *Client, ref backends.Ref, want []byte) {
	t.Helper()
	img, err := cl.Store.Stat(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, cl, img); !bytes.Equal(got, want) {
		t.Errorf("the remote has other bytes under %v than the last commit acknowledged", ref)
	}
}

// What is written while a push is under way is not in it; a commit after that
// may not answer with the push's success.
func TestWriteDuringPush(t *testing.T) {
	g := gated(backendtest.Memory(), "Commit", false)
	cl := open(t, t.TempDir(), map[string]backends.Store{"mem": g}).Client("mem")
	first, second := squash(t, 1, 300_000), squash(t, 2, 300_000)
	s := stage(t, cl, red, first)
	one := make(chan error, 1)
	go func() { _, err := s.Commit(t.Context()); one <- err }()
	<-g.reached
	two := make(chan error, 1)
	go func() {
		_, err := s.WriteAt(second, 0)
		if err == nil {
			_, err = s.Commit(t.Context())
		}
		two <- err
	}()
	close(g.open)
	if err := errors.Join(<-one, <-two); err != nil {
		t.Fatal(err)
	}
	mustHave(t, cl, red, second)
	s.Finish(true)
	mustHave(t, cl, red, second)
}

// A second commit waits for the push that the first one began.
func TestSecondCommitJoins(t *testing.T) {
	g := gated(backendtest.Memory(), "Commit", false)
	cl := open(t, t.TempDir(), map[string]backends.Store{"mem": g}).Client("mem")
	s := stage(t, cl, red, squash(t, 1, 1000))
	ctx, interrupt := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := s.Commit(ctx); done <- err }()
	<-g.reached
	interrupt()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("an interrupted commit returned %v", err)
	}
	if !s.Dirty() {
		t.Error("nothing is left to commit, though the remote has nothing yet")
	}
	go func() { _, err := s.Commit(t.Context()); done <- err }()
	close(g.open)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := len(g.reached); n != 0 {
		t.Errorf("%d more uploads for one file", n)
	}
	s.Finish(true)
}

// A file whose push is under way is not taken away from it.
func TestFinishDuringPush(t *testing.T) {
	g := gated(backendtest.Memory(), "Commit", true)
	cl := open(t, t.TempDir(), map[string]backends.Store{"mem": g}).Client("mem")
	data := squash(t, 1, 100_000)
	s := stage(t, cl, red, data)
	ctx, interrupt := context.WithCancel(t.Context())
	go func() { <-g.reached; interrupt(); close(g.open) }()
	_, _ = s.Commit(ctx)
	s.Finish(true)
	mustHave(t, cl, red, data)
	if held := cl.cat.Held(); len(held) != 0 {
		t.Errorf("still held: %+v", held)
	}
}

// Parts of what was there before a rewrite never reach the remote, whether
// they were sent ahead or by a push that failed.
func TestRewriteAfterParts(t *testing.T) {
	data := squash(t, 1, 10<<20)
	rewritten := append(bytes.Repeat([]byte{7}, 1000), data[1000:]...)
	t.Run("ahead", func(t *testing.T) {
		var parts atomic.Int64
		sent, open1 := make(chan struct{}), make(chan struct{})
		store := backendtest.Wrap(backendtest.Memory(), func(_ context.Context, c backendtest.Call) error {
			// The first part arrives; a later one keeps the upload from being
			// given up before the commit begins.
			if c.Op == "Part" && parts.Add(1) == 30 {
				close(sent)
				<-open1
			}
			return nil
		})
		cl := open(t, t.TempDir(), map[string]backends.Store{"mem": store}).Client("mem")
		s := stage(t, cl, red, data)
		<-sent
		if _, err := s.WriteAt(rewritten[:1000], 0); err != nil {
			t.Fatal(err)
		}
		_, err := s.Commit(t.Context())
		close(open1)
		if err != nil {
			t.Fatal(err)
		}
		mustHave(t, cl, red, rewritten)
		s.Finish(true)
	})
	t.Run("failed", func(t *testing.T) {
		var failed atomic.Bool
		store := backendtest.Flaky(backendtest.Memory(), func(c backendtest.Call) error {
			if c.Op == "Commit" && failed.CompareAndSwap(false, true) {
				return backends.ErrUnreachable
			}
			return nil
		})
		cl := open(t, t.TempDir(), map[string]backends.Store{"mem": store}).Client("mem")
		s := stage(t, cl, red, data)
		if _, err := s.Commit(t.Context()); !errors.Is(err, backends.ErrUnreachable) {
			t.Fatalf("the first commit: %v", err)
		}
		if _, err := s.WriteAt(rewritten[:1000], 0); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustHave(t, cl, red, rewritten)
		s.Finish(true)
	})
}

// A writer is never much further than the upload, so that what shows the one
// shows the other.
func TestWriterKeepsPace(t *testing.T) {
	data := squash(t, 1, 40<<20)
	memory := backendtest.Memory()
	memory.PartBytes = 1 << 20
	most := int64(aheadMin + 2*memory.PartBytes) // and what is written at a time
	var s *Staged
	var sent, furthest atomic.Int64
	store := backendtest.Wrap(memory, func(_ context.Context, c backendtest.Call) error {
		if c.Op == "Part" {
			time.Sleep(4 * time.Millisecond) // slower than a disk
			// A writer may run away until the upload has begun, and is caught up
			// with.
			if size := s.Size(); sent.Add(memory.PartBytes) > int64(len(data)/2) {
				furthest.Store(max(furthest.Load(), size-sent.Load()))
			}
		}
		return nil
	})
	cl := open(t, t.TempDir(), map[string]backends.Store{"mem": store}).Client("mem")
	s, err := cl.Stage(t.Context(), red, "")
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(data); off += 128 << 10 {
		if _, err := s.WriteAt(data[off:off+128<<10], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := furthest.Load(); n > most {
		t.Errorf("the writer was %d bytes ahead of the upload, want at most %d", n, most)
	}
	mustHave(t, cl, red, data)
	s.Finish(true)
}

// A writer that keeps the upload's pace waits neither for an upload that has
// failed nor longer than its caller.
func TestWriterIsNotHeldUp(t *testing.T) {
	data := squash(t, 1, 40<<20)
	write := func(t *testing.T, ctx context.Context, store backends.Store) {
		t.Helper()
		s, err := open(t, t.TempDir(), map[string]backends.Store{"mem": store}).Client("mem").Stage(t.Context(), red, "")
		if err != nil {
			t.Fatal(err)
		}
		for off := 0; off < len(data); off += 1 << 20 {
			if n, err := s.Write(ctx, data[off:off+1<<20], int64(off)); n != 1<<20 || err != nil {
				t.Fatalf("Write at %d = %d, %v", off, n, err)
			}
		}
		s.Finish(false)
	}
	t.Run("failed", func(t *testing.T) {
		write(t, t.Context(), backendtest.Flaky(backendtest.Memory(), func(c backendtest.Call) error {
			if c.Op == "Part" {
				return backends.ErrUnreachable
			}
			return nil
		}))
	})
	t.Run("interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		g := gated(backendtest.Memory(), "Part", false)
		write(t, ctx, g)
	})
}

// What was written after a push and never pushed outlives the process.
func TestWrittenAfterPushIsHeld(t *testing.T) {
	dir, m := t.TempDir(), backendtest.Memory()
	t.Run("first", func(t *testing.T) {
		cl := open(t, dir, map[string]backends.Store{"mem": m}).Client("mem")
		s := stage(t, cl, red, squash(t, 1, 1000))
		if _, err := s.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.WriteAt([]byte("more"), 1000); err != nil {
			t.Fatal(err)
		}
		s.Finish(true)
	})
	c := open(t, dir, map[string]backends.Store{"mem": m})
	c.Resume()
	if held := c.Held(); len(held) != 1 || held[0].Bytes != 1004 {
		t.Errorf("held after a restart: %+v", held)
	}
}

// Nothing is kept of a file that nobody changed, or that is empty.
func TestNothingToKeep(t *testing.T) {
	c := open(t, t.TempDir(), map[string]backends.Store{"mem": backendtest.Memory()})
	cl := c.Client("mem")
	img, err := push(t, cl, red, squash(t, 1, 100_000), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	s, err := cl.Edit(t.Context(), img, false)
	if err != nil {
		t.Fatal(err)
	}
	s.Finish(true)
	if s, err = cl.Edit(t.Context(), img, true); err != nil {
		t.Fatal(err)
	}
	s.Finish(true)
	s = stage(t, cl, red, []byte("something"))
	if err := s.Truncate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	s.Finish(true)
	if held := c.Held(); len(held) != 0 {
		t.Errorf("held: %+v", held)
	}
}

// crashInPush leaves an upload of data under red that was cut off by the
// program's end.
func crashInPush(t *testing.T, dir string, m backends.Store, data []byte) {
	t.Run("crash", func(t *testing.T) {
		g := gated(m, "Commit", false)
		c := open(t, dir, map[string]backends.Store{"mem": g})
		s := stage(t, c.Client("mem"), red, data)
		go func() { <-g.reached; c.cancel() }()
		if _, err := s.Commit(t.Context()); err == nil {
			t.Fatal("the push was not cut off")
		}
		s.Finish(true)
	})
}

// What a crash left of a copy goes once the whole was pushed under the name, and
// stays where anything in it is not part of that.
func TestSuperseded(t *testing.T) {
	data := squash(t, 1, 3<<20)
	for name, c := range map[string]struct {
		left []byte
		held int
	}{
		"beginning": {data[:2<<20+7], 0},
		"all":       {data, 0},
		"other":     {append(bytes.Clone(data[:1<<20]), "other"...), 1},
		"longer":    {append(bytes.Clone(data), 0), 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir, m := t.TempDir(), backendtest.Memory()
			t.Run("crash", func(t *testing.T) {
				stage(t, open(t, dir, map[string]backends.Store{"mem": m}).Client("mem"), red, c.left).Finish(true)
			})
			cat := open(t, dir, map[string]backends.Store{"mem": m})
			cat.Resume()
			held := cat.Held()
			if len(held) != 1 || held[0].State != string(staging.Failed) || !strings.Contains(held[0].Error, "cut off") {
				t.Fatalf("after the crash: %+v", held)
			}
			s := stage(t, cat.Client("mem"), red, data)
			if _, err := s.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.Finish(false)
			if held := cat.Held(); len(held) != c.held {
				t.Errorf("after the push: %+v", held)
			}
			mustHave(t, cat.Client("mem"), red, data)
		})
	}
}

// An upload is taken up again, but never over what came in between.
func TestResume(t *testing.T) {
	before, mine, newer := squash(t, 1, 50_000), squash(t, 2, 60_000), squash(t, 3, 70_000)
	for name, c := range map[string]struct{ before, newer, want []byte }{
		"new":                {nil, nil, mine},
		"over what it saw":   {before, nil, mine},
		"something came":     {nil, newer, newer},
		"something replaced": {before, newer, newer},
	} {
		t.Run(name, func(t *testing.T) {
			dir, m := t.TempDir(), backendtest.Memory()
			if c.before != nil {
				m.Put(red, c.before, nil)
			}
			crashInPush(t, dir, m, mine)
			if c.newer != nil {
				m.Put(red, c.newer, nil)
			}
			cat := open(t, dir, map[string]backends.Store{"mem": m})
			cat.Resume()
			cat.work.Wait()
			mustHave(t, cat.Client("mem"), red, c.want)
			if held := len(cat.Held()); held != 0 && c.newer == nil || held != 1 && c.newer != nil {
				t.Errorf("%d files are held", held)
			}
		})
	}
}

// A remote that cannot be reached at the time is asked again, in this run and
// the next.
func TestResumeWithoutNetwork(t *testing.T) {
	dir, m, data := t.TempDir(), backendtest.Memory(), squash(t, 1, 60_000)
	crashInPush(t, dir, m, data)
	t.Run("offline", func(t *testing.T) {
		asked := make(chan struct{}, 100)
		c := open(t, dir, map[string]backends.Store{"mem": backendtest.Flaky(m, func(backendtest.Call) error {
			asked <- struct{}{}
			return backends.ErrUnreachable
		})})
		c.Resume()
		<-asked
	})
	var calls atomic.Int64
	c := open(t, dir, map[string]backends.Store{"mem": backendtest.Flaky(m, func(backendtest.Call) error {
		if calls.Add(1) == 1 {
			return backends.ErrUnreachable
		}
		return nil
	})})
	c.Resume()
	c.work.Wait()
	mustHave(t, c.Client("mem"), red, data)
}

// A time that is set while the push is under way holds for what was pushed.
func TestTimeSetDuringPush(t *testing.T) {
	g := gated(backendtest.Memory(), "Commit", false)
	cl := open(t, t.TempDir(), map[string]backends.Store{"mem": g}).Client("mem")
	s := stage(t, cl, red, squash(t, 1, 1000))
	then := time.Date(2020, 2, 2, 2, 2, 2, 0, time.UTC)
	go func() {
		<-g.reached
		s.SetModified(then)
		close(g.open)
	}()
	img, err := s.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Finish(true)
	if got := cl.Modified(img); !got.Equal(then) {
		t.Errorf("modified %v, want %v", got, then)
	}
}
