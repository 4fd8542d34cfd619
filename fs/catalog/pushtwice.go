package catalog

import (
	"bytes"
	"context"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/sregfs/sregfs/backends"
)

const (
	// likePiece is how much of two images is compared: at their beginnings, where
	// a SIF has its identity and its time (SIF specification, "Global header"),
	// and again at aheadMin.
	likePiece = 16 << 10
	// likeTags bounds how many tags are looked at, likeAsked how many of which
	// nothing is known, since registries count such questions, and likeAtOnce how
	// many at a time.
	likeTags, likeAsked, likeAtOnce = 64, 16, 8
)

// hasLike reports whether the repository that to is pushed to has an image that
// begins like file, of which aheadMin bytes are there, in a store that need not
// be sent what it has. It looks at the cache, and else fetches that little of the
// other images. What cannot be found out is a no: then more is sent than had to be.
func (cl *Client) hasLike(ctx context.Context, to backends.Ref, file io.ReaderAt) bool {
	store, ok := backends.As[backends.Deduplicator](cl.Store)
	if !ok || cl.cat.opts.Cache == nil {
		return false
	}
	ctx, cancel := context.WithTimeoutCause(ctx, moment, errMoment)
	defer cancel()
	tags, err := store.Tags(ctx, to.Collection, to.Name)
	if err != nil {
		return false
	}
	var (
		found atomic.Bool
		asked atomic.Int32
		seen  sync.Map // of content keys
		g     errgroup.Group
	)
	g.SetLimit(likeAtOnce)
	for _, tag := range tags[:min(len(tags), likeTags)] {
		g.Go(func() error {
			ref := to
			ref.Tag = tag
			img, known, err := cl.cat.opts.Index.Lookup(ctx, cl.Name, ref.Dir(), ref.File(), cl.fold)
			if err == nil && !known && asked.Add(1) <= likeAsked {
				img, err = cl.ask(ctx, ref.Dir(), ref)
			}
			if err != nil || img.Layered || img.Size < aheadMin {
				return nil
			}
			if _, again := seen.LoadOrStore(img.ContentKey(cl.Name), true); !again && cl.like(ctx, img, file) {
				found.Store(true)
				cancel() // the others need not be looked at
			}
			return nil
		})
	}
	_ = g.Wait()
	return found.Load()
}

// like reports whether img and file are the same in what is compared.
func (cl *Client) like(ctx context.Context, img backends.Image, file io.ReaderAt) bool {
	ours, theirs := make([]byte, likePiece), make([]byte, likePiece)
	for _, off := range []int64{0, aheadMin - likePiece} {
		if _, err := file.ReadAt(ours, off); err != nil {
			return false
		}
		if err := cl.peek(ctx, img, theirs, off); err != nil || !bytes.Equal(ours, theirs) {
			return false
		}
	}
	return true
}

// peek fills p with img's bytes from off on, from the cache if it has them. What it
// fetches it does not put there: nobody has asked for this image.
func (cl *Client) peek(ctx context.Context, img backends.Image, p []byte, off int64) error {
	spec := cl.spec(img)
	spec.Fetcher = nil
	if obj, err := cl.cat.opts.Cache.Object(spec); err == nil {
		_, err = obj.ReadAt(ctx, p, off)
		obj.Close()
		if err == nil {
			return nil
		}
	}
	body, err := cl.Store.OpenRange(ctx, img, off, int64(len(p)))
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.ReadFull(body, p)
	return err
}
