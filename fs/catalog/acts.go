package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/index"
)

// Versions returns what the store keeps of an image, newest first.
func (cl *Client) Versions(ctx context.Context, ref backends.Ref) ([]backends.Image, error) {
	v, ok := backends.As[backends.Versioner](cl.Store)
	if !ok {
		return nil, cl.unsupported("list versions of", ref)
	}
	return v.Versions(ctx, ref)
}

// Share gives access to an image: see backends.Sharer.
func (cl *Client) Share(ctx context.Context, img backends.Image, email string) (backends.Share, error) {
	s, ok := backends.As[backends.Sharer](cl.Store)
	if !ok {
		return backends.Share{}, cl.unsupported("share", img.Ref)
	}
	return s.Share(ctx, img, email)
}

// Remove deletes an image on the remote. Where the store holds several things
// under the name, all of them go: the name must not come back with an older
// one.
func (cl *Client) Remove(ctx context.Context, img backends.Image) error {
	if cl.cat.opts.ReadOnly {
		return cl.readOnly("remove", img.Ref)
	}
	r, ok := backends.As[backends.Remover](cl.Store)
	if !ok {
		return cl.unsupported("remove", img.Ref)
	}
	all, err := cl.namesakes(ctx, img)
	if err != nil {
		return err
	}
	for _, img := range append(all, img) {
		if err := r.Remove(ctx, img); err != nil && !isNotExist(err) {
			return err
		}
		if img.Ref.Version != "" {
			if err := cl.forgetVersion(ctx, img.Ref); err != nil {
				return err
			}
			if !cl.lost(ctx, img.Ref.Latest()) {
				continue // it was an old version of an image that is still there
			}
		}
		cl.acted(img, true)
		// It is gone, whether or not its remover still waits.
		diff, err := cl.cat.opts.Index.RemoveImage(context.WithoutCancel(ctx), cl.Name, img)
		cl.state.changed(diff, err)
		if err != nil {
			return err
		}
	}
	ctx = context.WithoutCancel(ctx)
	if err := cl.cat.opts.Index.DropXattrs(ctx, cl.Name, img.Ref.Dir(), img.Ref.File()); err != nil {
		return err
	}
	if _, err := cl.cat.opts.Index.DeleteRecord(ctx, cl.recordName, img.Ref); !errors.Is(err, index.ErrRecords) {
		return err
	}
	return nil // the image is gone; a broken database is told of by the index
}

// lost reports whether the store has no image under a name, now that one of its
// versions was removed, be it because that was the last one.
func (cl *Client) lost(ctx context.Context, ref backends.Ref) bool {
	_, err := cl.ask(context.WithoutCancel(ctx), ref.Dir(), ref)
	return isNotExist(err)
}

// namesakes are the other objects that are known under an image's name, none
// for an image that was asked for by version.
func (cl *Client) namesakes(ctx context.Context, img backends.Image) ([]backends.Image, error) {
	if img.Ref.Version != "" {
		return nil, nil
	}
	all, err := cl.cat.opts.Index.All(ctx, cl.Name, img.Ref.Dir(), img.Ref.File(), cl.fold)
	return slices.DeleteFunc(all, func(other backends.Image) bool {
		return other.ID == img.ID && other.Key == img.Key
	}), err
}

// Rename gives an image another name within the client, replacing what has it.
func (cl *Client) Rename(ctx context.Context, img backends.Image, to backends.Ref) (backends.Image, error) {
	if cl.cat.opts.ReadOnly {
		return backends.Image{}, cl.readOnly("rename", img.Ref)
	}
	r, ok := backends.As[backends.Renamer](cl.Store)
	if !ok {
		return backends.Image{}, cl.unsupported("rename", img.Ref)
	}
	moved, err := r.Rename(ctx, img, to)
	if err != nil {
		return backends.Image{}, err
	}
	ctx = context.WithoutCancel(ctx) // it is done, whether or not anybody still waits
	cl.acted(img, true)
	cl.acted(moved, false)
	x := cl.cat.opts.Index
	replaced, err := cl.namesakes(ctx, moved)
	if err != nil {
		return moved, err
	}
	for _, old := range append(replaced, img) {
		diff, err := x.RemoveImage(ctx, cl.Name, old)
		cl.state.changed(diff, err)
		if err != nil {
			return moved, err
		}
	}
	moved = cl.carryOver(ctx, img, moved)
	cl.remember(moved)
	if known, err := x.DeleteRecord(ctx, cl.recordName, img.Ref); err != nil {
		return moved, err
	} else if known {
		if err := cl.record(ctx, moved); err != nil {
			return moved, err
		}
	}
	cl.cat.times.move(cl.cat.ctx, x, cl.timeKey(img.Ref), cl.timeKey(to), moved.ContentKey(cl.Name))
	return moved, x.MoveXattrs(ctx, cl.Name, img.Ref.Dir(), img.Ref.File(), to.Dir(), to.File())
}

// carryOver gives a renamed image what was learnt of its content, where the
// store's rename makes it look like another one.
func (cl *Client) carryOver(ctx context.Context, from, to backends.Image) backends.Image {
	x, oldKey, newKey := cl.cat.opts.Index, from.ContentKey(cl.Name), to.ContentKey(cl.Name)
	if oldKey != newKey && from.Size == to.Size {
		if md5, ok, err := x.Note(ctx, noteMD5, oldKey); err == nil && ok {
			cl.cat.Learnt(newKey, string(md5))
		}
		if attrs, ok, err := x.Attributes(ctx, oldKey); err == nil && ok {
			_ = x.SetAttributes(ctx, newKey, attrs, labelsIn(attrs))
		}
	}
	return cl.WithVersion(to)
}

// labelsIn are the labels among an image's attributes.
func labelsIn(attributes json.RawMessage) map[string]string {
	var a struct{ Labels map[string]string }
	if json.Unmarshal(attributes, &a) != nil {
		return nil
	}
	return a.Labels
}

// MakeCollection creates a collection by its directory in the tree.
func (cl *Client) MakeCollection(ctx context.Context, dir string) error {
	name := backends.ParseCollection(dir)
	if !cl.Writable() {
		return cl.readOnly("make collection "+name, backends.Ref{})
	}
	if m, ok := backends.As[backends.Collector](cl.Store); ok {
		if err := m.MakeCollection(ctx, name); err != nil {
			return err
		}
	}
	return cl.cat.opts.Index.PutCollection(context.WithoutCancel(ctx), cl.Name, name)
}

// RemoveCollection deletes an empty collection by its directory in the tree.
func (cl *Client) RemoveCollection(ctx context.Context, dir string) error {
	name, actual, ok, err := cl.cat.opts.Index.HasCollection(ctx, cl.Name, dir, cl.fold)
	if err != nil {
		return err
	}
	if ok {
		dir = actual
	} else {
		name = backends.ParseCollection(dir)
	}
	fail := func(err error) error {
		return &backends.Error{Op: "remove collection " + name, Client: cl.Name, Err: err}
	}
	if !cl.Writable() {
		return fail(backends.ErrReadOnly)
	}
	for _, err := range cl.Images(ctx, dir) {
		if err == nil {
			err = fail(backends.ErrNotEmpty)
		}
		return err
	}
	if below, err := cl.Collections(ctx, dir); err != nil {
		return err
	} else if len(below) > 0 {
		return fail(backends.ErrNotEmpty)
	}
	if m, ok := backends.As[backends.Collector](cl.Store); ok {
		if err := m.RemoveCollection(ctx, name); err != nil && !isNotExist(err) {
			return err
		}
	}
	return cl.cat.opts.Index.RemoveCollection(context.WithoutCancel(ctx), cl.Name, name)
}

// CheckName fails with backends.ErrInvalidName for a name that the store cannot
// keep, so that nobody copies a whole image there in vain.
func (cl *Client) CheckName(ref backends.Ref) error {
	if n, ok := backends.As[backends.Namer](cl.Store); ok {
		return n.CheckName(ref)
	}
	return nil
}

// FoldsCase reports whether the store takes names that differ only by case for
// one.
func (cl *Client) FoldsCase() bool { return cl.fold }
