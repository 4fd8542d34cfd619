// Package staging keeps files that are on their way to a store: the bytes that
// somebody copied into the tree, until the store has acknowledged all of them.
//
// It promises that nothing is thrown away silently. Each file's data lie
// beside a journal that says what they are and how far the upload came; every
// change of the journal is durable when it returns. After a crash, Dir.Pending
// gives back each file with what is known of it; data without a readable
// journal come back as orphans.
//
// The package knows nothing of stores, uploads or file systems in user space:
// what the fields of Meta mean is its caller's affair. Start at Open and
// Dir.Create. The layout is described in docs/cache-format.md.
package staging

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrLocked: another process has this directory open.
	ErrLocked = errors.New("the staging directory is in use by another process")
	// ErrVersion: the directory was written by a newer version of this program.
	ErrVersion = errors.New("the staging directory has a format that this version does not know")
	// ErrClosed: the file was released or discarded, or the directory closed.
	ErrClosed = errors.New("already closed")
)

const (
	formatName    = "sregfs-staging"
	formatVersion = 1

	dataSuffix    = ".data"
	journalSuffix = ".json"
	tmpPrefix     = "tmp."
)

// State is how far a staged file has come.
type State string

// The states of a staged file.
const (
	Writing   State = "writing"   // somebody has it open
	Ready     State = "ready"     // closed and whole, waits for its upload
	Uploading State = "uploading" // being uploaded, or was when the process died
	Failed    State = "failed"    // the upload failed; Error says why
	// Acknowledged: the store has it all, and the file is only to be cleared
	// away. After a crash it must not be uploaded again, over something newer.
	Acknowledged State = "acknowledged"
	// Orphan: the data are here, but nothing says what they are. Error says
	// why. Only Pending and List give this state; it is never in a journal
	// that Create wrote.
	Orphan State = "orphan"

	// discarded is in the journal of a file whose removal has begun.
	discarded State = "discarded"
)

// Meta is what is known of a staged file: the contents of its journal.
type Meta struct {
	// ID names the file in its directory: letters, digits, "-" and "_".
	// Create makes one up when it is empty.
	ID string `json:"id"`
	// Client, Collection, Name and Tag say where it is to go; TempName is
	// the temporary name that it has in the tree meanwhile.
	Client     string `json:"client,omitempty"`
	Collection string `json:"collection,omitempty"`
	Name       string `json:"name,omitempty"`
	Tag        string `json:"tag,omitempty"`
	TempName   string `json:"temp_name,omitempty"`
	// Size, MD5 and SHA256 (hexadecimal) are of the whole file, once known.
	Size   int64  `json:"size"`
	MD5    string `json:"md5,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
	// UploadState is what the store needs to resume the upload; no secret.
	UploadState string `json:"upload_state,omitempty"`
	// Replaces is what the pusher saw under the name.
	Replaces json.RawMessage `json:"replaces,omitempty"`
	State    State           `json:"state"`
	// Error is the last failure, a sentence without a secret.
	Error    string `json:"error,omitempty"`
	Attempts int    `json:"attempts,omitempty"`
	// Created and Updated are set by this package.
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
}

// journal is Meta as it lies on disk.
type journal struct {
	Version int `json:"version"`
	Meta
}

// Options say how a Dir behaves. The zero value is usable.
type Options struct {
	// Reserve makes room for n more bytes before they are written; its error
	// is what the write then fails with. nil for no limit.
	Reserve func(n int64) (release func(), err error)
	// Log takes what no caller gets as an error. Default slog.Default().
	Log *slog.Logger
}

// Dir is a directory of staged files. Its methods are safe for concurrent use.
type Dir struct {
	path string
	opts Options
	dir  *os.File
	lock *os.File

	// step is called before each change of the disk, with a word for it; its
	// error stands for the step's failure. Tests set it; nil does nothing.
	step func(op string) error

	mu     sync.Mutex
	closed bool
	held   map[string]*File // by ID, between Create or Pending and Release
	rooms  map[string]*room // by ID, of released files, which still take it
}

func (d *Dir) before(op string) error {
	if d.step == nil {
		return nil
	}
	return d.step(op)
}

// Open opens the staging directory, making it when it is missing (mode 0700).
// Only one process may have it open: others get ErrLocked. A directory of a
// newer format is refused with ErrVersion. Symbolic links in it are never
// followed.
func Open(dir string, o Options) (*Dir, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the staging directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the staging directory private: %w", err)
	}
	d := &Dir{path: dir, opts: o, held: map[string]*File{}, rooms: map[string]*room{}}
	if err := d.open(); err != nil {
		d.lock.Close() // a nil *os.File only returns an error
		d.dir.Close()
		return nil, fmt.Errorf("open the staging directory %s: %w", dir, err)
	}
	return d, nil
}

func (d *Dir) open() (err error) {
	if d.dir, err = openNoFollow(d.path, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
		return err
	}
	if d.lock, err = openNoFollow(filepath.Join(d.path, "lock"), os.O_RDWR|os.O_CREATE); err != nil {
		return err
	}
	switch err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case err == unix.EWOULDBLOCK:
		return fmt.Errorf("%w; stop it, or choose another directory", ErrLocked)
	case err != nil:
		return err
	}
	if err := d.checkVersion(); err != nil {
		return err
	}
	names, err := d.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		id, isJournal := strings.CutSuffix(name, journalSuffix)
		switch {
		case strings.HasPrefix(name, tmpPrefix):
			// Half a journal, never renamed: what it replaces is still there.
			if err := d.remove(name); err != nil {
				return err
			}
		case isJournal && validID(id):
			if m, err := d.readJournal(id); err == nil && m.State == discarded {
				if err := d.removeBoth(id); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func openNoFollow(path string, flag int) (*os.File, error) {
	for {
		// O_NONBLOCK keeps a planted FIFO from blocking the open.
		fd, err := unix.Open(path, flag|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		if err := unix.SetNonblock(fd, false); err != nil {
			unix.Close(fd)
			return nil, err
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

func (d *Dir) checkVersion() error {
	b, err := d.read("version")
	if errors.Is(err, os.ErrNotExist) {
		return d.replace("version", fmt.Appendf(nil, "%s %d\n", formatName, formatVersion))
	}
	if err != nil {
		return err
	}
	v, ok := strings.CutPrefix(strings.TrimSpace(string(b)), formatName+" ")
	n, err := strconv.Atoi(v)
	if !ok || err != nil {
		return errors.New("its file \"version\" is not a staging directory's; choose another directory")
	}
	if n > formatVersion {
		return fmt.Errorf("%w (%d, this one knows %d); use the newer program: it may hold files that wait for their upload", ErrVersion, n, formatVersion)
	}
	return nil
}

func (d *Dir) join(name string) string { return filepath.Join(d.path, name) }

func (d *Dir) names() ([]string, error) {
	if _, err := d.dir.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return d.dir.Readdirnames(-1)
}

func (d *Dir) read(name string) ([]byte, error) {
	f, err := openNoFollow(d.join(name), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const most = 1 << 20
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && len(b) > most {
		err = fmt.Errorf("%s: too large", name)
	}
	return b, err
}

func (d *Dir) remove(name string) error {
	if err := d.before("remove"); err != nil {
		return err
	}
	if err := os.Remove(d.join(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// replace writes a file as a whole, durably.
func (d *Dir) replace(name string, b []byte) error {
	tmp := tmpPrefix + name + "." + rand.Text()
	if err := d.before("create"); err != nil {
		return err
	}
	f, err := openNoFollow(d.join(tmp), os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	if err = d.before("write"); err == nil {
		_, err = f.Write(b)
	}
	if err == nil {
		if err = d.before("sync"); err == nil {
			err = f.Sync()
		}
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		if err = d.before("rename"); err == nil {
			err = os.Rename(d.join(tmp), d.join(name))
		}
	}
	if err != nil {
		return errors.Join(err, d.remove(tmp))
	}
	return d.syncDir()
}

func (d *Dir) syncDir() error {
	if err := d.before("sync directory"); err != nil {
		return err
	}
	return d.dir.Sync()
}

func (d *Dir) writeJournal(m *Meta) error {
	b, err := json.MarshalIndent(journal{formatVersion, *m}, "", "  ")
	if err != nil {
		return err
	}
	return d.replace(m.ID+journalSuffix, append(b, '\n'))
}

func validID(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	for _, c := range id {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// Create makes an empty staged file. m.State is Writing when it is empty. The
// caller ends it with Release or Discard. When Create returns, a crash leaves
// the file to be found by Pending.
func (d *Dir) Create(m Meta) (*File, error) {
	if m.ID == "" {
		m.ID = rand.Text()
	}
	if m.State == "" {
		m.State = Writing
	}
	if !validID(m.ID) {
		return nil, fmt.Errorf("stage a file: %q is no ID", m.ID)
	}
	m.Created = time.Now().UTC()
	m.Updated = m.Created
	f := &File{d: d, meta: m, id: m.ID, room: &room{reserve: d.opts.Reserve}}
	if err := d.hold(f); err != nil {
		return nil, fmt.Errorf("stage a file: %w", err)
	}
	// The data first: what a crash leaves between the two is then an empty
	// orphan and not a journal that tells of lost bytes.
	var data *os.File
	err := d.before("create data")
	if err == nil {
		data, err = openNoFollow(f.Path(), os.O_RDWR|os.O_CREATE|os.O_EXCL)
	}
	if err == nil {
		f.data = data
		if err = d.writeJournal(&m); err != nil {
			data.Close()
			err = errors.Join(err, d.remove(m.ID+dataSuffix))
		}
	}
	if err != nil {
		d.drop(f, false)
		return nil, fmt.Errorf("stage a file: %w", err)
	}
	return f, nil
}

func (d *Dir) hold(f *File) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	if d.held[f.id] != nil {
		return fmt.Errorf("%s: %w", f.id, os.ErrExist)
	}
	d.held[f.id] = f
	if r := d.rooms[f.id]; r != nil {
		f.room = r
		delete(d.rooms, f.id)
	}
	return nil
}

// drop ends the holding of f. When its bytes stay on disk, so does what is
// reserved for them.
func (d *Dir) drop(f *File, stays bool) {
	d.mu.Lock()
	if d.held[f.id] == f {
		delete(d.held, f.id)
	}
	if stays && !d.closed {
		d.rooms[f.id] = f.room
	}
	stays = stays && !d.closed
	d.mu.Unlock()
	if !stays {
		f.room.free()
	}
}

// removeBoth deletes a file's data, then its journal.
func (d *Dir) removeBoth(id string) error {
	if err := d.remove(id + dataSuffix); err != nil {
		return err
	}
	if err := d.remove(id + journalSuffix); err != nil {
		return err
	}
	return d.syncDir()
}

// Close closes the directory. Files that are still held stay on disk, for the
// next run, and fail with ErrClosed.
func (d *Dir) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	held, rooms := d.held, d.rooms
	d.held, d.rooms = map[string]*File{}, nil
	d.mu.Unlock()
	for _, r := range rooms {
		r.free()
	}
	var errs []error
	for _, f := range held {
		errs = append(errs, f.Release())
	}
	return errors.Join(append(errs, d.dir.Close(), d.lock.Close())...)
}
