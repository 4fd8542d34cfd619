package gdrivetest

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

// Seed is a file that a test puts on the Drive behind its clients' backs.
type Seed struct {
	// Name is the file's name; it may hold anything, slashes too.
	Name string
	// Parent is a folder's id, "" for My Drive.
	Parent string
	// MimeType is FolderType, a native type or a blob's; "" for
	// application/octet-stream.
	MimeType   string
	Properties map[string]string
	// Content is the file's bytes; File is a file that holds them instead and
	// must stay as it is.
	Content []byte
	File    string
	// Modified and Created are the file's times; zero for now.
	Modified, Created time.Time
	// Shared makes it another account's file that this one may only read, in
	// none of its folders.
	Shared bool
	// Abusive marks it as malware.
	Abusive bool
}

// File is what a test sees of a file.
type File struct {
	ID, Name, MimeType, Parent string
	Properties                 map[string]string
	Trashed                    bool
	Size                       int64
	MD5, HeadRevision          string
	Revisions                  []string
	Modified                   time.Time
	Thumbnail                  []byte
	// Permissions are "role type address", the owner's first.
	Permissions []string
}

// Add puts a file on the Drive and returns its id. It counts as a change.
func (d *Drive) Add(s Seed) (string, error) {
	c := bytesContent(s.Content)
	if s.File != "" {
		var err error
		if c, err = fileContent(s.File); err != nil {
			return "", err
		}
	}
	if s.MimeType == "" {
		s.MimeType = blobType
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	m := metadata{Name: &s.Name, MimeType: &s.MimeType}
	if s.Parent != "" {
		m.Parents = []string{s.Parent}
	}
	for _, p := range m.Parents {
		if _, err := d.find(p); err != nil {
			return "", err
		}
	}
	f := d.create(m)
	f.props = maps.Clone(s.Properties)
	f.created, f.modified = orNow(s.Created, f.created), orNow(s.Modified, f.modified)
	f.abusive = s.Abusive
	if s.Shared {
		f.owned, f.readOnly, f.lost, f.parents = false, true, true, nil
		f.perms = []*permission{
			{id: permissionID("other@example.com"), kind: "user", role: "owner", email: "other@example.com", name: "Other"},
			{id: permissionID(d.opts.Email), kind: "user", role: "reader", email: d.opts.Email, name: d.opts.User},
		}
	}
	if blob(f.mime) {
		if err := d.addRevision(f, c, f.mime, false); err != nil {
			return "", err
		}
		f.head().modified = f.modified
	}
	d.insert(f)
	d.touch(f, false)
	return f.id, nil
}

// Replace gives a file new content, a new revision.
func (d *Drive) Replace(id string, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.find(id)
	if err != nil {
		return err
	}
	if err := d.addRevision(f, bytesContent(data), f.mime, false); err != nil {
		return err
	}
	f.modified = d.now()
	d.touch(f, false)
	return nil
}

// Rename gives a file another name.
func (d *Drive) Rename(id, name string) error {
	return d.edit(id, func(f *file) { f.name = name })
}

// Trash moves a file to the bin.
func (d *Drive) Trash(id string) error {
	return d.edit(id, func(f *file) { f.explicitlyTrashed = true })
}

// SetReadOnly makes a file one that the account may only read.
func (d *Drive) SetReadOnly(id string) error {
	return d.edit(id, func(f *file) { f.readOnly, f.owned = true, false })
}

func (d *Drive) edit(id string, change func(*file)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.find(id)
	if err != nil {
		return err
	}
	d.extract(f)
	change(f)
	d.insert(f)
	d.touchTree(f)
	return nil
}

// Delete deletes a file for good.
func (d *Drive) Delete(id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.find(id)
	if err != nil {
		return err
	}
	d.remove(f)
	return nil
}

// PurgeRevisions deletes all revisions of a file but its head and those kept
// forever, as time does.
func (d *Drive) PurgeRevisions(id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.find(id)
	if err != nil {
		return err
	}
	for i := 0; i < len(f.revs)-1; {
		if f.revs[i].keep {
			i++
			continue
		}
		d.dropRevision(f, i)
	}
	return nil
}

// ForgetChanges makes every change token from before now invalid.
func (d *Drive) ForgetChanges() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget()
}

// ForgetUploads ends all resumable sessions.
func (d *Drive) ForgetUploads() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.sessions)
}

// Mails are the notifications that were sent.
func (d *Drive) Mails() []Mail {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.mails)
}

// Files are all files but the root, in the order of their creation.
func (d *Drive) Files() []File {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []*file
	for _, f := range d.files {
		if f != d.root {
			list = append(list, f)
		}
	}
	slices.SortFunc(list, func(a, b *file) int { return int(a.seq - b.seq) })
	out := make([]File, len(list))
	for i, f := range list {
		out[i] = d.export(f)
	}
	return out
}

// File returns one file.
func (d *Drive) File(id string) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.find(id)
	if err != nil {
		return File{}, err
	}
	return d.export(f), nil
}

// Content returns a file's bytes.
func (d *Drive) Content(id string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, aerr := d.find(id)
	if aerr != nil {
		return nil, aerr
	}
	h := f.head()
	if h == nil {
		return nil, fmt.Errorf("%s has no bytes", f.name)
	}
	data := make([]byte, h.size)
	_, err := io.ReadFull(io.NewSectionReader(h.r, 0, h.size), data)
	return data, err
}

func (d *Drive) export(f *file) File {
	out := File{
		ID: f.id, Name: f.name, MimeType: f.mime, Properties: maps.Clone(f.props), Trashed: d.trashed(f),
		Modified: f.modified, Thumbnail: f.thumbnail,
	}
	if len(f.parents) > 0 {
		out.Parent = f.parents[0]
	}
	if h := f.head(); h != nil {
		out.Size, out.MD5, out.HeadRevision = h.size, h.md5, h.id
	}
	for _, r := range f.revs {
		out.Revisions = append(out.Revisions, r.id)
	}
	for _, p := range f.perms {
		s := p.role + " " + p.kind
		if p.email != "" {
			s += " " + p.email
		}
		out.Permissions = append(out.Permissions, s)
	}
	return out
}

// Root is the id of My Drive.
func (d *Drive) Root() string { return d.root.id }
