package main

import "testing"

// TestMemoryLimit: a heap of any size has room to grow, by no more than it
// needs.
func TestMemoryLimit(t *testing.T) {
	for _, live := range []uint64{0, 1 << 20, 50 << 20, 70 << 20, 100 << 20, 600 << 20, 4 << 30} {
		limit := memoryLimit(live)
		if limit < enoughMemory || limit < int64(live)+min(headroom, enoughMemory-70<<20) {
			t.Errorf("a heap of %d bytes is limited to %d", live, limit)
		}
		if limit > max(enoughMemory, int64(live)*6/5+headroom) {
			t.Errorf("a heap of %d bytes may take %d", live, limit)
		}
	}
}
