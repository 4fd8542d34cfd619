package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// recorder notes whether a case failed. Fatal ends the case's goroutine, as
// with testing.T.
type recorder struct {
	mu   sync.Mutex
	said []string
}

func (r *recorder) Helper() {}
func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, fmt.Sprintf(format, args...))
}
func (r *recorder) Error(args ...any)                 { r.Errorf("%s", fmt.Sprint(args...)) }
func (r *recorder) Fatalf(format string, args ...any) { r.Errorf(format, args...); runtime.Goexit() }
func (r *recorder) Fatal(args ...any)                 { r.Fatalf("%s", fmt.Sprint(args...)) }

// record runs one case and returns what it complained of.
func record(t *testing.T, name string, s backends.Store, o Opts) []string {
	t.Helper()
	i := slices.IndexFunc(allCases(), func(c testCase) bool { return c.name == name })
	if i < 0 {
		t.Fatalf("there is no case %q", name)
	}
	c := allCases()[i]
	if c.needs != nil && !c.needs(o) {
		t.Fatalf("case %q is left out", name)
	}
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		c.run(&env{reporter: r, t: t, opts: o, store: s, ctx: ctx})
	}()
	<-done
	return r.said
}

// The wrong stores are MemoryStores with one method that does what careless
// clients do.

type dropsOne struct{ *MemoryStore }

func (s dropsOne) List(ctx context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		n := 0
		for e, err := range s.MemoryStore.List(ctx) {
			// Every tenth image: what lies between two pages.
			if err == nil && e.Collection == "" {
				if n++; n%11 == 0 {
					continue
				}
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

type listsTwice struct{ *MemoryStore }

func (s listsTwice) List(ctx context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		for e, err := range s.MemoryStore.List(ctx) {
			if !yield(e, err) || err == nil && e.Collection == "" && !yield(e, nil) {
				return
			}
		}
	}
}

// shortWhenCancelled takes "could not ask" for the end of the list.
type shortWhenCancelled struct{ *MemoryStore }

func (s shortWhenCancelled) List(ctx context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		for e, err := range s.MemoryStore.List(ctx) {
			if err != nil || !yield(e, nil) {
				return
			}
		}
	}
}

// absentIsUnreachable cannot tell whether there is such a version.
type absentIsUnreachable struct{ *MemoryStore }

func (s absentIsUnreachable) Stat(ctx context.Context, r backends.Ref) (backends.Image, error) {
	img, err := s.MemoryStore.Stat(ctx, r)
	if r.Version != "" && errors.Is(err, iofs.ErrNotExist) {
		err = fmt.Errorf("stat %s: %w", r, backends.ErrUnreachable)
	}
	return img, err
}

type ignoresTags struct{ *MemoryStore }

func (s ignoresTags) Stat(ctx context.Context, r backends.Ref) (backends.Image, error) {
	for e := range s.List(ctx) {
		if e.Collection == "" && e.Image.Ref.Collection == r.Collection && e.Image.Ref.Name == r.Name {
			return e.Image, nil
		}
	}
	return s.MemoryStore.Stat(ctx, r)
}

// body is a body with a Read of its own.
type body struct {
	read func([]byte) (int, error)
}

func (b body) Read(p []byte) (int, error) { return b.read(p) }
func (b body) Close() error               { return nil }

// opens is a store with an OpenRange of its own.
type opens struct {
	*MemoryStore
	open func(m *MemoryStore, ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error)
}

func (s opens) OpenRange(ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error) {
	return s.open(s.MemoryStore, ctx, img, off, n)
}

func inclusiveEnd(m *MemoryStore, ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error) {
	return m.OpenRange(ctx, img, off, n+1)
}

func refusesPastEnd(m *MemoryStore, ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error) {
	if off >= img.Size {
		return nil, errors.New("HTTP 416")
	}
	return m.OpenRange(ctx, img, off, n)
}

func takesNegative(m *MemoryStore, ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error) {
	return m.OpenRange(ctx, img, max(0, off), n)
}

// leaks leaves a goroutine waiting until the body was read whole.
func leaks(m *MemoryStore, ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error) {
	rc, err := m.OpenRange(ctx, img, off, n)
	if err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	go func() { io.Copy(pw, rc); pw.Close() }()
	return body{pr.Read}, nil // Close does not reach the pipe
}

func ignoresContext(m *MemoryStore, ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error) {
	return m.OpenRange(context.WithoutCancel(ctx), img, off, n)
}

// readsNewest opens by name instead of by revision.
func readsNewest(m *MemoryStore, ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error) {
	now, err := m.Stat(ctx, img.Ref)
	if err != nil {
		return nil, err
	}
	return m.OpenRange(ctx, now, off, n)
}

// blends pins nothing: each Read asks for what is there now.
func blends(m *MemoryStore, ctx context.Context, img backends.Image, off, _ int64) (io.ReadCloser, error) {
	return body{func(p []byte) (int, error) {
		rc, err := readsNewest(m, ctx, img, off, int64(len(p)))
		if err != nil {
			return 0, err
		}
		n, err := io.ReadFull(rc, p)
		off += int64(n)
		if n > 0 {
			err = nil
		}
		return n, err
	}}, nil
}

// commits is a store whose uploads have a Commit of their own.
type commits struct {
	*MemoryStore
	commit func(u *commitUpload, ctx context.Context, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error)
	part   func(u *commitUpload, ctx context.Context, off int64, r io.ReaderAt) error
}

type commitUpload struct {
	backends.Upload
	s   commits
	ref backends.Ref
}

func (s commits) Begin(ctx context.Context, r backends.Ref, resume string) (backends.Upload, error) {
	u, err := s.MemoryStore.Begin(ctx, r, resume)
	return &commitUpload{u, s, r}, err
}

func (u *commitUpload) Commit(ctx context.Context, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
	if u.s.commit == nil {
		return u.Upload.Commit(ctx, r, size, c)
	}
	return u.s.commit(u, ctx, r, size, c)
}

func (u *commitUpload) Part(ctx context.Context, off int64, r io.ReaderAt) error {
	if u.s.part == nil {
		return u.Upload.Part(ctx, off, r)
	}
	return u.s.part(u, ctx, off, r)
}

// leavesPartial writes under the final name as it reads.
func leavesPartial(u *commitUpload, ctx context.Context, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
	img, err := u.Upload.Commit(ctx, r, size, c)
	if err != nil && !errors.Is(err, backends.ErrStale) {
		u.s.Put(u.ref, []byte("half of it"), nil)
	}
	return img, err
}

func commitsWhenCancelled(u *commitUpload, ctx context.Context, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
	img, err := u.Upload.Commit(context.WithoutCancel(ctx), r, size, c)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return img, err
}

// addsAnother is what the seeds warn of: a second file of the same name.
func addsAnother(u *commitUpload, ctx context.Context, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
	img, err := u.Upload.Commit(ctx, r, size, c)
	if c.Replaces != nil && err == nil {
		m := u.s.MemoryStore
		m.mu.Lock()
		defer m.mu.Unlock()
		twin := *m.objects[m.key(u.ref)]
		twin.id, twin.key = "twin", twin.key+"#2"
		m.objects[twin.key] = &twin
	}
	return img, err
}

func overwritesBlindly(u *commitUpload, ctx context.Context, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
	if now, err := u.s.Stat(ctx, u.ref); err == nil {
		c.Replaces = &now
	}
	return u.Upload.Commit(ctx, r, size, c)
}

// ignoresOrder appends parts as they come.
func ignoresOrder() commits {
	var mu sync.Mutex
	var n int64
	return commits{MemoryStore: Memory(), part: func(u *commitUpload, ctx context.Context, off int64, r io.ReaderAt) error {
		buf := make([]byte, u.PartSize())
		if _, err := r.ReadAt(buf, off); err != nil && err != io.EOF {
			return err
		}
		mu.Lock()
		at := n
		n += u.PartSize()
		mu.Unlock()
		return u.Upload.Part(ctx, at, shifted{bytes.NewReader(buf), at})
	}}
}

type shifted struct {
	r  *bytes.Reader
	by int64
}

func (s shifted) ReadAt(p []byte, off int64) (int, error) { return s.r.ReadAt(p, off-s.by) }

// visibleEarly shows an upload from its first part on, and after Abort.
func visibleEarly(u *commitUpload, ctx context.Context, off int64, r io.ReaderAt) error {
	u.s.Put(u.ref, []byte("a part"), nil)
	return u.Upload.Part(ctx, off, r)
}

// forgetsParts resumes with nothing.
type forgetsParts struct{ *MemoryStore }

func (s forgetsParts) Begin(ctx context.Context, r backends.Ref, _ string) (backends.Upload, error) {
	return s.MemoryStore.Begin(ctx, r, "")
}

// weakRevision takes size and nothing else for the revision.
type weakRevision struct{ commits }

func newWeakRevision() weakRevision {
	return weakRevision{commits{MemoryStore: Memory(), commit: func(u *commitUpload, ctx context.Context, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
		img, err := u.Upload.Commit(ctx, r, size, c)
		img.Revision = fmt.Sprint(img.Size)
		return img, err
	}}}
}

type removesTwice struct{ *MemoryStore }

func (s removesTwice) Remove(ctx context.Context, img backends.Image) error {
	if err := s.MemoryStore.Remove(ctx, img); !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	return nil
}

type renameCopies struct{ *MemoryStore }

func (s renameCopies) Rename(ctx context.Context, img backends.Image, to backends.Ref) (backends.Image, error) {
	now, err := s.MemoryStore.Rename(ctx, img, to)
	if err == nil {
		s.Put(img.Ref, []byte("left behind"), nil)
	}
	return now, err
}

type removesAll struct{ *MemoryStore }

func (s removesAll) RemoveCollection(ctx context.Context, name string) error {
	for e := range s.List(ctx) {
		if e.Collection == "" && e.Image.Ref.Collection == name {
			s.Remove(ctx, e.Image)
		}
	}
	return s.MemoryStore.RemoveCollection(ctx, name)
}

type makesAgain struct{ *MemoryStore }

func (s makesAgain) MakeCollection(ctx context.Context, name string) error {
	if err := s.MemoryStore.MakeCollection(ctx, name); !errors.Is(err, iofs.ErrExist) {
		return err
	}
	return nil
}

type findsAny struct{ *MemoryStore }

func (s findsAny) FindCollection(_ context.Context, name string) (string, error) { return name, nil }

type sharesAnew struct{ *MemoryStore }

func (s sharesAnew) Share(ctx context.Context, img backends.Image, email string) (backends.Share, error) {
	sh, err := s.MemoryStore.Share(ctx, img, email)
	sh.URL += fmt.Sprint("?", time.Now().UnixNano())
	return sh, err
}

type oldestFirst struct{ *MemoryStore }

func (s oldestFirst) Versions(ctx context.Context, r backends.Ref) ([]backends.Image, error) {
	all, err := s.MemoryStore.Versions(ctx, r)
	slices.Reverse(all)
	return all, err
}

// feeds is a store that alters what its feed tells.
type feeds struct {
	*MemoryStore
	keep func(backends.Change) bool
}

func (s feeds) Changes(ctx context.Context, cursor string, wait time.Duration) (backends.Changes, error) {
	ch, err := s.MemoryStore.Changes(ctx, cursor, wait)
	ch.List = slices.DeleteFunc(ch.List, func(c backends.Change) bool { return !s.keep(c) })
	return ch, err
}

type quietAboutCancel struct{ *MemoryStore }

func (s quietAboutCancel) Changes(ctx context.Context, cursor string, wait time.Duration) (backends.Changes, error) {
	ch, err := s.MemoryStore.Changes(ctx, cursor, wait)
	if ctx.Err() != nil {
		time.Sleep(time.Millisecond)
		return backends.Changes{Cursor: cursor}, nil
	}
	return ch, err
}

type anyCursor struct{ *MemoryStore }

func (s anyCursor) Changes(ctx context.Context, cursor string, wait time.Duration) (backends.Changes, error) {
	ch, err := s.MemoryStore.Changes(ctx, cursor, wait)
	if errors.Is(err, backends.ErrCursorReset) {
		return backends.Changes{Cursor: "0"}, nil
	}
	return ch, err
}

// mangles is a store whose names go through f on their way in.
type mangles struct {
	*MemoryStore
	f func(string) string
}

func (s mangles) ref(r backends.Ref) backends.Ref { r.Name = s.f(r.Name); return r }

func (s mangles) Stat(ctx context.Context, r backends.Ref) (backends.Image, error) {
	return s.MemoryStore.Stat(ctx, s.ref(r))
}

func (s mangles) Begin(ctx context.Context, r backends.Ref, resume string) (backends.Upload, error) {
	return s.MemoryStore.Begin(ctx, s.ref(r), resume)
}

// refusesLate keeps to itself which names it cannot keep.
type refusesLate struct{ *MemoryStore }

func (s refusesLate) Begin(ctx context.Context, r backends.Ref, resume string) (backends.Upload, error) {
	if strings.HasSuffix(r.Collection, " ") {
		return nil, s.fail("push", r, backends.ErrInvalidName)
	}
	return s.MemoryStore.Begin(ctx, r, resume)
}

func replaces(old, new string) func(string) string {
	return func(s string) string { return strings.ReplaceAll(s, old, new) }
}

// cannotShare has lost a capability.
type cannotShare struct {
	backends.Store
	backends.Pusher
}

func TestWrongStoresFail(t *testing.T) {
	opener := func(f func(*MemoryStore, context.Context, backends.Image, int64, int64) (io.ReadCloser, error)) backends.Store {
		return opens{Memory(), f}
	}
	folding := Memory()
	folding.FoldCase = true
	deleted := func(c backends.Change) bool { return c.Deleted }
	for _, c := range []struct {
		what  string
		store backends.Store
		fails string
	}{
		{"drops an image between two pages", dropsOne{Memory()}, "List/Pages"},
		{"lists twice", listsTwice{Memory()}, "List/CompleteOnce"},
		{"takes a cancelled listing for complete", shortWhenCancelled{Memory()}, "List/Cancelled"},
		{"calls an absent version unreachable", absentIsUnreachable{Memory()}, "Stat/Absent"},
		{"ignores tags", ignoresTags{Memory()}, "Stat/ByTag"},
		{"reads a byte too much", opener(inclusiveEnd), "OpenRange/Ranges"},
		{"fails past the end", opener(refusesPastEnd), "OpenRange/Ranges"},
		{"takes a negative offset", opener(takesNegative), "OpenRange/Negative"},
		{"leaks a goroutine", opener(leaks), "OpenRange/CloseEarly"},
		{"ignores the context", opener(ignoresContext), "OpenRange/CancelledOnTheWay"},
		{"reads the newest", opener(readsNewest), "OpenRange/ReplacedBefore"},
		{"reads the newest of another", opener(readsNewest), "OpenRange/UnknownRevision"},
		{"blends versions", opener(blends), "OpenRange/ReplacedWhileOpen"},
		{"leaves half an image", commits{MemoryStore: Memory(), commit: leavesPartial}, "Push/ReaderFails"},
		{"commits though cancelled", commits{MemoryStore: Memory(), commit: commitsWhenCancelled}, "Push/Cancelled"},
		{"adds a second entry", commits{MemoryStore: Memory(), commit: addsAnother}, "Push/Twice"},
		{"overwrites blindly", commits{MemoryStore: Memory(), commit: overwritesBlindly}, "Push/Stale"},
		{"ignores parts' offsets", ignoresOrder(), "Push/PartsParallel"},
		{"shows what is not committed", commits{MemoryStore: Memory(), part: visibleEarly}, "Push/HiddenUntilCommit"},
		{"leaves aborted parts", commits{MemoryStore: Memory(), part: visibleEarly}, "Push/Abort"},
		{"does not resume", forgetsParts{Memory()}, "Push/Resume"},
		{"has weak revisions", newWeakRevision(), "Push/OverwriteSameSize"},
		{"removes what is not there", removesTwice{Memory()}, "Remove/Absent"},
		{"copies instead of renaming", renameCopies{Memory()}, "Rename/Tag"},
		{"removes a full collection", removesAll{Memory()}, "Collections/RemoveNotEmpty"},
		{"makes a collection again", makesAgain{Memory()}, "Collections/Make"},
		{"finds any collection", findsAny{Memory()}, "Collections/Find"},
		{"shares anew each time", sharesAnew{Memory()}, "Share/Link"},
		{"has the oldest version first", oldestFirst{Memory()}, "Versions/Old"},
		{"does not tell of removals", feeds{Memory(), func(c backends.Change) bool { return !c.Deleted }}, "Watch/Remove"},
		{"does not tell of what is new", feeds{Memory(), deleted}, "Watch/Push"},
		{"does not tell of overwrites", feeds{Memory(), deleted}, "Watch/Overwrite"},
		{"does not tell of renames", feeds{Memory(), deleted}, "Watch/Rename"},
		{"does not tell of collections", feeds{Memory(), func(c backends.Change) bool { return c.Entry.Collection == "" }}, "Watch/Collections"},
		{"waits on though cancelled", quietAboutCancel{Memory()}, "Watch/Cancelled"},
		{"takes any cursor", anyCursor{Memory()}, "Watch/BadCursor"},
		{"decodes names", mangles{Memory(), replaces("%20", " ")}, "Names/PercentEncoded"},
		{"takes + for a space", mangles{Memory(), replaces("+", " ")}, "Names/Plus"},
		{"composes names", mangles{Memory(), replaces("e\u0301", "\u00e9")}, "Names/NormalizationMatters"},
		{"folds case", folding, "Names/CaseMatters"},
		{"refuses a name when all is copied", refusesLate{Memory()}, "Names/Refused"},
		{"has lost a capability", cannotShare{Memory(), Memory()}, "Capabilities/Declared"},
	} {
		t.Run(c.what, func(t *testing.T) {
			o := everything
			o.Settle = 200 * time.Millisecond
			said := record(t, c.fails, c.store, o)
			if len(said) == 0 {
				t.Errorf("%s passes", c.fails)
			}
			// The same case must be able to pass, or its failing says nothing.
			if said := record(t, c.fails, Memory(), everything); len(said) > 0 {
				t.Errorf("%s fails for a good store: %q", c.fails, said)
			}
			t.Logf("%q", said)
		})
	}
}
