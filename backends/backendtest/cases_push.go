package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/sregfs/sregfs/backends"
)

func canPush(o Opts) bool { return o.HasPush }

var pushCases = []testCase{
	{"Push/Small", canPush, func(e *env) {
		r := ref("pusheen", "asaurus", "red")
		data := []byte("a small image")
		img := e.push(r, data)
		now := e.stat(r)
		if img.Ref != r || img.Size != int64(len(data)) || img.Revision != now.Revision || identity(img) != identity(now) || img.Sum != now.Sum {
			e.Errorf("Commit returns %+v, Stat %+v", img, now)
		}
		if h := backends.NewHash(img.Sum.Algorithm); !img.Sum.IsZero() {
			if h == nil {
				e.Fatalf("unknown checksum %s", img.Sum)
			}
			h.Write(data)
			if want := backends.SumOf(img.Sum.Algorithm, h); img.Sum != want {
				e.Errorf("checksum %s, want %s", img.Sum, want)
			}
		}
		if len(img.Version) == 32 && img.Version != contentOf(data, nil).MD5 {
			e.Errorf("version %s, want the MD5 %s", img.Version, contentOf(data, nil).MD5)
		}
		e.wantOne(r)
		e.wantContent(img, data)
		e.wantContent(now, data)
	}},
	{"Push/Empty", canPush, func(e *env) {
		r := ref("c", "empty", "x")
		if img := e.push(r, nil); img.Size != 0 {
			e.Errorf("size %d", img.Size)
		}
		e.wantContent(e.stat(r), nil)
	}},
	{"Push/HiddenUntilCommit", canPush, func(e *env) {
		r := ref("c", "i", "x")
		u := e.begin(r, "")
		data := random(10, int(max(u.PartSize(), 1)))
		if u.PartSize() > 0 {
			e.must(u.Part(e.ctx, 0, bytes.NewReader(data)), "Part")
		}
		e.wantNone(r)
		_, err := u.Commit(e.ctx, bytes.NewReader(data), int64(len(data)), contentOf(data, nil))
		e.must(err, "Commit")
		e.wantOne(r)
	}},
	{"Push/Parts", canPush, func(e *env) {
		u := e.begin(ref("c", "i", "x"), "")
		if has := u.PartSize() > 0; has != e.opts.HasParts {
			e.Fatalf("HasParts is %v, PartSize() %d", e.opts.HasParts, u.PartSize())
		}
		if !e.opts.HasParts {
			return
		}
		size := u.PartSize()
		data := random(11, int(2*size+size/2))
		for off := int64(0); off+size <= int64(len(data)); off += size {
			if u.Sent() != off {
				e.Errorf("Sent() = %d before the part at %d", u.Sent(), off)
			}
			e.must(u.Part(e.ctx, off, bytes.NewReader(data)), "Part(%d)", off)
		}
		img, err := u.Commit(e.ctx, bytes.NewReader(data), int64(len(data)), contentOf(data, nil))
		e.must(err, "Commit")
		e.wantContent(img, data)
	}},
	{"Push/PartsAlone", func(o Opts) bool { return o.HasPush && o.HasParts }, func(e *env) {
		// The last part ends where the image does.
		u := e.begin(ref("c", "i", "x"), "")
		data := random(12, int(2*u.PartSize()))
		for off := int64(0); off < int64(len(data)); off += u.PartSize() {
			e.must(u.Part(e.ctx, off, bytes.NewReader(data)), "Part(%d)", off)
		}
		img, err := u.Commit(e.ctx, bytes.NewReader(data), int64(len(data)), contentOf(data, nil))
		e.must(err, "Commit")
		e.wantContent(img, data)
	}},
	{"Push/PartsParallel", func(o Opts) bool { return o.HasPush && o.HasParts }, func(e *env) {
		u := e.begin(ref("c", "i", "x"), "")
		if u.Parallel() < 1 {
			e.Fatalf("Parallel() = %d", u.Parallel())
		}
		const parts = 5
		data := random(13, int(parts*u.PartSize()+1))
		slots := make(chan struct{}, u.Parallel())
		var wg sync.WaitGroup
		for i := range int64(parts) {
			if u.Parallel() > 1 {
				i = parts - 1 - i // nothing says that they come in order
			}
			slots <- struct{}{}
			wg.Go(func() {
				if err := u.Part(e.ctx, i*u.PartSize(), bytes.NewReader(data)); err != nil {
					e.Errorf("Part %d: %v", i, err)
				}
				<-slots
			})
		}
		wg.Wait()
		img, err := u.Commit(e.ctx, bytes.NewReader(data), int64(len(data)), contentOf(data, nil))
		e.must(err, "Commit")
		e.wantContent(img, data)
	}},
	{"Push/Resume", func(o Opts) bool { return o.HasPush && o.HasResume }, func(e *env) {
		r := ref("c", "i", "x")
		u := e.begin(r, "")
		size := u.PartSize()
		data := random(14, int(2*size+7))
		e.must(u.Part(e.ctx, 0, bytes.NewReader(data)), "Part")
		state := u.State()
		if state == "" {
			e.Fatal("State() is empty, though HasResume is set")
		}
		// Another process goes on with it; the first is gone.
		e.store = e.reopen()
		u = e.begin(r, state)
		if u.Sent() != size {
			e.Errorf("Sent() = %d after a resumption, want %d", u.Sent(), size)
		}
		// What was sent is not read again.
		rest := &holed{data: data, from: u.Sent()}
		img, err := u.Commit(e.ctx, rest, int64(len(data)), contentOf(data, nil))
		e.must(err, "Commit of what was resumed")
		e.wantContent(img, data)
		e.wantOne(r)
	}},
	{"Push/ResumeForgotten", canPush, func(e *env) {
		r := ref("c", "i", "x")
		data := []byte("begun anew")
		u := e.begin(r, "")
		state := u.State()
		e.must(u.Abort(e.ctx), "Abort")
		for _, state := range []string{state, "no such state", `{"id":"x"}`} {
			u := e.begin(r, state)
			if u.Sent() != 0 {
				e.Errorf("Sent() = %d after resuming from %q", u.Sent(), state)
			}
			_, err := u.Commit(e.ctx, bytes.NewReader(data), int64(len(data)), contentOf(data, e.present(r)))
			e.must(err, "Commit after resuming from %q", state)
		}
		e.wantOne(r)
		e.wantContent(e.stat(r), data)
	}},
	{"Push/Abort", canPush, func(e *env) {
		r := ref("c", "i", "x")
		u := e.begin(r, "")
		if u.PartSize() > 0 {
			e.must(u.Part(e.ctx, 0, bytes.NewReader(random(15, int(u.PartSize())))), "Part")
		}
		e.must(u.Abort(e.ctx), "Abort")
		e.wantNone(r)
	}},
	{"Push/ReaderFails", canPush, func(e *env) {
		fault := errors.New("the disk is broken")
		r := ref("c", "i", "x")
		old := []byte("what was there")
		for _, before := range []*backends.Image{nil, {}} {
			if before != nil {
				*before = e.push(r, old)
			}
			data := random(16, 300_000)
			_, err := e.tryPush(e.ctx, r, &broken{data, 100_000, fault}, int64(len(data)), contentOf(data, before))
			e.wantErr(err, fault, "Commit from a reader that fails")
			if before == nil {
				e.wantNone(r)
			} else {
				e.wantOne(r)
				e.wantContent(e.stat(r), old)
			}
		}
	}},
	{"Push/ReaderShort", canPush, func(e *env) {
		r := ref("c", "i", "x")
		data := random(17, 1000)
		if _, err := e.tryPush(e.ctx, r, bytes.NewReader(data), 2000, backends.Content{}); err == nil {
			e.Error("Commit of 2000 bytes succeeds with 1000")
		}
		e.wantNone(r)
	}},
	{"Push/WrongContent", func(o Opts) bool { return o.HasPush && o.ChecksContent }, func(e *env) {
		r := ref("c", "i", "x")
		data := random(18, 1000)
		_, err := e.tryPush(e.ctx, r, bytes.NewReader(data), 1000, contentOf(random(19, 1000), nil))
		e.wantErr(err, backends.ErrCorrupt, "Commit of other content than was announced")
		e.wantNone(r)
	}},
	{"Push/Cancelled", canPush, func(e *env) {
		r := ref("c", "i", "x")
		data := random(20, 1000)
		ctx, cancel := context.WithCancel(e.ctx)
		cancel()
		_, err := e.tryPush(ctx, r, bytes.NewReader(data), 1000, contentOf(data, nil))
		e.wantErr(err, context.Canceled, "Commit with a cancelled context")
		e.wantNone(r)
	}},
	{"Push/Overwrite", canPush, func(e *env) {
		r := ref("c", "i", "x")
		first := e.push(r, []byte("first"))
		second := e.push(r, []byte("the second"))
		if first.Revision == second.Revision {
			e.Errorf("both contents have the revision %s", first.Revision)
		}
		if now := e.stat(r); now.Revision != second.Revision || now.Size != 10 {
			e.Errorf("Stat after the overwrite = %+v, want %+v", now, second)
		}
		e.wantOne(r)
		e.wantContent(second, []byte("the second"))
	}},
	{"Push/OverwriteSameSize", canPush, func(e *env) {
		r := ref("c", "i", "x")
		seen := map[string]bool{}
		for i := range 5 {
			img := e.push(r, []byte{byte(i)})
			if seen[img.Revision] {
				e.Errorf("the revision %s comes a second time", img.Revision)
			}
			seen[img.Revision] = true
			e.wantContent(img, []byte{byte(i)})
		}
	}},
	{"Push/Twice", canPush, func(e *env) {
		r := ref("c", "i", "x")
		data := []byte("the same")
		e.push(r, data)
		e.push(r, data)
		e.wantOne(r)
		// And by somebody who does not know that it is there already.
		_, err := e.tryPush(e.ctx, r, bytes.NewReader(data), int64(len(data)), contentOf(data, nil))
		if err != nil && !errors.Is(err, backends.ErrStale) {
			e.Errorf("pushing the same again, unseen: %v", err)
		}
		if n := len(e.list().images); n != 1 {
			e.Errorf("%d images are listed after pushing the same thrice", n)
		}
		e.wantContent(e.stat(r), data)
	}},
	{"Push/Stale", func(o Opts) bool { return o.HasPush && o.ChecksReplaces }, func(e *env) {
		r := ref("c", "i", "x")
		first := e.push(r, []byte("first"))
		e.push(r, []byte("second, by somebody else"))
		mine := []byte("mine, upon the first")
		for what, replaces := range map[string]*backends.Image{"an older one": &first, "none": nil} {
			_, err := e.tryPush(e.ctx, r, bytes.NewReader(mine), int64(len(mine)), contentOf(mine, replaces))
			e.wantErr(err, backends.ErrStale, "Commit by who saw %s", what)
		}
		e.wantOne(r)
		e.wantContent(e.stat(r), []byte("second, by somebody else"))
	}},
	{"Push/AfterRemoval", func(o Opts) bool { return o.HasPush && o.HasRemove }, func(e *env) {
		r := ref("c", "i", "x")
		img := e.push(r, []byte("first"))
		e.must(capability[backends.Remover](e).Remove(e.ctx, img), "Remove")
		e.wantContent(e.push(r, []byte("again")), []byte("again"))
		e.wantOne(r)
	}},
	{"Push/Concurrent", canPush, func(e *env) {
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				r := ref("together", fmt.Sprintf("i%d", i), "x")
				data := random(uint64(30+i), 100_000)
				u, err := capability[backends.Pusher](e).Begin(e.ctx, r, "")
				if err != nil {
					e.Errorf("Begin(%s): %v", r, err)
					return
				}
				if _, err := u.Commit(e.ctx, bytes.NewReader(data), int64(len(data)), contentOf(data, nil)); err != nil {
					e.Errorf("Commit(%s): %v", r, err)
				}
			})
		}
		wg.Wait()
		if n := len(e.list().images); n != 4 {
			e.Errorf("%d images are listed, want 4", n)
		}
		for i := range 4 {
			e.wantContent(e.stat(ref("together", fmt.Sprintf("i%d", i), "x")), random(uint64(30+i), 100_000))
		}
	}},
}

// present is the image under r, nil when there is none.
func (e *env) present(r backends.Ref) *backends.Image {
	img, err := e.store.Stat(e.ctx, r)
	if err != nil {
		return nil
	}
	return &img
}

// broken is a reader that fails from some offset on.
type broken struct {
	data []byte
	good int64
	err  error
}

func (b *broken) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > b.good {
		n := 0
		if off < b.good {
			n = copy(p, b.data[off:b.good])
		}
		return n, b.err
	}
	return copy(p, b.data[off:]), nil
}

// holed is a reader that has nothing before from.
type holed struct {
	data []byte
	from int64
}

func (h *holed) ReadAt(p []byte, off int64) (int, error) {
	if off < h.from {
		return 0, fmt.Errorf("what lies at %d was sent already and is read again", off)
	}
	return bytes.NewReader(h.data).ReadAt(p, off)
}

var _ io.ReaderAt = (*holed)(nil)
