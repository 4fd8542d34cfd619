package fs

import (
	"sync"
	"sync/atomic"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
)

// nodes bounds how many images the kernel knows that were only listed. Each
// takes memory here and in the kernel, which lets go of them when its own runs
// short and not before: a listing of a million images would keep half a
// gigabyte.
type nodes struct {
	max   int64         // more than so many are too many
	stay  time.Duration // how long those of a listing stay at least
	count atomic.Int64
	wake  chan struct{} // there are too many

	mu     sync.Mutex
	listed map[*dirNode]time.Time // directories whose images were listed, and when last
}

const (
	// maxNodes take some 80 MB.
	maxNodes = 150_000
	// nodesStay lets ls have what it has just listed.
	nodesStay = 2 * time.Second
)

func (s *nodes) init() {
	s.max, s.stay = maxNodes, nodesStay
	s.wake = make(chan struct{}, 1)
	s.listed = map[*dirNode]time.Time{}
}

// made counts a node in.
func (s *nodes) made(n *fileNode) {
	n.counted.Store(true)
	if s.count.Add(1) > s.max {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// OnForget counts the node out. It may be called more than once.
func (n *fileNode) OnForget() {
	if n.counted.CompareAndSwap(true, false) {
		n.tree.nodes.count.Add(-1)
	}
}

// saw notes that images of a directory are being listed.
func (s *nodes) saw(d *dirNode) {
	s.mu.Lock()
	s.listed[d] = time.Now()
	s.mu.Unlock()
}

// OnForget lets go of the note.
func (n *dirNode) OnForget() {
	s := &n.tree.nodes
	s.mu.Lock()
	delete(s.listed, n)
	s.mu.Unlock()
}

// oldest takes out the directory whose images were listed the longest time ago.
// It is nil when there is none yet, after wait, or none at all.
func (s *nodes) oldest() (d *dirNode, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var at time.Time
	for candidate, t := range s.listed {
		if d == nil || t.Before(at) {
			d, at = candidate, t
		}
	}
	if d == nil {
		return nil, 0
	}
	if wait := s.stay - time.Since(at); wait > 0 {
		return nil, wait
	}
	delete(s.listed, d)
	return d, 0
}

// forgetListed has the kernel forget images that were listed some time ago
// whenever there are too many, until a quarter less is left.
func (t *Tree) forgetListed() {
	s := &t.nodes
	for {
		select {
		case <-t.quit:
			return
		case <-s.wake:
		}
		for s.count.Load() > s.max-s.max/4 {
			d, wait := s.oldest()
			if d != nil {
				t.forgetFiles(d)
				continue
			}
			if wait == 0 {
				break // what is left is in use, or was looked up singly
			}
			select {
			case <-t.quit:
				return
			case <-time.After(wait):
			}
		}
	}
}

// forgetFiles has the kernel forget the images in a directory that nobody has
// open, unless somebody is busy there: then later. Of the danger in this see
// acts.
func (t *Tree) forgetFiles(d *dirNode) {
	for name, child := range d.Children() {
		if f, ok := child.Operations().(*fileNode); !ok || f.inUse() {
			continue
		}
		if !d.acts.calm() {
			t.nodes.saw(d)
			return
		}
		d.NotifyEntry(name)
	}
}

// inUse reports whether the file is open or being written.
func (n *fileNode) inUse() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pf != nil || n.cached+n.direct+n.passed > 0
}

var (
	_ fusefs.NodeOnForgetter = (*fileNode)(nil)
	_ fusefs.NodeOnForgetter = (*dirNode)(nil)
)
