package gdrive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"iter"
	"slices"
	"strings"

	"google.golang.org/api/drive/v3"
	"google.golang.org/api/googleapi"

	"github.com/sregfs/sregfs/backends"
)

// errIncomplete: the service itself says that a listing lacks something.
var errIncomplete = fmt.Errorf("%w: the service says that its listing is incomplete", backends.ErrUnreachable)

// errStop ends a listing whose caller has enough.
var errStop = errors.New("stop")

// List yields the images in the root folder and in the folders below it, and
// the collections that have a folder of their own. Several files of one name
// are yielded each. Without a root folder there is nothing.
func (s *Store) List(ctx context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		const op = "list"
		root, err := s.rootFolder(ctx)
		if errors.Is(err, iofs.ErrNotExist) {
			return
		}
		if err == nil {
			err = s.walk(ctx, root, func(e backends.Entry) error {
				if !yield(e, nil) {
					return errStop
				}
				return nil
			})
		}
		if err != nil && err != errStop {
			yield(backends.Entry{}, s.fail(ctx, op, backends.Ref{}, err))
		}
	}
}

// typed is the search term for what is listed besides folders.
func (s *Store) typed() string {
	if s.untyped {
		return "mimeType != '" + folderMIME + "'"
	}
	return hasProperty(propType, typeContainer)
}

// walk visits everything below the root folder, a level at a time.
func (s *Store) walk(ctx context.Context, root string, visit func(backends.Entry) error) error {
	paths := map[string]string{root: ""}
	level := []string{root}
	for depth := 0; len(level) > 0 && depth < maxDepth; depth++ {
		var next []string
		for _, in := range batches(level) {
			q := fmt.Sprintf("%s and trashed = false and (%s or mimeType = '%s')", in, s.typed(), folderMIME)
			err := s.list(ctx, q, "", func(f *drive.File) error {
				if len(f.Parents) == 0 {
					return nil
				}
				folder := paths[f.Parents[0]]
				if f.MimeType == folderMIME {
					if _, twice := paths[f.Id]; twice {
						return nil
					}
					paths[f.Id] = join(folder, f.Name)
					next = append(next, f.Id)
					s.noteFolder(f.Id)
					if f.Properties[propType] != typeCollection {
						return nil
					}
					return visit(collectionEntry(f, folder))
				}
				if !s.isImage(f) {
					return nil
				}
				return visit(backends.Entry{Image: s.imageOf(f, folder)})
			})
			if err != nil {
				return err
			}
		}
		level = next
	}
	return nil
}

// collectionEntry is the collection that a folder keeps.
func collectionEntry(f *drive.File, folder string) backends.Entry {
	return backends.Entry{Collection: join(folder, f.Name), Image: backends.Image{ID: f.Id, Created: parseTime(f.CreatedTime), Modified: parseTime(f.ModifiedTime)}}
}

// Stat looks for the files of ref's name. Of several the one that was modified
// last is the image; the others, and what each file held before, answer to
// their versions: an MD5 or other checksum, a revision, or the version that
// stands in a file's name.
func (s *Store) Stat(ctx context.Context, ref backends.Ref) (backends.Image, error) {
	const op = "look up"
	found, err := s.named(ctx, ref.Latest())
	if err != nil {
		return backends.Image{}, s.fail(ctx, op, ref, err)
	}
	if ref.Version == "" {
		if len(found) == 0 {
			return backends.Image{}, backends.NotExist(op, s.client, ref)
		}
		return found[0].image, nil
	}
	for _, c := range found {
		if v := ref.Version; v == c.image.Version || v == c.image.Revision || v == c.image.Sum.Hex || v == c.image.Sum.String() {
			c.image.Ref = ref
			return c.image, nil
		}
	}
	for _, c := range found {
		old, err := s.revisions(ctx, c.image)
		if err != nil {
			return backends.Image{}, s.fail(ctx, op, ref, err)
		}
		for _, img := range old {
			if ref.Version == img.Version || ref.Version == img.Revision {
				img.Ref = ref
				return img, nil
			}
		}
	}
	// What the Python client called the version need not be the MD5.
	for _, c := range found {
		if c.version == ref.Version {
			c.image.Ref = ref
			return c.image, nil
		}
	}
	return backends.Image{}, backends.NotExist(op, s.client, ref)
}

// candidate is a file of the name that was looked for.
type candidate struct {
	image   backends.Image
	version string // as the file's name or properties say
	file    *drive.File
}

// named returns the files whose image is called ref (without a version), the
// one that was modified last first.
func (s *Store) named(ctx context.Context, ref backends.Ref) ([]candidate, error) {
	root, err := s.recentRoot(ctx)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// By the properties, and by the name for files that lack them; Drive's
	// "contains" matches beginnings. It is all checked below.
	var terms []string
	if fits(propImage, ref.Name) && fits(propTag, ref.Tag) {
		terms = append(terms, "("+hasProperty(propImage, ref.Name)+" and "+hasProperty(propTag, ref.Tag)+")")
	}
	leaf := ref.Name
	if ref.Tag != backends.DefaultTag {
		leaf += ":" + ref.Tag
	}
	terms = append(terms, "name contains "+quote(leaf))
	if ref.Collection != "" {
		terms = append(terms, "name contains "+quote(ref.Collection+"/"+leaf))
	}
	q := fmt.Sprintf("trashed = false and %s and (%s)", s.typed(), strings.Join(terms, " or "))
	var found []candidate
	at := s.placeIn(root)
	err = s.list(ctx, q, "", func(f *drive.File) error {
		if !s.isImage(f) {
			return nil
		}
		// Where a file lies can cost a request; its name mostly settles it.
		if got := refOf(f, ""); got.Name != ref.Name || got.Tag != ref.Tag {
			return nil
		}
		where, err := at.of(ctx, f)
		if err != nil || !where.inside {
			return err
		}
		if full := refOf(f, where.path); full.Latest() == ref {
			found = append(found, candidate{s.imageOf(f, where.path), full.Version, f})
		}
		return nil
	})
	sortNewest(found)
	return found, err
}

func sortNewest(found []candidate) {
	slices.SortStableFunc(found, func(a, b candidate) int {
		return cmp.Or(b.image.Modified.Compare(a.image.Modified), b.image.Created.Compare(a.image.Created), cmp.Compare(b.image.ID, a.image.ID))
	})
}

// revisions are what img's file has held, newest first, the present content
// among them. Who may only read a file is not told of its revisions.
func (s *Store) revisions(ctx context.Context, img backends.Image) ([]backends.Image, error) {
	if img.ReadOnly {
		return nil, nil
	}
	var all []backends.Image
	token := ""
	for {
		call := s.svc.Revisions.List(img.ID).Context(ctx).PageSize(1000).
			Fields("nextPageToken", googleapi.Field("revisions(id,modifiedTime,size,md5Checksum)"))
		if token != "" {
			call.PageToken(token)
		}
		l, err := again(ctx, call.Do)
		switch {
		case gone(err), codeOf(err) == 403 && reasons[reasonOf(err)] != backends.ErrBusy:
			return nil, nil
		case err != nil:
			return nil, err
		}
		for _, r := range l.Revisions {
			old := img
			old.Revision, old.Version, old.Size = r.Id, r.Md5Checksum, r.Size
			old.Sum = backends.Checksum{}
			if r.Md5Checksum != "" {
				old.Sum = backends.Checksum{Algorithm: backends.MD5, Hex: r.Md5Checksum}
			}
			if r.Id == img.Revision {
				old.Sum = img.Sum
			}
			old.Modified = parseTime(r.ModifiedTime)
			all = append(all, old)
		}
		if token = l.NextPageToken; token == "" {
			break
		}
	}
	slices.Reverse(all)
	return all, nil
}

// Versions returns what the files of ref's name hold and what they held before,
// each content once. A version's name is its MD5.
func (s *Store) Versions(ctx context.Context, ref backends.Ref) ([]backends.Image, error) {
	const op = "list versions of"
	found, err := s.named(ctx, ref.Latest())
	if err != nil {
		return nil, s.fail(ctx, op, ref, err)
	}
	if len(found) == 0 {
		return nil, backends.NotExist(op, s.client, ref)
	}
	var all []backends.Image
	seen := map[string]bool{}
	add := func(img backends.Image) {
		v := or(img.Version, img.Revision)
		if !seen[v] {
			seen[v] = true
			img.Ref = ref.WithVersion(v)
			all = append(all, img)
		}
	}
	add(found[0].image)
	for _, c := range found {
		old, err := s.revisions(ctx, c.image)
		if err != nil {
			return nil, s.fail(ctx, op, ref, err)
		}
		add(c.image)
		for _, img := range old {
			add(img)
		}
	}
	slices.SortStableFunc(all[1:], func(a, b backends.Image) int { return b.Modified.Compare(a.Modified) })
	return all, nil
}

// Find returns the image in the file with that id, wherever in Drive it lies
// and whoever shared it. A file need not be marked as a container for that,
// but must have bytes of its own and not be in the bin.
func (s *Store) Find(ctx context.Context, id string) (backends.Image, error) {
	const op = "find"
	none := &backends.Error{Op: op, Client: s.client, Err: fmt.Errorf("%q: %w", id, iofs.ErrNotExist)}
	if id == "" || id == "root" {
		return backends.Image{}, none
	}
	f, err := s.file(ctx, id)
	if errors.Is(err, iofs.ErrNotExist) || err == nil && strings.HasPrefix(f.MimeType, nativeMIME) {
		return backends.Image{}, none
	}
	if err != nil {
		return backends.Image{}, s.fail(ctx, op, backends.Ref{}, err)
	}
	folder := ""
	root, err := s.recentRoot(ctx)
	if err == nil {
		var at located
		if at, err = s.placeIn(root).of(ctx, f); at.inside {
			folder = at.path
		}
	}
	if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return backends.Image{}, s.fail(ctx, op, backends.Ref{}, err)
	}
	return s.imageOf(f, folder), nil
}

// file asks for a file. One in the bin is fs.ErrNotExist.
func (s *Store) file(ctx context.Context, id string) (*drive.File, error) {
	f, err := again(ctx, s.get(id).Context(ctx).Fields(fileFields).Do)
	if gone(err) || err == nil && f.Trashed {
		return nil, iofs.ErrNotExist
	}
	return f, err
}

// Search yields the newest image of each name in which word occurs, in any
// case, in the name, the tag, the collection, the id or a label. Drive's own
// search knows beginnings of words only, and properties only whole; so it
// lists, as the Python client does.
func (s *Store) Search(ctx context.Context, word string) iter.Seq2[backends.Image, error] {
	return func(yield func(backends.Image, error) bool) {
		newest := map[backends.Ref]backends.Image{}
		var order []backends.Ref
		for e, err := range s.List(ctx) {
			if err != nil {
				yield(backends.Image{}, err)
				return
			}
			img := e.Image
			if e.Collection != "" || !matches(img, word) {
				continue
			}
			have, ok := newest[img.Ref]
			if !ok {
				order = append(order, img.Ref)
			}
			if !ok || img.Modified.After(have.Modified) {
				newest[img.Ref] = img
			}
		}
		for _, ref := range order {
			if !yield(newest[ref], nil) {
				return
			}
		}
	}
}

func matches(img backends.Image, word string) bool {
	word = strings.ToLower(word)
	if strings.Contains(img.ID, word) || strings.Contains(strings.ToLower(img.ID), word) || strings.Contains(strings.ToLower(img.Ref.String()), word) {
		return true
	}
	for k, v := range img.Labels {
		if strings.Contains(strings.ToLower(k), word) || strings.Contains(strings.ToLower(v), word) {
			return true
		}
	}
	return false
}

// Usage returns the account's space, as Drive, Mail and Photos share it.
func (s *Store) Usage(ctx context.Context) (backends.Usage, error) {
	a, err := again(ctx, s.svc.About.Get().Context(ctx).Fields("storageQuota(limit,usage)").Do)
	if err != nil {
		return backends.Usage{}, s.fail(ctx, "ask for the space of", backends.Ref{}, err)
	}
	if a.StorageQuota == nil {
		return backends.Usage{}, nil
	}
	return backends.Usage{Used: a.StorageQuota.Usage, Total: a.StorageQuota.Limit}, nil
}

// Account returns the display name of the account's owner.
func (s *Store) Account(ctx context.Context) (string, error) {
	a, err := again(ctx, s.svc.About.Get().Context(ctx).Fields("user(displayName,emailAddress)").Do)
	if err != nil {
		return "", s.fail(ctx, "ask for the name of", backends.Ref{}, err)
	}
	if a.User == nil {
		return "", s.fail(ctx, "ask for the name of", backends.Ref{}, fmt.Errorf("%w: the answer has no user", backends.ErrUnreachable))
	}
	return or(a.User.DisplayName, a.User.EmailAddress), nil
}
