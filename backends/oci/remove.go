package oci

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"net/http"
	"net/url"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sregfs/sregfs/backends"
)

// Remove deletes the tag that img names, and nothing else. It fails with
// errors.ErrUnsupported where the registry has no such thing.
//
// Registries of today delete a tag when they are asked to (OCI distribution
// specification, "Deleting tags"). Older ones delete manifests alone, with all
// tags that name them. There, a manifest of its own is put under the tag first,
// and deleted then, so that no other tag loses its image. Whether the registry
// lets anything be deleted is found out before, on a manifest without a tag.
func (w *Writer) Remove(ctx context.Context, img backends.Image) error {
	const op = "remove"
	if err := w.present(ctx, op, img); err != nil {
		return err
	}
	if err := w.removeTag(ctx, repositoryOf(img.Ref.Collection, img.Ref.Name), img.Ref.Tag); err != nil {
		return w.fail(ctx, op, img.Ref, err)
	}
	return nil
}

// present checks that img is what its tag names.
func (w *Writer) present(ctx context.Context, op string, img backends.Image) error {
	if err := ctx.Err(); err != nil {
		return w.fail(ctx, op, img.Ref, err)
	}
	if img.Ref.Version != "" {
		return &backends.Error{Op: op, Client: w.client, Ref: img.Ref,
			Err: fmt.Errorf("a version may have other names: %w", errors.ErrUnsupported), Hint: "name it by its tag"}
	}
	f, err := w.resolve(ctx, repositoryOf(img.Ref.Collection, img.Ref.Name), img.Ref.Tag)
	if err != nil {
		return w.fail(ctx, op, img.Ref, err)
	}
	if f.digest != img.Revision {
		return &backends.Error{Op: op, Client: w.client, Ref: img.Ref, Err: backends.ErrStale}
	}
	return nil
}

// removeTag deletes a tag.
func (w *Writer) removeTag(ctx context.Context, repository, tag string) error {
	gone, err := w.deleteReference(ctx, repository, tag)
	if gone || err != nil {
		return err
	}
	if err := w.canDelete(ctx, repository); err != nil {
		return err
	}
	old, err := w.manifest(ctx, repository, tag)
	if err != nil {
		return err
	}
	digest, err := w.standIn(ctx, repository, tag)
	if err != nil {
		return err
	}
	gone, err = w.deleteReference(ctx, repository, digest)
	if !gone || err != nil {
		// Whatever it was, the tag must not be left on the stand-in.
		back := w.putManifest(context.WithoutCancel(ctx), repository, tag, string(old.mediaType), old.raw)
		return errors.Join(errCannotDelete, err, back)
	}
	return nil
}

// errCannotDelete: the registry lets nothing be deleted.
var errCannotDelete = fmt.Errorf("the registry lets no tag be deleted: %w", errors.ErrUnsupported)

// deleteReference deletes a tag or a manifest. gone is false, without an error,
// where the registry does not take such a request.
func (w *Writer) deleteReference(ctx context.Context, repository, reference string) (gone bool, err error) {
	resp, err := w.do(ctx, call{session: session{repository, remove}, method: http.MethodDelete,
		url: repository + "/manifests/" + reference}, http.StatusAccepted, http.StatusOK, http.StatusNoContent)
	switch statusOf(err) {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return false, nil
	}
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	return true, nil
}

// canDelete finds out whether manifests can be deleted, with one that nobody
// has a use for.
func (w *Writer) canDelete(ctx context.Context, repository string) error {
	digest, err := w.standIn(ctx, repository, "")
	if err != nil {
		return err
	}
	switch gone, err := w.deleteReference(ctx, repository, digest); {
	case errors.Is(err, iofs.ErrNotExist):
		return errCannotDelete // it keeps no manifest without a tag
	case err != nil:
		return err
	case !gone:
		return errCannotDelete
	}
	return nil
}

// standInMark is the annotation of manifests that stand for nothing.
const standInMark = "io.sregfs.deleted"

// isStandIn reports whether a manifest is one of standIn's. A tag is left on it
// when its deleter dies between the two steps of deleting it.
func isStandIn(manifest []byte) bool {
	var m struct {
		Annotations map[string]string `json:"annotations"`
	}
	return json.Unmarshal(manifest, &m) == nil && m.Annotations[standInMark] != ""
}

// standIn puts a manifest that is like no other under a tag, or under its
// digest alone, and returns the digest.
func (w *Writer) standIn(ctx context.Context, repository, tag string) (string, error) {
	if err := w.putBlob(ctx, repository, emptyConfig); err != nil {
		return "", err
	}
	h, err := v1.NewHash(digestOf(emptyConfig))
	if err != nil {
		return "", err
	}
	raw, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		Config:        v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(emptyConfig)), Digest: h},
		Layers:        []v1.Descriptor{},
		Annotations:   map[string]string{standInMark: rand.Text()},
	})
	if err != nil {
		return "", err
	}
	digest := digestOf(raw)
	if tag == "" {
		tag = digest
	}
	return digest, w.putManifest(ctx, repository, tag, string(types.OCIManifestSchema1), raw)
}

// Rename gives img another tag, or another repository of the registry, whose
// blobs are mounted there, and deletes the old one. It fails with
// errors.ErrUnsupported, and leaves everything as it was, where the registry
// lets no tag be deleted or no blob be mounted.
func (w *Writer) Rename(ctx context.Context, img backends.Image, to backends.Ref) (backends.Image, error) {
	const op = "rename"
	if !valid(to) || to.Version != "" {
		return backends.Image{}, w.invalidName(op, to)
	}
	if err := w.present(ctx, op, img); err != nil {
		return backends.Image{}, err
	}
	from, target := repositoryOf(img.Ref.Collection, img.Ref.Name), repositoryOf(to.Collection, to.Name)
	if from == target && img.Ref.Tag == to.Tag {
		return img, nil
	}
	moved, err := w.rename(ctx, from, img.Ref.Tag, target, to)
	if err != nil {
		return backends.Image{}, w.fail(ctx, op, img.Ref, err)
	}
	return moved, nil
}

func (w *Writer) rename(ctx context.Context, from, tag, target string, to backends.Ref) (backends.Image, error) {
	if err := w.canDelete(ctx, from); err != nil {
		return backends.Image{}, err
	}
	m, err := w.manifest(ctx, from, tag)
	if err != nil {
		return backends.Image{}, err
	}
	if from != target {
		if err := w.copyParts(ctx, from, target, m, 0); err != nil {
			return backends.Image{}, err
		}
	}
	if err := w.putManifest(ctx, target, to.Tag, string(m.mediaType), m.raw); err != nil {
		return backends.Image{}, err
	}
	f, err := w.resolve(ctx, target, m.digest)
	if err != nil {
		return backends.Image{}, err
	}
	if err := w.removeTag(ctx, from, tag); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return backends.Image{}, err
	}
	return w.image(to, f), nil
}

// copyParts brings everything that a manifest names into another repository,
// without its bytes coming here.
func (w *Writer) copyParts(ctx context.Context, from, target string, m fetched, depth int) error {
	if m.mediaType.IsIndex() {
		var index v1.IndexManifest
		if depth == maxDepth || json.Unmarshal(m.raw, &index) != nil {
			return fmt.Errorf("%w: the index %s cannot be parsed", backends.ErrCorrupt, m.digest)
		}
		for _, d := range index.Manifests {
			child, err := w.manifest(ctx, from, d.Digest.String())
			if err != nil {
				return err
			}
			if err := w.copyParts(ctx, from, target, child, depth+1); err != nil {
				return err
			}
			if err := w.putManifest(ctx, target, child.digest, string(child.mediaType), child.raw); err != nil {
				return err
			}
		}
		return nil
	}
	var parsed v1.Manifest
	if m.mediaType.IsSchema1() || json.Unmarshal(m.raw, &parsed) != nil {
		return fmt.Errorf("a manifest of schema 1 stays where it is: %w", errors.ErrUnsupported)
	}
	for _, d := range append([]v1.Descriptor{parsed.Config}, parsed.Layers...) {
		if !digestName.MatchString(d.Digest.String()) {
			return fmt.Errorf("%w: a blob with a digest that is none", backends.ErrCorrupt)
		}
		if err := w.mount(ctx, from, target, d.Digest.String()); err != nil {
			return err
		}
	}
	return nil
}

// mount makes a blob of one repository another's as well (OCI distribution
// specification, "Mounting a blob from another repository").
func (w *Writer) mount(ctx context.Context, from, target, digest string) error {
	if there, err := w.hasBlob(ctx, target, digest); err != nil || there {
		return err
	}
	q := url.Values{"mount": {digest}, "from": {from}}
	body, n := text(nil)
	resp, err := w.do(ctx, call{session: session{target, push}, method: http.MethodPost,
		url: target + "/blobs/uploads/?" + q.Encode(), body: body, size: n}, http.StatusCreated, http.StatusAccepted)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusCreated {
		return nil
	}
	u := &upload{w: w, repository: target}
	u.location = u.next(resp, "")
	u.drop(ctx)
	return fmt.Errorf("the registry lends no blob to another repository: %w", errors.ErrUnsupported)
}
