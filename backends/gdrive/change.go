package gdrive

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"strings"

	"google.golang.org/api/drive/v3"

	"github.com/sregfs/sregfs/backends"
)

// Remove moves the image's file to Drive's bin, whence it can be restored in
// the browser. Of an older version only that revision is deleted, for good.
func (s *Store) Remove(ctx context.Context, img backends.Image) error {
	const op = "remove"
	f, err := s.file(ctx, img.ID)
	switch {
	case err != nil:
	case img.Ref.Version != "" && or(f.HeadRevisionId, f.Md5Checksum) != img.Revision:
		err = s.svc.Revisions.Delete(img.ID, img.Revision).Context(ctx).Do()
	default:
		err = s.trash(ctx, img.ID)
	}
	if gone(err) {
		err = iofs.ErrNotExist
	}
	if err != nil {
		return s.fail(ctx, op, img.Ref, err)
	}
	return nil
}

// Rename gives the image's file another name and the properties that go with
// it. What had that name goes to the bin, afterwards, so that the name is
// never without an image.
func (s *Store) Rename(ctx context.Context, img backends.Image, to backends.Ref) (backends.Image, error) {
	const op = "rename"
	to = to.Latest()
	fail := func(err error) (backends.Image, error) {
		return backends.Image{}, s.fail(ctx, op, img.Ref, err)
	}
	if to.Name == "" || to.Tag == "" {
		return backends.Image{}, s.refused(op, to, backends.ErrInvalidName, "")
	}
	leave, err := s.enter(ctx, to)
	if err != nil {
		return fail(err)
	}
	defer leave()
	f, err := s.file(ctx, img.ID)
	if err != nil {
		return fail(err)
	}
	root, err := s.makeRoot(ctx)
	if err != nil {
		return fail(err)
	}
	replaced, err := s.named(ctx, to)
	if err != nil {
		return fail(err)
	}
	meta := &drive.File{Name: renamed(f.Name, to, f.Md5Checksum)}
	meta.Properties = properties(to, f.Md5Checksum, meta.Name, s.imageOf(f, "").Labels)
	for k := range f.Properties {
		if _, ok := meta.Properties[k]; !ok {
			meta.NullFields = append(meta.NullFields, "Properties."+k)
		}
	}
	call := s.update(img.ID, meta).Context(ctx).Fields(fileFields)
	if len(f.Parents) == 1 && f.Parents[0] != root {
		// The name holds the collection; the folder must not say another.
		call.AddParents(root).RemoveParents(f.Parents[0])
	}
	if f, err = again(ctx, call.Do); err != nil {
		return fail(err)
	}
	for _, c := range replaced {
		if c.image.ID == img.ID {
			continue
		}
		if err := s.trash(ctx, c.image.ID); err != nil && !gone(err) {
			return fail(err)
		}
	}
	now := s.imageOf(f, "")
	now.Ref = to
	return now, nil
}

// MakeCollection makes a folder of that name in the root folder, which keeps
// the collection while it is empty. Images do not go into it: they lie beside
// it, where the Python client looks for them.
func (s *Store) MakeCollection(ctx context.Context, name string) error {
	const op = "make the collection"
	fail := func(err error) error { return s.fail(ctx, op, backends.Ref{}, fmt.Errorf("%q: %w", name, err)) }
	if !validCollection(name) {
		return fail(backends.ErrInvalidName)
	}
	root, err := s.makeRoot(ctx)
	if err != nil {
		return fail(err)
	}
	if err = s.noCollection(ctx, root, name); err == nil {
		_, err = s.makeFolder(ctx, &drive.File{Name: name, Parents: []string{root}, Properties: map[string]string{propType: typeCollection}})
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// noCollection fails with fs.ErrExist where the root folder has a collection's own
// folder, or an image whose properties name the collection. Images may be of it
// without either.
func (s *Store) noCollection(ctx context.Context, root, name string) error {
	q := fmt.Sprintf("%s in parents and trashed = false and ((name = %s and %s)", quote(root), quote(name), hasProperty(propType, typeCollection))
	if fits(propCollection, name) {
		q += " or (" + hasProperty(propCollection, name) + " and " + hasProperty(propType, typeContainer) + ")"
	}
	return s.list(ctx, q+")", "", func(f *drive.File) error {
		if f.MimeType == folderMIME && f.Name == name || s.isImage(f) && refOf(f, "").Collection == name {
			return iofs.ErrExist
		}
		return nil
	})
}

// FindCollection finds what one request can find: a collection whose folder or
// images lie in the root folder and say so.
func (s *Store) FindCollection(ctx context.Context, name string) (string, error) {
	fail := func(err error) error {
		return s.fail(ctx, "look up the collection", backends.Ref{}, fmt.Errorf("%q: %w", name, err))
	}
	root, err := s.recentRoot(ctx)
	if err == nil {
		err = s.noCollection(ctx, root, name)
	}
	switch {
	case errors.Is(err, iofs.ErrExist):
		return name, nil
	case err == nil:
		err = errors.ErrUnsupported
	}
	return "", fail(err)
}

func validCollection(name string) bool {
	for seg := range strings.SplitSeq(name, "/") {
		if seg == "" || seg == "." || seg == ".." || strings.ContainsRune(seg, 0) {
			return false
		}
	}
	return true
}

// RemoveCollection moves the collection's folder to the bin. It lists the whole
// client, since only that tells for certain that nothing is in the collection.
func (s *Store) RemoveCollection(ctx context.Context, name string) error {
	const op = "remove the collection"
	fail := func(err error) error { return s.fail(ctx, op, backends.Ref{}, fmt.Errorf("%q: %w", name, err)) }
	var folders []string
	for e, err := range s.List(ctx) {
		if err != nil {
			return err
		}
		switch in := e.Image.Ref.Collection; {
		case e.Collection == name:
			folders = append(folders, e.Image.ID)
		case e.Collection != "":
			if strings.HasPrefix(e.Collection, name+"/") {
				return fail(backends.ErrNotEmpty)
			}
		case in == name, strings.HasPrefix(in, name+"/"):
			return fail(backends.ErrNotEmpty)
		}
	}
	if len(folders) == 0 {
		return fail(iofs.ErrNotExist)
	}
	for _, id := range folders {
		// Somebody may have put files into it that are no images.
		err := s.list(ctx, quote(id)+" in parents and trashed = false", "", func(*drive.File) error { return backends.ErrNotEmpty })
		if err == nil {
			err = s.trash(ctx, id)
		}
		if err != nil && !gone(err) {
			return fail(err)
		}
	}
	return nil
}

// Share lets the person with that address read the image, and Drive write an
// e-mail about it; without an address, everybody who has the link, which it
// returns. Who has access already gets no second e-mail.
func (s *Store) Share(ctx context.Context, img backends.Image, email string) (backends.Share, error) {
	const op = "share"
	fail := func(err error) (backends.Share, error) {
		if gone(err) {
			err = iofs.ErrNotExist
		}
		return backends.Share{}, s.fail(ctx, op, img.Ref, err)
	}
	f, err := again(ctx, s.get(img.ID).Context(ctx).Fields("trashed,webViewLink").Do)
	if err == nil && f.Trashed {
		err = iofs.ErrNotExist
	}
	if err != nil {
		return fail(err)
	}
	share := backends.Share{}
	if email == "" {
		share.URL = f.WebViewLink
	}
	if share.ID, err = s.permission(ctx, img.ID, email); err != nil {
		return fail(err)
	}
	if share.ID != "" {
		return share, nil
	}
	p := &drive.Permission{Type: "anyone", Role: "reader"}
	if email != "" {
		p.Type, p.EmailAddress = "user", email
	}
	call := s.svc.Permissions.Create(img.ID, p).SupportsAllDrives(true).Context(ctx).Fields("id")
	if email != "" {
		call.SendNotificationEmail(true)
	}
	if p, err = again(ctx, call.Do); err != nil {
		return fail(err)
	}
	share.ID = p.Id
	return share, nil
}

// permission is the id of what a person, or everybody without one, may do with
// a file already; "" for nothing.
func (s *Store) permission(ctx context.Context, id, email string) (string, error) {
	token := ""
	for {
		call := s.svc.Permissions.List(id).SupportsAllDrives(true).Context(ctx).PageSize(100).Fields("nextPageToken,permissions(id,type,emailAddress)")
		if token != "" {
			call.PageToken(token)
		}
		l, err := again(ctx, call.Do)
		if err != nil {
			return "", err
		}
		for _, p := range l.Permissions {
			if email == "" && p.Type == "anyone" || email != "" && strings.EqualFold(p.EmailAddress, email) {
				return p.Id, nil
			}
		}
		if token = l.NextPageToken; token == "" {
			return "", nil
		}
	}
}
