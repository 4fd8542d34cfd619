package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/image"
	"github.com/sregfs/sregfs/image/oci"
)

// Notes of container images in the index.
const (
	noteLayer = "layer"   // data key or TOC key of a layer → its oci.Contents
	noteSize  = "ocisize" // cache key of an image → its size in bytes
	// noteSqueezed has the bareKey of each image for which there was room only
	// when it was compressed: it stays so, whatever the limit is later.
	noteSqueezed = "ocizstd"
)

// CacheKey names the content of img in the cache. A container image is cached
// as the file that is made of it, which its manifest alone does not decide.
func (cl *Client) CacheKey(img backends.Image) string {
	if !img.Layered {
		return img.ContentKey(cl.Name)
	}
	key := cl.bareKey(img)
	if cl.codec(key) == oci.Zstd {
		key += " zstd"
	}
	return key
}

// bareKey is the CacheKey of a container image, whatever its codec is.
func (cl *Client) bareKey(img backends.Image) string {
	source := img.Ref.Collection + "/" + img.Ref.Name
	key := fmt.Sprintf("oci:%s:%s@%s v%d", cl.Name, strings.TrimPrefix(source, "/"), img.Revision, oci.LayoutVersion)
	if cl.cat.opts.DockerCmd {
		key += " cmd"
	}
	return key
}

// codec is how the files of the image with that bareKey are kept.
func (cl *Client) codec(bareKey string) oci.Codec {
	if _, ok := cl.cat.squeezed.Load(bareKey); ok || cl.cat.opts.Compress {
		return oci.Zstd
	}
	return oci.Plain
}

// openLayered opens a container image as one file. Its bytes are computed from
// what is known of its layers: the first open of all waits for that, which
// means for the layers themselves where they have no table of contents. The
// file is kept in the cache like any other; all tags of a manifest share it.
func (cl *Client) openLayered(ctx context.Context, img backends.Image) (*Content, error) {
	bare := cl.bareKey(img)
	codec := cl.codec(bare)
	c, err := cl.openAs(ctx, img, codec)
	if errors.Is(err, cache.ErrNoRoom) && codec == oci.Plain && ctx.Err() == nil {
		cl.log.Warn("a container image does not fit into the cache as it is, and is kept compressed", "image", img.Ref.String())
		cl.cat.squeezed.Store(bare, true)
		if c, err = cl.openAs(ctx, img, oci.Zstd); err == nil {
			err = cl.cat.opts.Index.SetNote(ctx, noteSqueezed, bare, []byte("1"))
			if err == nil {
				return c, nil
			}
			c.Close()
		}
		cl.cat.squeezed.Delete(bare)
	}
	if err == nil {
		return c, nil
	}
	e := &backends.Error{Op: "open", Client: cl.Name, Ref: img.Ref, Err: layeredKind(err)}
	switch {
	case ctx.Err() != nil:
		e.Err = context.Cause(ctx)
	case errors.Is(err, cache.ErrNoRoom):
		limit := cl.cat.opts.Cache.Stats().Limit
		e.Hint = fmt.Sprintf("the cache may have %d MB, too few for this image even if it is compressed; "+
			"make it larger with --cache-size, or close and unpin other images", limit/1_000_000)
	}
	return nil, e
}

// openAs is openLayered with one codec.
func (cl *Client) openAs(ctx context.Context, img backends.Image, codec oci.Codec) (*Content, error) {
	c, key := cl.cat.opts.Cache, cl.CacheKey(img)
	assembled := func(ctx context.Context) (*assembly, error) {
		return cl.cat.assembled(ctx, key, func(ctx context.Context) (*assembly, error) {
			return cl.assemble(ctx, img, key, codec)
		})
	}
	if _, _, complete := c.Stat(key); complete {
		obj, err := c.Object(cache.Spec{Key: key, Size: -1, Fetcher: whenDamaged(assembled), Exact: true})
		switch {
		case err == nil && obj.Complete():
			return &Content{size: obj.Size(), obj: obj}, nil
		case err == nil:
			obj.Close() // damaged: made again below
		case !errors.Is(err, cache.ErrNotCached):
			return nil, err
		}
	}
	a, err := assembled(ctx)
	if err != nil {
		return nil, err
	}
	if a.crowds() {
		return &Content{size: a.image.Size(), direct: a}, nil
	}
	obj, err := c.Object(cache.Spec{Key: key, Size: a.image.Size(), Fetcher: a, Exact: !a.lazy(), Extent: a.extent})
	if err != nil {
		return nil, err
	}
	a.complete()
	return &Content{size: obj.Size(), obj: obj}, nil
}

// whenDamaged is the Fetcher of a file that is here whole: should a block of it
// turn out to be damaged, the image is made ready for that.
type whenDamaged func(context.Context) (*assembly, error)

// Fetch is cache.Fetcher's.
func (f whenDamaged) Fetch(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	a, err := f(ctx)
	if err != nil {
		return nil, layeredKind(err)
	}
	return a.Fetch(ctx, off, n)
}

// layeredKind gives an error of image/oci the kind that the rest of the program
// knows.
func layeredKind(err error) error {
	switch {
	case errors.Is(err, oci.ErrCorrupt):
		return fmt.Errorf("%w: %w", backends.ErrCorrupt, err)
	case errors.Is(err, oci.ErrUnsupported):
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	return err
}

// layeredSize is the size of the file that is made of a container image, as far
// as it is known, and the store's estimate otherwise.
func (cl *Client) layeredSize(img backends.Image) int64 {
	key := cl.CacheKey(img)
	if c := cl.cat.opts.Cache; c != nil {
		if _, size, _ := c.Stat(key); size >= 0 {
			return size
		}
	}
	if data, ok, err := cl.cat.opts.Index.Note(cl.cat.ctx, noteSize, key); err == nil && ok {
		if n, err := strconv.ParseInt(string(data), 10, 64); err == nil {
			return n
		}
	}
	return max(img.Size, 0)
}

// manifest asks the store what makes up a container image.
func (cl *Client) manifest(ctx context.Context, img backends.Image) (backends.Layered, backends.Manifest, error) {
	l, ok := backends.As[backends.Layered](cl.Store)
	if !ok {
		return nil, backends.Manifest{}, cl.unsupported("read the manifest of", img.Ref)
	}
	m, err := l.Manifest(ctx, img)
	return l, m, err
}

// Manifest is what makes up a container image, as the registry has it.
func (cl *Client) Manifest(ctx context.Context, img backends.Image) (json.RawMessage, error) {
	if !img.Layered {
		return nil, cl.unsupported("read the manifest of", img.Ref)
	}
	_, m, err := cl.manifest(ctx, img)
	return m.Raw, err
}

// layeredAttributes are what the file that is made of a container image will
// say of itself. They come from its configuration alone; no layer is fetched.
func (cl *Client) layeredAttributes(ctx context.Context, img backends.Image) (image.Attributes, error) {
	_, m, err := cl.manifest(ctx, img)
	if err != nil {
		return image.Attributes{}, err
	}
	fail := func(err error) (image.Attributes, error) {
		return image.Attributes{}, &backends.Error{Op: "inspect", Client: cl.Name, Ref: img.Ref, Err: layeredKind(err)}
	}
	// The image of no layers at all has the same papers.
	var config map[string]json.RawMessage
	if err := json.Unmarshal(m.Config, &config); err != nil {
		return fail(fmt.Errorf("%w: its configuration is no JSON object", backends.ErrCorrupt))
	}
	config["rootfs"] = json.RawMessage(`{"type":"layers","diff_ids":[]}`)
	bare, err := json.Marshal(config)
	if err != nil {
		return fail(err)
	}
	im, err := oci.Assemble(ctx, bare, nil, cl.layeredOptions(m))
	if err != nil {
		return fail(err)
	}
	attrs, err := image.Inspect(ctx, papers{ctx, im}, im.Size())
	if err != nil {
		return fail(err)
	}
	return attrs, nil
}

func (cl *Client) layeredOptions(m backends.Manifest) oci.Options {
	return oci.Options{Source: m.Source, DockerCmd: cl.cat.opts.DockerCmd, Limits: cl.cat.limits}
}

// papers reads an image without layers.
type papers struct {
	ctx context.Context
	im  *oci.Image
}

func (p papers) ReadAt(b []byte, off int64) (int, error) {
	return p.im.ReadAt(p.ctx, oci.Files(nil), b, off)
}
