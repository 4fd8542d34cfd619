package oci

import (
	"context"

	"github.com/sregfs/sregfs/image/squash"
)

// flatten lays the layers over each other, the first one lowest. The data of
// layer i are source i of the layout.
func flatten(ctx context.Context, t *tree, layers []*Contents) error {
	for i, c := range layers {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		t.layer = int32(i) + 1
		f := flattener{tree: t, source: i, contents: c}
		if path, err := f.run(ctx); err != nil {
			return &LayerError{Layer: c.Digest, Path: path, Err: err}
		}
	}
	return nil
}

// flattener lays one layer.
type flattener struct {
	*tree
	source   int
	contents *Contents
	later    []entry // hard links whose targets had not come yet
}

// run lays the layer's entries. Whiteouts take away what lower layers have,
// wherever they stand in the layer. On failure it names the entry.
func (f *flattener) run(ctx context.Context) (path string, err error) {
	d := decoder{b: f.contents.list}
	var e entry
	for n := 0; d.entry(&e); n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if err := f.entry(&e); err != nil {
			return e.name, err
		}
	}
	if d.err != nil {
		return "", d.err
	}
	// Archives name a target before the links to it, but some builders sort.
	// A chain of links in the wrong order needs a pass for each.
	for pass := 0; len(f.later) > 0; pass++ {
		pending := f.later
		f.later = nil
		for i := range pending {
			if i%4096 == 0 && ctx.Err() != nil {
				return "", context.Cause(ctx)
			}
			if err := f.hardlink(&pending[i]); err != nil {
				return pending[i].name, err
			}
		}
		if len(f.later) == len(pending) || pass == maxLinks {
			return pending[0].name, corrupt("hard link to %.300q, which does not exist", pending[0].target)
		}
	}
	// AUFS's own folders: what links named stays under their names.
	for _, n := range f.aufs {
		n.remove()
	}
	f.aufs = nil
	return "", nil
}

// entry lays one entry.
func (f *flattener) entry(e *entry) error {
	switch e.kind {
	case kindWhiteout:
		n, err := f.lookup(e.name)
		if n != nil {
			f.hide(n)
		}
		return err
	case kindOpaque:
		w := walk{tree: f.tree}
		n, err := w.dir(f.root, e.name)
		if n != nil {
			f.hideChildren(n)
		}
		return err
	case kindHardlink:
		return f.hardlink(e)
	case kindIndex:
		if f.contents.index || e.name != indexFile {
			return nil
		}
	}
	if f.room -= e.size; f.room < 0 {
		return unsupported("files of more bytes in all layers together than the limit")
	}
	inode := f.inode(e)
	if e.name == "" {
		f.root.inode, f.root.entry = inode, f.layer
		f.touch(f.root)
		return nil
	}
	dir, base := split(e.name)
	d, err := f.mkdirAll(dir)
	if err != nil {
		return err
	}
	_, err = f.put(d, base, inode)
	return err
}

// hardlink gives an inode, of this layer or a lower one, a further name.
func (f *flattener) hardlink(e *entry) error {
	target, err := f.lookup(e.target)
	if err != nil {
		return err
	}
	if target == nil {
		f.later = append(f.later, *e)
		return nil
	}
	if target.isDir() {
		return corrupt("hard link to the directory %.300q", e.target)
	}
	dir, base := split(e.name)
	d, err := f.mkdirAll(dir)
	if err != nil {
		return err
	}
	_, err = f.put(d, base, target.inode)
	return err
}

// inode makes e's inode.
func (f *flattener) inode(e *entry) *squash.Inode {
	i := &squash.Inode{
		Mode: e.mode, UID: e.uid, GID: e.gid, MTime: e.mtime, Xattrs: e.xattrs,
		Target: e.target, Major: e.major, Minor: e.minor,
	}
	switch e.kind {
	case kindDir:
		i.Mode |= squash.ModeDir
	case kindFile, kindIndex:
		i.Mode |= squash.ModeRegular
		i.Size, i.Source, i.Offset, i.Blocks = e.size, f.source, e.offset, e.blocks
	case kindSymlink:
		// Whatever the archive says (Bazel's 0755): Linux makes no others.
		i.Mode = squash.ModeSymlink | 0o777
	case kindChar:
		i.Mode |= squash.ModeChar
	case kindBlock:
		i.Mode |= squash.ModeBlock
	case kindFIFO:
		i.Mode |= squash.ModeFIFO
	}
	return i
}
