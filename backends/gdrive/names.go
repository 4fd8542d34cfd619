package gdrive

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/api/drive/v3"

	"github.com/sregfs/sregfs/backends"
)

// The properties by which the Python client knows its files. All others are
// the container's labels.
const (
	propType       = "type" // typeContainer
	propURI        = "uri"
	propCollection = "collection"
	propImage      = "image"
	propTag        = "tag"
	propStorage    = "storage" // the file's name
	propVersion    = "version" // the content's MD5
)

// Values of propType.
const (
	typeContainer = "container"
	// typeCollection marks the folder that keeps a collection which may be
	// empty. The Python client asks for octet streams only, and does not see it.
	typeCollection = "collection"
	// typeUpload marks a file whose content has arrived but which is no image
	// yet.
	typeUpload = "upload"
)

const (
	folderMIME = "application/vnd.google-apps.folder"
	nativeMIME = "application/vnd.google-apps."
	// blobMIME is the one that the Python client asks for.
	blobMIME = "application/octet-stream"
)

// Limits of properties
// (https://developers.google.com/workspace/drive/api/guides/properties).
const (
	maxProperty   = 124 // bytes of UTF-8 in key and value together
	maxProperties = 30  // of one app on a file
)

// fits reports whether a property may be set.
func fits(key, value string) bool { return key != "" && len(key)+len(value) <= maxProperty }

func isCore(key string) bool {
	switch key {
	case propType, propURI, propCollection, propImage, propTag, propStorage, propVersion:
		return true
	}
	return false
}

// properties describe the image ref with content version in the file called
// name. What does not fit is left out: labels first, then what the name says
// as well. A name is described whole or not at all, so that who reads it knows
// what is missing.
func properties(ref backends.Ref, version, name string, labels map[string]string) map[string]string {
	p := map[string]string{propType: typeContainer}
	set := func(k, v string) {
		if v != "" && fits(k, v) {
			p[k] = v
		}
	}
	set(propVersion, version)
	set(propURI, ref.WithVersion(version).String())
	set(propStorage, name)
	if fits(propCollection, ref.Collection) && fits(propImage, ref.Name) && fits(propTag, ref.Tag) {
		set(propCollection, ref.Collection)
		set(propImage, ref.Name)
		set(propTag, ref.Tag)
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if len(p) == maxProperties {
			break
		}
		if !isCore(k) {
			set(k, labels[k])
		}
	}
	return p
}

// objectName is the name of a file with that image.
func objectName(ref backends.Ref) string {
	if ref.Collection == "" {
		return ref.Object()
	}
	return ref.Collection + "/" + ref.Object()
}

// renamed is the name that a file called old gets when its image becomes ref
// with the given content. It keeps the extension, and a version only where the
// old name had one: a remote object keeps the name that it has.
func renamed(old string, ref backends.Ref, version string) string {
	_, leaf := splitName(old)
	was, ok := backends.ParseObject(leaf)
	ref.Version = version
	if ok && was.Version == "" {
		ref.Version = ""
	}
	name := objectName(ref)
	for _, ext := range backends.Extensions {
		if ok && strings.HasSuffix(old, ext) {
			return strings.TrimSuffix(name, backends.Extensions[0]) + ext
		}
	}
	return name
}

// splitName splits a file's name at its last slash.
func splitName(name string) (collection, leaf string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}

// refOf is the image in a file that lies in folder, the path below the root.
// The properties tell, unless somebody has renamed the file since they were
// written; otherwise its name does, with the folder for its collection when
// there is no slash in it. Version is the one of the name or the properties.
func refOf(f *drive.File, folder string) backends.Ref {
	p := f.Properties
	stored, known := p[propStorage]
	if p[propImage] != "" && p[propTag] != "" && (!known || stored == f.Name) {
		return backends.Ref{Collection: p[propCollection], Name: p[propImage], Tag: p[propTag], Version: p[propVersion]}
	}
	collection, leaf := splitName(f.Name)
	if leaf == "" {
		collection, leaf = "", or(f.Name, f.Id)
	}
	if collection == "" {
		collection = folder
	}
	ref, ok := backends.ParseObject(leaf)
	if !ok {
		// A file without an image's extension, with or without a tag.
		ref, _ = backends.ParseObject(leaf + backends.Extensions[0])
	}
	ref.Collection = collection
	if ref.Version == "" {
		ref.Version = p[propVersion]
	}
	return ref
}

// isImage reports whether a file is to be shown: a container with bytes of its
// own, or any image by its name when untyped is set.
func (s *Store) isImage(f *drive.File) bool {
	if f.Trashed || strings.HasPrefix(f.MimeType, nativeMIME) {
		return false
	}
	switch f.Properties[propType] {
	case typeContainer:
		return true
	case "":
		return s.untyped && backends.HasExtension(f.Name)
	}
	return false
}

// fileFields are what a file is asked for.
const fileFields = "id,name,mimeType,properties,parents,createdTime,modifiedTime,trashed,size,md5Checksum,sha256Checksum,headRevisionId,capabilities(canEdit)"

// imageOf is what f says of its image. Its Ref has no version.
func (s *Store) imageOf(f *drive.File, folder string) backends.Image {
	img := backends.Image{
		Ref:      refOf(f, folder).Latest(),
		ID:       f.Id,
		Revision: or(f.HeadRevisionId, f.Md5Checksum),
		Size:     f.Size,
		Version:  f.Md5Checksum,
		Created:  parseTime(f.CreatedTime),
		Modified: parseTime(f.ModifiedTime),
		URL:      defaultBase + "/drive/v3/files/" + f.Id + "?alt=media",
		ReadOnly: f.Capabilities != nil && !f.Capabilities.CanEdit,
	}
	switch {
	case f.Sha256Checksum != "":
		img.Sum = backends.Checksum{Algorithm: backends.SHA256, Hex: f.Sha256Checksum}
	case f.Md5Checksum != "":
		img.Sum = backends.Checksum{Algorithm: backends.MD5, Hex: f.Md5Checksum}
	}
	for k, v := range f.Properties {
		if !isCore(k) {
			if img.Labels == nil {
				img.Labels = map[string]string{}
			}
			img.Labels[k] = v
		}
	}
	props := f.Properties
	if props == nil {
		props = map[string]string{}
	}
	remote, err := json.Marshal(struct {
		ID         string            `json:"id"`
		Name       string            `json:"name"`
		Properties map[string]string `json:"properties"`
	}{f.Id, f.Name, props})
	if err == nil {
		img.Remote = remote
	}
	return img
}

// parseTime reads RFC 3339, the zero time when it is none.
func parseTime(v string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, v)
	if err != nil {
		return time.Time{}
	}
	return t
}

// quote writes a string of a search query
// (https://developers.google.com/workspace/drive/api/guides/ref-search-terms):
// in single quotes, with a backslash before those and before itself.
func quote(v string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v) + "'"
}

// hasProperty is the search term for a property.
func hasProperty(key, value string) string {
	return "properties has { key=" + quote(key) + " and value=" + quote(value) + " }"
}
