package dropbox

import (
	"context"
	"encoding/json"
	"path"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"

	"github.com/sregfs/sregfs/backends"
)

// An image is a file with an image's extension; its collection is the folder
// that it lies in, spelled as the folder is.
//
// Usually it is named NAME:TAG.simg. But people put files there by other means,
// so NAME:TAG.sif, and NAME.simg for the tag "latest", are images as well. Where
// several files stand for one reference, the first in objects' order has the
// name, and the others are told with their revision as the version.

// objects are the names of the files that stand for ref, the one that Push
// makes first.
func objects(ref backends.Ref) []string {
	version := ""
	if ref.Version != "" {
		version = "@" + ref.Version
	}
	names := make([]string, 0, 2*len(backends.Extensions))
	for _, ext := range backends.Extensions {
		names = append(names, ref.Name+":"+ref.Tag+version+ext)
	}
	if ref.Tag == backends.DefaultTag {
		for _, ext := range backends.Extensions {
			names = append(names, ref.Name+version+ext)
		}
	}
	return names
}

// pathOf is where Push puts ref; ok is false for a name that Dropbox cannot
// keep or that would be read as another.
func pathOf(ref backends.Ref) (p string, ok bool) {
	p = folderPath(ref.Collection) + "/" + ref.Object()
	back, isImage := backends.ParseObject(ref.Object())
	back.Collection = ref.Collection
	return p, isImage && back == ref && valid(p) && !strings.Contains(ref.Object(), "/")
}

// folderPath is a collection's folder, "" for the app's folder itself.
func folderPath(collection string) string {
	if collection == "" {
		return ""
	}
	return "/" + collection
}

// valid reports whether Dropbox can keep a path
// (https://help.dropbox.com/organize/file-names; the API calls the others
// malformed).
func valid(p string) bool {
	if !utf8.ValidString(p) {
		return false
	}
	for name := range strings.SplitSeq(strings.TrimPrefix(p, "/"), "/") {
		if name == "" || name == "." || name == ".." || utf8.RuneCountInString(name) > 255 ||
			strings.HasSuffix(name, " ") || strings.ContainsAny(name, "\\\x00\x7f") {
			return false
		}
	}
	return true
}

// fold is a path as Dropbox compares it: path_lower.
func fold(p string) string { return strings.ToLower(p) }

// downloadURL is where the bytes of every image come from, as the Python
// client records it.
const downloadURL = "https://content.dropboxapi.com/2/files/download"

// isImage reports whether m is a file that counts as an image.
func isImage(m *files.FileMetadata) bool {
	return m.PathLower != "" && backends.HasExtension(m.Name)
}

// image is what Dropbox says of the file m, which lies in that collection.
func image(m *files.FileMetadata, collection string) backends.Image {
	ref, _ := backends.ParseObject(m.Name)
	ref.Collection = collection
	img := backends.Image{
		Ref:      ref,
		ID:       m.Id,
		Key:      m.PathLower,
		Revision: m.Rev,
		Size:     int64(m.Size),
		Created:  time.Time(m.ServerModified),
		Modified: time.Time(m.ClientModified),
		URL:      downloadURL,
		ReadOnly: m.SharingInfo != nil && m.SharingInfo.ReadOnly,
	}
	if m.ContentHash != "" {
		img.Sum = backends.Checksum{Algorithm: backends.DropboxHash, Hex: m.ContentHash}
	}
	img.Remote = metrics(ref, m)
	return img
}

// folder is the collection that is the folder m, spelled so.
func folder(m *files.FolderMetadata, spelled string) backends.Entry {
	return backends.Entry{Collection: spelled, Image: backends.Image{ID: m.Id, Key: m.PathLower}}
}

// metrics are the members of the Python client's "metrics" that tell where the
// image lies, and beside them what Dropbox says of the file.
func metrics(ref backends.Ref, m *files.FileMetadata) json.RawMessage {
	container := path.Join(ref.Collection, ref.Name)
	type remote struct {
		ID             string    `json:"id"`
		Name           string    `json:"name"`
		PathDisplay    string    `json:"path_display"`
		Rev            string    `json:"rev"`
		Size           uint64    `json:"size"`
		ContentHash    string    `json:"content_hash,omitempty"`
		ClientModified time.Time `json:"client_modified"`
		ServerModified time.Time `json:"server_modified"`
	}
	b, err := json.Marshal(struct {
		Collection string  `json:"collection"`
		Image      string  `json:"image"`
		Storage    string  `json:"storage"`
		Tag        string  `json:"tag"`
		URI        string  `json:"uri"`
		URL        string  `json:"url"`
		Version    *string `json:"version"`
		Dropbox    remote  `json:"dropbox"`
	}{
		Collection: ref.Collection, Image: ref.Name, Storage: path.Join(ref.Collection, m.Name),
		Tag: ref.Tag, URI: container + ":" + ref.Tag, URL: container,
		Dropbox: remote{m.Id, m.Name, m.PathDisplay, m.Rev, m.Size, m.ContentHash,
			time.Time(m.ClientModified), time.Time(m.ServerModified)},
	})
	if err != nil {
		return nil // a year beyond 9999, which JSON cannot say
	}
	return b
}

// spelling remembers how folders are spelled. Of a path_display only the last
// component's case is reliable ("at least the last path component will have
// the correct casing", Metadata's documentation), so a folder's case comes from
// its own metadata. It is no listing: nothing is taken to exist for being here.
type spelling struct {
	mu    sync.Mutex
	names map[string]string // path_lower to the last component's name
}

func (sp *spelling) learn(m *files.FolderMetadata) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.names == nil {
		sp.names = make(map[string]string)
	}
	sp.names[m.PathLower] = m.Name
}

// forget drops what lies at and below a path, which is gone.
func (sp *spelling) forget(lower string) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	for p := range sp.names {
		if p == lower || strings.HasPrefix(p, lower+"/") {
			delete(sp.names, p)
		}
	}
}

// folder spells a folder's path without its leading slash. known is the path_lower
// of the first folder on the way whose spelling is not known, and is taken from
// display; "" when all are.
func (sp *spelling) folder(lower, display string) (spelled, unknown string) {
	lower = strings.TrimPrefix(lower, "/")
	if lower == "" {
		return "", ""
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	parts := strings.Split(lower, "/")
	shown := strings.Split(strings.TrimPrefix(display, "/"), "/")
	at := ""
	for i, part := range parts {
		at += "/" + part
		name, ok := sp.names[at]
		switch {
		case ok:
			parts[i] = name
		case unknown == "":
			unknown = at
			fallthrough
		default:
			if i < len(shown) && fold(shown[i]) == part {
				parts[i] = shown[i]
			}
		}
	}
	return strings.Join(parts, "/"), unknown
}

// parent is a path's folder, "" for the app's folder.
func parent(p string) string {
	i := strings.LastIndex(p, "/")
	if i < 0 {
		return ""
	}
	return p[:i]
}

// collection spells the collection of the file m, which takes a request for
// each folder on the way whose spelling is not known. asked is how the caller
// spells it: where path_display agrees, and does not look like path_lower, it is
// taken to be right.
func (s *Store) collection(ctx context.Context, m *files.FileMetadata, asked string) (string, error) {
	return s.spell(ctx, parent(m.PathLower), parent(m.PathDisplay), asked)
}

// spell is collection for the path of a folder.
func (s *Store) spell(ctx context.Context, lower, display, asked string) (string, error) {
	for {
		spelled, unknown := s.spelling.folder(lower, display)
		if unknown == "" || spelled == asked && asked != fold(asked) {
			return spelled, nil
		}
		res, err := s.files.GetMetadataContext(ctx, files.NewGetMetadataArg(unknown))
		switch {
		case notFound(err):
			return spelled, nil // gone since; whatever it was called
		case err != nil:
			return "", err
		}
		f, ok := res.(*files.FolderMetadata)
		if !ok || f.PathLower != unknown {
			return spelled, nil
		}
		s.spelling.learn(f)
	}
}
