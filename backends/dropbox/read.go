package dropbox

import (
	"context"
	"crypto/sha256"
	"fmt"
	iofs "io/fs"
	"iter"
	"slices"
	"strings"

	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"
	"golang.org/x/sync/errgroup"

	"github.com/sregfs/sregfs/backends"
)

// pageSize is the most entries that a listing's page may have.
const pageSize = 2000

// List yields every folder as a collection, and every image. It costs one
// request for each 2,000 entries. What changes while it is read may or may not
// be in it; a cursor taken before tells.
func (s *Store) List(ctx context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		l := lister{spelling: &s.spelling, plain: make(map[string]bool), gone: make(map[string]bool)}
		for m, err := range s.walk(ctx, "", "list") {
			if err != nil {
				yield(backends.Entry{}, err)
				return
			}
			if e, ok := l.next(m); ok && !yield(e, nil) {
				return
			}
		}
		for _, e := range l.rest() {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// walk yields everything below a folder, page after page.
func (s *Store) walk(ctx context.Context, folder, op string) iter.Seq2[files.IsMetadata, error] {
	return func(yield func(files.IsMetadata, error) bool) {
		arg := files.NewListFolderArg(folder)
		arg.Recursive, arg.Limit = true, pageSize
		cctx, c := newCall(ctx)
		page, err := s.files.ListFolderContext(cctx, arg)
		for {
			if err != nil {
				yield(nil, s.fail(ctx, op, backends.Ref{}, c, err))
				return
			}
			for _, m := range page.Entries {
				if !yield(m, nil) {
					return
				}
			}
			if !page.HasMore {
				return
			}
			cctx, c = newCall(ctx)
			page, err = s.files.ListFolderContinueContext(cctx, files.NewListFolderContinueArg(page.Cursor))
		}
	}
}

// Stat asks for the file of ref under each of the names that it may have. A
// version is a revision, a content hash, or what stands behind "@" in a file's
// name.
func (s *Store) Stat(ctx context.Context, ref backends.Ref) (backends.Image, error) {
	if ref.Version != "" {
		return s.statVersion(ctx, ref)
	}
	m, err := s.lookUp(ctx, "stat", ref)
	if err != nil {
		return backends.Image{}, err
	}
	return s.found(ctx, "stat", ref, m)
}

// found is the image of the file that was looked up for ref.
func (s *Store) found(ctx context.Context, op string, ref backends.Ref, m *files.FileMetadata) (backends.Image, error) {
	collection, err := s.collection(ctx, m, ref.Collection)
	if err != nil {
		return backends.Image{}, s.fail(ctx, op, ref, nil, err)
	}
	return image(m, collection), nil
}

// lookUp finds the file that stands for ref. The usual name is asked for
// first; the others, all at once, only when there is none.
func (s *Store) lookUp(ctx context.Context, op string, ref backends.Ref) (*files.FileMetadata, error) {
	names := objects(ref)
	found := make([]*files.FileMetadata, len(names))
	ask := func(ctx context.Context, i int) error {
		p := folderPath(ref.Collection) + "/" + names[i]
		if !valid(p) {
			return nil // Dropbox cannot have it
		}
		cctx, c := newCall(ctx)
		m, err := s.files.GetMetadataContext(cctx, files.NewGetMetadataArg(p))
		switch {
		case notFound(err):
			return nil
		case err != nil:
			return s.fail(ctx, op, ref, c, err)
		}
		found[i], _ = m.(*files.FileMetadata) // a folder of that name is no image
		return nil
	}
	if err := ask(ctx, 0); err != nil {
		return nil, err
	}
	if found[0] == nil {
		g, gctx := errgroup.WithContext(ctx)
		for i := 1; i < len(names); i++ {
			g.Go(func() error { return ask(gctx, i) })
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
	}
	for _, m := range found {
		if m != nil && m.PathLower != "" {
			return m, nil
		}
	}
	return nil, backends.NotExist(op, s.client, ref)
}

// statVersion is Stat for a reference with a version.
func (s *Store) statVersion(ctx context.Context, ref backends.Ref) (backends.Image, error) {
	const op = "stat"
	latest := ref.Latest()
	if isRevision(ref.Version) {
		cctx, c := newCall(ctx)
		m, err := s.files.GetMetadataContext(cctx, files.NewGetMetadataArg("rev:"+ref.Version))
		if err != nil && !notFound(err) {
			return backends.Image{}, s.fail(ctx, op, ref, c, err)
		}
		if f, ok := m.(*files.FileMetadata); ok && names(latest, f) {
			img, err := s.found(ctx, op, ref, f)
			img.Ref.Version = ref.Version
			return img, err
		}
	}
	if m, err := s.lookUp(ctx, op, ref); err == nil {
		return s.found(ctx, op, ref, m)
	} else if !notThere(err) {
		return backends.Image{}, err
	}
	versions, err := s.Versions(ctx, latest)
	if err != nil {
		return backends.Image{}, err
	}
	for _, img := range versions {
		if img.Revision == ref.Version || img.Sum.Hex == ref.Version || img.Sum.String() == ref.Version {
			img.Ref.Version = ref.Version
			return img, nil
		}
	}
	return backends.Image{}, backends.NotExist(op, s.client, ref)
}

// isRevision reports whether v has a rev's form (its pattern in the
// documentation is [0-9a-f]{9,}).
func isRevision(v string) bool {
	return len(v) >= 9 && len(v) < 2*sha256.Size && strings.Trim(v, "0123456789abcdef") == ""
}

// names reports whether ref may stand for the file m.
func names(ref backends.Ref, m *files.FileMetadata) bool {
	return slices.ContainsFunc(objects(ref), func(name string) bool {
		return fold(folderPath(ref.Collection)+"/"+name) == m.PathLower
	})
}

// Versions returns the revisions of the file at ref's path, which Dropbox keeps
// for some time after they were replaced; also those of a deleted file.
func (s *Store) Versions(ctx context.Context, ref backends.Ref) ([]backends.Image, error) {
	const op = "list versions of"
	at := ""
	m, err := s.lookUp(ctx, op, ref)
	switch {
	case err == nil:
		at = m.PathLower
	case !notThere(err):
		return nil, err
	default:
		var ok bool
		if at, ok = pathOf(ref.Latest()); !ok {
			return nil, err
		}
	}
	arg := files.NewListRevisionsArg(at)
	arg.Limit = 100 // the most that it takes
	var images []backends.Image
	for {
		cctx, c := newCall(ctx)
		res, err := s.files.ListRevisionsContext(cctx, arg)
		if err != nil {
			return nil, s.fail(ctx, op, ref, c, err)
		}
		for _, r := range res.Entries {
			if r.PathLower == "" {
				r.PathLower, r.PathDisplay = fold(at), at
			}
			img, err := s.found(ctx, op, ref, r)
			if err != nil {
				return nil, err
			}
			img.Ref.Version = r.Rev
			images = append(images, img)
		}
		if !res.HasMore || len(res.Entries) == 0 {
			return images, nil
		}
		arg.BeforeRev = res.Entries[len(res.Entries)-1].Rev
	}
}

// Find returns the image with that id ("id:…").
func (s *Store) Find(ctx context.Context, id string) (backends.Image, error) {
	const op = "find"
	gone := &backends.Error{Op: op, Client: s.client, Err: fmt.Errorf("%q: %w", id, iofs.ErrNotExist)}
	if !strings.HasPrefix(id, "id:") {
		return backends.Image{}, gone // it would be taken for a path
	}
	cctx, c := newCall(ctx)
	res, err := s.files.GetMetadataContext(cctx, files.NewGetMetadataArg(id))
	switch {
	case notFound(err), hasTag(err, files.LookupErrorMalformedPath):
		return backends.Image{}, gone
	case err != nil:
		return backends.Image{}, s.fail(ctx, op, backends.Ref{}, c, err)
	}
	m, ok := res.(*files.FileMetadata)
	if !ok || !isImage(m) {
		return backends.Image{}, gone
	}
	return s.found(ctx, op, backends.Ref{}, m)
}
