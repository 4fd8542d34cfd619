// Package bubble runs tests in virtual time.
package bubble

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

var (
	mu     sync.Mutex
	open   int // bubbles
	before int // GOMAXPROCS without any
)

// Test is synctest.Test, with one processor for the whole process until f has
// returned: where goroutines of a bubble run on several, the race detector uses the
// context of the bubble's timers on two threads at once and now and then crashes
// (golang/go#78156, open in Go 1.26). It goes on finding races: which accesses are
// ordered does not depend on the number of processors. It is safe for tests that run
// in parallel.
func Test(t *testing.T, f func(*testing.T)) {
	t.Helper()
	mu.Lock()
	if open++; open == 1 {
		before = runtime.GOMAXPROCS(1)
	}
	mu.Unlock()
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		if open--; open == 0 {
			runtime.GOMAXPROCS(before)
		}
	}()
	synctest.Test(t, f)
}
