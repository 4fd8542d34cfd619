package staging

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func open(t *testing.T, dir string, reserve func(int64) (func(), error)) *Dir {
	t.Helper()
	d, err := Open(dir, Options{Reserve: reserve, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

func create(t *testing.T, d *Dir, m Meta, data string) *File {
	t.Helper()
	f, err := d.Create(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(data), 0); err != nil {
		t.Fatal(err)
	}
	return f
}

func pending(t *testing.T, d *Dir) []*File {
	t.Helper()
	fs, err := d.Pending()
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

func read(t *testing.T, f *File) string {
	t.Helper()
	n, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, 0); err != nil && n > 0 {
		t.Fatal(err)
	}
	return string(b)
}

func TestResumption(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, nil)
	a := create(t, d, Meta{Client: "dropbox", Collection: "pusheen", Name: "asaurus", Tag: "red",
		Replaces: json.RawMessage(`{"rev":"5"}`)}, "first")
	b := create(t, d, Meta{TempName: ".x.simg.Ab12"}, "second")
	if err := a.Update(func(m *Meta) { m.State, m.UploadState, m.Attempts = Uploading, "session 7", 2 }); err != nil {
		t.Fatal(err)
	}
	if fs := pending(t, d); len(fs) != 0 {
		t.Errorf("Pending gave %d files that are held", len(fs))
	}
	if err := b.Release(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("ReadAt after Release: %v", err)
	}
	if err := b.Update(func(*Meta) {}); !errors.Is(err, ErrClosed) {
		t.Errorf("Update after Release: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	d = open(t, dir, nil)
	fs := pending(t, d)
	if len(fs) != 2 {
		t.Fatalf("Pending gave %d files, want 2", len(fs))
	}
	m := fs[0].Meta()
	if m.State != Uploading || m.UploadState != "session 7" || m.Attempts != 2 || m.Tag != "red" || read(t, fs[0]) != "first" {
		t.Errorf("the first came back as %+v with %q", m, read(t, fs[0]))
	}
	var rev struct{ Rev string }
	if err := json.Unmarshal(m.Replaces, &rev); err != nil || rev.Rev != "5" {
		t.Errorf("Replaces came back as %s", m.Replaces)
	}
	if m := fs[1].Meta(); m.State != Failed || m.Error == "" || m.TempName != ".x.simg.Ab12" || read(t, fs[1]) != "second" {
		t.Errorf("the second came back as %+v", m)
	}
	for _, f := range fs {
		if err := f.Discard(); err != nil {
			t.Error(err)
		}
	}
	if names, _ := filepath.Glob(dir + "/*.*"); len(names) != 0 {
		t.Errorf("left after Discard: %v", names)
	}
}

func TestWriteReadTruncate(t *testing.T) {
	d := open(t, t.TempDir(), nil)
	f := create(t, d, Meta{}, "hello, world")
	if err := f.Truncate(5); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("!"), 6); err != nil {
		t.Fatal(err)
	}
	if got := read(t, f); got != "hello\x00!" {
		t.Errorf("got %q", got)
	}
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
	fi, err := os.Stat(f.Path())
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the data file has mode %v (%v), want 0600", fi.Mode(), err)
	}
	if fi, err := os.Stat(filepath.Dir(f.Path())); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v (%v), want 0700", fi.Mode(), err)
	}
	if err := f.Update(func(m *Meta) { m.State = "lost" }); err == nil {
		t.Error("an unknown state was accepted")
	}
	if err := f.Update(func(m *Meta) { m.ID = "other" }); err != nil || f.Meta().ID != f.ID() {
		t.Errorf("Update changed the ID to %s (%v)", f.Meta().ID, err)
	}
}

func TestOrphans(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, nil)
	for _, id := range []string{"nojournal", "torn", "foreign", "nodata", "linked"} {
		create(t, d, Meta{ID: id, Name: id, State: Ready}, "bytes of "+id).Release()
	}
	create(t, d, Meta{ID: "acked", State: Acknowledged}, "x").Release()
	d.Close()
	os.Remove(dir + "/acked.data") // taken over by a cache, say
	os.Remove(dir + "/nojournal.json")
	os.WriteFile(dir+"/torn.json", []byte(`{"version":1,"id":"to`), 0o600)
	os.WriteFile(dir+"/foreign.json", []byte(`{"version":1,"id":"torn","state":"ready"}`), 0o600)
	os.Remove(dir + "/nodata.data")
	os.Remove(dir + "/linked.json")
	os.Symlink("/etc/passwd", dir+"/linked.json")

	d = open(t, dir, nil)
	got := map[string]*File{}
	for _, f := range pending(t, d) {
		got[f.ID()] = f
	}
	for _, id := range []string{"nojournal", "torn", "foreign", "linked"} {
		f := got[id]
		if f == nil {
			t.Errorf("%s was not reported", id)
			continue
		}
		if m := f.Meta(); m.State != Orphan || m.Error == "" || m.Size == 0 || read(t, f) != "bytes of "+id {
			t.Errorf("%s came back as %+v with %q", id, m, read(t, f))
		}
	}
	if m := got["nodata"].Meta(); m.State != Failed || m.Name != "nodata" || !strings.Contains(m.Error, "gone") {
		t.Errorf("lost data came back as %+v", m)
	}
	if m := got["acked"].Meta(); m.State != Acknowledged || m.Error != "" {
		t.Errorf("what the store has came back as %+v", m)
	}
	// An orphan becomes an ordinary file by being told what it is.
	if err := got["torn"].Update(func(m *Meta) { m.Name, m.State = "found", Ready }); err != nil {
		t.Fatal(err)
	}
	d.Close()
	d = open(t, dir, nil)
	ms, err := d.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		if m.ID == "torn" && (m.Name != "found" || m.State != Ready) {
			t.Errorf("the orphan that was told what it is came back as %+v", m)
		}
	}
}

// budget is a limit as a cache would have it.
type budget struct{ limit, used int64 }

func (b *budget) reserve(n int64) (func(), error) {
	if b.used+n > b.limit {
		return nil, errors.New("no room")
	}
	b.used += n
	return func() { b.used -= n }, nil
}

func TestReservesRoom(t *testing.T) {
	dir := t.TempDir()
	b := &budget{limit: 10 << 20}
	d := open(t, dir, b.reserve)
	f := create(t, d, Meta{}, "x")
	if b.used < 1 {
		t.Error("nothing was reserved")
	}
	if _, err := f.WriteAt([]byte("x"), 10<<20-1); err != nil {
		t.Errorf("a write that just fits: %v", err)
	}
	if _, err := f.WriteAt([]byte("x"), 10<<20); err == nil {
		t.Error("a write past the limit went through")
	}
	if n, _ := f.Size(); n != 10<<20 {
		t.Errorf("the refused write changed the size to %d", n)
	}
	f.Release()
	if b.used < 10<<20 {
		t.Errorf("a released file holds %d bytes of room, want all that it takes", b.used)
	}
	fs := pending(t, d)
	if b.used < 10<<20 {
		t.Errorf("taken up again, it holds %d bytes of room", b.used)
	}
	if err := fs[0].Discard(); err != nil {
		t.Fatal(err)
	}
	if b.used != 0 {
		t.Errorf("%d bytes are reserved after Discard", b.used)
	}
	big := create(t, d, Meta{}, "y")
	// The kernel may write past us.
	if err := big.OS().Truncate(9 << 20); err != nil {
		t.Fatal(err)
	}
	if err := big.Account(); err != nil || b.used < 9<<20 {
		t.Errorf("Account: %v, %d reserved", err, b.used)
	}
	d.Close()
	if b.used != 0 {
		t.Errorf("%d bytes are reserved after Close", b.used)
	}
}

func TestLockVersionAndLinks(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, nil)
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrLocked) {
		t.Errorf("a second Open: %v", err)
	}
	d.Close()
	os.WriteFile(dir+"/version", fmt.Appendf(nil, "%s %d\n", formatName, formatVersion+1), 0o600)
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrVersion) {
		t.Errorf("a newer format: %v", err)
	}
	os.WriteFile(dir+"/version", []byte("something else\n"), 0o600)
	if _, err := Open(dir, Options{}); err == nil {
		t.Error("a foreign directory was opened")
	}
	link := t.TempDir() + "/link"
	os.Symlink(dir, link)
	if _, err := Open(link, Options{}); err == nil {
		t.Error("a symbolic link was followed")
	}
	for _, id := range []string{"../x", "a/b", ".", "a.b", "x\x00", strings.Repeat("a", 65)} {
		d := open(t, t.TempDir(), nil)
		if _, err := d.Create(Meta{ID: id}); err == nil {
			t.Errorf("Create took the ID %q", id)
		}
	}
}

// TestCrashAnywhere stops the world before each single change of the disk, and
// looks at what the next run finds.
func TestCrashAnywhere(t *testing.T) {
	died := errors.New("died")
	for kill := 0; ; kill++ {
		dir := t.TempDir()
		d := open(t, dir, nil)
		steps := 0
		d.step = func(string) error {
			if steps++; steps > kill {
				return died
			}
			return nil
		}
		// What the caller knows to be durable.
		var created, uploading, gone bool
		discarding := 0 // the steps that came before
		f, err := d.Create(Meta{ID: "x", Name: "n"})
		if err == nil {
			created = true
			if _, err := f.WriteAt([]byte("data"), 0); err != nil {
				t.Fatal(err)
			}
			uploading = f.Update(func(m *Meta) { m.State = Uploading }) == nil
			discarding = steps
			gone = f.Discard() == nil
		}
		d.step = nil
		d.Close()

		d = open(t, dir, nil)
		fs := pending(t, d)
		switch {
		case gone && len(fs) != 0:
			t.Errorf("kill %d: discarded, and found again: %+v", kill, fs[0].Meta())
		case created && kill <= discarding && (len(fs) != 1 || read(t, fs[0]) != "data" || fs[0].Meta().Name != "n"):
			t.Errorf("kill %d: created, and not found again whole", kill)
		case len(fs) == 1:
			m, data := fs[0].Meta(), read(t, fs[0])
			if data == "" && created && m.State != Failed {
				t.Errorf("kill %d: the data are lost and %+v does not say so", kill, m)
			}
			if uploading && m.State != Uploading && m.State != Failed {
				t.Errorf("kill %d: the journal went back to %+v", kill, m)
			}
			if created && data != "" && (data != "data" || m.Name != "n") {
				t.Errorf("kill %d: came back as %+v with %q", kill, m, data)
			}
		}
		if names, _ := filepath.Glob(dir + "/tmp.*"); len(names) != 0 {
			t.Errorf("kill %d: leavings %v", kill, names)
		}
		if steps <= kill {
			if !gone {
				t.Errorf("without a kill the file is still there")
			}
			break
		}
	}
}

func TestDiscardAfter(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, nil)
	f := create(t, d, Meta{}, "data")
	if err := f.DiscardAfter(func(path string, _ func()) error { return os.Rename(path, dir+"/taken") }); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(dir + "/taken"); err != nil || string(b) != "data" {
		t.Errorf("taken: %q, %v", b, err)
	}
	no := errors.New("no")
	f = create(t, d, Meta{}, "data")
	if err := f.DiscardAfter(func(string, func()) error { return no }); !errors.Is(err, no) {
		t.Errorf("DiscardAfter hides the error: %v", err)
	}
	if fs := pending(t, d); len(fs) != 0 {
		t.Errorf("a file that nobody took is still there: %+v", fs[0].Meta())
	}
}

// TestDiscardAfterHandsRoomOver: who takes the bytes decides when the room that
// is reserved for them is free; what stays on disk takes its room.
func TestDiscardAfterHandsRoomOver(t *testing.T) {
	b := &budget{limit: 10 << 20}
	d := open(t, t.TempDir(), b.reserve)
	f := create(t, d, Meta{}, "data")
	err := f.DiscardAfter(func(path string, release func()) error {
		if b.used == 0 {
			t.Error("the room was given back before the file was taken")
		}
		release()
		if b.used != 0 {
			t.Errorf("%d bytes are reserved after release", b.used)
		}
		return os.Remove(path)
	})
	if err != nil || b.used != 0 {
		t.Errorf("DiscardAfter: %v, %d bytes are reserved", err, b.used)
	}

	f = create(t, d, Meta{}, "data")
	if err := f.DiscardAfter(func(string, func()) error { return nil }); err != nil || b.used != 0 {
		t.Errorf("DiscardAfter without release: %v, %d bytes are reserved", err, b.used)
	}

	f = create(t, d, Meta{}, "data")
	no := errors.New("no")
	d.step = func(op string) error {
		if op == "remove" {
			return no
		}
		return nil
	}
	err = f.DiscardAfter(func(_ string, release func()) error { release(); return nil })
	if !errors.Is(err, no) || b.used < 4 {
		t.Errorf("DiscardAfter that cannot delete: %v, %d bytes are reserved for 4", err, b.used)
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"x","state":"ready","size":3}`))
	f.Add([]byte(`{"version":1,"id":"x","state":"discarded"}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseJournal("x", b)
		if err != nil {
			return
		}
		again, err := json.Marshal(journal{formatVersion, m})
		if err != nil {
			t.Fatal(err)
		}
		m2, err := parseJournal("x", again)
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		third, _ := json.Marshal(journal{formatVersion, m2})
		if !bytes.Equal(again, third) {
			t.Errorf("round trip: %s became %s", again, third)
		}
	})
}
