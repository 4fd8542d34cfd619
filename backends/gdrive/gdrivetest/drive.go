package gdrivetest

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// MIME types with a meaning of their own.
const (
	FolderType = "application/vnd.google-apps.folder"
	nativeType = "application/vnd.google-apps."
	blobType   = "application/octet-stream"
)

// Limits of the service (reference of Property, guide "manage-revisions").
const (
	maxProperty      = 124 // bytes of key and value
	maxProperties    = 30  // public ones, of one app
	maxRevisions     = 100 // that are not kept forever
	maxKeptRevisions = 200
	maxThumbnail     = 2 << 20
	maxName          = 32 << 10
)

// Options are what a Drive begins with. The zero value is a Drive of 15 GiB
// that lets every request in that has a token it gave out, or Token.
type Options struct {
	// Addr is where a Server listens, "127.0.0.1:0" when it is empty.
	Addr string
	// Certificate makes a Server serve HTTPS: it is called with Hosts and the
	// address, and returns a certificate and, in PEM, that of the authority
	// behind it (Server.CA). dropboxtest.Certificate is one. Nil for HTTP.
	Certificate func(hosts []string, ip net.IP) (ca []byte, cert tls.Certificate, err error)
	// Link is the line to it at the start.
	Link Link
	// Token is an access token that never expires; "" for none but those that
	// the token endpoint gives.
	Token string
	// TokenLife is how long access tokens live; 0 for an hour.
	TokenLife time.Duration
	// Skew is how far its clock is ahead of this machine's.
	Skew time.Duration
	// Quota is the account's space in bytes; 0 for 15 GiB, negative for none.
	Quota int64
	// User is the account's display name, Email its address.
	User, Email string
	// StrictRevisions refuses to download a revision that is not the head or
	// kept forever, and the head as a revision too: what the guide
	// "manage-downloads" says, though not what the service is seen to do.
	StrictRevisions bool
	// NoSHA256 leaves sha256Checksum out, as files from before 2022 do.
	NoSHA256 bool
}

// Drive is one account. Its methods are safe for concurrent use. It is an
// http.Handler, and knows no host name of its own, so that it serves
// www.googleapis.com as well as 127.0.0.1.
type Drive struct {
	opts Options
	dir  string // temporary files
	routing

	link link

	mu       sync.Mutex // guards all below
	root     *file
	files    map[string]*file
	byName   map[string]map[string]*file // lower-case name, id
	byParent map[string]map[string]*file // parent's id, id
	seq      int64                       // order of creation
	log      []change
	firstLog int64 // the oldest change that is still told
	last     time.Time
	used     int64 // bytes of all revisions
	sessions map[string]*session
	cursors  map[string]cursor
	mails    []Mail
	auth     authState
	hook     func(Request) Fault
	counts   map[string]Count
}

// Mail is a notification that sharing sent.
type Mail struct{ To, FileID, Message string }

// file is one file or folder.
type file struct {
	id, name, mime, description string
	parents                     []string
	props, appProps             map[string]string
	created, modified           time.Time
	explicitlyTrashed, starred  bool
	revs                        []*revision // none for folders and native documents
	version                     int64
	seq, changed                int64 // order of creation; position of the last change in the log
	owned, readOnly, abusive    bool
	perms                       []*permission
	thumbnail                   []byte
	lost                        bool // shared with the account, in none of its folders
}

type revision struct {
	id       string
	mime     string
	modified time.Time
	keep     bool
	*content
}

type permission struct{ id, kind, role, email, name string }

// change is an entry of the change log.
type change struct {
	seq     int64
	id      string
	removed bool
	at      time.Time
}

func (f *file) head() *revision {
	if len(f.revs) == 0 {
		return nil
	}
	return f.revs[len(f.revs)-1]
}

func (f *file) perm(id string) *permission {
	for _, p := range f.perms {
		if p.id == id {
			return p
		}
	}
	return nil
}

func (f *file) fullText() string { return f.name + " " + f.description }

// New makes a Drive. The caller closes it.
func New(opts Options) (*Drive, error) {
	if opts.TokenLife == 0 {
		opts.TokenLife = time.Hour
	}
	if opts.Quota == 0 {
		opts.Quota = 15 << 30
	}
	if opts.User == "" {
		opts.User = "Vanessa S"
	}
	if opts.Email == "" {
		opts.Email = "vanessa@example.com"
	}
	dir, err := os.MkdirTemp("", "gdrivetest-")
	if err != nil {
		return nil, fmt.Errorf("make an emulated drive: %w", err)
	}
	d := &Drive{
		opts: opts, dir: dir,
		files: map[string]*file{}, byName: map[string]map[string]*file{}, byParent: map[string]map[string]*file{},
		sessions: map[string]*session{}, cursors: map[string]cursor{}, counts: map[string]Count{},
		firstLog: 1,
	}
	d.SetLink(opts.Link)
	d.auth.init()
	d.routing = d.routes()
	d.root = &file{id: "0AB" + newID(16), name: "My Drive", mime: FolderType, owned: true}
	d.root.created = d.now()
	d.root.modified = d.root.created
	d.root.perms = []*permission{d.owner()}
	d.files[d.root.id] = d.root
	return d, nil
}

// Close frees what the Drive holds.
func (d *Drive) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, f := range d.files {
		for _, r := range f.revs {
			errs = append(errs, r.free())
		}
	}
	for _, s := range d.sessions {
		s.spool.discard()
	}
	clear(d.files)
	clear(d.sessions)
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

func (r *revision) free() error {
	if r.close == nil {
		return nil
	}
	return r.close()
}

func (d *Drive) owner() *permission {
	return &permission{id: permissionID(d.opts.Email), kind: "user", role: "owner", email: d.opts.Email, name: d.opts.User}
}

// newID returns n random characters as Drive's ids have them.
func newID(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)[:n]
}

// now is a time that no two calls share, in the milliseconds that Drive keeps.
// The caller holds mu, but in New.
func (d *Drive) now() time.Time {
	t := time.Now().Add(d.opts.Skew).UTC().Truncate(time.Millisecond)
	if !t.After(d.last) {
		t = d.last.Add(time.Millisecond)
	}
	d.last = t
	return t
}

// alias resolves the name "root".
func (d *Drive) alias(id string) string {
	if id == "root" {
		return d.root.id
	}
	return id
}

func (d *Drive) find(id string) (*file, *apiError) {
	f := d.files[d.alias(id)]
	if f == nil {
		return nil, notFound("File", id)
	}
	return f, nil
}

// trashed says whether f or a folder above it is in the bin.
func (d *Drive) trashed(f *file) bool {
	for range 1000 { // no cycle is ever made; this bounds the damage of one
		if f.explicitlyTrashed {
			return true
		}
		if len(f.parents) == 0 {
			return false
		}
		next := d.files[f.parents[0]]
		if next == nil {
			return false
		}
		f = next
	}
	return false
}

// insert puts f where queries find it.
func (d *Drive) insert(f *file) {
	d.files[f.id] = f
	add(d.byName, strings.ToLower(f.name), f)
	for _, p := range f.parents {
		add(d.byParent, p, f)
	}
}

// extract is insert's opposite, before a change of name or parents.
func (d *Drive) extract(f *file) {
	delete(d.files, f.id)
	drop(d.byName, strings.ToLower(f.name), f)
	for _, p := range f.parents {
		drop(d.byParent, p, f)
	}
}

func add(index map[string]map[string]*file, key string, f *file) {
	if index[key] == nil {
		index[key] = map[string]*file{}
	}
	index[key][f.id] = f
}

func drop(index map[string]map[string]*file, key string, f *file) {
	delete(index[key], f.id)
	if len(index[key]) == 0 {
		delete(index, key)
	}
}

// touch records a change of f.
func (d *Drive) touch(f *file, removed bool) {
	f.version++
	f.changed = d.firstLog + int64(len(d.log))
	d.log = append(d.log, change{seq: f.changed, id: f.id, removed: removed, at: d.now()})
}

// touchTree records a change of f and of all below it, as trashing makes it.
func (d *Drive) touchTree(f *file) {
	d.touch(f, false)
	for _, c := range d.byParent[f.id] {
		d.touchTree(c)
	}
}

// addRevision makes c the content of f.
func (d *Drive) addRevision(f *file, c *content, mime string, keep bool) *apiError {
	if err := d.room(c.size); err != nil {
		return err
	}
	d.used += c.size
	f.revs = append(f.revs, &revision{id: "0B" + newID(38), mime: mime, modified: d.now(), keep: keep, content: c})
	purgeable := 0
	for _, r := range f.revs {
		if !r.keep {
			purgeable++
		}
	}
	for i := 0; purgeable > maxRevisions && i < len(f.revs)-1; {
		if f.revs[i].keep {
			i++
			continue
		}
		d.dropRevision(f, i)
		purgeable--
	}
	return nil
}

func (d *Drive) dropRevision(f *file, i int) {
	d.used -= f.revs[i].size
	f.revs[i].free()
	f.revs = slices.Delete(f.revs, i, i+1)
}

// room fails when n more bytes do not fit.
func (d *Drive) room(n int64) *apiError {
	if d.opts.Quota >= 0 && d.used+n > d.opts.Quota {
		return errQuota
	}
	return nil
}

// remove deletes f and all below it for good.
func (d *Drive) remove(f *file) {
	for _, c := range maps.Clone(d.byParent[f.id]) {
		d.remove(c)
	}
	for len(f.revs) > 0 {
		d.dropRevision(f, 0)
	}
	d.touch(f, true)
	d.extract(f)
}

// checkProperties enforces the limits on public or private properties.
func checkProperties(kind string, props map[string]string) *apiError {
	if len(props) > maxProperties {
		return forbidden(kind+"LimitExceeded", fmt.Sprintf("The limit of %d properties has been exceeded.", maxProperties))
	}
	for k, v := range props {
		if k == "" {
			return badRequest("invalid", kind, "Property keys cannot be empty.")
		}
		if len(k)+len(v) > maxProperty {
			return badRequest("invalid", kind, fmt.Sprintf("The property %q is longer than %d bytes with its value.", k, maxProperty))
		}
	}
	return nil
}
