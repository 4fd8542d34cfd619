package dropbox

import (
	"cmp"
	"slices"
	"strings"

	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"

	"github.com/sregfs/sregfs/backends"
)

// lister turns a recursive listing into entries as it comes. It holds back
// what cannot be told yet: whatever lies in a folder whose own entry has not
// come, and images that may not be the first of their reference.
//
// What changes while a listing is read comes at its end once more, or is told
// to be deleted. Each path is yielded once all the same.
type lister struct {
	spelling *spelling
	plain    map[string]bool // path_lower of what was yielded
	gone     map[string]bool // path_lower of what was deleted meanwhile
	later    []files.IsMetadata
}

// next takes an entry of the listing and returns what can be told of it.
func (l *lister) next(m files.IsMetadata) (e backends.Entry, ok bool) {
	switch m := m.(type) {
	case *files.FolderMetadata:
		l.spelling.learn(m)
		delete(l.gone, m.PathLower)
		spelled, unknown := l.spelling.folder(m.PathLower, m.PathDisplay)
		if unknown != "" {
			l.later = append(l.later, m)
			return e, false
		}
		return folder(m, spelled), l.once(m.PathLower)
	case *files.DeletedMetadata:
		l.spelling.forget(m.PathLower)
		l.gone[m.PathLower] = true
	case *files.FileMetadata:
		if !isImage(m) {
			return e, false
		}
		delete(l.gone, m.PathLower)
		spelled, unknown := l.spelling.folder(parent(m.PathLower), parent(m.PathDisplay))
		img := image(m, spelled)
		if unknown != "" || m.Name != objects(img.Ref)[0] {
			l.later = append(l.later, m)
			return e, false
		}
		return backends.Entry{Image: img}, l.once(m.PathLower)
	}
	return e, false
}

func (l *lister) once(lower string) bool {
	if l.plain[lower] {
		return false
	}
	l.plain[lower] = true
	return true
}

// rest returns what was held back, when the listing has ended.
func (l *lister) rest() []backends.Entry {
	var entries []backends.Entry
	var images []backends.Image
	for i := len(l.later) - 1; i >= 0; i-- { // the last word on a path counts
		switch m := l.later[i].(type) {
		case *files.FolderMetadata:
			if spelled, _ := l.spelling.folder(m.PathLower, m.PathDisplay); l.stands(m.PathLower) && l.once(m.PathLower) {
				entries = append(entries, folder(m, spelled))
			}
		case *files.FileMetadata:
			if spelled, _ := l.spelling.folder(parent(m.PathLower), parent(m.PathDisplay)); l.stands(m.PathLower) && l.once(m.PathLower) {
				images = append(images, image(m, spelled))
			}
		}
	}
	// The first name of each reference goes first and takes the reference.
	slices.SortFunc(images, func(a, b backends.Image) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Key, b.Key))
	})
	taken := make(map[string]bool)
	for _, img := range images {
		first := fold(folderPath(img.Ref.Collection) + "/" + objects(img.Ref)[0])
		if taken[first] || l.plain[first] && img.Key != first {
			img.Ref.Version = img.Revision
		}
		taken[first] = true
		entries = append(entries, backends.Entry{Image: img})
	}
	return entries
}

// stands reports whether nothing at or above a path was deleted meanwhile.
func (l *lister) stands(lower string) bool {
	for ; lower != ""; lower = parent(lower) {
		if l.gone[lower] {
			return false
		}
	}
	return true
}

// rank is where among the names of its reference an image's file comes.
func rank(img backends.Image) int {
	name := img.Key[strings.LastIndex(img.Key, "/")+1:]
	return slices.IndexFunc(objects(img.Ref), func(o string) bool { return fold(o) == name })
}
