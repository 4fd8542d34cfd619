package backendtest

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// Call is one call of a store's method, or one Read of a body that OpenRange
// gave.
type Call struct {
	// Op is the method's name; "Read" for a body's Read, "Part" and "Commit"
	// for an upload's.
	Op  string
	Ref backends.Ref
	// Off and N are the arguments of OpenRange; of a Read, the offset and the
	// length of the buffer; of a Part, its offset.
	Off, N int64
}

// Wrap returns a store that calls before ahead of each call of s. An error
// from it is the call's. It offers every capability that MemoryStore has, and
// errors.ErrUnsupported where s lacks it.
func Wrap(s backends.Store, before func(ctx context.Context, c Call) error) backends.Store {
	return &wrapped{s, before}
}

// Slow returns a store on the far side of a slow line: each call takes latency
// more, and bodies come at bytesPerSecond (0 for at once). Waiting ends with
// the call's context.
func Slow(s backends.Store, latency time.Duration, bytesPerSecond int64) backends.Store {
	return Wrap(s, func(ctx context.Context, c Call) error {
		d := latency
		if c.Op == "Read" {
			if d = 0; bytesPerSecond > 0 {
				d = time.Duration(c.N) * time.Second / time.Duration(bytesPerSecond)
			}
		}
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// Flaky returns a store whose calls fail with what fault returns, unless that
// is nil.
func Flaky(s backends.Store, fault func(Call) error) backends.Store {
	return Wrap(s, func(_ context.Context, c Call) error { return fault(c) })
}

// Counter counts calls. It is safe for concurrent use.
type Counter struct {
	mu    sync.Mutex
	calls []Call
}

// Counting returns a store that counts the calls of s.
func Counting(s backends.Store) (backends.Store, *Counter) {
	n := &Counter{}
	return Wrap(s, func(_ context.Context, c Call) error {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.calls = append(n.calls, c)
		return nil
	}), n
}

// Count is the number of calls of that name.
func (n *Counter) Count(op string) int { return len(n.Calls(op)) }

// Calls are the calls of that name, in order; all with "".
func (n *Counter) Calls(op string) (list []Call) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.calls {
		if op == "" || c.Op == op {
			list = append(list, c)
		}
	}
	return list
}

// Reset forgets what was counted.
func (n *Counter) Reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = nil
}

type wrapped struct {
	backends.Store
	before func(context.Context, Call) error
}

func (w *wrapped) Unwrap() backends.Store { return w.Store }

// with calls f with the capability T of the wrapped store.
func with[T, R any](ctx context.Context, w *wrapped, op string, ref backends.Ref, f func(T) (R, error)) (R, error) {
	var zero R
	if err := w.before(ctx, Call{Op: op, Ref: ref}); err != nil {
		return zero, err
	}
	t, ok := backends.As[T](w.Store)
	if !ok {
		return zero, &backends.Error{Op: op, Ref: ref, Err: errors.ErrUnsupported}
	}
	return f(t)
}

func none(err error) (struct{}, error) { return struct{}{}, err }

func (w *wrapped) List(ctx context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		if err := w.before(ctx, Call{Op: "List"}); err != nil {
			yield(backends.Entry{}, err)
			return
		}
		w.Store.List(ctx)(yield)
	}
}

func (w *wrapped) Stat(ctx context.Context, ref backends.Ref) (backends.Image, error) {
	if err := w.before(ctx, Call{Op: "Stat", Ref: ref}); err != nil {
		return backends.Image{}, err
	}
	return w.Store.Stat(ctx, ref)
}

func (w *wrapped) OpenRange(ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error) {
	if err := w.before(ctx, Call{Op: "OpenRange", Ref: img.Ref, Off: off, N: n}); err != nil {
		return nil, err
	}
	rc, err := w.Store.OpenRange(ctx, img, off, n)
	if err != nil {
		return nil, err
	}
	return &wrappedBody{rc, ctx, w, img.Ref, off}, nil
}

type wrappedBody struct {
	io.ReadCloser
	ctx context.Context
	w   *wrapped
	ref backends.Ref
	off int64
}

func (b *wrappedBody) Read(p []byte) (int, error) {
	if err := b.w.before(b.ctx, Call{Op: "Read", Ref: b.ref, Off: b.off, N: int64(len(p))}); err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	b.off += int64(n)
	return n, err
}

func (w *wrapped) Begin(ctx context.Context, ref backends.Ref, resume string) (backends.Upload, error) {
	u, err := with(ctx, w, "Begin", ref, func(p backends.Pusher) (backends.Upload, error) { return p.Begin(ctx, ref, resume) })
	if err != nil {
		return nil, err
	}
	return &wrappedUpload{u, w, ref}, nil
}

type wrappedUpload struct {
	backends.Upload
	w   *wrapped
	ref backends.Ref
}

func (u *wrappedUpload) Part(ctx context.Context, off int64, r io.ReaderAt) error {
	if err := u.w.before(ctx, Call{Op: "Part", Ref: u.ref, Off: off}); err != nil {
		return err
	}
	return u.Upload.Part(ctx, off, r)
}

func (u *wrappedUpload) Commit(ctx context.Context, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
	if err := u.w.before(ctx, Call{Op: "Commit", Ref: u.ref, N: size}); err != nil {
		return backends.Image{}, err
	}
	return u.Upload.Commit(ctx, r, size, c)
}

func (w *wrapped) Remove(ctx context.Context, img backends.Image) error {
	_, err := with(ctx, w, "Remove", img.Ref, func(r backends.Remover) (struct{}, error) { return none(r.Remove(ctx, img)) })
	return err
}

func (w *wrapped) Rename(ctx context.Context, img backends.Image, to backends.Ref) (backends.Image, error) {
	return with(ctx, w, "Rename", img.Ref, func(r backends.Renamer) (backends.Image, error) { return r.Rename(ctx, img, to) })
}

func (w *wrapped) MakeCollection(ctx context.Context, name string) error {
	_, err := with(ctx, w, "MakeCollection", backends.Ref{Collection: name}, func(c backends.Collector) (struct{}, error) { return none(c.MakeCollection(ctx, name)) })
	return err
}

func (w *wrapped) FindCollection(ctx context.Context, name string) (string, error) {
	return with(ctx, w, "FindCollection", backends.Ref{Collection: name}, func(f backends.CollectionFinder) (string, error) { return f.FindCollection(ctx, name) })
}

func (w *wrapped) RemoveCollection(ctx context.Context, name string) error {
	_, err := with(ctx, w, "RemoveCollection", backends.Ref{Collection: name}, func(c backends.Collector) (struct{}, error) { return none(c.RemoveCollection(ctx, name)) })
	return err
}

func (w *wrapped) Share(ctx context.Context, img backends.Image, email string) (backends.Share, error) {
	return with(ctx, w, "Share", img.Ref, func(s backends.Sharer) (backends.Share, error) { return s.Share(ctx, img, email) })
}

func (w *wrapped) Search(ctx context.Context, word string) iter.Seq2[backends.Image, error] {
	seq, err := with(ctx, w, "Search", backends.Ref{}, func(s backends.Searcher) (iter.Seq2[backends.Image, error], error) { return s.Search(ctx, word), nil })
	if err != nil {
		return func(yield func(backends.Image, error) bool) { yield(backends.Image{}, err) }
	}
	return seq
}

func (w *wrapped) Find(ctx context.Context, id string) (backends.Image, error) {
	return with(ctx, w, "Find", backends.Ref{}, func(f backends.Finder) (backends.Image, error) { return f.Find(ctx, id) })
}

func (w *wrapped) Versions(ctx context.Context, ref backends.Ref) ([]backends.Image, error) {
	return with(ctx, w, "Versions", ref, func(v backends.Versioner) ([]backends.Image, error) { return v.Versions(ctx, ref) })
}

func (w *wrapped) Cursor(ctx context.Context) (string, error) {
	return with(ctx, w, "Cursor", backends.Ref{}, func(v backends.Watcher) (string, error) { return v.Cursor(ctx) })
}

func (w *wrapped) Changes(ctx context.Context, cursor string, wait time.Duration) (backends.Changes, error) {
	return with(ctx, w, "Changes", backends.Ref{}, func(v backends.Watcher) (backends.Changes, error) { return v.Changes(ctx, cursor, wait) })
}

func (w *wrapped) Usage(ctx context.Context) (backends.Usage, error) {
	return with(ctx, w, "Usage", backends.Ref{}, func(u backends.Usager) (backends.Usage, error) { return u.Usage(ctx) })
}

func (w *wrapped) Account(ctx context.Context) (string, error) {
	return with(ctx, w, "Account", backends.Ref{}, func(a backends.Accounter) (string, error) { return a.Account(ctx) })
}

func (w *wrapped) FoldsCase() bool {
	f, ok := backends.As[backends.CaseFolder](w.Store)
	return ok && f.FoldsCase()
}
