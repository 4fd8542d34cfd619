package fs

import (
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/fs/catalog"
)

// pending is what is being written, by where it stands in the tree. Its mutex
// goes before those of the files in it.
type pending struct {
	mu sync.Mutex
	m  map[string]map[string]*pendingFile // client/dir → name
	// made counts them, so that files of one name can be told apart.
	made atomic.Uint64
}

func (p *pending) init() { p.m = map[string]map[string]*pendingFile{} }

func dirKey(cl *catalog.Client, dir string) string { return path.Join(cl.Name, dir) }

// leafKey is a file's name as the store tells names of images apart.
func leafKey(cl *catalog.Client, name string) string {
	if cl.FoldsCase() && backends.HasExtension(name) {
		return strings.ToLower(name)
	}
	return name
}

// get returns the file that is being written under a name, nil when none is.
func (p *pending) get(cl *catalog.Client, dir, name string) *pendingFile {
	p.mu.Lock()
	defer p.mu.Unlock()
	pf := p.m[dirKey(cl, dir)][leafKey(cl, name)]
	if pf == nil || pf.ended() {
		return nil
	}
	if pf.forsaken() {
		delete(p.m[dirKey(cl, dir)], leafKey(cl, name))
		return nil
	}
	return pf
}

// names are those of the files in a directory that can be seen.
func (p *pending) names(cl *catalog.Client, dir string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for _, pf := range p.m[dirKey(cl, dir)] {
		if _, name := pf.place(); !pf.absent() && !pf.ended() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (p *pending) any(cl *catalog.Client, dir string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.m[dirKey(cl, dir)]) > 0
}

// put shows a file where it stands, unless it was let go of meanwhile.
func (p *pending) put(pf *pendingFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pf.ended() {
		return
	}
	dir, name := pf.place()
	k := dirKey(pf.cl, dir)
	if p.m[k] == nil {
		p.m[k] = map[string]*pendingFile{}
	}
	p.m[k][leafKey(pf.cl, name)] = pf
}

func (p *pending) drop(cl *catalog.Client, dir, name string, pf *pendingFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := dirKey(cl, dir)
	if name := leafKey(cl, name); p.m[k][name] == pf {
		delete(p.m[k], name)
		if len(p.m[k]) == 0 {
			delete(p.m, k)
		}
	}
}

// finish closes what is left when the tree is gone: its bytes stay on disk.
func (p *pending) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, files := range p.m {
		for _, pf := range files {
			if staged := pf.stagedFile(); staged != nil {
				staged.Finish(true)
			}
		}
	}
	clear(p.m)
}
