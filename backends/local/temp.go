package local

import (
	"crypto/rand"
	"errors"
	iofs "io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Temporary files stand in a hidden directory of the store, on its file
// system, as HOST,RANDOM. Whoever writes one holds a lock on it.
const tempDir = ".sregfs-tmp"

type temp struct {
	path string
	file *os.File
}

func (s *Store) createTemp() (temp, error) {
	if err := s.root.Mkdir(tempDir, 0o700); err != nil && !errors.Is(err, iofs.ErrExist) {
		return temp{}, err
	}
	p := path.Join(tempDir, tempPrefix()+rand.Text())
	f, err := s.root.OpenFile(p, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return temp{}, err
	}
	// Without locks on this file system, age alone tells the dead.
	unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	return temp{p, f}, nil
}

// tempPrefix names this machine: a lock tells nothing of another one.
func tempPrefix() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return strings.ReplaceAll(host, "/", "_") + ","
}

// sweep removes the temporary files of dead programs: those of this machine
// that nobody holds locked, and what has not been written to for a day.
func (s *Store) sweep() {
	dir, err := s.openDir(tempDir)
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if name == lockFile {
			continue
		}
		if p := path.Join(tempDir, name); s.isDead(p, strings.HasPrefix(name, tempPrefix())) {
			s.log.Info("what an unfinished push left is removed", "client", s.client, "path", p)
			s.root.Remove(p)
		}
	}
}

func (s *Store) isDead(p string, mine bool) bool {
	f, err := s.root.OpenFile(p, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	age := time.Since(info.ModTime())
	if age > 24*time.Hour {
		return true
	}
	// A file is locked right after it was made, but not at the same moment.
	return mine && age > time.Minute && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}
