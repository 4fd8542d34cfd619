package catalog

import (
	"context"
	"errors"
	"path"
	"strings"

	"github.com/sregfs/sregfs/backends"
)

// repository splits a directory of the tree into the collection and the name of
// the repository that it may stand for.
func repository(dir string) (parent string, ref backends.Ref, ok bool) {
	parent, name := path.Split(dir)
	parent = strings.TrimSuffix(parent, "/")
	ref = backends.Ref{Collection: backends.ParseCollection(parent), Name: backends.ParseCollection(name)}
	return parent, ref, ref.Name != ""
}

// Tags are the tags of the repository that the directory dir stands for,
// COLLECTION/NAME. It fails with fs.ErrNotExist when the store says that there
// is no such repository, and with errors.ErrUnsupported where the store knows
// of no tags.
func (cl *Client) Tags(ctx context.Context, dir string) ([]string, error) {
	t, ok := backends.As[backends.Tagger](cl.Store)
	_, ref, named := repository(dir)
	if !ok || !named {
		return nil, cl.unsupported("list the tags of", ref)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, moment, errMoment)
	defer cancel()
	return t.Tags(ctx, ref.Collection, ref.Name)
}

// Tag finds the image that a tag of the repository dir names; ok is false when
// there is no such tag, or none that this account may see.
func (cl *Client) Tag(ctx context.Context, dir, tag string) (img backends.Image, ok bool, err error) {
	parent, ref, named := repository(dir)
	if _, tags := backends.As[backends.Tagger](cl.Store); !tags || !named {
		return img, false, nil
	}
	ref.Tag = tag
	img, err = cl.Lookup(ctx, parent, ref)
	if isNotExist(err) || errors.Is(err, backends.ErrAuth) || errors.Is(err, errors.ErrUnsupported) {
		// A service that keeps private names to itself also refuses names
		// that cannot be repositories; they may lead to one.
		return img, false, nil
	}
	return img, err == nil, err
}

// Walkable reports whether dir, which no listing knows, may be walked into: a
// repository, a collection that came after the listing, or in a client without
// listings anything, since nothing but a question for an image itself can tell.
func (cl *Client) Walkable(ctx context.Context, dir string) (bool, error) {
	if _, tags := backends.As[backends.Tagger](cl.Store); !tags {
		return false, nil
	}
	if cl.Listing().Unlisted {
		return true, nil
	}
	switch _, err := cl.Tags(ctx, dir); {
	case err == nil:
		return true, nil
	case isNotExist(err), errors.Is(err, errors.ErrUnsupported), errors.Is(err, backends.ErrAuth):
		return cl.appeared(ctx, dir)
	default:
		return false, err
	}
}

// appeared reports whether there is a collection dir that the listing, which is
// renewed then, does not know yet.
func (cl *Client) appeared(ctx context.Context, dir string) (bool, error) {
	f, ok := backends.As[backends.CollectionFinder](cl.Store)
	if !ok || backends.IsCut(dir) {
		return false, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, moment, errMoment)
	defer cancel()
	switch _, err := f.FindCollection(ctx, backends.ParseCollection(dir)); {
	case isNotExist(err), errors.Is(err, errors.ErrUnsupported), errors.Is(err, backends.ErrAuth):
		return false, nil
	case err != nil:
		return false, err
	}
	if !cl.cat.started {
		return true, nil
	}
	cl.state.mu.Lock()
	attempt := cl.state.attempt
	cl.state.mu.Unlock()
	cl.state.poke()
	select { // so that the directory shows what is in it, where that is soon known
	case <-attempt:
	case <-ctx.Done():
	}
	return true, nil
}
