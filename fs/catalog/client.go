package catalog

import (
	"context"
	"encoding/json"
	"errors"
	iofs "io/fs"
	"iter"
	"log/slog"
	"maps"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/index"
)

// moment is how long a question that a listing should have answered may wait
// for the network.
const moment = 5 * time.Second

// standing is how long what the store answered of a name stands for opens of
// it. A program that runs an image opens it several times in a row, and each
// question would cost a round trip.
const standing = 2 * time.Second

// Client is one store with what is known of it. Names of directories and
// files are the tree's: see backends.CollectionPath and Ref.File.
type Client struct {
	Name  string
	Store backends.Store

	cat        *Catalog
	recordName string // in the seeds' database
	log        *slog.Logger
	fold       bool // the store ignores case
	// tags: a tag is asked for singly and at little cost, so that what a
	// listing lacks need not be missing.
	tags  bool
	state listingState

	preparer backends.Preparer // nil for a store that is none
	prepared atomic.Int64      // when it was last asked to, Unix time in nanoseconds

	// answers are the store's last, for the opens that follow at once.
	answers answers
}

func newClient(c *Catalog, name string, store backends.Store) *Client {
	cl := &Client{Name: name, Store: store, cat: c, log: c.log.With("client", name)}
	if cl.recordName = c.opts.RecordNames[name]; cl.recordName == "" {
		cl.recordName = name
	}
	if f, ok := backends.As[backends.CaseFolder](store); ok {
		cl.fold = f.FoldsCase()
	}
	cl.preparer, _ = backends.As[backends.Preparer](store)
	_, cl.tags = backends.As[backends.Tagger](store)
	cl.state.init()
	return cl
}

// Writable reports whether images can be pushed to the client.
func (cl *Client) Writable() bool {
	_, ok := backends.As[backends.Pusher](cl.Store)
	return ok && !cl.cat.opts.ReadOnly && cl.cat.opts.Staging != nil
}

// Find looks an image up by its name, as Lookup does.
func (cl *Client) Find(ctx context.Context, ref backends.Ref) (backends.Image, error) {
	return cl.Lookup(ctx, ref.Dir(), ref)
}

// Lookup finds the image that ref names in the directory dir of the tree; only
// ref's name, tag and version count. It answers from the listing where that is
// known to be fresh and asks the store otherwise. Only a store's no is
// fs.ErrNotExist.
func (cl *Client) Lookup(ctx context.Context, dir string, ref backends.Ref) (backends.Image, error) {
	if ref.Version != "" {
		return cl.lookupVersion(ctx, dir, ref)
	}
	img, ok, err := cl.cat.opts.Index.Lookup(ctx, cl.Name, dir, ref.File(), cl.fold)
	if err != nil {
		return img, err
	}
	if cl.Local() {
		// The store is as near as the index, and it is the truth.
		return cl.ask(ctx, dir, ref)
	}
	if ok {
		cl.state.touch()
		return img, nil
	}
	if !cl.tags && cl.state.fresh(cl.cat.opts.TTL) {
		return backends.Image{}, backends.NotExist("look up", cl.Name, inDir(dir, ref))
	}
	return cl.ask(ctx, dir, ref)
}

// ask puts the question to the store and remembers the answer.
func (cl *Client) ask(ctx context.Context, dir string, ref backends.Ref) (backends.Image, error) {
	ref = cl.storeRef(ctx, dir, ref)
	ctx, cancel := context.WithTimeoutCause(ctx, moment, errMoment)
	defer cancel()
	at := time.Now()
	img, err := cl.Store.Stat(ctx, ref)
	if err == nil {
		cl.remember(img)
		cl.answers.note(dir+"/"+ref.File(), answer{img.Revision, at})
		return cl.WithVersion(img), nil
	}
	if isNotExist(err) && ref.Version == "" {
		if old, ok, e := cl.cat.opts.Index.Lookup(ctx, cl.Name, dir, ref.File(), cl.fold); e == nil && ok {
			diff, e := cl.cat.opts.Index.RemoveImage(ctx, cl.Name, old)
			cl.state.changed(diff, e)
		}
	}
	return backends.Image{}, err
}

// errMoment is why a look-up was given up; its kind makes it an unknown, never
// an absence.
var errMoment = &backends.Error{Op: "look up", Err: backends.ErrUnreachable,
	Hint: "the remote did not answer in time; try again"}

// WithVersion fills in the version that is known of img's content.
func (cl *Client) WithVersion(img backends.Image) backends.Image {
	if img.Version == "" {
		if md5, ok, err := cl.cat.opts.Index.Note(context.Background(), noteMD5, img.ContentKey(cl.Name)); err == nil && ok {
			img.Version = string(md5)
		}
	}
	return img
}

// storeRef is the name the store has for ref in the directory dir.
func (cl *Client) storeRef(ctx context.Context, dir string, ref backends.Ref) backends.Ref {
	name, _, ok, err := cl.cat.opts.Index.HasCollection(ctx, cl.Name, dir, cl.fold)
	if err != nil || !ok {
		name = backends.ParseCollection(dir)
	}
	ref.Collection = name
	return ref
}

func inDir(dir string, ref backends.Ref) backends.Ref {
	ref.Collection = backends.ParseCollection(dir)
	return ref
}

// Notes that the catalog keeps in the index.
const (
	noteMD5     = "md5"     // content key → MD5
	noteContent = "content" // MD5 → content key
	noteVersion = "version" // client/dir/file of a versioned name → Image
	noteTime    = "mtime"   // client/dir/file → content key and time
)

// lookupVersion finds an older or pinned version. What was found once is
// immutable and is found again without the network.
func (cl *Client) lookupVersion(ctx context.Context, dir string, ref backends.Ref) (backends.Image, error) {
	x := cl.cat.opts.Index
	all, err := x.All(ctx, cl.Name, dir, ref.Latest().File(), cl.fold)
	if err != nil {
		return backends.Image{}, err
	}
	wanted := ref.Version
	key, _, _ := x.Note(ctx, noteContent, wanted)
	matches := func(img backends.Image) bool {
		return img.Version == wanted || img.Revision == wanted || img.Sum.Hex == wanted || img.ID == wanted ||
			len(key) > 0 && img.ContentKey(cl.Name) == string(key)
	}
	note := cl.versionNote(dir, ref)
	for _, img := range all {
		if matches(img) {
			img.Ref.Version = wanted
			return img, nil
		}
	}
	if data, ok, err := x.Note(ctx, noteVersion, note); err == nil && ok {
		var img backends.Image
		if json.Unmarshal(data, &img) == nil {
			return img, nil
		}
	}
	found := func(img backends.Image) (backends.Image, error) {
		img.Ref.Version = wanted
		if img.Version == "" && len(wanted) == 32 && len(key) > 0 {
			img.Version = wanted
		}
		data, err := json.Marshal(img)
		if err == nil {
			err = x.SetNote(ctx, noteVersion, note, data)
		}
		return img, err
	}
	if v, ok := backends.As[backends.Versioner](cl.Store); ok && len(key) > 0 {
		versions, err := v.Versions(ctx, cl.storeRef(ctx, dir, ref.Latest()))
		if err != nil {
			return backends.Image{}, err
		}
		for _, img := range versions {
			if matches(img) {
				return found(img)
			}
		}
	}
	img, err := cl.ask(ctx, dir, ref)
	if err != nil {
		return backends.Image{}, err
	}
	return found(img)
}

// versionNote is the key of the note of what a versioned name means.
func (cl *Client) versionNote(dir string, ref backends.Ref) string {
	return path.Join(cl.Name, dir, ref.File())
}

// forgetVersion has the store be asked anew what ref, with a version, means.
func (cl *Client) forgetVersion(ctx context.Context, ref backends.Ref) error {
	return cl.cat.opts.Index.SetNote(context.WithoutCancel(ctx), noteVersion, cl.versionNote(ref.Dir(), ref), nil)
}

// remember puts what the store just said into the index.
func (cl *Client) remember(img backends.Image) {
	if img.Ref.Version != "" {
		return
	}
	diff, err := cl.cat.opts.Index.PutImage(cl.cat.ctx, cl.Name, img)
	cl.state.changed(diff, err)
	if err != nil && cl.cat.ctx.Err() == nil {
		cl.log.Warn("cannot note an image in the index", "image", img.Ref.String(), "error", err)
	}
}

// Images yields the newest image of each name in a directory, by file name. A
// listing that is not known yet is waited for; one that cannot be had is an
// error, never an empty directory.
func (cl *Client) Images(ctx context.Context, dir string) iter.Seq2[backends.Image, error] {
	return func(yield func(backends.Image, error) bool) {
		if err := cl.Listed(ctx); err != nil {
			yield(backends.Image{}, err)
			return
		}
		cl.cat.opts.Index.Images(ctx, cl.Name, dir)(yield)
	}
}

// Names returns the names of the images in a directory, in byte order, without
// a look at each. A listing that is not known yet is waited for, as by Images.
func (cl *Client) Names(ctx context.Context, dir string) ([]string, error) {
	if err := cl.Listed(ctx); err != nil {
		return nil, err
	}
	return cl.cat.opts.Index.Names(ctx, cl.Name, dir)
}

// ImagesFrom is Images without the names before from, and reads so many at
// once. It does not wait for a listing.
func (cl *Client) ImagesFrom(ctx context.Context, dir, from string, n int) iter.Seq2[backends.Image, error] {
	return cl.cat.opts.Index.ImagesFrom(ctx, cl.Name, dir, from, n)
}

// Collections returns the directories directly under a directory.
func (cl *Client) Collections(ctx context.Context, dir string) ([]string, error) {
	if err := cl.Listed(ctx); err != nil {
		return nil, err
	}
	return cl.cat.opts.Index.Collections(ctx, cl.Name, dir)
}

// Directory reports whether dir is a collection, or holds one, and under which
// name the tree lists it.
func (cl *Client) Directory(ctx context.Context, dir string) (actual string, ok bool, err error) {
	_, actual, ok, err = cl.cat.opts.Index.HasCollection(ctx, cl.Name, dir, cl.fold)
	if err != nil || ok {
		return actual, ok, err
	}
	if cl.state.fresh(cl.cat.opts.TTL) {
		return "", false, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, moment, errMoment)
	defer cancel()
	if f, can := backends.As[backends.CollectionFinder](cl.Store); can && !cl.state.isKnown() && !backends.IsCut(dir) {
		// The first listing may take minutes, and this is one request.
		name, err := f.FindCollection(ctx, backends.ParseCollection(dir))
		switch {
		case err == nil:
			if err := cl.cat.opts.Index.PutCollection(cl.cat.ctx, cl.Name, name); err != nil && cl.cat.ctx.Err() == nil {
				cl.log.Warn("cannot note a collection in the index", "collection", name, "error", err)
			}
			return backends.CollectionPath(name), true, nil
		case isNotExist(err):
			return "", false, nil
		case !errors.Is(err, errors.ErrUnsupported):
			return "", false, err
		}
	}
	if err := cl.Listed(ctx); err != nil {
		return "", false, err
	}
	_, actual, ok, err = cl.cat.opts.Index.HasCollection(ctx, cl.Name, dir, cl.fold)
	return actual, ok, err
}

// Search finds the images that match word in name, tag, id or label. The store
// itself is asked only where its listing is not known.
func (cl *Client) Search(ctx context.Context, word string, limit int) ([]index.Found, error) {
	found, err := cl.cat.opts.Index.Search(ctx, cl.Name, word, limit)
	if err != nil || cl.state.isKnown() {
		return found, err
	}
	s, ok := backends.As[backends.Searcher](cl.Store)
	if !ok {
		return found, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, moment, errMoment)
	defer cancel()
	seen := map[backends.Ref]bool{}
	for _, f := range found {
		seen[f.Image.Ref] = true
	}
	for img, err := range s.Search(ctx, word) {
		if err != nil {
			return nil, err
		}
		if !seen[img.Ref] && len(found) < limit {
			cl.remember(img)
			found = append(found, index.Found{Client: cl.Name, Image: img})
		}
	}
	return found, nil
}

// ByID finds an image by its remote id.
func (cl *Client) ByID(ctx context.Context, id string) (backends.Image, error) {
	img, ok, err := cl.cat.opts.Index.ByID(ctx, cl.Name, id)
	if err != nil || ok {
		return img, err
	}
	if f, ok := backends.As[backends.Finder](cl.Store); ok {
		ctx, cancel := context.WithTimeoutCause(ctx, moment, errMoment)
		defer cancel()
		img, err := f.Find(ctx, id)
		if err == nil {
			cl.remember(img)
		}
		return img, err
	}
	return backends.Image{}, &backends.Error{Op: "look up id " + id, Client: cl.Name, Err: iofs.ErrNotExist}
}

func (cl *Client) unsupported(op string, ref backends.Ref) error {
	return &backends.Error{Op: op, Client: cl.Name, Ref: ref, Err: errors.ErrUnsupported,
		Hint: "the client " + cl.Name + " has no such thing"}
}

func (cl *Client) readOnly(op string, ref backends.Ref) error {
	return &backends.Error{Op: op, Client: cl.Name, Ref: ref, Err: backends.ErrReadOnly}
}

func isNotExist(err error) bool { return errors.Is(err, iofs.ErrNotExist) }

// treePath is where an image stands below its client's directory.
func treePath(ref backends.Ref) string {
	return strings.TrimPrefix(path.Join(ref.Dir(), ref.File()), "/")
}

// Local reports whether the client's images are files of this machine.
func (cl *Client) Local() bool {
	_, ok := backends.As[backends.Localer](cl.Store)
	return ok
}

// Size is an image's length in bytes: the store's, or what its parts came to
// when it was made into one file, or an estimate before that.
func (cl *Client) Size(img backends.Image) int64 {
	if img.Layered {
		return cl.layeredSize(img)
	}
	return max(img.Size, 0)
}

// Revalidate checks that an image which is about to be opened is still what
// its name means, where no change feed says so. A remote that cannot be asked
// is no reason to refuse what is known. What it answered less than a moment ago
// is not asked again.
func (cl *Client) Revalidate(ctx context.Context, img backends.Image) error {
	if img.Ref.Version != "" || cl.Local() || cl.state.fresh(0) {
		return nil
	}
	if cl.answers.stands(img.Ref.Dir()+"/"+img.Ref.File(), img.Revision) {
		return nil
	}
	now, err := cl.ask(ctx, img.Ref.Dir(), img.Ref)
	switch {
	case err == nil && now.Revision != img.Revision:
		return &backends.Error{Op: "open", Client: cl.Name, Ref: img.Ref, Err: backends.ErrStale}
	case isNotExist(err):
		return err
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return nil
}

// answers remember which version the store said that names mean. The zero value
// is empty.
type answers struct {
	mu sync.Mutex
	of map[string]answer // by directory and file
}

// answer is a version and when it was asked for.
type answer struct {
	revision string
	at       time.Time
}

// maxAnswers is when those that stand no longer are dropped.
const maxAnswers = 256

func (s *answers) note(name string, a answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.of) >= maxAnswers {
		maps.DeleteFunc(s.of, func(_ string, a answer) bool { return time.Since(a.at) >= standing })
		if len(s.of) >= maxAnswers {
			clear(s.of)
		}
	}
	if s.of == nil {
		s.of = map[string]answer{}
	}
	s.of[name] = a
}

// stands reports whether the store has said a moment ago that the name means
// that version.
func (s *answers) stands(name, revision string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.of[name]
	return ok && a.revision == revision && time.Since(a.at) < standing
}

// onDisk reports whether an image is a file of this machine, not a record
// that points elsewhere.
func (cl *Client) onDisk(img backends.Image) bool {
	return cl.Local() && !strings.HasPrefix(img.URL, "http")
}
