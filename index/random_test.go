package index

import (
	"math/rand/v2"
	"testing"
	"time"
)

// newRandom is a source of random numbers whose seed a failing test prints.
func newRandom(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
