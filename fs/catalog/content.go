package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"os"
	"sync"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/image"
)

// Content is one open version of an image. It is safe for concurrent use; the
// caller closes it.
type Content struct {
	size   int64
	file   *os.File      // an image of a local store
	direct *assembly     // a container image that is read from its layers alone
	obj    *cache.Object // otherwise
	// opened is when, and first what is done at its first read; nil for nothing.
	opened time.Time
	once   sync.Once
	first  func()
}

// Open opens exactly the version that img names. Nothing is fetched yet, but a
// container image is first made into one file, which waits for its layers.
func (cl *Client) Open(ctx context.Context, img backends.Image) (*Content, error) {
	if l, ok := backends.As[backends.Localer](cl.Store); ok {
		f, err := l.LocalFile(ctx, img)
		if err == nil {
			return &Content{size: img.Size, file: f}, nil
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			return nil, err
		}
		// A record without a file: its bytes are fetched like any others.
	}
	if cl.cat.opts.Cache == nil {
		return nil, &backends.Error{Op: "open", Client: cl.Name, Ref: img.Ref, Err: errNoCache}
	}
	if img.Layered {
		return cl.openLayered(ctx, img)
	}
	obj, err := cl.cat.opts.Cache.Object(cl.spec(img))
	if err != nil {
		return nil, &backends.Error{Op: "open", Client: cl.Name, Ref: img.Ref, Err: err}
	}
	c := &Content{size: obj.Size(), obj: obj, opened: time.Now()}
	c.first = func() { cl.hint(img, c) }
	return c, nil
}

// spec is how the cache gets img, which is not layered.
func (cl *Client) spec(img backends.Image) cache.Spec {
	return cache.Spec{
		Key:     img.ContentKey(cl.Name),
		Size:    img.Size,
		Sum:     sumOf(img.Sum),
		Fetcher: fetcher{cl.Store, img},
	}
}

// Size is the content's length in bytes.
func (c *Content) Size() int64 { return c.size }

// ReadAt reads as io.ReaderAt does and waits only for the bytes asked for, or
// until ctx is done.
func (c *Content) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if c.file != nil {
		return c.file.ReadAt(p, off)
	}
	if c.direct != nil {
		return c.direct.readAt(ctx, p, off)
	}
	if c.first != nil {
		c.once.Do(c.first)
	}
	return c.obj.ReadAt(ctx, p, off)
}

// File returns the file on this machine that holds the whole content, if one
// does. It is valid until Close.
func (c *Content) File() (*os.File, bool) {
	if c.file != nil {
		return c.file, true
	}
	if c.direct != nil {
		return nil, false
	}
	return c.obj.File()
}

// Fill fetches all of it. It fails with cache.ErrNoRoom for what cannot be kept.
func (c *Content) Fill(ctx context.Context) error {
	if c.file != nil {
		return nil
	}
	if c.direct != nil {
		return cache.ErrNoRoom
	}
	return c.obj.Fill(ctx)
}

// Close lets go of the content.
func (c *Content) Close() error {
	if c.file != nil {
		return c.file.Close()
	}
	if c.direct != nil {
		return nil
	}
	return c.obj.Close()
}

// readerAt reads a Content under one context.
type readerAt struct {
	ctx context.Context
	c   *Content
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r.c.ReadAt(r.ctx, p, off) }

// fetcher reads one version of an image from its store.
type fetcher struct {
	store backends.Store
	img   backends.Image
}

func (f fetcher) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return f.store.OpenRange(ctx, f.img, off, n)
}

func sumOf(s backends.Checksum) cache.Sum {
	if s.IsZero() || backends.NewHash(s.Algorithm) == nil {
		return cache.Sum{}
	}
	return cache.Sum{Hex: s.Hex, New: func() hash.Hash { return backends.NewHash(s.Algorithm) }}
}

// Cached returns how much of an image is here.
func (cl *Client) Cached(img backends.Image) (bytes int64, complete bool) {
	if cl.onDisk(img) {
		return img.Size, true
	}
	if cl.cat.opts.Cache == nil {
		return 0, false
	}
	bytes, _, complete = cl.cat.opts.Cache.Stat(cl.CacheKey(img))
	return bytes, complete
}

// Learnt is to be called when the cache has verified a whole object
// (cache.Options.OnComplete): its MD5 is the image's version from then on.
func (c *Catalog) Learnt(key, md5 string) {
	x := c.opts.Index
	err := errors.Join(
		x.LearnVersion(c.ctx, key, md5),
		x.SetNote(c.ctx, noteMD5, key, []byte(md5)),
		x.SetNote(c.ctx, noteContent, md5, []byte(key)))
	if err != nil && c.ctx.Err() == nil {
		c.log.Warn("cannot note a version", "error", err)
	}
}

// Attributes are what the image says of itself, as the seeds' record has them.
// They are read by a few ranges the first time and remembered by content.
func (cl *Client) Attributes(ctx context.Context, img backends.Image) (json.RawMessage, error) {
	x, key := cl.cat.opts.Index, img.ContentKey(cl.Name)
	if data, ok, err := x.Attributes(ctx, key); err == nil && ok {
		return data, nil
	}
	var attrs image.Attributes
	if img.Layered {
		var err error
		if attrs, err = cl.layeredAttributes(ctx, img); err != nil {
			return nil, err
		}
	} else {
		c, err := cl.Open(ctx, img)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		c.first = nil // whoever asks for attributes is not about to run it
		attrs, err = image.Inspect(ctx, readerAt{ctx, c}, c.Size())
		switch {
		case errors.Is(err, image.ErrNotImage), errors.Is(err, image.ErrCorrupt), Truncated(err):
			// What it is not is known as well; it has no attributes.
			cl.log.Warn("no attributes in an image", "image", img.Ref.String(), "error", err)
		case err != nil:
			return nil, err
		}
	}
	data, err := json.Marshal(attrs)
	if err != nil {
		return nil, err
	}
	if err := x.SetAttributes(ctx, key, data, image.Labels(attrs)); err != nil && ctx.Err() == nil {
		// They are known all the same; a full disk costs asking again.
		cl.log.Warn("cannot note an image's attributes", "image", img.Ref.String(), "error", err)
	}
	return data, nil
}
