package gdrivetest

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"strings"
	"time"
)

// metadata is a request's file resource. Pointers tell what was sent.
type metadata struct {
	ID            *string            `json:"id"`
	Name          *string            `json:"name"`
	MimeType      *string            `json:"mimeType"`
	Description   *string            `json:"description"`
	Parents       []string           `json:"parents"`
	Properties    map[string]*string `json:"properties"`
	AppProperties map[string]*string `json:"appProperties"`
	CreatedTime   *string            `json:"createdTime"`
	ModifiedTime  *string            `json:"modifiedTime"`
	Trashed       *bool              `json:"trashed"`
	Starred       *bool              `json:"starred"`
	ContentHints  *struct {
		Thumbnail *struct {
			Image    string `json:"image"`
			MimeType string `json:"mimeType"`
		} `json:"thumbnail"`
		IndexableText string `json:"indexableText"`
	} `json:"contentHints"`
	// HeadRevisionID and its like are output only; Drive refuses them.
	HeadRevisionID *string `json:"headRevisionId"`
	MD5            *string `json:"md5Checksum"`
	Size           *string `json:"size"`
}

func readMetadata(r io.Reader) (metadata, *apiError) {
	var m metadata
	body, err := io.ReadAll(io.LimitReader(r, 8<<20))
	if err == nil && len(body) > 0 {
		err = json.Unmarshal(body, &m)
	}
	if err != nil {
		return m, &apiError{code: 400, reason: "parseError", message: "Parse Error"}
	}
	if m.HeadRevisionID != nil || m.MD5 != nil || m.Size != nil {
		return m, forbidden("fieldNotWritable", "The resource body includes fields which are not directly writable.")
	}
	return m, nil
}

// patched is what props become; a null clears a key.
func patched(props map[string]string, patch map[string]*string) map[string]string {
	out := maps.Clone(props)
	if out == nil {
		out = map[string]string{}
	}
	for k, v := range patch {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = *v
		}
	}
	return out
}

// check says what is wrong with m for f, which may be nil for a new file.
// Nothing has changed when it does. The caller holds mu.
func (d *Drive) check(m metadata, f *file) *apiError {
	var props, appProps map[string]string
	if f != nil {
		if f.readOnly {
			return &apiError{code: 403, reason: "insufficientFilePermissions",
				message: "The user does not have sufficient permissions for file " + f.id + "."}
		}
		if m.Trashed != nil && !f.owned {
			return &apiError{code: 403, reason: "insufficientFilePermissions", message: "Only the owner may trash a file."}
		}
		if len(m.Parents) > 0 {
			return forbidden("fieldNotWritable", "The parents field is not directly writable in update requests. Use the addParents and removeParents parameters instead.")
		}
		if m.ID != nil && *m.ID != f.id {
			return forbidden("fieldNotWritable", "The resource body includes fields which are not directly writable.")
		}
		props, appProps = f.props, f.appProps
	} else if m.ID != nil && d.files[*m.ID] != nil {
		return &apiError{code: 409, reason: "fileIdInUse", message: "A file already exists with the provided ID."}
	}
	if err := checkProperties("properties", patched(props, m.Properties)); err != nil {
		return err
	}
	if err := checkProperties("appProperties", patched(appProps, m.AppProperties)); err != nil {
		return err
	}
	if m.Name != nil && len(*m.Name) > maxName {
		return badRequest("invalid", "name", "The name is too long.")
	}
	for _, p := range m.Parents {
		parent, err := d.find(p)
		if err != nil {
			return err
		}
		if parent.mime != FolderType {
			return forbidden("parentNotAFolder", "The specified parent is not a folder.")
		}
	}
	if len(m.Parents) > 1 {
		return badRequest("cannotAddParent", "parents", "A file cannot have several parents.")
	}
	for _, t := range []*string{m.CreatedTime, m.ModifiedTime} {
		if t != nil {
			if _, ok := parseTime(*t); !ok {
				return invalidParameter("modifiedTime")
			}
		}
	}
	_, err := m.thumbnail()
	return err
}

// thumbnail decodes contentHints.thumbnail: URL-safe base64, at most 2 MiB.
func (m metadata) thumbnail() ([]byte, *apiError) {
	if m.ContentHints == nil || m.ContentHints.Thumbnail == nil {
		return nil, nil
	}
	t := m.ContentHints.Thumbnail
	image, err := base64.URLEncoding.DecodeString(t.Image)
	if err != nil {
		image, err = base64.RawURLEncoding.DecodeString(t.Image)
	}
	if err != nil {
		return nil, invalidParameter("contentHints.thumbnail.image")
	}
	if len(image) > maxThumbnail {
		return nil, badRequest("invalid", "contentHints.thumbnail.image", "The thumbnail is larger than 2 MB.")
	}
	if !strings.HasPrefix(t.MimeType, "image/") {
		return nil, invalidParameter("contentHints.thumbnail.mimeType")
	}
	return image, nil
}

// create makes a file of m, which check has passed. The caller holds mu.
func (d *Drive) create(m metadata) *file {
	f := &file{id: "1" + newID(32), name: "Untitled", mime: blobType, owned: true}
	if m.ID != nil {
		f.id = *m.ID
	}
	d.seq++
	f.seq = d.seq
	f.created = d.now()
	f.modified = f.created
	f.parents = []string{d.root.id}
	if len(m.Parents) > 0 {
		f.parents = []string{d.alias(m.Parents[0])}
	}
	f.perms = []*permission{d.owner()}
	if m.MimeType != nil && *m.MimeType != "" {
		f.mime = *m.MimeType
	}
	d.set(f, m, false)
	return f
}

// set applies m to f, which must not be in the indexes meanwhile.
func (d *Drive) set(f *file, m metadata, touchTime bool) {
	if m.Name != nil {
		f.name = *m.Name
	}
	if m.Description != nil {
		f.description = *m.Description
	}
	f.props, f.appProps = patched(f.props, m.Properties), patched(f.appProps, m.AppProperties)
	if m.Starred != nil {
		f.starred = *m.Starred
	}
	if m.Trashed != nil {
		f.explicitlyTrashed = *m.Trashed
	}
	if m.CreatedTime != nil {
		f.created, _ = parseTime(*m.CreatedTime)
	}
	if m.ModifiedTime != nil {
		f.modified, _ = parseTime(*m.ModifiedTime)
	} else if touchTime {
		f.modified = d.now()
	}
	if t, err := m.thumbnail(); err == nil && t != nil {
		f.thumbnail = t
	}
}

// answer is f as the API tells it. The caller holds mu, and lets go of it before
// the answer is written: a slow link must not stop the whole Drive.
func (d *Drive) answer(sel selector, f *file) any { return sel.apply(d.json(f)) }

// blob reports whether files of that type have bytes.
func blob(mime string) bool { return !strings.HasPrefix(mime, nativeType) }

func (d *Drive) filesCreate(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	sel, err := fileResource.selection(r.URL.Query().Get("fields"))
	if err != nil {
		return nil, err
	}
	m, err := readMetadata(r.Body)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check(m, nil); err != nil {
		return nil, err
	}
	f := d.create(m)
	if blob(f.mime) {
		if err := d.addRevision(f, bytesContent(nil), f.mime, false); err != nil {
			return nil, err
		}
	}
	d.insert(f)
	d.touch(f, false)
	return d.answer(sel, f), nil
}

func (d *Drive) filesGet(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	q := r.URL.Query()
	d.mu.Lock()
	f, err := d.find(r.PathValue("id"))
	if err != nil {
		d.mu.Unlock()
		return nil, err
	}
	if q.Get("alt") == "media" {
		h := f.head()
		abusive, owned := f.abusive, f.owned
		d.mu.Unlock()
		switch {
		case h == nil:
			return nil, forbidden("fileNotDownloadable", "Only files with binary content can be downloaded. Use Export with Docs Editors files.")
		case abusive && (q.Get("acknowledgeAbuse") != "true" || !owned):
			return nil, forbidden("cannotDownloadAbusiveFile", "This file has been identified as malware or spam and cannot be downloaded.")
		}
		return nil, serveContent(w, r, h)
	}
	defer d.mu.Unlock()
	sel, err := fileResource.selection(q.Get("fields"))
	if err != nil {
		return nil, err
	}
	return d.answer(sel, f), nil
}

func (d *Drive) filesUpdate(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	sel, err := fileResource.selection(r.URL.Query().Get("fields"))
	if err != nil {
		return nil, err
	}
	m, err := readMetadata(r.Body)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.find(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	if err := d.update(f, m, r, nil); err != nil {
		return nil, err
	}
	return d.answer(sel, f), nil
}

// update applies m, the parameters of r and, when it is not nil, new content
// to f, all or nothing. The caller holds mu.
func (d *Drive) update(f *file, m metadata, r *http.Request, c *content) *apiError {
	if err := d.check(m, f); err != nil {
		return err
	}
	if f == d.root {
		return forbidden("insufficientFilePermissions", "The root folder cannot be changed.")
	}
	q := r.URL.Query()
	parents, err := d.move(f, q.Get("addParents"), q.Get("removeParents"))
	if err != nil {
		return err
	}
	mime := f.mime
	if m.MimeType != nil && *m.MimeType != "" {
		if c == nil && blob(f.mime) != blob(*m.MimeType) {
			return badRequest("invalid", "mimeType", "The MIME type cannot be changed that way.")
		}
		mime = *m.MimeType
	}
	if c != nil {
		if f.head() == nil {
			return forbidden("fileNotDownloadable", "Content cannot be uploaded to that type.")
		}
		if err := d.addRevision(f, c, mime, q.Get("keepRevisionForever") == "true"); err != nil {
			return err
		}
	}
	tree := m.Trashed != nil && *m.Trashed != f.explicitlyTrashed
	d.extract(f)
	f.mime, f.parents = mime, parents
	// A change of the bin, the star or the folder leaves modifiedTime alone.
	d.set(f, m, c != nil || m.Name != nil || m.Description != nil || m.Properties != nil || m.AppProperties != nil)
	d.insert(f)
	if tree {
		d.touchTree(f)
	} else {
		d.touch(f, false)
	}
	return nil
}

// move computes f's parents.
func (d *Drive) move(f *file, addParents, removeParents string) ([]string, *apiError) {
	parents := map[string]bool{}
	for _, p := range f.parents {
		parents[p] = true
	}
	for p := range strings.SplitSeq(removeParents, ",") {
		delete(parents, d.alias(strings.TrimSpace(p)))
	}
	for p := range strings.SplitSeq(addParents, ",") {
		if p = d.alias(strings.TrimSpace(p)); p == "" {
			continue
		}
		parent, err := d.find(p)
		if err != nil {
			return nil, err
		}
		if parent.mime != FolderType {
			return nil, forbidden("parentNotAFolder", "The specified parent is not a folder.")
		}
		for a := parent; a != nil; {
			if a == f {
				return nil, badRequest("badRequest", "addParents", "A folder cannot be moved below itself.")
			}
			if len(a.parents) == 0 {
				break
			}
			a = d.files[a.parents[0]]
		}
		parents[p] = true
	}
	if len(parents) > 1 {
		return nil, badRequest("cannotAddParent", "addParents", "Increasing the number of parents is not allowed")
	}
	var out []string
	for p := range parents {
		out = append(out, p)
	}
	return out, nil
}

func (d *Drive) filesDelete(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.find(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	if !f.owned || f == d.root {
		return nil, &apiError{code: 403, reason: "insufficientFilePermissions", message: "The user does not have sufficient permissions for this file."}
	}
	d.remove(f)
	w.WriteHeader(http.StatusNoContent)
	return nil, nil
}

func (d *Drive) filesEmptyTrash(w http.ResponseWriter, _ *http.Request) (any, *apiError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range maps.Clone(d.files) {
		if f.explicitlyTrashed && d.files[f.id] == f {
			d.remove(f)
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil, nil
}

func (d *Drive) filesCopy(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	sel, err := fileResource.selection(r.URL.Query().Get("fields"))
	if err != nil {
		return nil, err
	}
	m, err := readMetadata(r.Body)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	src, err := d.find(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	if err := d.check(m, nil); err != nil {
		return nil, err
	}
	h := src.head()
	if h == nil {
		return nil, &apiError{code: 403, reason: "cannotCopyFile", message: "This file cannot be copied by the user."}
	}
	base := metadata{Name: &src.name, MimeType: &src.mime, Parents: src.parents}
	f := d.create(base)
	f.props = maps.Clone(src.props)
	if m.MimeType != nil {
		f.mime = *m.MimeType
	}
	if len(m.Parents) > 0 {
		f.parents = []string{d.alias(m.Parents[0])}
	}
	if m.ID != nil {
		f.id = *m.ID
	}
	d.set(f, m, false)
	// The copy's content must outlive the original's.
	sp := newSpool(d.dir)
	if _, err := io.Copy(sp, io.NewSectionReader(h.r, 0, h.size)); err != nil {
		sp.discard()
		return nil, &apiError{code: 500, reason: "internalError", message: err.Error()}
	}
	if err := d.addRevision(f, sp.content(), f.mime, false); err != nil {
		sp.discard()
		return nil, err
	}
	d.insert(f)
	d.touch(f, false)
	return d.answer(sel, f), nil
}

func (d *Drive) filesGenerateIDs(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	n, ok := atoi(r.URL.Query().Get("count"), 10, 1, 1000)
	if !ok {
		return nil, invalidParameter("count")
	}
	sel, err := idsResource.selection(r.URL.Query().Get("fields"))
	if err != nil {
		return nil, err
	}
	ids := make([]any, n)
	for i := range ids {
		ids[i] = "1" + newID(32)
	}
	return sel.apply(map[string]any{"kind": "drive#generatedIds", "space": "drive", "ids": ids}), nil
}

// orNow is t as Drive keeps it, or now when it is not set.
func orNow(t, now time.Time) time.Time {
	if t.IsZero() {
		return now
	}
	return t.UTC().Truncate(time.Millisecond)
}
