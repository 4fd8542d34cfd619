package catalog

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache/staging"
	"github.com/sregfs/sregfs/image"
)

// push does the work of Commit.
func (s *Staged) push(ctx context.Context, mtime time.Time) (img backends.Image, err error) {
	to, cl, size := s.Ref(), s.cl, s.Size()
	defer func() {
		if err != nil && ctx.Err() == nil {
			cl.log.Error("push failed; the bytes are kept", "image", to.String(), "error", err)
			_ = s.file.Update(func(m *staging.Meta) {
				m.Error, m.Attempts = err.Error(), m.Attempts+1
				if !s.leftover || !passing(err) {
					m.State = staging.Failed
				}
			})
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
		if same, err := cl.holds(ctx, current, size, sums); err != nil {
			return img, err
		} else if same {
			s.mu.Lock()
			s.stopAhead()
			s.mu.Unlock()
			return cl.pushed(ctx, s, current, content)
		}
		content.Replaces = &current
	} else if !isNotExist(err) {
		return img, err
	}
	seen, err := whatWasThere(content.Replaces)
	if err != nil {
		return img, err
	}
	if s.leftover && !sameJSON(seen, s.file.Meta().Replaces) {
		return img, &backends.Error{Op: "resume push", Client: cl.Name, Ref: to, Err: backends.ErrStale,
			Hint: "the remote has something newer under this name; the bytes are kept in " + s.file.Path()}
	}
	current := s.current()
	// The file is whole: should this program end while the parts that were sent
	// ahead are on their way, the next run finishes the push.
	if err := s.file.Update(func(m *staging.Meta) {
		m.State, m.Size, m.MD5, m.SHA256, m.Replaces = staging.Uploading, size, content.MD5, content.SHA256, seen
		if !current {
			m.UploadState = ""
		}
	}); err != nil {
		return img, err
	}
	up := s.takeAhead(ctx)
	if ctx.Err() != nil {
		return img, context.Cause(ctx)
	}
	if up == nil {
		resume := ""
		if s.mayResume() {
			resume = s.file.Meta().UploadState
		}
		if up, err = pusher.Begin(ctx, to, resume); err != nil {
			return img, err
		}
	}
	if err := s.file.Update(func(m *staging.Meta) { m.UploadState = up.State() }); err != nil {
		return img, err
	}
	s.mu.Lock()
	s.resumable = true
	s.mu.Unlock()
	img, err = up.Commit(ctx, s.file, size, content)
	if err != nil {
		if up.State() == "" {
			abort(ctx, up)
		}
		return img, err
	}
	return cl.pushed(ctx, s, img, content)
}

func (s *Staged) mayResume() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resumable
}

// whatWasThere is how the journal names what a push replaces.
func whatWasThere(img *backends.Image) (json.RawMessage, error) {
	if img == nil {
		return nil, nil
	}
	return json.Marshal(map[string]string{"id": img.ID, "revision": img.Revision})
}

// sameJSON compares without regard to white space, which a journal changes.
func sameJSON(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

// holds reports whether the remote has these very bytes as img already.
func (cl *Client) holds(ctx context.Context, img backends.Image, size int64, sums func(algorithm string) string) (bool, error) {
	switch {
	case img.Size != size:
		return false, nil
	case !img.Sum.IsZero():
		return sums(img.Sum.Algorithm) == img.Sum.Hex, nil
	case !cl.onDisk(img):
		return false, nil
	}
	// A file of this machine that nobody has summed is soon summed.
	c, err := cl.Open(ctx, img)
	if err != nil {
		return false, err
	}
	defer c.Close()
	h := sha256.New()
	if err := hashFile(ctx, readerAt{ctx, c}, size, h); err != nil {
		return false, err
	}
	return hex.EncodeToString(h.Sum(nil)) == sums(backends.SHA256), nil
}

// abort gives an upload up. It is a courtesy to the store, which forgets old
// ones by itself, and may not hold up anybody for long.
func abort(ctx context.Context, up backends.Upload) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortWait)
	defer cancel()
	_ = up.Abort(ctx)
}

const abortWait = 10 * time.Second

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
	cl.acted(img, false)
	cl.remember(img)
	if c.Modified.IsZero() && cl.Modified(img).IsZero() {
		c.Modified = time.Now() // as a file would have, where the store keeps no time
	}
	if !c.Modified.IsZero() {
		_ = cl.SetModified(ctx, img, c.Modified)
	}
	if err := cl.record(ctx, img); err != nil {
		cl.log.Warn("cannot write a record", "image", img.Ref.String(), "error", err)
	}
	cl.cat.supersede(s)
	return img, s.file.Update(func(m *staging.Meta) { m.State, m.Error = staging.Acknowledged, "" })
}
