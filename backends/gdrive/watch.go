package gdrive

import (
	"context"
	"errors"
	iofs "io/fs"
	"strings"
	"time"

	"google.golang.org/api/drive/v3"
	"google.golang.org/api/googleapi"

	"github.com/sregfs/sregfs/backends"
)

// A cursor is Drive's page token and, behind a blank, the root folder's id as
// it was then, so that another root folder is noticed by any process.

// Cursor returns the present position of the account's changes.
func (s *Store) Cursor(ctx context.Context) (string, error) {
	const op = "watch"
	t, err := again(ctx, s.svc.Changes.GetStartPageToken().Context(ctx).Fields("startPageToken").Do)
	if err != nil {
		return "", s.fail(ctx, op, backends.Ref{}, err)
	}
	root, err := s.rootFolder(ctx)
	if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return "", s.fail(ctx, op, backends.Ref{}, err)
	}
	s.mu.Lock()
	s.watched = true
	s.mu.Unlock()
	return t.StartPageToken + " " + root, nil
}

// Changes looks at the account's changes every few seconds until there is one:
// Drive has no call that waits.
func (s *Store) Changes(ctx context.Context, cursor string, wait time.Duration) (backends.Changes, error) {
	const op = "watch"
	token, root, err := s.position(cursor)
	if err != nil {
		return backends.Changes{}, err
	}
	deadline := time.Now().Add(wait)
	for {
		b, err := s.changes(ctx, token, root)
		if err != nil {
			return backends.Changes{}, s.fail(ctx, op, backends.Ref{}, err)
		}
		token, root = b.token, b.root
		left := time.Until(deadline)
		if len(b.list) > 0 || left <= 0 {
			return backends.Changes{List: b.list, Cursor: token + " " + root}, nil
		}
		t := time.NewTimer(min(left, s.poll))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return backends.Changes{}, s.fail(ctx, op, backends.Ref{}, ctx.Err())
		}
	}
}

// position takes a cursor apart. One that Cursor cannot have made is expired;
// whether its token is one of Drive's, whose form is not told, Drive says.
func (s *Store) position(cursor string) (token, root string, err error) {
	i := strings.LastIndexByte(cursor, ' ')
	if i <= 0 {
		return "", "", s.refused("watch", backends.Ref{}, backends.ErrCursorReset, "")
	}
	return cursor[:i], cursor[i+1:], nil
}

// batch is what has changed, and the position after it.
type batch struct {
	list        []backends.Change
	token, root string
}

// changes asks for all changes since token.
func (s *Store) changes(ctx context.Context, token, root string) (batch, error) {
	b := batch{token: token, root: root}
	var raw []*drive.Change
	for next := token; next != ""; {
		l, err := again(ctx, s.svc.Changes.List(next).Context(ctx).PageSize(s.page).Spaces("drive").IncludeRemoved(true).
			Fields("nextPageToken", "newStartPageToken", googleapi.Field("changes(changeType,fileId,removed,file("+fileFields+"))")).Do)
		switch code := codeOf(err); {
		case code == 400 || code == 404 || code == 410:
			return b, backends.ErrCursorReset
		case err != nil:
			return b, err
		}
		raw = append(raw, l.Changes...)
		if next = l.NextPageToken; next == "" {
			b.token = or(l.NewStartPageToken, b.token)
		}
	}
	if len(raw) == 0 {
		return b, nil
	}
	if s.touchesRoot(raw, root) || root == "" {
		now, err := s.rootFolder(ctx)
		if err != nil && !errors.Is(err, iofs.ErrNotExist) {
			return b, err
		}
		switch {
		case now == root:
		case root != "":
			return b, backends.ErrCursorReset
		default:
			// A first root folder: all in it is new.
			b.root, root = now, now
			err := s.walk(ctx, root, func(e backends.Entry) error {
				b.list = append(b.list, backends.Change{Entry: e})
				return nil
			})
			if err != nil {
				return b, err
			}
		}
	}
	at := s.placeIn(root)
	for _, c := range raw {
		if c.ChangeType != "" && c.ChangeType != "file" {
			continue
		}
		list, err := s.change(ctx, c, at)
		if err != nil {
			return b, err
		}
		b.list = append(b.list, list...)
	}
	return b, nil
}

// touchesRoot reports whether the root folder may be another after the changes.
func (s *Store) touchesRoot(raw []*drive.Change, root string) bool {
	for _, c := range raw {
		if c.FileId == root || c.File != nil && c.File.MimeType == folderMIME && c.File.Name == s.root {
			return true
		}
	}
	return false
}

// change says what one change means for the images. A folder with images in it
// that moves, or goes, changes them all at once, of which Drive does not tell:
// then the cursor is no good any more.
func (s *Store) change(ctx context.Context, c *drive.Change, at *place) ([]backends.Change, error) {
	deleted := backends.Change{Deleted: true, Entry: backends.Entry{Image: backends.Image{ID: c.FileId}}}
	f := c.File
	switch {
	case c.FileId == at.root:
		return nil, nil
	case c.Removed || f == nil:
		return []backends.Change{deleted}, nil
	case f.MimeType == folderMIME && f.Properties[propType] == typeCollection:
		if empty, err := s.isEmpty(ctx, f.Id); err != nil {
			return nil, err
		} else if !empty {
			return nil, s.folderChanged(ctx, f, at) // somebody has put files there
		}
		list := []backends.Change{deleted} // its old name, if it had another
		where, err := at.of(ctx, f)
		if err == nil && where.inside && !f.Trashed {
			list = append(list, backends.Change{Entry: collectionEntry(f, where.path)})
		}
		return list, err
	case f.MimeType == folderMIME:
		return nil, s.folderChanged(ctx, f, at)
	case strings.HasPrefix(f.MimeType, nativeMIME):
		return nil, nil
	case !s.isImage(f):
		if f.Properties[propType] == typeUpload {
			return nil, nil
		}
		return []backends.Change{deleted}, nil
	}
	where, err := at.of(ctx, f)
	if err != nil {
		return nil, err
	}
	if !where.inside {
		return []backends.Change{deleted}, nil
	}
	return []backends.Change{{Entry: backends.Entry{Image: s.imageOf(f, where.path)}}}, nil
}

// folderChanged fails with ErrCursorReset when a folder is or was below the
// root, unless there is nothing in it. Where the feed goes on from another
// process's cursor, any folder may have been there.
func (s *Store) folderChanged(ctx context.Context, f *drive.File, at *place) error {
	s.mu.Lock()
	was, watched := s.folders[f.Id], s.watched
	s.mu.Unlock()
	where, err := at.of(ctx, f)
	if err != nil {
		return err
	}
	is := where.inside && !f.Trashed
	if !was && watched && !is {
		return nil
	}
	if !was {
		empty, err := s.isEmpty(ctx, f.Id)
		if err != nil {
			return err
		}
		if is {
			s.noteFolder(f.Id)
		}
		if empty {
			return nil
		}
	}
	return backends.ErrCursorReset
}

// isEmpty reports whether nothing lies in a folder, not even in the bin: it may be
// there with the folder.
func (s *Store) isEmpty(ctx context.Context, id string) (bool, error) {
	err := s.list(ctx, quote(id)+" in parents", "", func(*drive.File) error { return errStop })
	switch {
	case err == errStop:
		return false, nil
	case gone(err): // meanwhile
		err = nil
	}
	return err == nil, err
}
