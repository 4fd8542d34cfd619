package catalog

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache/staging"
	"github.com/sregfs/sregfs/image"
)

// Staged is a file that is being written and will be pushed. Its bytes and its
// journal are on disk from the first write on. It is safe for concurrent use.
type Staged struct {
	cl   *Client
	file *staging.File

	mu    sync.Mutex
	to    backends.Ref // zero while the name is a temporary one
	dirty bool         // written to since the last commit
	mtime time.Time    // set by the user, zero for none
	sums  *prefixSums
	ahead *aheadUpload
	// aheadTried: sending ahead is begun once, after a rewrite not again.
	aheadTried bool
	flight     *flight // the commit under way
	pushed     *backends.Image
}

// flight is one commit that several callers may wait for.
type flight struct {
	done chan struct{}
	img  backends.Image
	err  error
}

// Stage begins a file that is to become the image to, or, with a zero to, one
// under a temporary name that a rename will decide.
func (cl *Client) Stage(ctx context.Context, to backends.Ref, tempName string) (*Staged, error) {
	if !cl.Writable() {
		return nil, cl.readOnly("push", to)
	}
	f, err := cl.cat.opts.Staging.Create(staging.Meta{
		Client: cl.Name, Collection: to.Collection, Name: to.Name, Tag: to.Tag, TempName: tempName,
	})
	if err != nil {
		return nil, &backends.Error{Op: "stage", Client: cl.Name, Ref: to, Err: err}
	}
	s := &Staged{cl: cl, file: f, to: to, sums: newPrefixSums()}
	return s, nil
}

// Edit begins a changed copy of an image: what is written replaces it.
func (cl *Client) Edit(ctx context.Context, img backends.Image, truncate bool) (*Staged, error) {
	s, err := cl.Stage(ctx, img.Ref.Latest(), "")
	if err != nil || truncate {
		return s, err
	}
	c, err := cl.Open(ctx, img)
	if err != nil {
		s.Discard()
		return nil, err
	}
	defer c.Close()
	if _, err := io.Copy(io.NewOffsetWriter(s, 0), io.NewSectionReader(readerAt{ctx, c}, 0, c.Size())); err != nil {
		s.Discard()
		return nil, &backends.Error{Op: "copy for editing", Client: cl.Name, Ref: img.Ref, Err: err}
	}
	s.mu.Lock()
	s.dirty = false
	s.mu.Unlock()
	return s, nil
}

// Ref is the image that the file is to become, zero while it has a temporary
// name.
func (s *Staged) Ref() backends.Ref {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.to
}

// Size is the file's present size in bytes.
func (s *Staged) Size() int64 {
	n, err := s.file.Size()
	if err != nil {
		return 0 // it was let go of
	}
	return n
}

// ReadAt reads what was written.
func (s *Staged) ReadAt(p []byte, off int64) (int, error) { return s.file.ReadAt(p, off) }

// WriteAt writes, and sends whole parts ahead where the store takes them.
func (s *Staged) WriteAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.file.WriteAt(p, off)
	if n > 0 {
		s.dirty, s.pushed = true, nil
		s.sums.wrote(p[:n], off)
		s.wroteAhead(off)
	}
	return n, err
}

// Truncate sets the file's size.
func (s *Staged) Truncate(size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.Size()
	if err := s.file.Truncate(size); err != nil {
		return err
	}
	if size != old {
		s.dirty, s.pushed = true, nil
		s.sums.truncated(size)
		if s.ahead != nil && size < s.ahead.next {
			s.stopAhead()
		}
	}
	return nil
}

// SetModified sets the time that the image will have.
func (s *Staged) SetModified(t time.Time) {
	s.mu.Lock()
	s.mtime = t
	s.mu.Unlock()
}

// Modified is the file's modification time.
func (s *Staged) Modified() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mtime.IsZero() {
		return s.mtime
	}
	return s.file.Meta().Updated
}

// Dirty reports whether there is something to commit.
func (s *Staged) Dirty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dirty
}

// Complete reports whether the bytes are a whole image as far as its own
// header tells. For contents of no known kind it is image.ErrNotImage, for one
// that is cut short an *image.TruncatedError.
func (s *Staged) Complete(ctx context.Context) error {
	_, err := image.Probe(ctx, s.file, s.Size())
	return err
}

// Truncated reports whether an error of Complete means that bytes are missing.
func Truncated(err error) bool {
	var cut *image.TruncatedError
	return errors.As(err, &cut)
}

// Commit pushes the file under its name: when it returns nil, the remote has
// it all. A caller whose ctx ends leaves; the push goes on, and a second
// Commit joins it. After a failure the bytes stay and Commit may be tried
// again.
func (s *Staged) Commit(ctx context.Context) (backends.Image, error) {
	s.mu.Lock()
	if s.flight == nil {
		if s.pushed != nil && !s.dirty {
			img := *s.pushed
			s.mu.Unlock()
			return img, nil
		}
		f := &flight{done: make(chan struct{})}
		s.flight, s.dirty = f, false
		s.cl.cat.work.Go(func() {
			f.img, f.err = s.push(s.cl.cat.ctx)
			s.mu.Lock()
			s.flight = nil
			if f.err != nil {
				s.dirty = true
			} else {
				s.pushed = &f.img
			}
			s.mu.Unlock()
			close(f.done)
		})
	}
	f := s.flight
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.img, f.err
	case <-ctx.Done():
		return backends.Image{}, context.Cause(ctx)
	}
}

// CommitAs gives a file under a temporary name its final one and commits it.
func (s *Staged) CommitAs(ctx context.Context, to backends.Ref) (backends.Image, error) {
	s.mu.Lock()
	if s.to != to {
		s.to, s.dirty, s.pushed = to, true, nil
		s.stopAhead()
	}
	s.mu.Unlock()
	err := s.file.Update(func(m *staging.Meta) { m.Collection, m.Name, m.Tag = to.Collection, to.Name, to.Tag })
	if err != nil {
		return backends.Image{}, err
	}
	return s.Commit(ctx)
}

// push does the work of Commit.
func (s *Staged) push(ctx context.Context) (img backends.Image, err error) {
	s.mu.Lock()
	to, mtime := s.to, s.mtime
	s.mu.Unlock()
	cl, size := s.cl, s.Size()
	defer func() {
		if err != nil && ctx.Err() == nil {
			cl.log.Error("push failed; the bytes are kept", "image", to.String(), "error", err)
			_ = s.file.Update(func(m *staging.Meta) { m.State, m.Error, m.Attempts = staging.Failed, err.Error(), m.Attempts+1 })
		}
	}()
	pusher, ok := backends.As[backends.Pusher](cl.Store)
	if !ok {
		return img, cl.readOnly("push", to)
	}
	if err := s.file.Sync(); err != nil {
		return img, &backends.Error{Op: "push", Client: cl.Name, Ref: to, Err: err}
	}
	content, sums, err := s.describe(ctx, size, mtime)
	if err != nil {
		return img, err
	}
	if current, err := cl.Store.Stat(ctx, to); err == nil {
		if !current.Sum.IsZero() && current.Size == size && sums(current.Sum.Algorithm) == current.Sum.Hex {
			// The remote has these very bytes under this name already.
			s.mu.Lock()
			s.stopAhead()
			s.mu.Unlock()
			return cl.pushed(ctx, s, current, content)
		}
		content.Replaces = &current
	} else if !isNotExist(err) {
		return img, err
	}
	up := s.takeAhead()
	if up == nil {
		if up, err = pusher.Begin(ctx, to, s.file.Meta().UploadState); err != nil {
			return img, err
		}
	}
	if err := s.file.Update(func(m *staging.Meta) {
		m.State, m.Size, m.MD5, m.SHA256, m.UploadState = staging.Uploading, size, content.MD5, content.SHA256, up.State()
	}); err != nil {
		return img, err
	}
	img, err = up.Commit(ctx, s.file, size, content)
	if err != nil {
		if up.State() == "" {
			_ = up.Abort(context.WithoutCancel(ctx))
		}
		return img, err
	}
	return cl.pushed(ctx, s, img, content)
}

// describe computes what a store wants to know of the bytes, and a function
// that gives their checksum in any algorithm, "" for an unknown one.
func (s *Staged) describe(ctx context.Context, size int64, mtime time.Time) (backends.Content, func(string) string, error) {
	s.mu.Lock()
	m5, s256, ok := s.sums.whole(size)
	s.mu.Unlock()
	if !ok {
		a, b := md5.New(), sha256.New()
		if err := hashFile(ctx, s.file, size, a, b); err != nil {
			return backends.Content{}, nil, err
		}
		m5, s256 = hex.EncodeToString(a.Sum(nil)), hex.EncodeToString(b.Sum(nil))
	}
	c := backends.Content{MD5: m5, SHA256: s256, Modified: mtime}
	if attrs, err := image.Inspect(ctx, s.file, size); err == nil {
		c.Labels = image.Labels(attrs)
		if data, err := json.Marshal(attrs); err == nil {
			// Kept under the checksum; pushed moves it to the image's key.
			_ = s.cl.cat.opts.Index.SetAttributes(ctx, backends.SHA256+":"+s256, data, c.Labels)
		}
	} else if !errors.Is(err, image.ErrNotImage) {
		s.cl.log.Warn("cannot look into an image that is pushed", "image", s.Ref().String(), "error", err)
	}
	return c, func(algorithm string) string {
		switch algorithm {
		case backends.MD5:
			return m5
		case backends.SHA256:
			return s256
		}
		h := backends.NewHash(algorithm)
		if h == nil || hashFile(ctx, s.file, size, h) != nil {
			return ""
		}
		return backends.SumOf(algorithm, h).Hex
	}, nil
}

// hashFile writes size bytes of r to all hashes.
func hashFile(ctx context.Context, r io.ReaderAt, size int64, hashes ...hash.Hash) error {
	w := make([]io.Writer, len(hashes))
	for i, h := range hashes {
		w[i] = h
	}
	n, err := io.Copy(io.MultiWriter(w...), io.NewSectionReader(ctxReaderAt{ctx, r}, 0, size))
	if err == nil && n != size {
		err = fmt.Errorf("staged file has %d of %d bytes: %w", n, size, io.ErrUnexpectedEOF)
	}
	return err
}

// ctxReaderAt stops a long read of a local file when ctx ends.
type ctxReaderAt struct {
	ctx context.Context
	r   io.ReaderAt
}

func (r ctxReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.ReadAt(p, off)
}

// pushed records that the remote has the bytes as img, and keeps them in the
// cache.
func (cl *Client) pushed(ctx context.Context, s *Staged, img backends.Image, c backends.Content) (backends.Image, error) {
	x, key := cl.cat.opts.Index, img.ContentKey(cl.Name)
	if img.Version == "" {
		img.Version = c.MD5
	}
	cl.cat.Learnt(key, c.MD5)
	if attrs, ok, err := x.Attributes(ctx, backends.SHA256+":"+c.SHA256); err == nil && ok {
		_ = x.SetAttributes(ctx, key, attrs, c.Labels)
	}
	cl.remember(img)
	if !c.Modified.IsZero() {
		_ = cl.SetModified(ctx, img, c.Modified)
	}
	if err := cl.record(ctx, img); err != nil {
		cl.log.Warn("cannot write a record", "image", img.Ref.String(), "error", err)
	}
	return img, s.file.Update(func(m *staging.Meta) { m.State, m.Error = staging.Acknowledged, "" })
}

// Finish ends a file that nobody has open any more. What was pushed moves into
// the cache; what was never meant to be pushed is dropped; what could not be
// pushed stays on disk for the next mount, as does what keep says.
func (s *Staged) Finish(keep bool) {
	s.mu.Lock()
	pushed, dirty := s.pushed, s.dirty
	s.stopAhead()
	s.mu.Unlock()
	cl := s.cl
	switch {
	case pushed != nil && !dirty:
		var take func(path string) error
		if c := cl.cat.opts.Cache; c != nil && !cl.Local() {
			size := s.Size()
			take = func(path string) error { return c.Adopt(pushed.ContentKey(cl.Name), path, size) }
		}
		if err := s.file.DiscardAfter(take); err != nil {
			cl.log.Warn("a pushed image is not kept in the cache", "image", pushed.Ref.String(), "error", err)
		}
	case keep:
		if err := s.file.Release(); err != nil {
			cl.log.Warn("cannot close a staged file", "error", err)
		}
	default:
		s.Discard()
	}
}

// Discard drops the file.
func (s *Staged) Discard() {
	if err := s.file.Discard(); err != nil {
		s.cl.log.Warn("cannot remove a staged file", "error", err)
	}
}

// Sync makes what was written safe on this disk.
func (s *Staged) Sync() error { return s.file.Sync() }

// Failed is why the last commit failed, nil if none did.
func (s *Staged) Failed() error {
	m := s.file.Meta()
	if m.State != staging.Failed {
		return nil
	}
	return errors.New(m.Error)
}
