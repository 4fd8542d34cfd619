package fs

import (
	"context"
	"errors"
	"path"
	"slices"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregfs/sregfs/backends"
)

// A registry's COLLECTION/IMAGE/ is a directory as well, which no listing
// shows: its names are the image's tags, links to ../IMAGE:TAG.simg. A registry
// without a catalogue lets any path be walked; it is asked when an image is.

// lookupTag finds what name is where no listing knows it: a tag of the
// repository that this directory stands for, or a further directory.
func (n *dirNode) lookupTag(ctx context.Context, name string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	img, ok, err := n.cl.Tag(ctx, n.dir, name)
	if err != nil {
		return nil, n.tree.fail("look up", n.path(name), err)
	}
	if ok {
		return n.tree.newLink(ctx, &n.Inode, tagTarget(img.Ref), out, n.cl.Name, n.dir, name), 0
	}
	dir := path.Join(n.dir, name)
	ok, err = n.cl.Walkable(ctx, dir)
	switch {
	case err != nil:
		return nil, n.tree.fail("look up", n.path(name), err)
	case ok:
		return n.tree.newDir(ctx, &n.Inode, n.cl, dir, out), 0
	}
	return nil, syscall.ENOENT
}

// tagTarget is where a tag's link leads.
func tagTarget(ref backends.Ref) string { return "../" + ref.Latest().File() }

// tags are the names of links in this directory. Only a directory of which
// nothing else is known asks the registry: listing what is known waits for
// nobody.
func (n *dirNode) tags(ctx context.Context) ([]string, error) {
	list, err := n.cl.Tags(ctx, n.dir)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, nil
	}
	if err != nil {
		// A collection that is known to be empty needs nobody's word for it.
		if _, known, e := n.cl.Directory(ctx, n.dir); e == nil && known {
			return nil, nil
		}
		return nil, err
	}
	list = slices.DeleteFunc(list, func(tag string) bool {
		_, _, image := backends.ParseFile(tag)
		return image || temporary(tag)
	})
	slices.Sort(list)
	return list, nil
}
