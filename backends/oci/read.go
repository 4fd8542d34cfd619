package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net/http"
	"strconv"
	"strings"

	"github.com/sregfs/sregfs/backends"
)

// OpenRange reads a range of a Singularity image. A blob is named by its
// digest, so that what is read can be no other version. A container image has
// no bytes of its own: see OpenBlob.
func (s *Store) OpenRange(ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error) {
	const op = "read"
	if img.Layered {
		return nil, &backends.Error{Op: op, Client: s.client, Ref: img.Ref,
			Err: fmt.Errorf("a container image is no file on the registry: %w", errors.ErrUnsupported)}
	}
	digest := "sha256:" + img.Sum.Hex
	if img.Sum.Algorithm != backends.SHA256 {
		f, err := s.pinned(ctx, op, img)
		if err != nil {
			return nil, err
		}
		if f.sif == nil {
			return nil, &backends.Error{Op: op, Client: s.client, Ref: img.Ref, Err: backends.ErrStale}
		}
		digest = f.sif.Digest.String()
	}
	return s.open(ctx, op, img.Ref, blob{digest, img.Size, backends.ErrStale}, off, n)
}

// OpenBlob reads a range of one of the blobs that img's manifest names.
func (s *Store) OpenBlob(ctx context.Context, img backends.Image, digest string, off, n int64) (io.ReadCloser, error) {
	const op = "read a layer of"
	f, err := s.pinned(ctx, op, img)
	if err != nil {
		return nil, err
	}
	for _, d := range f.manifest.Layers {
		if d.Digest.String() != digest {
			continue
		}
		body, err := s.open(ctx, op, img.Ref, blob{digest, d.Size, backends.ErrCorrupt}, off, n)
		if errors.Is(err, backends.ErrStale) {
			// Gone with its image, or is the image broken?
			if _, is := s.manifest(ctx, repositoryOf(img.Ref.Collection, img.Ref.Name), img.Revision); is == nil {
				err = s.fail(ctx, op, img.Ref, fmt.Errorf("%w: the registry has the image, but lacks its layer %s", backends.ErrCorrupt, digest))
			}
		}
		return body, err
	}
	return nil, &backends.Error{Op: op, Client: s.client, Ref: img.Ref, Err: fmt.Errorf("%.150q: %w", digest, iofs.ErrNotExist)}
}

// pinned are the facts of exactly the manifest that img names.
func (s *Store) pinned(ctx context.Context, op string, img backends.Image) (*facts, error) {
	if err := ctx.Err(); err != nil {
		return nil, s.fail(ctx, op, img.Ref, err)
	}
	if !digestName.MatchString(img.Revision) {
		return nil, &backends.Error{Op: op, Client: s.client, Ref: img.Ref, Err: backends.ErrStale}
	}
	f, err := s.recall(ctx, repositoryOf(img.Ref.Collection, img.Ref.Name), img.Revision)
	if errors.Is(err, iofs.ErrNotExist) {
		err = fmt.Errorf("%w: the registry has the manifest %s no more", backends.ErrStale, img.Revision)
	}
	if err != nil {
		return nil, s.fail(ctx, op, img.Ref, err)
	}
	return f, nil
}

// blob is what is to be read.
type blob struct {
	digest string
	size   int64
	// other is what it means when the registry's blob has another size.
	other error
}

// open reads a range of a blob.
func (s *Store) open(ctx context.Context, op string, ref backends.Ref, b blob, off, n int64) (io.ReadCloser, error) {
	if off < 0 {
		return nil, &backends.Error{Op: op, Client: s.client, Ref: ref, Err: fmt.Errorf("offset %d is negative", off)}
	}
	if err := ctx.Err(); err != nil {
		return nil, s.fail(ctx, op, ref, err)
	}
	left := max(b.size-off, 0)
	if n < 0 || n > left {
		n = left
	}
	if n == 0 {
		return http.NoBody, nil
	}
	repository := repositoryOf(ref.Collection, ref.Name)
	c := call{session: session{repository, pull}, method: http.MethodGet, url: repository + "/blobs/" + b.digest}
	if off > 0 || n < b.size {
		c.header = map[string]string{"Range": fmt.Sprintf("bytes=%d-%d", off, off+n-1)}
	}
	resp, err := s.do(ctx, c, http.StatusOK, http.StatusPartialContent)
	switch status := statusOf(err); {
	case status == http.StatusNotFound:
		return nil, s.fail(ctx, op, ref, fmt.Errorf("%w: the registry has the blob %s no more", backends.ErrStale, b.digest))
	case status == http.StatusRequestedRangeNotSatisfiable:
		return nil, s.fail(ctx, op, ref, fmt.Errorf("%w: the blob %s has fewer than %d bytes", b.other, b.digest, b.size))
	case err != nil:
		return nil, s.fail(ctx, op, ref, err)
	}
	r, size, err := &ranged{ctx: ctx, body: resp.Body, left: n}, resp.ContentLength, error(nil)
	if resp.StatusCode == http.StatusOK {
		r.skip = off // a server that knows no ranges
	} else {
		size, err = contentRange(resp.Header.Get("Content-Range"), off, n)
	}
	if err == nil && size >= 0 && size != b.size {
		err = fmt.Errorf("%w: the blob %s has %d bytes, not %d", b.other, b.digest, size, b.size)
	}
	if err != nil {
		resp.Body.Close()
		return nil, s.fail(ctx, op, ref, err)
	}
	return r, nil
}

// contentRange checks that an answer has the n bytes from off (RFC 9110 section
// 14.4) and returns the size of the whole, -1 where it is not told.
func contentRange(header string, off, n int64) (int64, error) {
	rest, ok := strings.CutPrefix(strings.ToLower(header), fmt.Sprintf("bytes %d-%d/", off, off+n-1))
	if !ok {
		return 0, fmt.Errorf("%w: asked for %d bytes from %d, the answer has another range", backends.ErrUnreachable, n, off)
	}
	size, err := strconv.ParseUint(rest, 10, 63)
	if err != nil {
		return -1, nil // "*", or nothing that is a size
	}
	return int64(size), nil
}

// ranged is a blob's body, of which left bytes count after the first skip.
type ranged struct {
	ctx        context.Context
	body       io.ReadCloser
	skip, left int64
}

// Read is io.Reader's. A body that is too short ends with
// io.ErrUnexpectedEOF, one that is too long is cut.
func (r *ranged) Read(p []byte) (int, error) {
	if r.skip > 0 {
		n, err := io.CopyN(io.Discard, r.body, r.skip)
		if r.skip -= n; err != nil {
			return 0, r.cause(err)
		}
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.body.Read(p)
	r.left -= int64(n)
	switch {
	case err == nil:
	case r.left == 0:
		err = io.EOF
	default:
		err = r.cause(err)
	}
	return n, err
}

// cause is why the body ended too early.
func (r *ranged) cause(err error) error {
	switch {
	case r.ctx.Err() != nil:
		return context.Cause(r.ctx)
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	case errors.Is(err, io.ErrUnexpectedEOF):
		return err
	}
	return lost(err)
}

// Close is io.Closer's.
func (r *ranged) Close() error { return r.body.Close() }

// Manifest returns the parts of the container image that img's version names.
// No layer is fetched. The layers of an image of schema 1 have no diff ids, and
// -1 for their sizes, for its manifest does not tell.
func (s *Store) Manifest(ctx context.Context, img backends.Image) (backends.Manifest, error) {
	const op = "read the manifest of"
	f, err := s.pinned(ctx, op, img)
	if err != nil {
		return backends.Manifest{}, err
	}
	refuse := func(err error) (backends.Manifest, error) {
		return backends.Manifest{}, &backends.Error{Op: op, Client: s.client, Ref: img.Ref, Err: err}
	}
	repository := repositoryOf(img.Ref.Collection, img.Ref.Name)
	m := backends.Manifest{Digest: f.digest, Source: s.registry.Name() + "/" + repository + "@" + f.digest, Config: f.config, Raw: f.raw}
	switch {
	case f.sif != nil:
		return refuse(fmt.Errorf("it is a Singularity image already: %w", errors.ErrUnsupported))
	case f.old:
		for _, digest := range f.oldLayers() {
			m.Layers = append(m.Layers, backends.Layer{Digest: digest, Size: -1})
		}
		return m, nil
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if json.Unmarshal(f.config, &config) != nil {
		return refuse(fmt.Errorf("%w: its configuration cannot be parsed", backends.ErrCorrupt))
	}
	ids := config.RootFS.DiffIDs
	if len(ids) != len(f.manifest.Layers) {
		return refuse(fmt.Errorf("%w: its manifest has %d layers and its configuration %d", backends.ErrCorrupt, len(f.manifest.Layers), len(ids)))
	}
	for i, d := range f.manifest.Layers {
		m.Layers = append(m.Layers, backends.Layer{
			Digest: d.Digest.String(), DiffID: ids[i], Size: d.Size, MediaType: string(d.MediaType), Annotations: d.Annotations,
		})
	}
	return m, nil
}
