package backendtest

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// MemoryStore is a store in memory that can do whatever the vocabulary names
// but for Layered. The exported fields are set before its first use.
type MemoryStore struct {
	// Client is the client's name in errors, "memory" unless set.
	Client string
	// FoldCase makes names that differ only by case one.
	FoldCase bool
	// ForgetOld keeps no version but the newest, so that a reader of an older
	// one meets backends.ErrStale.
	ForgetOld bool
	// NoSum leaves Image.Version and Image.Sum empty, as a store does that
	// keeps no checksum.
	NoSum bool
	// PartBytes and Workers are what uploads say in PartSize and Parallel.
	PartBytes int64
	Workers   int
	// Capacity is the account's space in bytes; 0 for no limit.
	Capacity int64

	mu          sync.Mutex
	objects     map[string]*object // by key
	collections map[string]string  // key to name
	uploads     map[string]*session
	feed        []backends.Change
	forgotten   int           // changes that were dropped from feed's head
	changed     chan struct{} // closed and replaced at each change
	serial      int
}

type object struct {
	id       string
	key      string
	ref      backends.Ref // Version is set only in a name NAME:TAG@VERSION
	versions []content    // oldest first
	links    map[string]backends.Share
}

type content struct {
	revision string
	data     []byte
	md5, sha string
	labels   map[string]string
	created  time.Time
	modified time.Time
}

var (
	_ backends.Store      = (*MemoryStore)(nil)
	_ backends.Pusher     = (*MemoryStore)(nil)
	_ backends.Remover    = (*MemoryStore)(nil)
	_ backends.Renamer    = (*MemoryStore)(nil)
	_ backends.Collector  = (*MemoryStore)(nil)
	_ backends.Sharer     = (*MemoryStore)(nil)
	_ backends.Searcher   = (*MemoryStore)(nil)
	_ backends.Finder     = (*MemoryStore)(nil)
	_ backends.Versioner  = (*MemoryStore)(nil)
	_ backends.Watcher    = (*MemoryStore)(nil)
	_ backends.Usager     = (*MemoryStore)(nil)
	_ backends.Accounter  = (*MemoryStore)(nil)
	_ backends.CaseFolder = (*MemoryStore)(nil)

	_ backends.CollectionFinder = (*MemoryStore)(nil)
)

// Memory returns an empty store in memory, with parts of 64 KiB of which four
// may be under way. It is safe for concurrent use, and inside
// testing/synctest.
func Memory() *MemoryStore {
	return &MemoryStore{
		Client: "memory", PartBytes: 64 << 10, Workers: 4,
		objects: map[string]*object{}, collections: map[string]string{}, uploads: map[string]*session{},
		changed: make(chan struct{}),
	}
}

func (m *MemoryStore) fold(s string) string {
	if m.FoldCase {
		return strings.ToLower(s)
	}
	return s
}

func (m *MemoryStore) key(ref backends.Ref) string {
	return m.collectionKey(ref.Collection) + "/" + m.fold(ref.Object())
}

func (m *MemoryStore) collectionKey(name string) string {
	if name == "" {
		return ""
	}
	return "/" + m.fold(name)
}

func (m *MemoryStore) fail(op string, ref backends.Ref, err error) error {
	return &backends.Error{Op: op, Client: m.Client, Ref: ref, Err: err}
}

// begin takes the lock, unless ctx is done.
func (m *MemoryStore) begin(ctx context.Context, op string, ref backends.Ref) error {
	if err := ctx.Err(); err != nil {
		return m.fail(op, ref, err)
	}
	m.mu.Lock()
	return nil
}

// image describes version v of o. m.mu is held.
func (m *MemoryStore) image(o *object, v content) backends.Image {
	img := backends.Image{
		Ref: o.ref, ID: o.id, Key: o.key, Revision: v.revision, Size: int64(len(v.data)),
		Created: v.created, Modified: v.modified, Labels: v.labels,
		URL:    "memory:" + o.key,
		Remote: json.RawMessage(fmt.Sprintf(`{"id":%q,"rev":%q}`, o.id, v.revision)),
	}
	if !m.NoSum {
		img.Version = v.md5
		img.Sum = backends.Checksum{Algorithm: backends.SHA256, Hex: v.sha}
	}
	return img
}

func (o *object) newest() content { return o.versions[len(o.versions)-1] }

// byID finds an object that has moved or not. m.mu is held.
func (m *MemoryStore) byID(id string) *object {
	for _, o := range m.objects {
		if o.id == id {
			return o
		}
	}
	return nil
}

// note adds to the change feed. m.mu is held.
func (m *MemoryStore) note(c backends.Change) {
	m.feed = append(m.feed, c)
	close(m.changed)
	m.changed = make(chan struct{})
}

// List yields collections first, then images by name.
func (m *MemoryStore) List(ctx context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		if err := m.begin(ctx, "list", backends.Ref{}); err != nil {
			yield(backends.Entry{}, err)
			return
		}
		var all []backends.Entry
		for _, name := range m.collections {
			all = append(all, backends.Entry{Collection: name})
		}
		for _, o := range m.objects {
			all = append(all, backends.Entry{Image: m.image(o, o.newest())})
		}
		m.mu.Unlock()
		slices.SortFunc(all, func(a, b backends.Entry) int {
			return strings.Compare(a.Image.Key+a.Collection, b.Image.Key+b.Collection)
		})
		for _, e := range all {
			if err := ctx.Err(); err != nil {
				yield(backends.Entry{}, m.fail("list", backends.Ref{}, err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Stat finds what ref names.
func (m *MemoryStore) Stat(ctx context.Context, ref backends.Ref) (backends.Image, error) {
	if err := m.begin(ctx, "stat", ref); err != nil {
		return backends.Image{}, err
	}
	defer m.mu.Unlock()
	if o := m.objects[m.key(ref)]; o != nil {
		return m.image(o, o.newest()), nil
	}
	if o := m.objects[m.key(ref.Latest())]; o != nil {
		for _, v := range slices.Backward(o.versions) {
			if ref.Version == v.revision || !m.NoSum && (ref.Version == v.md5 || ref.Version == v.sha) {
				img := m.image(o, v)
				img.Ref.Version = ref.Version
				return img, nil
			}
		}
	}
	return backends.Image{}, backends.NotExist("stat", m.Client, ref)
}

// OpenRange reads from the version that img names.
func (m *MemoryStore) OpenRange(ctx context.Context, img backends.Image, off, n int64) (io.ReadCloser, error) {
	if off < 0 {
		return nil, m.fail("read", img.Ref, fmt.Errorf("negative offset %d", off))
	}
	if err := m.begin(ctx, "read", img.Ref); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	if o := m.byID(img.ID); o != nil {
		for _, v := range o.versions {
			if v.revision != img.Revision {
				continue
			}
			off = min(off, int64(len(v.data)))
			if n < 0 || n > int64(len(v.data))-off {
				n = int64(len(v.data)) - off
			}
			return &memoryReader{ctx: ctx, r: bytes.NewReader(v.data[off : off+n])}, nil
		}
	}
	return nil, m.fail("read", img.Ref, backends.ErrStale)
}

type memoryReader struct {
	ctx context.Context
	r   *bytes.Reader
}

func (r *memoryReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

func (r *memoryReader) Close() error { return nil }

// Remove deletes img and its older versions.
func (m *MemoryStore) Remove(ctx context.Context, img backends.Image) error {
	if err := m.begin(ctx, "remove", img.Ref); err != nil {
		return err
	}
	defer m.mu.Unlock()
	o := m.byID(img.ID)
	if o == nil {
		return backends.NotExist("remove", m.Client, img.Ref)
	}
	delete(m.objects, o.key)
	m.note(backends.Change{Deleted: true, Entry: backends.Entry{Image: backends.Image{Ref: o.ref, ID: o.id, Key: o.key}}})
	return nil
}

// Rename moves img, whose ID stays.
func (m *MemoryStore) Rename(ctx context.Context, img backends.Image, to backends.Ref) (backends.Image, error) {
	if err := m.begin(ctx, "rename", img.Ref); err != nil {
		return backends.Image{}, err
	}
	defer m.mu.Unlock()
	o := m.byID(img.ID)
	if o == nil {
		return backends.Image{}, backends.NotExist("rename", m.Client, img.Ref)
	}
	old := o.key
	if over := m.objects[m.key(to)]; over != nil && over != o {
		delete(m.objects, over.key)
		m.note(backends.Change{Deleted: true, Entry: backends.Entry{Image: backends.Image{Ref: over.ref, ID: over.id, Key: over.key}}})
	}
	delete(m.objects, old)
	o.ref, o.key = to, m.key(to)
	m.objects[o.key] = o
	m.makeParents(to.Collection)
	if old != o.key {
		// By its key alone: the ID lives on under the new name.
		m.note(backends.Change{Deleted: true, Entry: backends.Entry{Image: backends.Image{Key: old}}})
	}
	now := m.image(o, o.newest())
	m.note(backends.Change{Entry: backends.Entry{Image: now}})
	return now, nil
}

// makeParents makes a collection and those above it. m.mu is held.
func (m *MemoryStore) makeParents(name string) {
	for i := range len(name) + 1 {
		if i == 0 || i < len(name) && name[i] != '/' {
			continue
		}
		k := m.collectionKey(name[:i])
		if _, ok := m.collections[k]; !ok {
			m.collections[k] = name[:i]
			m.note(backends.Change{Entry: backends.Entry{Collection: name[:i]}})
		}
	}
}

// MakeCollection creates a collection and those above it.
func (m *MemoryStore) MakeCollection(ctx context.Context, name string) error {
	if err := m.begin(ctx, "make", backends.Ref{Collection: name}); err != nil {
		return err
	}
	defer m.mu.Unlock()
	if _, ok := m.collections[m.collectionKey(name)]; ok {
		return m.fail("make collection "+name, backends.Ref{}, iofs.ErrExist)
	}
	m.makeParents(name)
	return nil
}

// FindCollection finds a collection.
func (m *MemoryStore) FindCollection(ctx context.Context, name string) (string, error) {
	if err := m.begin(ctx, "look up", backends.Ref{Collection: name}); err != nil {
		return "", err
	}
	defer m.mu.Unlock()
	actual, ok := m.collections[m.collectionKey(name)]
	if !ok {
		return "", m.fail("look up collection "+name, backends.Ref{}, iofs.ErrNotExist)
	}
	return actual, nil
}

// RemoveCollection deletes an empty collection.
func (m *MemoryStore) RemoveCollection(ctx context.Context, name string) error {
	if err := m.begin(ctx, "remove", backends.Ref{Collection: name}); err != nil {
		return err
	}
	defer m.mu.Unlock()
	k := m.collectionKey(name)
	if _, ok := m.collections[k]; !ok {
		return m.fail("remove collection "+name, backends.Ref{}, iofs.ErrNotExist)
	}
	for other := range m.collections {
		if strings.HasPrefix(other, k+"/") {
			return m.fail("remove collection "+name, backends.Ref{}, backends.ErrNotEmpty)
		}
	}
	for other := range m.objects {
		if strings.HasPrefix(other, k+"/") {
			return m.fail("remove collection "+name, backends.Ref{}, backends.ErrNotEmpty)
		}
	}
	delete(m.collections, k)
	m.note(backends.Change{Deleted: true, Entry: backends.Entry{Collection: name, Image: backends.Image{Key: k}}})
	return nil
}

// Share makes up an address that stays the same.
func (m *MemoryStore) Share(ctx context.Context, img backends.Image, email string) (backends.Share, error) {
	if err := m.begin(ctx, "share", img.Ref); err != nil {
		return backends.Share{}, err
	}
	defer m.mu.Unlock()
	o := m.byID(img.ID)
	if o == nil {
		return backends.Share{}, backends.NotExist("share", m.Client, img.Ref)
	}
	s, ok := o.links[email]
	if !ok {
		m.serial++
		s.ID = fmt.Sprintf("share-%d", m.serial)
		if email == "" {
			s.URL = "https://memory.test/s/" + s.ID
		}
		o.links[email] = s
	}
	return s, nil
}

// Search matches without regard to case.
func (m *MemoryStore) Search(ctx context.Context, word string) iter.Seq2[backends.Image, error] {
	word = strings.ToLower(word)
	match := func(img backends.Image) bool {
		text := []string{img.Ref.String(), img.ID}
		for k, v := range img.Labels {
			text = append(text, k, v)
		}
		return strings.Contains(strings.ToLower(strings.Join(text, "\n")), word)
	}
	return func(yield func(backends.Image, error) bool) {
		for e, err := range m.List(ctx) {
			if err != nil {
				yield(backends.Image{}, err)
				return
			}
			if e.Collection == "" && match(e.Image) && !yield(e.Image, nil) {
				return
			}
		}
	}
}

// Find finds by ID.
func (m *MemoryStore) Find(ctx context.Context, id string) (backends.Image, error) {
	if err := m.begin(ctx, "find", backends.Ref{}); err != nil {
		return backends.Image{}, err
	}
	defer m.mu.Unlock()
	o := m.byID(id)
	if o == nil {
		return backends.Image{}, m.fail("find "+id, backends.Ref{}, iofs.ErrNotExist)
	}
	return m.image(o, o.newest()), nil
}

// Versions names versions by their revision.
func (m *MemoryStore) Versions(ctx context.Context, ref backends.Ref) ([]backends.Image, error) {
	if err := m.begin(ctx, "list versions of", ref); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	o := m.objects[m.key(ref.Latest())]
	if o == nil {
		return nil, backends.NotExist("list versions of", m.Client, ref)
	}
	var all []backends.Image
	for _, v := range slices.Backward(o.versions) {
		img := m.image(o, v)
		img.Ref.Version = v.revision
		all = append(all, img)
	}
	return all, nil
}

// Usage counts all versions.
func (m *MemoryStore) Usage(ctx context.Context) (backends.Usage, error) {
	if err := m.begin(ctx, "ask for the usage of", backends.Ref{}); err != nil {
		return backends.Usage{}, err
	}
	defer m.mu.Unlock()
	return backends.Usage{Used: m.used(), Total: m.Capacity}, nil
}

func (m *MemoryStore) used() (n int64) {
	for _, o := range m.objects {
		for _, v := range o.versions {
			n += int64(len(v.data))
		}
	}
	return n
}

// Account is always the same.
func (m *MemoryStore) Account(ctx context.Context) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", m.fail("ask for the account of", backends.Ref{}, err)
	}
	return "Vanessa S", nil
}

// FoldsCase reports the setting.
func (m *MemoryStore) FoldsCase() bool { return m.FoldCase }

// Put stores data as ref at once, whatever was there before, as somebody else
// would behind the reader's back.
func (m *MemoryStore) Put(ref backends.Ref, data []byte, labels map[string]string) backends.Image {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.put(ref, data, backends.Content{Labels: labels})
}

// put makes data the newest version of ref. m.mu is held.
func (m *MemoryStore) put(ref backends.Ref, data []byte, c backends.Content) backends.Image {
	m.makeParents(ref.Collection)
	m.serial++
	sum, sha := md5.Sum(data), sha256.Sum256(data)
	v := content{revision: fmt.Sprintf("rev%06d", m.serial), data: data,
		md5: hex.EncodeToString(sum[:]), sha: hex.EncodeToString(sha[:]),
		labels: c.Labels, created: time.Now(), modified: c.Modified}
	if v.modified.IsZero() {
		v.modified = v.created
	}
	k := m.key(ref)
	o := m.objects[k]
	if o == nil {
		o = &object{id: fmt.Sprintf("id:%06d", m.serial), key: k, ref: ref, links: map[string]backends.Share{}}
		m.objects[k] = o
	}
	if m.ForgetOld {
		o.versions = nil
	}
	o.versions = append(o.versions, v)
	img := m.image(o, v)
	m.note(backends.Change{Entry: backends.Entry{Image: img}})
	return img
}

// errForgotten marks an upload that was ended.
var errForgotten = errors.New("this upload has ended")
