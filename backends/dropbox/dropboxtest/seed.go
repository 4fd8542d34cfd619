package dropboxtest

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// Put writes data at path ("/pusheen/asaurus:red.simg"), overwriting, as
// another device of the user's would. The data are not copied and must not be
// changed afterwards; many paths may share them. It panics on a path that
// Dropbox would refuse and on a full account: those are mistakes of a test.
// It returns the file's revision.
func (s *Server) Put(path string, data []byte) string { return s.put(path, memory(data)) }

// PutFile is Put for the content of a file, which is read where it lies and
// has to stay as it is.
func (s *Server) PutFile(path, file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return "", err
	}
	hash, err := hashOf(f, st.Size())
	if err != nil {
		f.Close()
		return "", err
	}
	return s.put(path, &blob{f, st.Size(), hash, func() { f.Close() }}), nil
}

// PutAll is Put of the same data at many paths.
func (s *Server) PutAll(paths []string, data []byte) {
	b := memory(data)
	for _, p := range paths {
		s.put(p, b)
	}
}

func (s *Server) put(path string, b *blob) string {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	n, err := s.acct.commit(path, b, writeMode{tag: "overwrite", strict: true}, time.Time{})
	if err != nil {
		panic(fmt.Sprintf("dropboxtest: put %q: %v", path, err.path))
	}
	return n.rev.rev
}

// Mkdir makes a folder and those above it.
func (s *Server) Mkdir(path string) {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	if _, err := s.acct.makeFolders(path); err != nil {
		panic(fmt.Sprintf("dropboxtest: mkdir %q: %v", path, err.path))
	}
}

// Delete deletes a file, or a folder with all below it, and reports whether
// there was one.
func (s *Server) Delete(path string) bool {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	n := s.acct.find(path)
	if n == nil || n.parent == nil {
		return false
	}
	s.acct.detach(n)
	return true
}

// Move moves a file or folder to a path that is free, and reports whether it
// could.
func (s *Server) Move(from, to string) bool {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	n := s.acct.find(from)
	return n != nil && n.parent != nil && s.acct.find(to) == nil && s.acct.move(n, to) == nil
}

// Get returns what stands at path, and whether there is a file.
func (s *Server) Get(path string) ([]byte, bool) {
	s.acct.mu.Lock()
	n := s.acct.find(path)
	if n == nil || n.rev == nil {
		s.acct.mu.Unlock()
		return nil, false
	}
	b := n.rev.blob
	s.acct.mu.Unlock()
	data, err := io.ReadAll(newSection(b))
	return data, err == nil
}

// Paths are the paths of all files, as they were written, sorted.
func (s *Server) Paths() []string {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	var paths []string
	for _, p := range s.acct.paths() {
		if n := s.acct.find(p); n != nil && n.rev != nil {
			paths = append(paths, n.display())
		}
	}
	return paths
}

// Forget makes all but the present revision of the files at path unknown, as
// Dropbox does after 30 days; with nothing at path, all revisions there.
func (s *Server) Forget(path string) {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	lower := strings.ToLower(path)
	n := s.acct.find(path)
	var kept []*revision
	for _, v := range s.acct.history[lower] {
		if n != nil && v == n.rev {
			kept = append(kept, v)
			continue
		}
		delete(s.acct.revs, v.rev)
	}
	s.acct.history[lower] = kept
}

// SetSpace changes the account's size.
func (s *Server) SetSpace(bytes int64) {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	s.acct.space = bytes
}

// Used is how many bytes the present files have.
func (s *Server) Used() int64 {
	s.acct.mu.Lock()
	defer s.acct.mu.Unlock()
	return s.acct.used
}

func newSection(b *blob) *io.SectionReader { return io.NewSectionReader(b, 0, b.size) }

func sortRevisions(v []*revision) {
	slices.SortFunc(v, func(a, b *revision) int { return cmp.Compare(a.rev, b.rev) })
}
