// Package backends is the vocabulary that every place where images are kept
// shares: what an image is called (Ref), what a store says of it (Image), the
// small interface every store fulfils (Store), what some of them can do
// besides (Pusher, Remover, Watcher and the rest, found with As), and the
// kinds of error they answer with.
//
// It imports nothing else of the project and knows nothing of FUSE, caches or
// databases. Start at Store; backends/backendtest holds the suite that proves
// an implementation.
package backends

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"os"
	"time"
)

// Store is one client: one account, registry or folder in which images are
// kept. Methods are safe for concurrent use and return soon after ctx is done,
// with an error that wraps ctx.Err(). Errors wrap one of the kinds in
// errors.go and name the image. No method keeps a cache: each asks the store.
type Store interface {
	// List yields every image and every collection of the client once, in any
	// order. After the first error it yields nothing more, so that a listing
	// that ended without one is complete. A store that refuses to list
	// (a registry without a catalogue) yields errors.ErrUnsupported alone.
	List(ctx context.Context) iter.Seq2[Entry, error]
	// Stat asks for the image that ref names: the newest of that name when
	// ref.Version is empty, otherwise the one with that version, revision or
	// checksum. It fails with fs.ErrNotExist only when the store itself said
	// that there is no such image.
	Stat(ctx context.Context, ref Ref) (Image, error)
	// OpenRange reads n bytes from offset off of exactly the version that img
	// names, or fails with ErrStale when the store has it no more. n < 0 means
	// to the end. A range that reaches past the end is cut short; one that
	// starts at or past the end is empty. A negative off is an error. The
	// caller closes the reader; a body that breaks off early returns
	// io.ErrUnexpectedEOF from Read, never a silent io.EOF.
	OpenRange(ctx context.Context, img Image, off, n int64) (io.ReadCloser, error)
}

// Entry is one thing that a listing or a change tells of: a collection when
// Collection is set, otherwise an image.
type Entry struct {
	// Collection is a collection's full name, "nvidia/clara". It may be empty
	// of images; a collection that holds images need not be yielded.
	Collection string
	Image      Image
}

// Image is what a store says of one stored image. The zero value is no image.
type Image struct {
	// Ref is the image's name. Its Version is empty unless the image was asked
	// for by version or is not the newest of its name.
	Ref Ref
	// ID is the store's own permanent name for the object, which survives a
	// rename (Dropbox "id:…", a Drive file id); empty where there is none.
	ID string
	// Key is the store's path of the object ("/pusheen/asaurus:red.simg"),
	// folded to one case where the store ignores case. A deleted Key deletes
	// all that lies under Key+"/" as well. Empty where objects have no path.
	Key string
	// Revision changes with every change of content and is what OpenRange
	// pins: a Dropbox rev, a Drive head revision, a registry digest, a local
	// file's size, times and inode. Never empty.
	Revision string
	// Size is the content's length in bytes, -1 while nobody knows it.
	Size int64
	// Version is the content's hash as the Python client defines it (MD5, 32
	// hexadecimal digits), a registry's digest, or empty while nobody knows.
	Version string
	// Sum is the content's checksum as the store keeps it; the zero Checksum
	// where it keeps none.
	Sum Checksum
	// Created and Modified are the store's times; zero where it has none.
	Created, Modified time.Time
	// URL is where the bytes come from, without any secret.
	URL string
	// Labels are the container's labels as far as the store itself keeps them.
	Labels map[string]string
	// Remote is what the store says of the image in its own terms, a JSON
	// object whose members go into the record's "metrics"; nil for nothing.
	Remote json.RawMessage
	// Layered marks a container image: a list of layers that has to be made
	// into one file first. Its store is a Layered, its Size an estimate.
	Layered bool
	// ReadOnly marks an image that this account may not change.
	ReadOnly bool
}

// Pusher is a store that images can be put into.
type Pusher interface {
	// Begin prepares the upload of an image that is to be named ref. resume is
	// empty, or what State gave for an earlier upload of the same bytes to the
	// same ref; a store that has forgotten that upload begins anew. Nothing is
	// visible on the store before Commit.
	Begin(ctx context.Context, ref Ref, resume string) (Upload, error)
}

// Upload is one image on its way into a store. Part may run concurrently up to
// Parallel times; the other methods are called by one goroutine at a time.
// Exactly one of Commit or Abort ends it, except that Abort after a failed
// Commit is allowed and that an Upload may be dropped to be resumed later.
type Upload interface {
	// PartSize is the size in bytes of the parts that may be sent ahead of
	// Commit, 0 when the store takes none.
	PartSize() int64
	// Parallel is how many parts may be under way at once. With 1 they are
	// sent in order.
	Parallel() int
	// Sent is how many leading bytes the store has acknowledged, in whole
	// parts; more than 0 right after a resumption.
	Sent() int64
	// Part sends the bytes [off, off+PartSize()) of r. off is a multiple of
	// PartSize and r has the whole part.
	Part(ctx context.Context, off int64, r io.ReaderAt) error
	// State describes the upload so that another process can resume it; empty
	// when that is impossible. It holds no secret.
	State() string
	// Commit sends whatever of the size bytes of r Part has not sent, and puts
	// the image in place: whole or not at all. It returns what the store then
	// says of it.
	Commit(ctx context.Context, r io.ReaderAt, size int64, c Content) (Image, error)
	// Abort gives the upload up and frees what it holds on the store.
	Abort(ctx context.Context) error
}

// Content describes what is being committed.
type Content struct {
	// MD5 is the content's MD5 in hexadecimal: the Version it will have.
	MD5 string
	// SHA256 is the content's SHA-256 in hexadecimal.
	SHA256 string
	// Labels are the container's labels, for stores that keep them.
	Labels map[string]string
	// Replaces is the image that the pusher saw under the name, nil when it
	// saw none. A store that can tell fails with ErrStale rather than replace
	// anything else.
	Replaces *Image
	// Modified is the time to keep with the image where the store keeps one;
	// zero for now.
	Modified time.Time
}

// Remover is a store from which images can be deleted.
type Remover interface {
	// Remove deletes img. It fails with fs.ErrNotExist when it is gone.
	Remove(ctx context.Context, img Image) error
}

// Renamer is a store that renames an image without moving its bytes through
// the caller.
type Renamer interface {
	// Rename gives img the name to. An image of that name is replaced. It
	// returns the image under its new name.
	Rename(ctx context.Context, img Image, to Ref) (Image, error)
}

// Collector is a store whose collections are things of their own.
type Collector interface {
	// MakeCollection creates an empty collection; fs.ErrExist when it exists.
	MakeCollection(ctx context.Context, name string) error
	// RemoveCollection deletes an empty collection. It fails with ErrNotEmpty
	// when anything is in it, hidden or not, and with fs.ErrNotExist.
	RemoveCollection(ctx context.Context, name string) error
}

// CollectionFinder is a store that can be asked for one collection.
type CollectionFinder interface {
	// FindCollection returns the name by which List tells of the collection: it
	// may differ in case where the store ignores that. It fails with
	// fs.ErrNotExist when the store says that there is none, and with
	// errors.ErrUnsupported when only a listing could tell.
	FindCollection(ctx context.Context, name string) (string, error)
}

// Sharer is a store that lets others read an image.
type Sharer interface {
	// Share gives the person with that e-mail address access, or with an empty
	// address makes (or finds again) a link. Doing it twice gives the same
	// answer.
	Share(ctx context.Context, img Image, email string) (Share, error)
}

// Share is what sharing an image gave.
type Share struct {
	// URL opens the image; empty when only a person was given access.
	URL string
	// ID is the store's name for the permission, empty where it has none.
	ID string
}

// Searcher is a store that can search by itself.
type Searcher interface {
	// Search yields the images whose name, tag, id or labels match word.
	Search(ctx context.Context, word string) iter.Seq2[Image, error]
}

// Finder is a store that finds an image by its permanent ID, also outside of
// the folder that List covers.
type Finder interface {
	// Find returns the image with that ID or fs.ErrNotExist.
	Find(ctx context.Context, id string) (Image, error)
}

// Versioner is a store that keeps what was replaced.
type Versioner interface {
	// Versions returns the versions of the image that ref names, newest first,
	// the current one included. Each has Ref.Version set to a name that Stat
	// accepts.
	Versions(ctx context.Context, ref Ref) ([]Image, error)
}

// Watcher is a store with a change feed.
type Watcher interface {
	// Cursor returns the feed's present position. Taken before List, it misses
	// nothing that List does not show.
	Cursor(ctx context.Context) (string, error)
	// Changes waits until something has changed since cursor, or for about
	// wait, and returns what did, perhaps nothing. ErrCursorReset means that
	// the cursor is too old: take a new one and List again. Changes may be
	// told twice, and out of order with one's own acts.
	Changes(ctx context.Context, cursor string, wait time.Duration) (Changes, error)
}

// Changes is a stretch of a change feed.
type Changes struct {
	List []Change
	// Cursor is the position after List.
	Cursor string
}

// Change is one thing that happened.
type Change struct {
	// Deleted says that the object with Entry.Image.ID, or with
	// Entry.Image.Key and all below that Key, is gone; otherwise Entry is new
	// or changed.
	Deleted bool
	Entry   Entry
}

// Usager is a store that knows how full it is.
type Usager interface {
	// Usage returns the account's space.
	Usage(ctx context.Context) (Usage, error)
}

// Usage is an account's space in bytes.
type Usage struct {
	Used int64
	// Total is the account's limit, 0 for none.
	Total int64
}

// Accounter is a store that knows whose it is.
type Accounter interface {
	// Account returns the account's display name, "Vanessa S".
	Account(ctx context.Context) (string, error)
}

// Layered is a store of container images, which are lists of layers.
type Layered interface {
	// Manifest returns what makes up img. Its version is pinned: the manifest
	// is the one that img.Version (a digest) names.
	Manifest(ctx context.Context, img Image) (Manifest, error)
	// OpenBlob is OpenRange for one of the manifest's blobs, by digest.
	OpenBlob(ctx context.Context, img Image, digest string, off, n int64) (io.ReadCloser, error)
}

// Manifest is a container image's parts.
type Manifest struct {
	// Digest names the manifest ("sha256:…").
	Digest string
	// Source is where it came from, HOST/REPOSITORY@DIGEST, for the "from" of
	// the image's definition. It is the same for all tags of one manifest.
	Source string
	// Raw is the manifest itself, as the registry has it.
	Raw json.RawMessage
	// Config is the image's configuration blob, verified (OCI image-spec,
	// config.md).
	Config json.RawMessage
	// Layers are in order, the base first.
	Layers []Layer
}

// Layer is one layer blob of a container image.
type Layer struct {
	// Digest of the blob as stored.
	Digest string
	// DiffID is the digest of the uncompressed archive, "" where the config
	// does not tell.
	DiffID string
	// Size of the blob in bytes.
	Size        int64
	MediaType   string
	Annotations map[string]string
}

// Recorder is a store that can keep an image as a mere pointer to where its
// bytes are: the seeds' record without a file.
type Recorder interface {
	// Record notes that the image ref lies at url (http or https) and returns
	// it. What the server there says of size and version is asked for once.
	Record(ctx context.Context, ref Ref, url string) (Image, error)
}

// Tagger is a store that knows an image's tags without listing everything.
type Tagger interface {
	// Tags returns the tags of collection/name, in any order. It fails with
	// fs.ErrNotExist when the store says that there is no such repository.
	Tags(ctx context.Context, collection, name string) ([]string, error)
}

// Localer is a store whose images are files of this machine.
type Localer interface {
	// LocalFile opens the file that holds exactly the version that img names,
	// or fails with ErrStale. It fails with errors.ErrUnsupported for an image
	// of such a store that has no file. The caller closes it.
	LocalFile(ctx context.Context, img Image) (*os.File, error)
}

// Placer is a store whose client may be pointed at one place today and at
// another tomorrow: another account, folder or service.
type Placer interface {
	// Place tells such places apart. It is the same in every run with the same
	// settings, asks nobody, and holds no secret.
	Place() string
}

// Fingerprint makes a Place out of what tells places apart, secrets among
// them: it cannot be turned back.
func Fingerprint(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Preparer is a store that can shorten the way to the first bytes of an image.
type Preparer interface {
	// Prepare says that bytes will probably be asked for within seconds. It
	// returns at once and tells of no failure.
	Prepare()
}

// Reacher is a store that knows whether its service answers.
type Reacher interface {
	// Unreachable is what the last requests met to a host that has stopped to
	// answer, an ErrUnreachable; nil while all answer or nobody has asked of
	// late. It asks nobody itself.
	Unreachable() error
}

// Deduplicator is a store that takes an image without being sent it when it has
// the same bytes under another tag of that name. Whoever sends parts of an image
// before all of it is known forgoes that.
type Deduplicator interface {
	Pusher
	Tagger
	// Deduplicates does nothing: it tells such stores from others.
	Deduplicates()
}

// Namer is a store that cannot keep every name that an image may have.
type Namer interface {
	// CheckName fails with ErrInvalidName for a name that no image can be given
	// in this store, as Begin would. It asks nobody.
	CheckName(ref Ref) error
}

// CaseFolder is a store that may ignore case in names.
type CaseFolder interface {
	// FoldsCase reports whether names that differ only by case are one.
	FoldsCase() bool
}

// Wrapper is a store around another one. As finds what lies below.
type Wrapper interface{ Unwrap() Store }

// As finds the capability T in s or in what s wraps, outermost first.
func As[T any](s Store) (T, bool) {
	for s != nil {
		if t, ok := s.(T); ok {
			return t, true
		}
		w, ok := s.(Wrapper)
		if !ok {
			break
		}
		s = w.Unwrap()
	}
	var zero T
	return zero, false
}

// ContentKey names the content of img: equal keys are equal bytes. It is the
// store's checksum where there is one, so that two names of one content, also
// in two clients, share a key; otherwise the object and its revision.
func (img Image) ContentKey(client string) string {
	if !img.Sum.IsZero() {
		return img.Sum.String()
	}
	object := img.ID
	if object == "" {
		object = img.Key
	}
	return "rev:" + client + ":" + object + "@" + img.Revision
}
