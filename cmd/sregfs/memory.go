package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// Most of a mount's memory is one small node for each name that the kernel
// knows, and lives as long; on a login node memory is dearer than a collection.
const (
	// enoughMemory is what the Go heap may take before it is collected more
	// often: room for 100,000 nodes. The program's text and SQLite come on top.
	enoughMemory = 72 << 20
	// headroom is what a larger heap may grow by between two collections.
	headroom = 10 << 20
)

// spareMemory keeps the heap close to what is in use: rarely collected while it
// is small, and never so close that collecting would take up the processor.
func spareMemory() {
	debug.SetGCPercent(50)
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	var tend func(*unheld)
	tend = func(*unheld) {
		metrics.Read(live)
		debug.SetMemoryLimit(memoryLimit(live[0].Value.Uint64()))
		// What nobody holds is finalized after each collection.
		runtime.SetFinalizer(new(unheld), tend)
	}
	tend(nil)
}

// unheld is an object with a place of its own: small ones without pointers share
// one, and are not finalized while any of them is held (runtime.SetFinalizer).
type unheld struct{ _ *unheld }

// memoryLimit is the limit for a heap of which so much was in use at the last
// collection.
func memoryLimit(live uint64) int64 {
	return max(enoughMemory, int64(live+live/5)+headroom)
}
