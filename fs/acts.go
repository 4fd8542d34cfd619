package fs

import "sync"

// acts counts the requests under way on one directory, so that the kernel is
// told of changes there while there are none.
//
// The kernel holds the directory's lock during each of them, and takes it to
// drop a name that it is told of. Whoever tells it meanwhile waits inside the
// kernel, where not even SIGKILL ends him: a daemon killed at that moment could
// not close its connection, and every process in the mount would hang for ever
// with it.
type acts struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n falls to 0; nil while nobody waits
}

// begin counts a request until the returned function is called.
func (a *acts) begin() (end func()) {
	a.mu.Lock()
	a.n++
	a.mu.Unlock()
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.n--; a.n == 0 && a.idle != nil {
			close(a.idle)
			a.idle = nil
		}
	}
}

// busy returns nil when no request is under way, else a channel that is closed
// as soon as that is so.
func (a *acts) busy() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n == 0 {
		return nil
	}
	if a.idle == nil {
		a.idle = make(chan struct{})
	}
	return a.idle
}
