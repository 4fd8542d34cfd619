//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/fs/catalog"
)

// written is a mount of one store in memory, for tests of several hands on one
// file.
type written struct {
	*testing.T
	dir   string // the collection "c"
	store *backendtest.MemoryStore
	cat   *catalog.Catalog
	// hold, while it is set, keeps calls of that name waiting.
	hold    chan string
	reached chan struct{}
	release chan struct{}
}

func newWritten(t *testing.T) *written {
	w := &written{T: t, store: backendtest.Memory(), reached: make(chan struct{}, 1000), release: make(chan struct{})}
	w.hold = make(chan string, 1)
	store := backendtest.Wrap(w.store, func(ctx context.Context, c backendtest.Call) error {
		select {
		case op := <-w.hold:
			w.hold <- op
			if c.Op != op {
				return nil
			}
		default:
			return nil
		}
		w.reached <- struct{}{}
		select {
		case <-w.release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	if err := w.store.MakeCollection(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	var mnt string
	mnt, w.cat = mountStores(t, map[string]backends.Store{"mem": store})
	w.dir = filepath.Join(mnt, "mem", "c")
	return w
}

func (w *written) path(name string) string { return filepath.Join(w.dir, name) }

// must stops the test for an error.
func (w *written) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// write makes a file and leaves it open.
func (w *written) write(name string, data []byte) *os.File {
	w.Helper()
	f, err := os.OpenFile(w.path(name), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o755)
	w.must(err)
	_, err = f.Write(data)
	w.must(err)
	return f
}

// flush pushes by closing a duplicate.
func (w *written) flush(f *os.File) {
	w.Helper()
	fd, err := unix.Dup(int(f.Fd()))
	w.must(err)
	w.must(unix.Close(fd))
}

// remote checks what the store has under a name; nil for nothing.
func (w *written) remote(name string, want []byte) {
	w.Helper()
	ref, _, _ := backends.ParseFile(name)
	ref.Collection = "c"
	img, err := w.store.Stat(w.Context(), ref)
	if want == nil {
		if !errors.Is(err, iofs.ErrNotExist) {
			w.Errorf("the remote has %s: %v", name, err)
		}
		return
	}
	w.must(err)
	r, err := w.store.OpenRange(w.Context(), img, 0, -1)
	w.must(err)
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
		w.Errorf("the remote has %d other bytes as %s, want %d (%v)", len(got), name, len(want), err)
	}
}

// nothingHeld checks that nothing waits on the disk once all is closed.
func (w *written) nothingHeld() {
	w.Helper()
	w.soon(func() error {
		if held := w.cat.Held(); len(held) > 0 {
			return fmt.Errorf("held: %+v", held)
		}
		return nil
	})
}

// soon waits until f is content.
func (w *written) soon(f func() error) {
	w.Helper()
	err := f()
	for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); err = f() {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		w.Error(err)
	}
}

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func TestRemoveWhileOpen(t *testing.T) {
	for _, pushed := range []bool{false, true} {
		t.Run(fmt.Sprint("pushed ", pushed), func(t *testing.T) {
			w := newWritten(t)
			f := w.write("a:1.simg", noise(1, 50_000))
			if pushed {
				w.flush(f)
				w.remote("a:1.simg", noise(1, 50_000))
			}
			w.must(os.Remove(w.path("a:1.simg")))
			w.remote("a:1.simg", nil)
			_, err := f.WriteString("more")
			w.must(err)
			got := make([]byte, 100)
			if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, noise(1, 50_000)[:100]) {
				t.Errorf("the open file cannot be read any more: %v", err)
			}
			w.must(f.Close())
			w.remote("a:1.simg", nil)
			w.nothingHeld()
		})
	}
}

func TestRemoveDuringPush(t *testing.T) {
	w := newWritten(t)
	f := w.write("a:1.simg", noise(1, 50_000))
	w.hold <- "Commit"
	closed := make(chan error, 1)
	go func() { closed <- f.Close() }()
	<-w.reached
	w.must(os.Remove(w.path("a:1.simg")))
	<-w.hold
	close(w.release)
	w.must(<-closed)
	w.remote("a:1.simg", nil)
	w.nothingHeld()
}

// A failed removal takes nothing away from whoever writes.
func TestRenameWhileOpen(t *testing.T) {
	w := newWritten(t)
	f := w.write("a:1.simg", noise(1, 50_000))
	w.flush(f)
	w.must(os.Rename(w.path("a:1.simg"), w.path("b:1.simg")))
	w.remote("a:1.simg", nil)
	w.remote("b:1.simg", noise(1, 50_000))
	_, err := f.WriteAt(noise(2, 50_000), 0)
	w.must(err)
	w.must(f.Close())
	w.remote("a:1.simg", nil)
	w.remote("b:1.simg", noise(2, 50_000))
	w.nothingHeld()
	// As a backup, an image is what it is: no temporary file.
	f = w.write("b:1.simg", noise(3, 50_000))
	w.flush(f)
	if err := os.Rename(w.path("b:1.simg"), w.path("b:1.simg~")); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("renaming an image that is open to a temporary name: %v", err)
	}
	w.must(f.Close())
	w.remote("b:1.simg", noise(3, 50_000))
}

// What is renamed away while it is written goes on under the new name, and
// what it replaces is gone with its writer's bytes.
func TestRenameOverWriter(t *testing.T) {
	for _, from := range []string{"a:1.simg", ".a.tmp"} {
		t.Run(from, func(t *testing.T) {
			w := newWritten(t)
			w.must(w.write(from, noise(1, 50_000)).Close())
			f := w.write("b:1.simg", noise(2, 60_000))
			w.must(os.Rename(w.path(from), w.path("b:1.simg")))
			w.must(f.Close())
			w.remote("b:1.simg", noise(1, 50_000))
			got, err := os.ReadFile(w.path("b:1.simg"))
			if err != nil || !bytes.Equal(got, noise(1, 50_000)) {
				t.Errorf("read %d bytes: %v", len(got), err)
			}
			w.nothingHeld()
		})
	}
}

// The push of a process that was killed while it waited goes on, and the file
// is there all the time.
func TestKilledInClose(t *testing.T) {
	w := newWritten(t)
	image := smallImage(t, 1)
	data, err := os.ReadFile(image)
	w.must(err)
	w.hold <- "Commit"
	cp := exec.Command("cp", image, w.path("a:1.simg"))
	w.must(cp.Start())
	<-w.reached
	w.must(cp.Process.Kill())
	_ = cp.Wait()
	info, err := os.Stat(w.path("a:1.simg"))
	if err != nil || info.Size() != int64(len(data)) {
		t.Errorf("during the push: %v %v", info, err)
	}
	<-w.hold
	close(w.release)
	w.nothingHeld()
	w.remote("a:1.simg", data)
	if got, err := os.ReadFile(w.path("a:1.simg")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes: %v", len(got), err)
	}
}

// A reader keeps its version to the end, also of an image that was not all
// here when it was opened.
func TestOverwriteUnderReader(t *testing.T) {
	w := newWritten(t)
	old := noise(1, 3<<20)
	ref := backends.Ref{Collection: "c", Name: "a", Tag: "1"}
	w.store.Put(ref, old, nil)
	w.soon(func() error { _, err := os.Stat(w.path("a:1.simg")); return err })
	r, err := os.Open(w.path("a:1.simg"))
	w.must(err)
	defer r.Close()
	got := make([]byte, 5000)
	_, err = io.ReadFull(r, got)
	w.must(err)
	f := w.write("a:1.simg", noise(2, 1<<20))
	rest, err := io.ReadAll(r)
	if got = append(got, rest...); err != nil || !bytes.Equal(got, old) {
		t.Errorf("while it is overwritten: read %d bytes, %v", len(got), err)
	}
	w.must(f.Close())
	again := make([]byte, len(old))
	if _, err := r.ReadAt(again, 0); err != nil || !bytes.Equal(again, old) {
		t.Errorf("after it was overwritten: %v", err)
	}
	if now, err := os.ReadFile(w.path("a:1.simg")); err != nil || !bytes.Equal(now, noise(2, 1<<20)) {
		t.Errorf("the new version reads as %d bytes, %v", len(now), err)
	}
	w.nothingHeld()
}

// While the old bytes of a large image come for its first change, nobody who
// only looks has to wait.
func TestLookDuringFirstWrite(t *testing.T) {
	w := newWritten(t)
	w.store.Put(backends.Ref{Collection: "c", Name: "a", Tag: "1"}, noise(1, 3<<20), nil)
	w.soon(func() error { _, err := os.Stat(w.path("a:1.simg")); return err })
	f, err := os.OpenFile(w.path("a:1.simg"), os.O_RDWR, 0)
	w.must(err)
	w.hold <- "OpenRange"
	done := make(chan error, 1)
	go func() { _, err := f.WriteAt([]byte("changed"), 100); done <- err }()
	<-w.reached
	looked := make(chan error, 1)
	go func() {
		_, err := os.ReadDir(w.dir)
		_, err2 := os.Stat(w.path("a:1.simg"))
		_, err3 := f.Stat()
		looked <- errors.Join(err, err2, err3)
	}()
	select {
	case err := <-looked:
		w.must(err)
	case <-time.After(20 * time.Second):
		t.Error("ls and stat wait for the old bytes of a file that somebody writes to")
	}
	<-w.hold
	close(w.release)
	w.must(<-done)
	w.must(f.Close())
	want := noise(1, 3<<20)
	copy(want[100:], "changed")
	w.remote("a:1.simg", want)
	w.nothingHeld()
}

// A program that opens for writing and only reads neither copies nor pushes.
func TestReadOfWritable(t *testing.T) {
	w := newWritten(t)
	w.must(w.write("a:1.simg", noise(1, 1<<20)).Close())
	w.nothingHeld()
	f, err := os.OpenFile(w.path("a:1.simg"), os.O_RDWR, 0)
	w.must(err)
	got := make([]byte, 1000)
	if _, err := f.ReadAt(got, 500_000); err != nil || !bytes.Equal(got, noise(1, 1<<20)[500_000:501_000]) {
		t.Errorf("read: %v", err)
	}
	if held := w.cat.Held(); len(held) > 0 {
		t.Errorf("staged for a reader: %+v", held)
	}
	w.must(f.Close())
	w.nothingHeld()
}

// What was pushed is one version for whoever opens it, though its writer has it
// open still and writes on.
func TestOneVersionWhileWriting(t *testing.T) {
	w := newWritten(t)
	first, second := noise(1, 300_000), noise(2, 200_000)
	f := w.write("a:1.simg", first)
	again, err := unix.Dup(int(f.Fd()))
	w.must(err)
	w.must(unix.Close(again)) // pushes
	w.remote("a:1.simg", first)
	r, err := os.Open(w.path("a:1.simg"))
	w.must(err)
	defer r.Close()
	whole := func() {
		t.Helper()
		got := make([]byte, len(first))
		if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, first) {
			t.Errorf("the reader's version has changed: %v", err)
		}
	}
	whole()
	w.must(f.Truncate(0))
	_, err = f.WriteAt(second, 0)
	w.must(err)
	whole()
	w.must(f.Close())
	w.remote("a:1.simg", second)
	whole()
	if got, err := os.ReadFile(w.path("a:1.simg")); err != nil || !bytes.Equal(got, second) {
		t.Errorf("the next reader reads %d bytes, %v", len(got), err)
	}
	w.nothingHeld()
}

// One who opens a file while the last one lets go of it finds all of it.
func TestReopenAtOnce(t *testing.T) {
	w := newWritten(t)
	for i := range 100 {
		name := fmt.Sprintf("a%d:1.simg", i%7)
		data := noise(byte(i), 5000+i)
		w.must(w.write(name, data).Close())
		if got, err := os.ReadFile(w.path(name)); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("round %d: read %d bytes, %v", i, len(got), err)
		}
		data = noise(byte(i+100), 4000+i)
		w.must(w.write(name, data).Close())
		w.remote(name, data)
		if info, err := os.Stat(w.path(name)); err != nil || info.Size() != int64(len(data)) {
			t.Fatalf("round %d: %v, %v", i, info, err)
		}
		if i%7 == 6 {
			w.must(os.Remove(w.path(name)))
			w.remote(name, nil)
		}
	}
	w.nothingHeld()
}

// A temporary file that cannot become an image stays what it is.
func TestRefusedRename(t *testing.T) {
	w := newWritten(t)
	data, err := os.ReadFile(smallImage(t, 1))
	w.must(err)
	w.must(w.write(".a.XXXXXX", data[:len(data)/2]).Close())
	if err := os.Rename(w.path(".a.XXXXXX"), w.path("a:1.simg")); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("rename of half an image: %v", err)
	}
	if info, err := os.Stat(w.path(".a.XXXXXX")); err != nil || info.Size() != int64(len(data)/2) {
		t.Errorf("the temporary file is %v, %v", info, err)
	}
	f, err := os.OpenFile(w.path(".a.XXXXXX"), os.O_WRONLY|os.O_APPEND, 0)
	w.must(err)
	_, err = f.Write(data[len(data)/2:])
	w.must(err)
	w.must(f.Close())
	w.must(unix.Setxattr(w.path(".a.XXXXXX"), "user.note", []byte("kept"), 0))
	w.must(os.Rename(w.path(".a.XXXXXX"), w.path("a:1.simg")))
	w.remote("a:1.simg", data)
	got := make([]byte, 100)
	if n, err := unix.Getxattr(w.path("a:1.simg"), "user.note", got); err != nil || string(got[:n]) != "kept" {
		t.Errorf("the attribute of the temporary file became %q, %v", got[:max(n, 0)], err)
	}
	// One temporary file over another.
	w.must(w.write(".b.tmp", data).Close())
	w.must(w.write(".c.tmp", data).Close())
	w.must(os.Rename(w.path(".b.tmp"), w.path(".c.tmp")))
	w.must(os.Remove(w.path(".c.tmp")))
	w.nothingHeld()
}

// A time that is set between a push and the last close is not lost.
func TestTouchWhileOpen(t *testing.T) {
	w := newWritten(t)
	f := w.write("a:1.simg", noise(1, 1000))
	w.flush(f)
	then := time.Date(2020, 2, 2, 2, 2, 2, 0, time.UTC)
	w.must(os.Chtimes(w.path("a:1.simg"), then, then))
	w.must(f.Close())
	w.nothingHeld()
	w.soon(func() error {
		info, err := os.Stat(w.path("a:1.simg"))
		if err == nil && !info.ModTime().Equal(then) {
			err = fmt.Errorf("modified %v", info.ModTime())
		}
		return err
	})
}
