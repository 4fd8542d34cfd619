// Package local keeps images in a folder of this machine: SREGISTRY_STORAGE,
// by default ~/.singularity/shub, which the Python client and users' own
// programs change as well.
//
// It knows nothing of FUSE, caches or databases, and keeps no listing but the
// one that its change feed compares with. What is peculiar to it: a Revision is
// a file's inode, size and times; nothing is hashed to list or to find an
// image; the change feed is inotify, or a repeated look where that is not to
// be had. Start at Client and Store; names.go says which file is which image,
// push.go how an image gets there whole or not at all, watch.go how changes
// are seen, record.go how an image can be here without its bytes.
package local

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/pacer"
)

// Client is the local storage as the program knows it.
var Client = backends.Client{
	Name:  "local",
	About: "images on this machine",
	Open: func(_ context.Context, s backends.Settings) (backends.Store, error) {
		dir := s.Lookup("SREGISTRY_STORAGE")
		if dir == "" {
			home := s.Getenv("HOME")
			if home == "" {
				return nil, &backends.Error{Op: "open", Client: s.Client, Err: backends.ErrNotConfigured,
					Hint: "set SREGISTRY_STORAGE to a folder, or HOME"}
			}
			dir = filepath.Join(home, ".singularity", "shub")
		}
		return New(dir, Options{Client: s.Client, Log: s.Log, Transport: s.Transport, UserAgent: s.UserAgent})
	},
}

// Options set a Store up. The zero value is good.
type Options struct {
	// Client is the name that errors give, "local" when it is empty.
	Client string
	// Log gets what a user may want to know; nil for nobody.
	Log *slog.Logger
	// Transport sends the requests for images that are here as records alone;
	// nil for http.DefaultTransport. UserAgent is sent with them.
	Transport http.RoundTripper
	UserAgent string
	// NoInotify makes the change feed look again and again instead of being
	// told, as it does by itself where inotify is not to be had.
	NoInotify bool
}

// Store is a folder of images. It never reaches outside of it: a symbolic link
// that leads out is not followed.
type Store struct {
	client string
	dir    string // absolute
	log    *slog.Logger
	root   *os.Root
	feed   *feed

	web       *http.Client // for records' addresses
	userAgent string

	noInotify bool
	poll      time.Duration // between two looks, where they are needed

	busy chan struct{} // room for who changes something; see exclusive
}

var (
	_ backends.Store     = (*Store)(nil)
	_ backends.Pusher    = (*Store)(nil)
	_ backends.Remover   = (*Store)(nil)
	_ backends.Renamer   = (*Store)(nil)
	_ backends.Collector = (*Store)(nil)
	_ backends.Watcher   = (*Store)(nil)
	_ backends.Usager    = (*Store)(nil)
	_ backends.Localer   = (*Store)(nil)
	_ backends.Recorder  = (*Store)(nil)
	_ backends.Namer     = (*Store)(nil)
	_ backends.Placer    = (*Store)(nil)
)

// Place is the folder.
func (s *Store) Place() string { return s.dir }

// New opens the store in dir, which is made when it does not exist, and removes
// what pushes of dead programs left half done.
func New(dir string, o Options) (*Store, error) {
	if o.Client == "" {
		o.Client = "local"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		client: o.Client, log: o.Log, noInotify: o.NoInotify, poll: 2 * time.Second, busy: make(chan struct{}, 1),
		web: &http.Client{Transport: pacer.New(o.Transport, pacer.Options{Log: o.Log})}, userAgent: o.UserAgent,
	}
	fail := func(err error) (*Store, error) {
		return nil, s.fail("open "+dir+" of", backends.Ref{}, err)
	}
	var err error
	if s.dir, err = filepath.Abs(dir); err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fail(err)
	}
	if s.root, err = os.OpenRoot(s.dir); err != nil {
		return fail(err)
	}
	s.feed = newFeed()
	s.sweep()
	return s, nil
}

// Close ends the change feed. The store must not be used afterwards; files and
// readers that it gave stay good.
func (s *Store) Close() error {
	s.feed.stop()
	return s.root.Close()
}

// fail wraps err for its reader, with the kind that it is of.
func (s *Store) fail(op string, ref backends.Ref, err error) error {
	if err == nil {
		return nil
	}
	var known *backends.Error
	if errors.As(err, &known) {
		return err
	}
	e := &backends.Error{Op: op, Client: s.client, Ref: ref, Err: err}
	for _, k := range []struct {
		errno syscall.Errno
		kind  error
	}{
		{unix.ENOSPC, backends.ErrNoSpace},
		{unix.EDQUOT, backends.ErrQuota},
		{unix.EROFS, backends.ErrReadOnly},
		{unix.ENAMETOOLONG, backends.ErrInvalidName},
		{unix.ENOTEMPTY, backends.ErrNotEmpty},
		{unix.ESTALE, backends.ErrStale},
		{unix.ENOTDIR, iofs.ErrNotExist},
		{unix.EISDIR, iofs.ErrExist},
	} {
		if errors.Is(err, k.errno) {
			// The errno goes: whoever maps kinds to errnos would take it as it is.
			e.Err = k.kind
			return e
		}
	}
	return e
}

// Usage returns the space of the disk that the folder is on. What is reserved
// for the superuser counts as used.
func (s *Store) Usage(ctx context.Context) (backends.Usage, error) {
	if err := ctx.Err(); err != nil {
		return backends.Usage{}, s.fail("ask for the usage of", backends.Ref{}, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return backends.Usage{}, s.fail("ask for the usage of", backends.Ref{}, err)
	}
	block := int64(st.Frsize)
	if block == 0 {
		block = int64(st.Bsize)
	}
	total, avail := int64(st.Blocks)*block, int64(st.Bavail)*block
	return backends.Usage{Used: total - avail, Total: total}, nil
}

// stamp is one state of a file. Its String is the Revision.
type stamp struct {
	inode               uint64
	size, mtime, change int64
}

func stampOf(info iofs.FileInfo) stamp {
	s := stamp{size: info.Size(), mtime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode, s.change = st.Ino, st.Ctim.Nano()
	}
	return s
}

func (s stamp) String() string {
	return fmt.Sprintf("%x-%x-%x-%x", s.inode, s.size, s.mtime, s.change)
}

// sameContent reports whether two states of one open file hold the same bytes,
// as far as its times tell. The time of change alone also moves when the file
// is renamed, linked or deleted.
func (s stamp) sameContent(t stamp) bool {
	s.change, t.change = 0, 0
	return s == t
}
