//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// badDisk is a folder of this machine's as a disk that is slow, or that fails:
// a FUSE file system of the test's own.
type badDisk struct {
	fuse.RawFileSystem
	dir string
	// delay is waited before each read, write and sync, in nanoseconds.
	delay atomic.Int64
	// changes and reads are the errors that each change, each read of a file
	// fails with; 0 for none. Files that are open are no exception, as when the
	// system takes a disk for broken and makes it read-only.
	changes, reads atomic.Int32
}

// newBadDisk mounts one, which has no trouble yet, at a folder.
func newBadDisk(t *testing.T, dir string) *badDisk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a disk without fusermount3 needs root")
	}
	root, err := fusefs.NewLoopbackRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	second := time.Second
	d := &badDisk{dir: dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d.RawFileSystem = fusefs.NewNodeFS(root, &fusefs.Options{AttrTimeout: &second, EntryTimeout: &second})
	server, err := fuse.NewServer(d, d.dir, &fuse.MountOptions{DirectMountStrict: true, FsName: "bad disk", Options: []string{"dev"}})
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.changes.Store(0)
		d.reads.Store(0)
		d.delay.Store(0)
		if err := server.Unmount(); err != nil {
			_ = syscall.Unmount(d.dir, syscall.MNT_DETACH)
		}
	})
	return d
}

func (d *badDisk) wait() { time.Sleep(time.Duration(d.delay.Load())) }

// change is what becomes of a change.
func (d *badDisk) change() fuse.Status {
	d.wait()
	return fuse.Status(d.changes.Load())
}

func (d *badDisk) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	d.wait()
	if s := fuse.Status(d.reads.Load()); !s.Ok() {
		return nil, s
	}
	return d.RawFileSystem.Read(cancel, in, buf)
}

func (d *badDisk) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if s := d.change(); !s.Ok() {
		return 0, s
	}
	return d.RawFileSystem.Write(cancel, in, data)
}

func (d *badDisk) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if s := d.change(); !s.Ok() {
		return s
	}
	return d.RawFileSystem.Fsync(cancel, in)
}

func (d *badDisk) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if s := d.change(); !s.Ok() {
		return s
	}
	return d.RawFileSystem.Fallocate(cancel, in)
}

func (d *badDisk) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if s := d.change(); !s.Ok() {
		return s
	}
	return d.RawFileSystem.SetAttr(cancel, in, out)
}

func (d *badDisk) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if s := d.change(); !s.Ok() {
		return s
	}
	return d.RawFileSystem.Create(cancel, in, name, out)
}

func (d *badDisk) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if s := fuse.Status(d.changes.Load()); !s.Ok() && in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return s
	}
	return d.RawFileSystem.Open(cancel, in, out)
}

func (d *badDisk) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := d.change(); !s.Ok() {
		return s
	}
	return d.RawFileSystem.Mkdir(cancel, in, name, out)
}

func (d *badDisk) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if s := d.change(); !s.Ok() {
		return s
	}
	return d.RawFileSystem.Unlink(cancel, in, name)
}

func (d *badDisk) Rename(cancel <-chan struct{}, in *fuse.RenameIn, old, now string) fuse.Status {
	if s := d.change(); !s.Ok() {
		return s
	}
	return d.RawFileSystem.Rename(cancel, in, old, now)
}

// TestSlowCacheDisk: with a cache on a disk that takes its time, as a network
// disk does, everything works, and who only looks does not wait for it.
func TestSlowCacheDisk(t *testing.T) {
	eachService(t, func(t *testing.T, s service) {
		image, small := bigImage(t, 1), smallImage(t, 2)
		s.put(t, "pusheen/a:1", image)
		disk := newBadDisk(t, t.TempDir())
		d := newMachine(t, s.env...).mount("--client="+s.client, "--cache-dir="+disk.dir, "--cache-size=1G")
		d.run("ls -l %s/pusheen", s.client)
		disk.delay.Store(int64(30 * time.Millisecond))
		read := make(chan error, 1)
		go func() {
			out, errOut, err := d.try("cmp %s %s/pusheen/a:1.simg", image, s.client)
			if err != nil {
				err = fmt.Errorf("%w: %s%s", err, out, errOut)
			}
			read <- err
		}()
		for range 5 {
			d.run("ls -l %s/pusheen; stat %[1]s/pusheen/a:1.simg; df %[1]s; %s status", s.client, program)
		}
		if err := <-read; err != nil {
			t.Error(err)
		}
		d.run("cp %s %s/pusheen/a:2.simg && cmp %[1]s %[2]s/pusheen/a:2.simg && cmp %[3]s %[2]s/pusheen/a:1.simg", small, s.client, image)
		s.mustHold(t, "pusheen/a:2", small)
		disk.delay.Store(0)
	})
}

// TestCacheDiskTurnsBad: the disk of the cache and of what is staged becomes
// read-only, or fails, while the tree is mounted. Reading goes on, without the
// cache where need be; a push is an error of cp; status says so. When the disk is
// well again, so is the mount. Where the listings' database is on the same disk
// names may become errors as well, and are never wrong or missing.
func TestCacheDiskTurnsBad(t *testing.T) {
	for name, c := range map[string]struct {
		changes, reads syscall.Errno
		want           string
	}{
		"read-only":    {changes: syscall.EROFS, want: "Read-only file system"},
		"write errors": {changes: syscall.EIO, want: "Input/output error"},
		"full":         {changes: syscall.ENOSPC, want: "No space left on device"},
		"read errors":  {reads: syscall.EIO},
		"broken":       {changes: syscall.EIO, reads: syscall.EIO, want: "Input/output error"},
	} {
		for _, all := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, with database %v", name, all), func(t *testing.T) {
				s := dropboxService(t)
				images := map[string]string{"cached": smallImage(t, 1), "part": bigImage(t, 2), "fresh": smallImage(t, 3)}
				for tag, image := range images {
					s.put(t, "pusheen/a:"+tag, image)
				}
				m := newMachine(t, s.env...)
				var disks []*badDisk
				if all {
					disks = append(disks, newBadDisk(t, m.stateDir()))
				} else {
					disks = append(disks, newBadDisk(t, m.stateDir()+"/objects"), newBadDisk(t, m.stateDir()+"/staging"))
				}
				d := m.mount("--client=dropbox", "--cache-size=1G")
				d.run("cmp %s dropbox/pusheen/a:cached.simg; head -c 3000000 dropbox/pusheen/a:part.simg | cmp -n 3000000 - %s", images["cached"], images["part"])
				for _, disk := range disks {
					disk.changes.Store(int32(c.changes))
					disk.reads.Store(int32(c.reads))
				}
				for range 2 {
					if out, errOut, err := d.try("ls dropbox/pusheen"); err != nil && !all || err == nil && strings.Count(out, "a:") != 3 {
						t.Errorf("ls: %v %s%s", err, out, errOut)
					}
					for tag, image := range images {
						out, errOut, err := d.try("cmp %s dropbox/pusheen/a:%s.simg", image, tag)
						if err != nil && (!all || !strings.Contains(errOut, "Input/output error")) {
							t.Errorf("%s: %v %s%s", tag, err, out, errOut)
						}
					}
				}
				if c.want != "" && all {
					d.fails("", "cp %s dropbox/pusheen/a:new.simg", images["fresh"])
					s.mustLack(t, "pusheen/a:new")
					if len(d.status().Failures) == 0 {
						t.Error("status tells of nothing")
					}
				} else if c.want != "" {
					d.fails(c.want, "cp %s dropbox/pusheen/a:new.simg", images["fresh"])
					s.mustLack(t, "pusheen/a:new")
					d.says(strings.ToLower(c.want))
					d.says("reads go on without")
				}
				d.run("%s status; %[1]s status --json", program)
				for _, disk := range disks {
					disk.changes.Store(0)
					disk.reads.Store(0)
				}
				for tag, image := range images {
					d.soon("cmp %s dropbox/pusheen/a:%s.simg", image, tag)
				}
				d.run("cp %s dropbox/pusheen/a:new.simg", images["fresh"])
				s.mustHold(t, "pusheen/a:new", images["fresh"])
				// What is kept again is good.
				d.unmount()
				d = m.mount("--client=dropbox", "--cache-size=1G")
				images["new"] = images["fresh"]
				for tag, image := range images {
					d.run("cmp %s dropbox/pusheen/a:%s.simg", image, tag)
				}
			})
		}
	}
}

// TestReadOnlyCacheDisk: a cache folder that cannot be written is refused with a
// sentence that says what to do.
func TestReadOnlyCacheDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a disk needs root")
	}
	s := dropboxService(t)
	image := smallImage(t, 1)
	s.put(t, "pusheen/a:1", image)
	m := newMachine(t, s.env...)
	disk := filepath.Join(m.home, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", disk, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	flags := []string{"--client=dropbox", "--cache-dir=" + disk + "/cache", "--cache-size=1G"}
	d := m.mount(flags...)
	d.run("cmp %s dropbox/pusheen/a:1.simg", image)
	d.unmount()
	remount := func(flags uintptr) {
		t.Helper()
		if err := syscall.Mount("none", disk, "", syscall.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(syscall.MS_RDONLY)
	for _, flags := range [][]string{flags, {"--client=dropbox", "--cache-dir=" + disk + "/another"}} {
		for _, command := range [][]string{append([]string{"mount", d.dir}, flags...), append([]string{"mount", "--daemon", d.dir}, flags...)} {
			out, err := m.command(t.Context(), program, command...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "read-only file system") || !strings.Contains(string(out), "--cache-dir") ||
				!strings.Contains(string(out), disk) || strings.Count(strings.TrimSpace(string(out)), "\n") > 0 {
				t.Errorf("%q: %v\n%s", command, err, out)
			}
		}
	}
	if out, err := m.command(t.Context(), program, "doctor", "--cache-dir="+disk+"/cache").CombinedOutput(); err == nil || !strings.Contains(string(out), "name another folder with --cache-dir") {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	remount(0)
	d = m.mount(flags...)
	d.run("cmp %s dropbox/pusheen/a:1.simg", image)
}
