package staging

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// reserveStep is how much room a file takes at a time.
const reserveStep = 8 << 20

// File is a staged file. Its methods are safe for concurrent use; those that
// come after Release or Discard fail with ErrClosed.
type File struct {
	d    *Dir
	id   string
	data *os.File
	room *room

	// mu guards the journal, in memory and on disk.
	mu     sync.Mutex
	meta   Meta
	closed bool
}

// Path is the data file's path.
func (f *File) Path() string { return f.d.join(f.id + dataSuffix) }

// ID is the file's name in its directory.
func (f *File) ID() string { return f.id }

// Meta is what the journal says now.
func (f *File) Meta() Meta {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.meta
}

// OS is the data file itself, for the kernel to read from and write to. It
// belongs to f. Whoever writes to it directly calls Account now and then.
func (f *File) OS() *os.File { return f.data }

// Fd is the data file's descriptor, good until Release or Discard.
func (f *File) Fd() int { return int(f.data.Fd()) }

// ReadAt is io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.data.ReadAt(p, off)
	return n, f.wrap(err)
}

// WriteAt is io.WriterAt. Room is reserved before anything is written.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if err := f.room.reach(off + int64(len(p))); err != nil {
		return 0, err
	}
	n, err := f.data.WriteAt(p, off)
	return n, f.wrap(err)
}

// Truncate sets the size. What it adds is zeros.
func (f *File) Truncate(size int64) error {
	if err := f.room.reach(size); err != nil {
		return err
	}
	if err := f.data.Truncate(size); err != nil {
		return f.wrap(err)
	}
	return f.Account()
}

// Size is the data file's size in bytes, whoever wrote to it.
func (f *File) Size() (int64, error) {
	fi, err := f.data.Stat()
	if err != nil {
		return 0, f.wrap(err)
	}
	return fi.Size(), nil
}

// Sync makes the bytes durable.
func (f *File) Sync() error { return f.wrap(f.data.Sync()) }

func (f *File) wrap(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("staged file %s: %w", f.id, ErrClosed)
	}
	return err
}

// Account makes what is reserved fit the data file's size, which others may
// have changed through OS. When there is no room for what is there already,
// it says so.
func (f *File) Account() error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	f.room.shrink(size)
	return f.room.reach(size)
}

// Update changes the journal; it is durable when Update returns nil. When it
// fails, the journal is as it was, on disk and in memory. change must not keep
// its argument and cannot change ID and Created.
func (f *File) Update(change func(*Meta)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fmt.Errorf("staged file %s: %w", f.id, ErrClosed)
	}
	m := f.meta
	change(&m)
	m.ID, m.Created, m.Updated = f.meta.ID, f.meta.Created, time.Now().UTC()
	switch m.State {
	case Writing, Ready, Uploading, Failed, Acknowledged:
	default:
		return fmt.Errorf("staged file %s: %q is no state", m.ID, m.State)
	}
	if err := f.d.writeJournal(&m); err != nil {
		return fmt.Errorf("write the journal of the staged file %s: %w", m.ID, err)
	}
	f.meta = m
	return nil
}

// Release closes the file and leaves it on disk, to be found by Pending. A
// second one does nothing.
func (f *File) Release() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	return f.close(true)
}

// close ends the handle. The caller holds f.mu.
func (f *File) close(stays bool) error {
	f.closed = true
	err := f.data.Close()
	f.d.drop(f, stays)
	return err
}

// Discard closes the file and deletes it: the store has it, or nobody wants
// it. A crash in the middle of it is finished at the next Open. When Discard
// fails, Pending finds the file again.
func (f *File) Discard() error { return f.DiscardAfter(nil) }

// DiscardAfter is Discard that first lets take have the data file, to rename
// it away. take may call release, before it returns, when it has made room for
// the bytes by itself; otherwise what is reserved for them is held until they
// are gone. The file is discarded whether take succeeds or not, and take's
// error is among those returned: by then the bytes are elsewhere anyway.
func (f *File) DiscardAfter(take func(path string, release func()) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fmt.Errorf("staged file %s: %w", f.id, ErrClosed)
	}
	m := f.meta
	m.State = discarded
	// On a full disk the journal cannot be written, and deleting helps. A
	// crash in between then leaves a journal that tells of missing bytes.
	jerr := f.d.writeJournal(&m)
	var terr error
	if take != nil {
		terr = take(f.Path(), f.room.free)
	}
	err := f.d.removeBoth(f.id)
	if err != nil {
		if fi, serr := os.Lstat(f.Path()); serr == nil {
			_ = f.room.reach(fi.Size()) // it takes its room whether there is any or not
		}
		err = errors.Join(jerr, err)
	}
	if cerr := f.close(err != nil); err == nil {
		err = cerr
	}
	if err = errors.Join(err, terr); err != nil {
		return fmt.Errorf("discard the staged file %s: %w", f.id, err)
	}
	return nil
}

// room is what is reserved for one file.
type room struct {
	reserve func(n int64) (func(), error) // nil for no limit

	mu       sync.Mutex
	reserved int64
	release  []func()
}

// reach makes room for the file to have size bytes.
func (r *room) reach(size int64) error {
	if r.reserve == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	need := size - r.reserved
	if need <= 0 {
		return nil
	}
	step := max(need, reserveStep)
	release, err := r.reserve(step)
	if err != nil && step > need {
		step = need
		release, err = r.reserve(step)
	}
	if err != nil {
		return fmt.Errorf("stage %d more bytes: %w", need, err)
	}
	r.reserved += step
	r.release = append(r.release, release)
	return nil
}

// shrink gives back what a file of that size does not need, if it is much.
func (r *room) shrink(size int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reserved > size+2*reserveStep {
		r.freeLocked()
	}
}

func (r *room) free() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.freeLocked()
}

func (r *room) freeLocked() {
	for _, release := range r.release {
		release()
	}
	r.release, r.reserved = nil, 0
}
