package dropbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	iofs "io/fs"
	"strings"

	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"

	"github.com/sregfs/sregfs/backends"
)

// Remove deletes img's file, as long as its revision is the one that was seen;
// otherwise it fails with backends.ErrStale. Dropbox keeps the deleted file's
// revisions for some time.
func (s *Store) Remove(ctx context.Context, img backends.Image) error {
	const op = "remove"
	arg := files.NewDeleteArg(img.Key)
	arg.ParentRev = img.Revision
	cctx, c := newCall(ctx)
	_, err := s.files.DeleteV2Context(cctx, arg)
	switch {
	case err == nil:
		return nil
	case notFound(err) && c.repeated():
		return nil // an earlier try did it, and its answer was lost
	case hasTag(err, files.WriteErrorConflict) && img.Ref.Version != "":
		return &backends.Error{Op: op, Client: s.client, Ref: img.Ref,
			Err:  fmt.Errorf("%w: Dropbox deletes old versions by itself, and not singly", errors.ErrUnsupported),
			Hint: "remove the image itself"}
	case hasTag(err, files.WriteErrorConflict):
		return s.refused(op, img.Ref, backends.ErrStale, "it was replaced meanwhile")
	}
	return s.fail(ctx, op, img.Ref, c, err)
}

// Rename moves img's file. Dropbox neither moves onto a file nor changes the
// case alone of a name, so both take a detour: a file in the way is deleted
// first, and restored when the move fails; a change of case goes by a temporary
// name, and back when the second move fails. The file keeps its extension.
func (s *Store) Rename(ctx context.Context, img backends.Image, to backends.Ref) (backends.Image, error) {
	const op = "rename"
	to = to.Latest()
	target, ok := pathOf(to)
	if !ok {
		return backends.Image{}, s.refused(op, to, backends.ErrInvalidName, "Dropbox cannot keep that name")
	}
	for _, ext := range backends.Extensions {
		if strings.HasSuffix(img.Key, ext) {
			target = strings.TrimSuffix(target, backends.Extensions[0]) + ext
		}
	}
	if fold(target) == img.Key {
		return s.recase(ctx, img, to, target)
	}
	old, err := s.lookUp(ctx, op, to)
	if err != nil && !notThere(err) {
		return backends.Image{}, err
	}
	// It may be another name of the same file: "x.simg" for "x:latest.simg".
	if old == nil || old.PathLower == img.Key || old.Id == img.ID && img.ID != "" {
		return s.moved(ctx, img, to, target)
	}
	return s.replace(ctx, img, to, target, old)
}

// moved moves img's file to the path target, where nothing is.
func (s *Store) moved(ctx context.Context, img backends.Image, to backends.Ref, target string) (backends.Image, error) {
	m, c, err := s.move(ctx, img.Key, target, img.ID)
	if err != nil {
		return backends.Image{}, s.fail(ctx, "rename", img.Ref, c, err)
	}
	return s.found(ctx, "rename", to, m)
}

// move is files/move_v2 of a file. A refusal counts for nothing when the file
// with that id is where it should be.
func (s *Store) move(ctx context.Context, from, to, id string) (*files.FileMetadata, *call, error) {
	cctx, c := newCall(ctx)
	res, err := s.files.MoveV2Context(cctx, files.NewRelocationArg(from, to))
	if err == nil {
		if m, ok := res.Metadata.(*files.FileMetadata); ok {
			return m, c, nil
		}
		return nil, c, errors.New("a folder was moved")
	}
	if c.repeated() && id != "" && len(tagsOf(err)) > 0 {
		if res, merr := s.files.GetMetadataContext(ctx, files.NewGetMetadataArg(to)); merr == nil {
			if m, ok := res.(*files.FileMetadata); ok && m.Id == id {
				return m, c, nil
			}
		}
	}
	return nil, c, err
}

// replace moves img's file onto the file old: old is deleted first, in the
// revision that was seen, and restored when the move fails. Dying in between
// leaves img as it was and old among the account's deleted files.
func (s *Store) replace(ctx context.Context, img backends.Image, to backends.Ref, target string, old *files.FileMetadata) (backends.Image, error) {
	const op = "rename"
	collection, err := s.collection(ctx, old, to.Collection)
	if err != nil {
		return backends.Image{}, s.fail(ctx, op, img.Ref, nil, err)
	}
	if err := s.Remove(ctx, image(old, collection)); err != nil && !notThere(err) {
		return backends.Image{}, err
	}
	renamed, err := s.moved(ctx, img, to, target)
	if err == nil {
		return renamed, nil
	}
	uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if _, uerr := s.files.RestoreContext(uctx, files.NewRestoreArg(old.PathLower, old.Rev)); uerr != nil {
		err = &backends.Error{Op: op, Client: s.client, Ref: img.Ref, Err: errors.Join(err, explain(nil, uerr)),
			Hint: fmt.Sprintf("what stood there is among the account's deleted files as %s", old.PathDisplay)}
	}
	return backends.Image{}, err
}

// recase changes the spelling of a file's name, which takes two moves. A
// collection's spelling stays as it is: it is the folder's.
func (s *Store) recase(ctx context.Context, img backends.Image, to backends.Ref, target string) (backends.Image, error) {
	const op = "rename"
	cctx, c := newCall(ctx)
	res, err := s.files.GetMetadataContext(cctx, files.NewGetMetadataArg(img.Key))
	if err != nil {
		return backends.Image{}, s.fail(ctx, op, img.Ref, c, err)
	}
	m, ok := res.(*files.FileMetadata)
	if !ok {
		return backends.Image{}, backends.NotExist(op, s.client, img.Ref)
	}
	name := target[strings.LastIndex(target, "/")+1:]
	if m.Name == name {
		return s.found(ctx, op, to, m)
	}
	aside := parent(target) + "/" + temporary()
	if _, c, err := s.move(ctx, img.Key, aside, img.ID); err != nil {
		return backends.Image{}, s.fail(ctx, op, img.Ref, c, err)
	}
	moved, c, err := s.move(ctx, aside, target, img.ID)
	if err == nil {
		return s.found(ctx, op, to, moved)
	}
	err = s.fail(ctx, op, img.Ref, c, err)
	uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	back := parent(target) + "/" + m.Name
	if _, _, uerr := s.move(uctx, aside, back, img.ID); uerr != nil {
		err = &backends.Error{Op: op, Client: s.client, Ref: img.Ref, Err: errors.Join(err, explain(nil, uerr)),
			Hint: fmt.Sprintf("rename %s to %s in Dropbox", aside, back)}
	}
	return backends.Image{}, err
}

// temporary is a name that no image has, for the moment between two moves.
func temporary() string { return ".sregfs-" + rand.Text() }

// MakeCollection makes a folder.
func (s *Store) MakeCollection(ctx context.Context, name string) error {
	const op = "make collection"
	ref := backends.Ref{Collection: name}
	p := folderPath(name)
	if !valid(p) {
		return s.refused(op, ref, backends.ErrInvalidName, "Dropbox cannot keep that name")
	}
	cctx, c := newCall(ctx)
	res, err := s.files.CreateFolderV2Context(cctx, files.NewCreateFolderArg(p))
	switch {
	case err == nil:
		if res.Metadata != nil {
			s.spelling.learn(res.Metadata)
		}
		return nil
	case hasTag(err, files.WriteConflictErrorFolder) && c.repeated():
		return nil // an earlier try made it, and its answer was lost
	}
	return s.collectionError(ctx, op, name, c, err)
}

// FindCollection asks for a folder.
func (s *Store) FindCollection(ctx context.Context, name string) (string, error) {
	const op = "look up collection"
	p := folderPath(name)
	if name == "" || !valid(p) {
		return "", s.collectionError(ctx, op, name, nil, iofs.ErrNotExist)
	}
	cctx, c := newCall(ctx)
	res, err := s.files.GetMetadataContext(cctx, files.NewGetMetadataArg(p))
	if err != nil {
		return "", s.collectionError(ctx, op, name, c, err)
	}
	f, ok := res.(*files.FolderMetadata)
	if !ok {
		return "", s.collectionError(ctx, op, name, nil, iofs.ErrNotExist)
	}
	s.spelling.learn(f)
	spelled, err := s.spell(ctx, f.PathLower, f.PathDisplay, name)
	if err != nil {
		return "", s.collectionError(ctx, op, name, nil, explain(nil, err))
	}
	return spelled, nil
}

// RemoveCollection deletes an empty folder. Dropbox deletes folders with all
// that is in them, so the folder is taken aside first: what somebody puts into
// it at the last moment is then seen, and the folder put back.
func (s *Store) RemoveCollection(ctx context.Context, name string) error {
	const op = "remove collection"
	p := folderPath(name)
	if name == "" || !valid(p) {
		return s.collectionError(ctx, op, name, nil, iofs.ErrNotExist)
	}
	if err := s.isEmpty(ctx, op, name, p); err != nil {
		return err
	}
	aside := "/" + temporary()
	cctx, c := newCall(ctx)
	if _, err := s.files.MoveV2Context(cctx, files.NewRelocationArg(p, aside)); err != nil && !(c.repeated() && notFound(err)) {
		return s.collectionError(ctx, op, name, c, err)
	}
	// From here on it has to come to an end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	err := s.isEmpty(ctx, op, name, aside)
	if err == nil {
		cctx, c := newCall(ctx)
		if _, err = s.files.DeleteV2Context(cctx, files.NewDeleteArg(aside)); err == nil || notFound(err) {
			s.spelling.forget(fold(p))
			return nil
		}
		err = s.collectionError(ctx, op, name, c, err)
	}
	if _, uerr := s.files.MoveV2Context(ctx, files.NewRelocationArg(aside, p)); uerr != nil {
		err = &backends.Error{Op: op, Client: s.client, Err: errors.Join(err, explain(nil, uerr)),
			Hint: fmt.Sprintf("rename the folder %s to %s in Dropbox", aside, p)}
	}
	return err
}

// isEmpty fails with backends.ErrNotEmpty when anything is in the folder p,
// that of the collection name.
func (s *Store) isEmpty(ctx context.Context, op, name, p string) error {
	arg := files.NewListFolderArg(p)
	arg.Limit = 1
	cctx, c := newCall(ctx)
	res, err := s.files.ListFolderContext(cctx, arg)
	for {
		switch {
		case err != nil:
			return s.collectionError(ctx, op, name, c, err)
		case len(res.Entries) > 0:
			return s.collectionError(ctx, op, name, nil, backends.ErrNotEmpty)
		case !res.HasMore:
			return nil
		}
		cctx, c = newCall(ctx)
		res, err = s.files.ListFolderContinueContext(cctx, files.NewListFolderContinueArg(res.Cursor))
	}
}

// collectionError is fail for a collection, whose name it tells. err is what
// the SDK returned for the call c, or with no call a kind.
func (s *Store) collectionError(ctx context.Context, op, name string, c *call, err error) error {
	op += fmt.Sprintf(" %q in", name)
	if c == nil {
		return &backends.Error{Op: op, Client: s.client, Err: err}
	}
	return s.fail(ctx, op, backends.Ref{}, c, err)
}
