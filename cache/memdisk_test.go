package cache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"
)

// memDisk is a disk in memory that can fail at any step and lose power. What
// was not synced may be lost: of each file's writes any subset, sector by
// sector; of the directory's changes any that come last.
type memDisk struct {
	mu    sync.Mutex
	names map[string]*memInode
	// durable is what the directory was at the last Sync, and changes what
	// happened since.
	durable map[string]*memInode
	changes []func(map[string]*memInode)
	clock   int64

	// before is called before each step that changes the disk; its error
	// stands for the step's failure.
	before func(op, name string) error
	dead   bool
	// afterRead is called, without d.mu, when a read has its bytes, and
	// afterWrite when a write has placed them.
	afterRead, afterWrite func()
}

type memInode struct {
	data    []byte
	durable []byte
	writes  []memWrite
	mtime   int64
}

type memWrite struct {
	off  int64
	data []byte // nil for a truncation to off
}

func newMemDisk() *memDisk {
	return &memDisk{names: map[string]*memInode{}, durable: map[string]*memInode{}}
}

var errDead = errors.New("the power is gone")

// fails sets d.before while the disk is in use.
func (d *memDisk) fails(before func(op, name string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before = before
}

// step must be called with d.mu held.
func (d *memDisk) step(op, name string) error {
	if d.dead {
		return errDead
	}
	if d.before != nil {
		if err := d.before(op, name); err != nil {
			if errors.Is(err, errDead) {
				d.dead = true
			}
			return &os.PathError{Op: op, Path: name, Err: err}
		}
	}
	return nil
}

func (d *memDisk) change(f func(map[string]*memInode)) {
	f(d.names)
	d.changes = append(d.changes, f)
}

// crash returns the disk as it is found after the power came back.
func (d *memDisk) crash(r *rand.Rand) *memDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	after := newMemDisk()
	names := map[string]*memInode{}
	for name, ino := range d.durable {
		names[name] = ino
	}
	for _, f := range d.changes[:r.IntN(len(d.changes)+1)] {
		f(names)
	}
	for name, ino := range names {
		data := append([]byte(nil), ino.durable...)
		for _, w := range ino.writes {
			for off := 0; off < max(len(w.data), 1); off += 512 {
				if r.IntN(2) == 0 {
					continue
				}
				if w.data == nil {
					data = resize(data, w.off)
					continue
				}
				part := w.data[off:min(off+512, len(w.data))]
				at := w.off + int64(off)
				data = resize(data, max(int64(len(data)), at+int64(len(part))))
				copy(data[at:], part)
			}
		}
		mtime := ino.mtime
		if len(ino.writes) > 0 {
			mtime--
		}
		n := &memInode{data: data, durable: append([]byte(nil), data...), mtime: mtime}
		after.names[name], after.durable[name] = n, n
	}
	after.clock = d.clock + 1000
	return after
}

func resize(b []byte, n int64) []byte {
	if int64(len(b)) >= n {
		return b[:n]
	}
	return append(b, make([]byte, n-int64(len(b)))...)
}

func (d *memDisk) Open(name string, flag int) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ino := d.names[name]
	switch {
	case d.dead:
		return nil, errDead
	case ino == nil && flag&os.O_CREATE == 0:
		return nil, &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
	case ino != nil && flag&os.O_EXCL != 0:
		return nil, &os.PathError{Op: "open", Path: name, Err: os.ErrExist}
	case ino == nil:
		if err := d.step("create", name); err != nil {
			return nil, err
		}
		ino = &memInode{}
		d.change(func(m map[string]*memInode) { m[name] = ino })
	}
	return &memFile{d: d, ino: ino, name: name}, nil
}

func (d *memDisk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step("rename", to); err != nil {
		return err
	}
	ino := d.names[from]
	if ino == nil {
		return &os.PathError{Op: "rename", Path: from, Err: os.ErrNotExist}
	}
	d.change(func(m map[string]*memInode) { delete(m, from); m[to] = ino })
	return nil
}

// Import fails as between two file systems.
func (d *memDisk) Import(path, name string) error { return syscall.EXDEV }
func (d *memDisk) Export(name, path string) error { return errors.ErrUnsupported }

func (d *memDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[name] == nil {
		return &os.PathError{Op: "remove", Path: name, Err: os.ErrNotExist}
	}
	if err := d.step("remove", name); err != nil {
		return err
	}
	d.change(func(m map[string]*memInode) { delete(m, name) })
	return nil
}

func (d *memDisk) Names() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for name := range d.names {
		names = append(names, name)
	}
	return names, nil
}

func (d *memDisk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step("sync directory", ""); err != nil {
		return err
	}
	for _, f := range d.changes {
		f(d.durable)
	}
	d.changes = nil
	return nil
}

func (d *memDisk) Touch(name string, t time.Time) error { return nil }
func (d *memDisk) Close() error                         { return nil }

// used is how many bytes all files take, holes left out.
func (d *memDisk) used() (n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var zeros [4096]byte
	for _, ino := range d.names {
		for p := ino.data; len(p) > 0; p = p[min(4096, len(p)):] {
			if page := p[:min(4096, len(p))]; !bytes.Equal(page, zeros[:len(page)]) {
				n += int64(len(page))
			}
		}
	}
	return n
}

type memFile struct {
	d      *memDisk
	ino    *memInode
	name   string
	closed bool
}

func (f *memFile) check() error {
	switch {
	case f.closed:
		return os.ErrClosed
	case f.d.dead:
		return errDead
	}
	return nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if f.d.afterRead != nil {
		defer f.d.afterRead()
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.check(); err != nil {
		return 0, err
	}
	if off >= int64(len(f.ino.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.ino.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if f.d.afterWrite != nil {
		defer f.d.afterWrite()
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.check(); err != nil {
		return 0, err
	}
	if err := f.d.step("write", f.name); err != nil {
		return 0, err
	}
	f.ino.data = resize(f.ino.data, max(int64(len(f.ino.data)), off+int64(len(p))))
	copy(f.ino.data[off:], p)
	f.ino.writes = append(f.ino.writes, memWrite{off, append([]byte{}, p...)})
	f.touch()
	return len(p), nil
}

func (f *memFile) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.check(); err != nil {
		return err
	}
	if err := f.d.step("truncate", f.name); err != nil {
		return err
	}
	f.ino.data = resize(f.ino.data, size)
	f.ino.writes = append(f.ino.writes, memWrite{off: size})
	f.touch()
	return nil
}

func (f *memFile) touch() {
	f.d.clock++
	f.ino.mtime = f.d.clock
}

func (f *memFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.check(); err != nil {
		return err
	}
	if err := f.d.step("sync", f.name); err != nil {
		return err
	}
	f.ino.durable = append([]byte(nil), f.ino.data...)
	f.ino.writes = nil
	return nil
}

func (f *memFile) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.closed {
		return os.ErrClosed
	}
	f.closed = true
	return nil
}

func (f *memFile) OS() *os.File { return nil }

func (f *memFile) Stat() (fs.FileInfo, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.check(); err != nil {
		return nil, err
	}
	return memInfo{f.name, int64(len(f.ino.data)), f.ino.mtime}, nil
}

type memInfo struct {
	name        string
	size, mtime int64
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) Mode() fs.FileMode  { return 0o600 }
func (i memInfo) ModTime() time.Time { return time.Unix(0, i.mtime) }
func (i memInfo) IsDir() bool        { return false }
func (i memInfo) Sys() any           { return nil }

func (d *memDisk) String() string { return fmt.Sprintf("%d files", len(d.names)) }
