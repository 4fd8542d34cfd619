package local

import (
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sregfs/sregfs/backends"
)

// Which file is which image. The folder has seen several programs:
//
//	COLLECTION/NAME:TAG.simg        as sregfs and the Python client of the seeds write
//	NAME:TAG.simg                   outside of all collections ("pusheen-asaurus:red.simg")
//	COLLECTION/NAME.simg            without a tag, which is then latest; .sif and .img as well
//	COLLECTION/NAME:TAG@VERSION.simg
//	COLLECTION/NAME/TAG.sif         and TAG@VERSION.sif: the later Python client
//	COLLECTION/NAME:TAG.url         a record without a file; see record.go
//
// The later Python client's is told from an image "TAG" in a collection "COLLECTION/NAME" by
// having no colon in its name, and .sif, which that client always writes.
// Whatever begins with a dot is no image: such names are what other programs
// hide.

// nestedExtension is the extension of the later Python client's layout.
const nestedExtension = ".sif"

// refOf is the image that the file p, a path relative to the folder, holds;
// nested says that it is of the later Python client's layout.
func refOf(p string) (r backends.Ref, nested, ok bool) {
	dir, base := path.Split(p)
	dir = strings.TrimSuffix(dir, "/")
	if strings.HasPrefix(base, ".") || !filepath.IsLocal(p) || path.Clean(p) != p {
		return r, false, false
	}
	if r, ok = backends.ParseObject(base); !ok {
		return r, false, false
	}
	r.Collection = dir
	if up, name := path.Split(dir); up != "" && strings.HasSuffix(base, nestedExtension) && !strings.Contains(base, ":") {
		return backends.Ref{Collection: strings.TrimSuffix(up, "/"), Name: name, Tag: r.Name, Version: r.Version}, true, true
	}
	return r, false, true
}

// pathOf is where an image goes that is pushed as r.
func pathOf(r backends.Ref) (string, error) {
	if err := checkCollection(r.Collection); err != nil {
		return "", err
	}
	base := r.Object()
	p := path.Join(r.Collection, base)
	switch back, nested, ok := refOf(p); {
	case len(base) > backends.MaxName:
		return "", fmt.Errorf("%w: over %d bytes", backends.ErrInvalidName, backends.MaxName)
	case strings.ContainsAny(base, "/\x00"), !ok, nested, back != r:
		return "", fmt.Errorf("%w: it cannot be kept as a file", backends.ErrInvalidName)
	}
	return p, nil
}

// checkCollection refuses names that would lead astray, or be hidden.
func checkCollection(name string) error {
	if name == "" {
		return nil
	}
	for seg := range strings.SplitSeq(name, "/") {
		if seg == "" || seg[0] == '.' || len(seg) > backends.MaxName || strings.ContainsRune(seg, 0) {
			return fmt.Errorf("%w: %q cannot be a folder here", backends.ErrInvalidName, seg)
		}
	}
	return nil
}

// candidates are the files that may hold r, whose Version is empty, under names
// without a version.
func candidates(r backends.Ref) []string {
	return slices.DeleteFunc(usual(r), func(p string) bool {
		// What a path means is refOf's to say alone.
		got, _, ok := refOf(p)
		return !ok || got != r
	})
}

// usual are the paths that an image of the bare name r may have, among others
// that mean something else.
func usual(r backends.Ref) []string {
	list := make([]string, 0, 2*len(backends.Extensions)+1)
	for _, ext := range backends.Extensions {
		list = append(list, path.Join(r.Collection, r.Name+":"+r.Tag+ext))
		if r.Tag == backends.DefaultTag {
			list = append(list, path.Join(r.Collection, r.Name+ext))
		}
	}
	return append(list, path.Join(r.Collection, r.Name, r.Tag+nestedExtension))
}

// keyOf and pathOfKey turn paths into Image.Key and back.
func keyOf(p string) string     { return "/" + p }
func pathOfKey(k string) string { return strings.TrimPrefix(k, "/") }

func (s *Store) urlOf(p string) string {
	return (&url.URL{Scheme: "file", Path: path.Join(s.dir, p)}).String()
}

// visible reports whether a directory's entry is looked at.
func visible(dir, name string) bool {
	return !strings.HasPrefix(name, ".") && (dir != "" || name != "lost+found")
}

// found is an image's file as it was found.
type found struct {
	path  string
	ref   backends.Ref // with the version that the name has
	stamp stamp
	link  bool // the name is a symbolic link
	// record is set when the file is a record; see record.go.
	record *record
}

func (f found) isRecord() bool { return f.record != nil }

// image describes f. Its Ref has the name's version; see resolve.
func (s *Store) image(f found) backends.Image {
	if f.isRecord() {
		img := backends.Image{
			Ref: f.ref, Key: keyOf(f.path), Revision: f.stamp.String(), Size: f.record.Size,
			Version: f.record.MD5, URL: shownURL(f.record.URL),
		}
		if f.record.MD5 != "" {
			img.Sum = backends.Checksum{Algorithm: backends.MD5, Hex: f.record.MD5}
		}
		return img
	}
	return backends.Image{
		Ref: f.ref, Key: keyOf(f.path), Revision: f.stamp.String(), Size: f.stamp.size,
		Version: f.ref.Version, Modified: unixTime(f.stamp.mtime), URL: s.urlOf(f.path),
	}
}

// resolve describes the files of one name, which may differ in version. A
// record gives way to files. Where no file has the bare name, the newest has
// it, as its finder expects, and the others are found by version.
func (s *Store) resolve(files []found) []backends.Image {
	images := make([]backends.Image, 0, len(files))
	bare, newest := false, -1
	for _, f := range files {
		if f.isRecord() && len(files) > 1 {
			continue // there is one record at most
		}
		img := s.image(f)
		bare = bare || img.Ref.Version == ""
		if newest < 0 || img.Modified.After(images[newest].Modified) ||
			img.Modified.Equal(images[newest].Modified) && img.Key < images[newest].Key {
			newest = len(images)
		}
		images = append(images, img)
	}
	if !bare && newest >= 0 {
		images[newest].Ref = images[newest].Ref.Latest()
	}
	return images
}

// best is the newest of several files with one bare name, of equally new ones
// the first. It is nil when there is none.
func best(list []found) *found {
	var b *found
	for i := range list {
		if b == nil || list[i].stamp.mtime > b.stamp.mtime {
			b = &list[i]
		}
	}
	return b
}
