package gdrive

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"slices"
	"strings"
	"time"

	"google.golang.org/api/drive/v3"
	"google.golang.org/api/googleapi"
)

// rootFresh is how long the root folder's id is taken for granted by calls
// that look at single images and by pushes; see rescue. Listings look it up anew.
const rootFresh = time.Minute

// again calls do once more when the answer's body broke off. It is for calls
// that may be repeated; everything before the body is repeated by the pacer.
func again[T any](ctx context.Context, do func(...googleapi.CallOption) (T, error)) (T, error) {
	for try := 1; ; try++ {
		v, err := do()
		if err == nil || try == 3 || ctx.Err() != nil || !errors.Is(err, io.ErrUnexpectedEOF) {
			return v, err
		}
	}
}

// rootFolder is the id of the folder that holds the images: the oldest of its
// name directly in My Drive. It fails with fs.ErrNotExist when there is none.
func (s *Store) rootFolder(ctx context.Context) (string, error) {
	id, err := s.findRoot(ctx, "'root' in parents")
	if errors.Is(err, iofs.ErrNotExist) && s.shared {
		// A service account's own Drive has no space; its users share a folder
		// with it.
		id, err = s.findRoot(ctx, "sharedWithMe = true")
	}
	if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rootID, s.rootSeen = id, time.Now()
	return id, err
}

func (s *Store) findRoot(ctx context.Context, where string) (string, error) {
	q := fmt.Sprintf("mimeType = '%s' and name = %s and %s and trashed = false", folderMIME, quote(s.root), where)
	var found []*drive.File
	token := ""
	for {
		call := s.svc.Files.List().Context(ctx).Q(q).OrderBy("createdTime").PageSize(100).Spaces("drive").Fields("nextPageToken,files(id,name)")
		if token != "" {
			call.PageToken(token)
		}
		l, err := again(ctx, call.Do)
		if err != nil {
			return "", err
		}
		for _, f := range l.Files {
			if f.Name == s.root { // Drive's "=" ignores case
				found = append(found, f)
			}
		}
		if token = l.NextPageToken; token == "" {
			break
		}
	}
	if len(found) == 0 {
		return "", fmt.Errorf("%w: there is no folder %q in the Drive", iofs.ErrNotExist, s.root)
	}
	if len(found) > 1 {
		s.log.Warn("several folders in the Drive have the name; the oldest is used", "client", s.client, "name", s.root, "id", found[0].Id, "folders", len(found))
	}
	return found[0].Id, nil
}

// recentRoot is rootFolder, which may be a moment old.
func (s *Store) recentRoot(ctx context.Context) (string, error) {
	s.mu.Lock()
	id, fresh := s.rootID, time.Since(s.rootSeen) < rootFresh
	s.mu.Unlock()
	if id != "" && fresh {
		return id, nil
	}
	return s.rootFolder(ctx)
}

// makeRoot is rootFolder, and makes the folder when there is none.
func (s *Store) makeRoot(ctx context.Context) (string, error) {
	id, err := s.recentRoot(ctx)
	if !errors.Is(err, iofs.ErrNotExist) {
		return id, err
	}
	made, err := s.makeFolder(ctx, &drive.File{Name: s.root, Parents: []string{"root"}})
	if err != nil {
		return "", err
	}
	// Another process may have made one in the meantime: all use the oldest.
	id, err = s.rootFolder(ctx)
	switch {
	case err == nil && id != made:
		err = s.trash(ctx, made)
	case errors.Is(err, iofs.ErrNotExist):
		// Searches may lag behind what was just made.
		id, err = made, nil
		s.mu.Lock()
		s.rootID, s.rootSeen = id, time.Now()
		s.mu.Unlock()
	}
	return id, err
}

// get asks for a file and update changes one, in whatever drive it lies: Drive
// tells who does not announce that they know of shared drives that there is no
// such file (guide "enable-shareddrives").
func (s *Store) get(id string) *drive.FilesGetCall {
	return s.svc.Files.Get(id).SupportsAllDrives(true)
}

func (s *Store) update(id string, f *drive.File) *drive.FilesUpdateCall {
	return s.svc.Files.Update(id, f).SupportsAllDrives(true)
}

// rescue moves a file that went to the bin with the folder it was put into: the
// root folder was another by then.
func (s *Store) rescue(ctx context.Context, f *drive.File) (*drive.File, error) {
	if _, err := s.rootFolder(ctx); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return nil, err
	}
	root, err := s.makeRoot(ctx)
	if err != nil || slices.Contains(f.Parents, root) {
		return f, err // it was binned itself
	}
	return again(ctx, s.update(f.Id, &drive.File{}).AddParents(root).RemoveParents(strings.Join(f.Parents, ",")).
		Context(ctx).Fields(fileFields).Do)
}

// makeFolder makes a folder once, however often the request is sent: its id is
// asked for before.
func (s *Store) makeFolder(ctx context.Context, f *drive.File) (string, error) {
	ids, err := again(ctx, s.svc.Files.GenerateIds().Context(ctx).Count(1).Space("drive").Fields("ids").Do)
	if err != nil {
		return "", err
	}
	if len(ids.Ids) == 0 {
		return "", errors.New("the service gives no id for a folder")
	}
	f.Id, f.MimeType = ids.Ids[0], folderMIME
	_, err = again(ctx, s.svc.Files.Create(f).Context(ctx).Fields("id").Do)
	if codeOf(err) == 409 {
		err = nil // an earlier try made it
	}
	return f.Id, err
}

func (s *Store) trash(ctx context.Context, id string) error {
	_, err := again(ctx, s.update(id, &drive.File{Trashed: true}).Context(ctx).Fields("id").Do)
	return err
}

// list yields the files that q finds, page by page, until visit fails.
func (s *Store) list(ctx context.Context, q, orderBy string, visit func(*drive.File) error) error {
	token := ""
	for {
		call := s.svc.Files.List().Context(ctx).Q(q).PageSize(s.page).Spaces("drive").
			Fields("nextPageToken", "incompleteSearch", googleapi.Field("files("+fileFields+")"))
		if orderBy != "" {
			call.OrderBy(orderBy)
		}
		if token != "" {
			call.PageToken(token)
		}
		l, err := again(ctx, call.Do)
		if err != nil {
			return err
		}
		if l.IncompleteSearch {
			return errIncomplete
		}
		for _, f := range l.Files {
			if err := visit(f); err != nil {
				return err
			}
		}
		if token = l.NextPageToken; token == "" {
			return nil
		}
	}
}

// place finds out where below the root folder a file lies.
type place struct {
	s     *Store
	root  string
	known map[string]located // by folder id
}

type located struct {
	path   string // below the root
	inside bool
}

func (s *Store) placeIn(root string) *place {
	return &place{s: s, root: root, known: map[string]located{root: {inside: true}}}
}

// maxDepth bounds how deep folders may lie.
const maxDepth = 50

// of is the path of the folder that f lies in. What the account cannot see is
// outside.
func (p *place) of(ctx context.Context, f *drive.File) (located, error) {
	return p.folder(ctx, f.Parents, 0)
}

func (p *place) folder(ctx context.Context, parents []string, depth int) (located, error) {
	if len(parents) == 0 || depth > maxDepth {
		return located{}, nil
	}
	id := parents[0]
	if at, ok := p.known[id]; ok {
		return at, nil
	}
	f, err := again(ctx, p.s.get(id).Context(ctx).Fields("name,parents,trashed").Do)
	if gone(err) {
		p.known[id] = located{}
		return located{}, nil
	}
	if err != nil {
		return located{}, err
	}
	at, err := p.folder(ctx, f.Parents, depth+1)
	if err != nil {
		return located{}, err
	}
	at = located{path: join(at.path, f.Name), inside: at.inside && !f.Trashed}
	p.known[id] = at
	if at.inside {
		p.s.noteFolder(id)
	}
	return at, nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "/" + name
}

// noteFolder remembers a folder below the root, whose change matters.
func (s *Store) noteFolder(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.folders[id] = true
}

// batches splits ids into search terms "in any of these folders".
func batches(ids []string) (terms []string) {
	const most = 40 // keeps the query well below the length that URLs may have
	for len(ids) > 0 {
		n := min(most, len(ids))
		var t []string
		for _, id := range ids[:n] {
			t = append(t, quote(id)+" in parents")
		}
		terms = append(terms, "("+strings.Join(t, " or ")+")")
		ids = ids[n:]
	}
	return terms
}
