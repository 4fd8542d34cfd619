//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

// stateDir is where a machine's daemon keeps cache, staged files and state.
func (m *machine) stateDir() string { return filepath.Join(m.home, ".singularity/sregfs") }

// TestCacheDiskFull: with no room for it, reading goes on without the cache,
// and a push that finds no room is an error of cp.
func TestCacheDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	a := dropboxAccount(t)
	image := bigImage(t, 1)
	a.put(t, "pusheen/a:1", image)
	m := newMachine(t, a.env...)
	disk := filepath.Join(m.home, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", disk, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	// The limit is more than the disk has.
	d := m.mount("--client=dropbox", "--cache-dir="+disk, "--cache-size=1G")
	d.run("cmp %s dropbox/pusheen/a:1.simg && cmp %[1]s dropbox/pusheen/a:1.simg", image)
	d.fails("No space left", "cp %s dropbox/pusheen/a:2.simg", image)
	a.mustLack(t, "pusheen/a:2")
	d.run("ls -l dropbox/pusheen && cat dropbox/pusheen/a:1.json && cmp %s dropbox/pusheen/a:1.simg", image)
	d.run("cmp %s dropbox/pusheen/a:1.simg", image)
}

// TestPushLargerThanCache: what a cache is too small for is an error that says so,
// of the write and of the close.
func TestPushLargerThanCache(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		image := bigImage(t, 1)
		d := newMachine(t, a.env...).mount("--client="+a.client, "--cache-size=4M")
		d.run("mkdir %s/pusheen", a.client)
		d.fails("failed to close", "cp %s %s/pusheen/a:1.simg", image, a.client)
		d.fails("No space left on device", "cp %s %s/pusheen/a:1.simg 2>&1 | grep 'failed to close' >&2; exit 1", image, a.client)
		if out := d.run("%s status", program); !strings.Contains(out, "make that larger with --cache-size") || strings.Contains(out, "copy the whole") {
			t.Errorf("status:\n%s", out)
		}
		a.mustLack(t, "pusheen/a:1")
	})
}

// TestDamagedCache: what was altered or cut short behind the daemon's back is
// noticed and fetched again.
func TestDamagedCache(t *testing.T) {
	a := dropboxAccount(t)
	image := bigImage(t, 1)
	a.put(t, "pusheen/a:1", image)
	m := newMachine(t, a.env...)
	d := m.mount("--client=dropbox")
	d.run("cmp %s dropbox/pusheen/a:1.simg", image)
	for name, damage := range map[string]func(f *os.File) error{
		"altered":   func(f *os.File) error { _, err := f.WriteAt([]byte("damage"), 5_000_000); return err },
		"truncated": func(f *os.File) error { return f.Truncate(3_000_000) },
		"emptied":   func(f *os.File) error { return f.Truncate(0) },
		"grown":     func(f *os.File) error { _, err := f.WriteAt([]byte("more"), 40_000_000); return err },
	} {
		t.Run(name, func(t *testing.T) {
			d.unmount()
			files, err := filepath.Glob(filepath.Join(m.stateDir(), "objects/objects/*.data"))
			if err != nil || len(files) != 1 {
				t.Fatalf("%q, %v", files, err)
			}
			f, err := os.OpenFile(files[0], os.O_RDWR, 0)
			if err == nil {
				err = damage(f)
				f.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			d = m.mount("--client=dropbox")
			d.run("cmp %s dropbox/pusheen/a:1.simg", image)
		})
	}
}

// TestDamagedDatabases: a broken file is set aside or refused with a sentence
// that names it; the images stay readable either way.
func TestDamagedDatabases(t *testing.T) {
	for _, file := range []string{".singularity/sregfs/state.db", ".singularity/sregistry.db"} {
		t.Run(filepath.Base(file), func(t *testing.T) {
			a := dropboxAccount(t)
			image := smallImage(t, 1)
			a.put(t, "pusheen/a:1", image)
			m := newMachine(t, a.env...)
			d := m.mount("--client=dropbox")
			d.run("cmp %s dropbox/pusheen/a:1.simg", image)
			d.unmount()
			path := filepath.Join(m.home, file)
			if err := os.WriteFile(path, bytes.Repeat([]byte("not a database "), 1000), 0o600); err != nil {
				t.Fatal(err)
			}
			_ = os.Remove(path + "-wal")
			out, err := m.command(t.Context(), program, "mount", d.dir, "--client=dropbox", "--daemon").CombinedOutput()
			if err != nil {
				if !strings.Contains(string(out), file) {
					t.Errorf("refused without naming the file: %s", out)
				}
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			} else {
				d.run("cmp %s dropbox/pusheen/a:1.simg", image)
				d.run("cd / && %s unmount %s", program, d.dir)
			}
			d = m.mount("--client=dropbox")
			d.want("a:1.simg", "ls dropbox/pusheen")
			d.run("cmp %s dropbox/pusheen/a:1.simg", image)
		})
	}
}

// TestSharedDatabase: the record is one file for sregfs and for whoever opens it
// with Python's sqlite3. While another program has it locked nobody has to wait
// for it, and what was done meanwhile is written when it is free.
func TestSharedDatabase(t *testing.T) {
	eachService(t, func(t *testing.T, s service) {
		red, green := smallImage(t, 1), smallImage(t, 2)
		s.put(t, "pusheen/a:red", red)
		d := newMachine(t, s.env...).mount("--client=" + s.client)
		python := func(line string) string {
			return fmt.Sprintf(`python3 -c '
import os, sqlite3, sys
db = sqlite3.connect(os.path.expanduser("~/.singularity/sregistry.db"), timeout=30)
%s'`, line)
		}
		d.run("cp %s %s/pusheen/a:green.simg && cat %[2]s/pusheen/a:red.json >/dev/null", green, s.client)
		const rows = `print(*sorted(r[0] + ":" + r[1] for r in db.execute("select name, tag from container")))`
		d.soon(`test "$(%s)" = "a:green a:red"`, python(rows))
		d.run("%s", python(`with db:
    db.execute("insert into collection(name) values (\"theirs\")")
    db.execute("insert into container(name, tag, uri, client, version, collection_id, metrics) select \"b\", \"1\", \"theirs/b:1\", \"hub\", \"\", id, \"{}\" from collection where name = \"theirs\"")`))
		if out := d.run("%s images", program); !strings.Contains(out, "theirs/b:1") || !strings.Contains(out, "pusheen/a:green") {
			t.Errorf("images:\n%s", out)
		}
		d.run("mkfifo %[1]s/locked %[1]s/free", d.home)
		unlocked := make(chan error, 1)
		go func() {
			_, errOut, err := d.try("%s", python(fmt.Sprintf(`db.isolation_level = None
db.execute("begin exclusive")
db.execute("delete from container where name = \"b\"")
open("%[1]s/locked", "w").close()
open("%[1]s/free").close()
db.execute("commit")`, d.home)))
			if err != nil {
				err = fmt.Errorf("%w: %s", err, errOut)
			}
			unlocked <- err
		}()
		d.run("cat %s/locked", d.home)
		d.run("ls -l %s/pusheen && cmp %s %[1]s/pusheen/a:red.simg && stat %[1]s/pusheen/a:red.simg && %[3]s status", s.client, red, program)
		d.run("cp %s %s/pusheen/a:blue.simg && cmp %[1]s %[2]s/pusheen/a:blue.simg", red, s.client)
		s.mustHold(t, "pusheen/a:blue", red)
		d.run(": >%s/free", d.home) // opened and closed
		if err := <-unlocked; err != nil {
			t.Error(err)
		}
		d.soon(`test "$(%s)" = "a:blue a:green a:red"`, python(rows))
	})
}

// TestBusyUnmount: the first signal finds the mount busy and says so, and it
// goes on; the second takes it out of the tree, and who has a file open may
// read it to the end.
func TestBusyUnmount(t *testing.T) {
	a := dropboxAccount(t)
	path := bigImage(t, 1)
	a.put(t, "pusheen/a:1", path)
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := newMachine(t, a.env...).mount("--client=dropbox")
	f, err := os.Open(filepath.Join(d.dir, "dropbox/pusheen/a:1.simg"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	signal := func() {
		t.Helper()
		if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	signal()
	d.eventually("the sentence", func() error {
		if !strings.Contains(d.log.String(), "the mount is busy") {
			return fmt.Errorf("not said")
		}
		return nil
	})
	d.run("ls dropbox/pusheen")
	signal()
	d.eventually("the mount to be gone", func() error {
		if _, err := os.Stat(filepath.Join(d.dir, "dropbox")); err == nil {
			return fmt.Errorf("it is still there")
		}
		return nil
	})
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("an open file after detaching: %v", err)
	}
	f.Close()
	if err := <-d.end; err != nil {
		t.Errorf("sregfs ended badly: %v", err)
	}
	d.end <- nil
}

// TestStopDuringUpload: a daemon that is told to stop while a push is under
// way brings it to its end, or the next mount does.
func TestStopDuringUpload(t *testing.T) {
	s := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second})
	t.Cleanup(s.Close)
	a := dropboxAt(s)
	image := bigImage(t, 1)
	m := newMachine(t, a.env...)
	d := m.mount("--client=dropbox")
	d.run("mkdir dropbox/pusheen")
	s.SetLink(10*time.Millisecond, 8<<20)
	copied := make(chan error, 1)
	go func() {
		_, _, err := d.try("cp %s dropbox/pusheen/a:1.simg", image)
		copied <- err
	}()
	d.eventually("the upload", func() error {
		if s.Count("files/upload_session/start").Requests == 0 {
			return fmt.Errorf("not begun")
		}
		return nil
	})
	for range 2 {
		if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
	}
	err := <-copied
	if end := <-d.end; end != nil {
		t.Errorf("sregfs ended badly: %v", end)
	}
	d.end <- nil
	if err == nil {
		a.mustHold(t, "pusheen/a:1", image)
	}
	s.SetLink(0, 0)
	d = m.mount("--client=dropbox")
	if held := d.settled(); len(held) > 0 {
		data, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		kept, err := os.ReadFile(held[0].File)
		if err != nil || !bytes.HasPrefix(data, kept) || len(kept) == 0 {
			t.Errorf("%+v does not hold what was copied: %v", held, err)
		}
		return
	}
	a.mustHold(t, "pusheen/a:1", image)
}

// TestManyOpenFiles: thousands of open files are no trouble.
func TestManyOpenFiles(t *testing.T) {
	a := dropboxAccount(t)
	var contents [][]byte
	for i := range 20 {
		path := smallImage(t, uint64(i))
		a.put(t, fmt.Sprintf("pusheen/a:%d", i), path)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		contents = append(contents, data)
	}
	d := newMachine(t, a.env...).mount("--client=dropbox")
	const count = 3000
	files := make([]*os.File, count)
	var work sync.WaitGroup
	for w := range 8 {
		work.Go(func() {
			for i := w; i < count; i += 8 {
				f, err := os.Open(filepath.Join(d.dir, fmt.Sprintf("dropbox/pusheen/a:%d.simg", i%20)))
				if err != nil {
					t.Errorf("the %dth: %v", i, err)
					return
				}
				files[i] = f
			}
		})
	}
	work.Wait()
	for i, f := range files {
		if f == nil {
			continue
		}
		buf, off := make([]byte, 100), int64(i*17%90_000)
		if _, err := f.ReadAt(buf, off); err != nil || !bytes.Equal(buf, contents[i%20][off:off+100]) {
			t.Errorf("the %dth: %v", i, err)
		}
		f.Close()
	}
}
