package cache

import (
	"errors"
	"os"
	"sync"
)

// fdTable bounds how many data files are open at once, so that thousands of
// open objects do not take thousands of descriptors. Which one is closed is
// first in, first out: keeping the exact order of use would cost each read a
// lock.
type fdTable struct {
	max  int
	mu   sync.Mutex // held while a file is opened
	open []*live
}

// dataFile is a live object's open file. The pointer to it is what readers
// load without a lock.
type dataFile struct{ f file }

// data returns the object's data file. A reader may find it closed under its
// hands by another object's need (os.ErrClosed) and asks again.
func (l *live) data() (file, error) {
	if df := l.file.Load(); df != nil {
		return df.f, nil
	}
	return l.c.fds.get(l)
}

func (t *fdTable) get(l *live) (file, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if df := l.file.Load(); df != nil {
		return df.f, nil
	}
	if l.shut.Load() {
		return nil, ErrClosed
	}
	for len(t.open) >= t.max {
		t.drop(0)
	}
	f, err := l.c.disk.Open(l.e.name+dataSuffix, os.O_CREATE)
	if err != nil {
		return nil, err
	}
	l.file.Store(&dataFile{f})
	if !l.pinnedFile {
		t.open = append(t.open, l)
	}
	return f, nil
}

// drop closes the i-th file. The caller holds t.mu.
func (t *fdTable) drop(i int) {
	l := t.open[i]
	t.open = append(t.open[:i], t.open[i+1:]...)
	if df := l.file.Swap(nil); df != nil {
		df.f.Close()
	}
}

// keep takes l's file out of the table, so that it stays open until the
// object is closed.
func (t *fdTable) keep(l *live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l.pinnedFile = true
	for i, o := range t.open {
		if o == l {
			t.open = append(t.open[:i], t.open[i+1:]...)
			return
		}
	}
}

// forget closes l's file, whose name stands for another file from now on.
func (t *fdTable) forget(l *live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, o := range t.open {
		if o == l {
			t.drop(i)
			return
		}
	}
	if df := l.file.Swap(nil); df != nil {
		df.f.Close()
	}
}

func (l *live) closeFile() {
	l.shut.Store(true)
	l.c.fds.forget(l)
}

// withData runs do on the data file, again when the file was closed meanwhile
// to make room in the table.
func (l *live) withData(do func(file) error) error {
	for {
		f, err := l.data()
		if err != nil {
			return err
		}
		if err = do(f); !errors.Is(err, os.ErrClosed) {
			return err
		}
		if l.shut.Load() {
			return ErrClosed
		}
	}
}
