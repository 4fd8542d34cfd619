package main

import (
	iofs "io/fs"
	"testing"
	"testing/fstest"
)

// TestDeadlocked: a connection may be ended when somebody holds it and all who
// do were killed, and never else.
func TestDeadlocked(t *testing.T) {
	type file = *fstest.MapFile
	text := func(s string) file { return &fstest.MapFile{Data: []byte(s)} }
	link := func(to string) file { return &fstest.MapFile{Data: []byte(to), Mode: iofs.ModeSymlink | 0o777} }
	const (
		alive  = "5 (sre) Z (gfs) S 1 5 5 0 -1 4194560 0"
		ending = "5 (sregfs) D 1 5 5 0 -1 4194564 0"
		zombie = "5 (sregfs) Z 1 5 5 0 -1 4194560 0"
		none   = "Name:\tsregfs\nSigPnd:\t0000000000000000\n"
		kill   = "Name:\tsregfs\nSigPnd:\t0000000000000100\n"
		term   = "Name:\tsregfs\nSigPnd:\t0000000000004000\n"
	)
	thread := func(p fstest.MapFS, dir, stat, status string) {
		p[dir+"/stat"], p[dir+"/status"] = text(stat), text(status)
	}
	// fuse makes a thread hold a connection; a kernel that does not tell its
	// number says "".
	fuse := func(p fstest.MapFS, dir, number string) {
		p[dir+"/fd/7"], p[dir+"/fdinfo/7"] = link("/dev/fuse"), text("pos:\t0\nflags:\t02100002\n"+number)
		p[dir+"/fd/8"], p[dir+"/fdinfo/8"] = link("/dev/null"), text("pos:\t0\n")
		p[dir+"/cwd"], p[dir+"/cmdline"] = link("/home/v"), text("/usr/bin/sregfs\x00mount\x00./mnt\x00--read-only\x00")
	}
	for name, c := range map[string]struct {
		make func(p fstest.MapFS)
		want bool
	}{
		"nobody": {func(p fstest.MapFS) { thread(p, "5/task/5", alive, none) }, false},
		"alive": {func(p fstest.MapFS) {
			thread(p, "5/task/5", alive, none)
			fuse(p, "5/task/5", "fuse_connection:\t43\n")
		}, false},
		"killed": {func(p fstest.MapFS) {
			thread(p, "5/task/5", zombie, none)
			thread(p, "5/task/6", alive, kill)
			thread(p, "5/task/7", ending, none)
			fuse(p, "5/task/6", "fuse_connection:\t43\n")
		}, true},
		"killed, and its files are gone from sight": {func(p fstest.MapFS) {
			thread(p, "5", zombie, none)
			thread(p, "5/task/5", zombie, none)
			thread(p, "5/task/6", ending, none)
			p["5/task/6/fd"] = &fstest.MapFile{Mode: iofs.ModeDir | 0o500}
		}, true},
		"killed, and dead": {func(p fstest.MapFS) {
			thread(p, "5", zombie, none)
			thread(p, "5/task/5", zombie, none)
		}, false},
		"one is ending, another serves": {func(p fstest.MapFS) {
			thread(p, "5", ending, none)
			thread(p, "5/task/5", ending, none)
			thread(p, "9", alive, none)
			thread(p, "9/task/9", alive, none)
			fuse(p, "9/task/9", "fuse_connection:\t43\n")
		}, false},
		"one is ending, another may serve": {func(p fstest.MapFS) {
			thread(p, "5", ending, none)
			thread(p, "5/task/5", ending, none)
			thread(p, "9", "9 (sregfs) S 1 9 9 0 -1 4194560 0", none)
			thread(p, "9/task/9", "9 (sregfs) S 1 9 9 0 -1 4194560 0", none)
		}, false},
		"one is ending, another of another name may serve": {func(p fstest.MapFS) {
			thread(p, "5", ending, none)
			thread(p, "5/task/5", ending, none)
			thread(p, "9", "9 (mount.fuse.sreg) S 1 9 9 0 -1 4194560 0", none)
			thread(p, "9/task/9", "9 (mount.fuse.sreg) S 1 9 9 0 -1 4194560 0", none)
		}, false},
		"one is ending, another serves another": {func(p fstest.MapFS) {
			thread(p, "5", ending, none)
			thread(p, "5/task/5", ending, none)
			thread(p, "9", "9 (sregfs) S 1 9 9 0 -1 4194560 0", none)
			thread(p, "9/task/9", "9 (sregfs) S 1 9 9 0 -1 4194560 0", none)
			fuse(p, "9/task/9", "fuse_connection:\t44\n")
		}, true},
		"told to stop": {func(p fstest.MapFS) {
			thread(p, "5/task/5", alive, term)
			fuse(p, "5/task/5", "fuse_connection:\t43\n")
		}, false},
		"one thread goes on": {func(p fstest.MapFS) {
			thread(p, "5/task/5", zombie, none)
			thread(p, "5/task/6", alive, none)
			fuse(p, "5/task/6", "fuse_connection:\t43\n")
		}, false},
		"another connection": {func(p fstest.MapFS) {
			thread(p, "5/task/5", alive, kill)
			fuse(p, "5/task/5", "fuse_connection:\t44\n")
		}, false},
		"a second one holds it": {func(p fstest.MapFS) {
			thread(p, "5/task/5", alive, kill)
			fuse(p, "5/task/5", "fuse_connection:\t43\n")
			thread(p, "9/task/9", alive, none)
			fuse(p, "9/task/9", "fuse_connection:\t43\n")
		}, false},
		"older kernel": {func(p fstest.MapFS) {
			thread(p, "5/task/5", alive, kill)
			fuse(p, "5/task/5", "")
		}, true},
		"older kernel, alive": {func(p fstest.MapFS) {
			thread(p, "5/task/5", alive, none)
			fuse(p, "5/task/5", "")
		}, false},
		"older kernel, another mount": {func(p fstest.MapFS) {
			thread(p, "5/task/5", alive, kill)
			fuse(p, "5/task/5", "")
			p["5/task/5/cwd"] = link("/home/w")
		}, false},
		"older kernel, another program": {func(p fstest.MapFS) {
			thread(p, "5/task/5", alive, kill)
			fuse(p, "5/task/5", "")
			p["5/task/5/cmdline"] = text("/usr/bin/sshfs\x00host:\x00/home/v/mnt\x00")
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := fstest.MapFS{"self": link("5"), "uptime": text("1 1")}
			c.make(p)
			if got := deadlocked(p, mountEntry{dir: "/home/v/mnt", fsType: fsType, minor: 43}); got != c.want {
				t.Errorf("deadlocked = %v, want %v", got, c.want)
			}
		})
	}
}
