package catalog

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/backends/dropbox"
	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

// TestRewrittenAfterParts: what was sent ahead is changed before the close, and the
// program is killed as the push begins anew. The next one does not go on with the
// parts of before, whose checksum Dropbox would find right.
func TestRewrittenAfterParts(t *testing.T) {
	srv := dropboxtest.New(dropboxtest.Options{LongpollMax: 100 * time.Millisecond})
	t.Cleanup(srv.Close)
	env := map[string]string{dropbox.TokenSetting: srv.Token(), dropbox.BaseSetting: srv.URL + "/"}
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	store, err := dropbox.Open(t.Context(), backends.Settings{Client: "dropbox", Getenv: func(name string) string { return env[name] },
		Log: slog.New(slog.DiscardHandler), Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	dir, next := t.TempDir(), t.TempDir()
	var begun atomic.Int32
	killed := backendtest.Wrap(store, func(ctx context.Context, c backendtest.Call) error {
		if c.Op == "Begin" && begun.Add(1) == 2 {
			if err := os.CopyFS(filepath.Join(next, "staging"), os.DirFS(filepath.Join(dir, "staging"))); err != nil {
				t.Error(err)
			}
			return errors.New("killed")
		}
		return nil
	})
	cl := open(t, dir, map[string]backends.Store{"dropbox": killed}).Client("dropbox")
	data := squash(t, 1, 17<<20)
	s := stage(t, cl, red, data)
	until(t, "parts that are sent ahead", func() bool { return strings.Contains(s.file.Meta().UploadState, "session") })
	header := bytes.Repeat([]byte{0xAA}, 4096)
	copy(data, header)
	if _, err := s.WriteAt(header, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context()); err == nil {
		t.Fatal("it was not killed")
	}
	c := open(t, next, map[string]backends.Store{"dropbox": store})
	c.Resume()
	until(t, "the end of the push", func() bool { return len(c.Held()) == 0 })
	if got, _ := srv.Get("/pusheen/asaurus:red.simg"); !bytes.Equal(got, data) {
		t.Error("the remote has a blend")
	}
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

// stuck is a store whose parts do not arrive.
func stuck(m *backendtest.MemoryStore, on *atomic.Bool) backends.Store {
	return backendtest.Wrap(m, func(ctx context.Context, c backendtest.Call) error {
		if c.Op == "Part" && on.Load() {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
}

// TestEditInterrupted: the copy that an edit begins with sends nothing, so that it
// neither waits for a network that is gone nor leaves an upload behind.
func TestEditInterrupted(t *testing.T) {
	m := backendtest.Memory()
	m.PartBytes = 4 << 20
	var on atomic.Bool
	cl := open(t, t.TempDir(), map[string]backends.Store{"mem": stuck(m, &on)}).Client("mem")
	img, err := push(t, cl, red, squash(t, 1, 12<<20), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	on.Store(true)
	s, err := cl.Edit(t.Context(), img, false)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	ahead := s.ahead != nil
	s.mu.Unlock()
	if n := m.Uploads(); n > 0 || ahead {
		t.Errorf("%d uploads were begun, one ahead: %v", n, ahead)
	}
	s.Discard()
}

// TestAbandonedAhead: a push that waits for what was sent ahead can be given up.
func TestAbandonedAhead(t *testing.T) {
	m := backendtest.Memory()
	m.PartBytes = 8 << 20
	var on atomic.Bool
	on.Store(true)
	cl := open(t, t.TempDir(), map[string]backends.Store{"mem": stuck(m, &on)}).Client("mem")
	s := stage(t, cl, red, squash(t, 1, 9<<20))
	until(t, "an upload", func() bool { return m.Uploads() > 0 })
	go func() { _, _ = s.Commit(t.Context()) }()
	until(t, "a push", s.Pushing)
	until(t, "the journal", func() bool { return s.file.Meta().State == "uploading" })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.Abandon(ctx); err != nil {
		t.Errorf("it goes on: %v", err)
	}
	until(t, "the end of the upload", func() bool { return m.Uploads() == 0 })
}

// slowTags is a store that does not say which tags it has.
type slowTags struct{ *backendtest.MemoryStore }

func (slowTags) Deduplicates() {}

func (slowTags) Tags(ctx context.Context, collection, name string) ([]string, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestLookEndsWithCopy: the search for a like image does not hold up a push.
func TestLookEndsWithCopy(t *testing.T) {
	m := backendtest.Memory()
	cl := open(t, t.TempDir(), map[string]backends.Store{"mem": slowTags{m}}).Client("mem")
	data := squash(t, 1, 9<<20)
	s := stage(t, cl, red, data)
	ctx, cancel := context.WithTimeout(t.Context(), moment/2)
	defer cancel()
	if _, err := s.Commit(ctx); err != nil {
		t.Error(err)
	}
	s.Finish(true)
	mustHave(t, cl, red, data)
}
