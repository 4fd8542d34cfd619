package fs

import (
	"sync"
	"time"
)

// acts counts the requests under way on one directory, so that the kernel is
// told of changes there while there are none.
//
// The kernel holds the directory's lock during each of them, and takes it to
// drop a name that it is told of. Whoever tells it meanwhile waits inside the
// kernel, where not even SIGKILL ends him: a daemon killed at that moment could
// not close its connection, and every process in the mount would hang for ever
// with it.
type acts struct {
	mu    sync.Mutex
	n     int
	ended time.Time     // when the last one did
	idle  chan struct{} // closed when n falls to 0; nil while nobody waits
}

const (
	// actsCalm is how long after a request a directory counts as busy: a
	// rename keeps its lock between the look-ups and the request itself.
	actsCalm = 20 * time.Millisecond
	// actsPatience is how long calm is waited for in a directory that is always
	// in use.
	actsPatience = 2 * time.Second
)

// begin counts a request until the returned function is called.
func (a *acts) begin() (end func()) {
	a.mu.Lock()
	a.n++
	a.mu.Unlock()
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.ended = time.Now()
		if a.n--; a.n == 0 && a.idle != nil {
			close(a.idle)
			a.idle = nil
		}
	}
}

// touch counts a request that is over at once.
func (a *acts) touch() {
	a.mu.Lock()
	a.ended = time.Now()
	a.mu.Unlock()
}

// calm reports whether nothing is or was under way a moment ago.
func (a *acts) calm() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n == 0 && time.Since(a.ended) >= actsCalm
}

// waitCalm waits for calm, or in a directory that is always in use for a moment
// without a request; it reports false when quit comes first.
func (a *acts) waitCalm(quit <-chan struct{}) bool {
	began := time.Now()
	for {
		a.mu.Lock()
		var idle chan struct{}
		left := actsCalm - time.Since(a.ended)
		switch {
		case a.n > 0:
			if a.idle == nil {
				a.idle = make(chan struct{})
			}
			idle, left = a.idle, time.Hour
		case left <= 0 || time.Since(began) > actsPatience:
			a.mu.Unlock()
			return true
		}
		a.mu.Unlock()
		timer := time.NewTimer(left)
		select {
		case <-idle:
		case <-timer.C:
		case <-quit:
			timer.Stop()
			return false
		}
		timer.Stop()
	}
}
