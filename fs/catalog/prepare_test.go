package catalog

import (
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
)

// prepared counts how often a store is told that bytes may be wanted.
type prepared struct {
	backends.Store
	n int
}

func (p *prepared) Prepare() { p.n++ }

func (p *prepared) Unwrap() backends.Store { return p.Store }

// TestPrepare: who looks at an image that is not here has its store prepare for
// a read, once for many such looks; of one that is here nothing will be asked.
func TestPrepare(t *testing.T) {
	store := &prepared{Store: backendtest.Memory()}
	cat := open(t, t.TempDir(), map[string]backends.Store{"mem": store})
	cl := cat.Client("mem")
	here, err := push(t, cl, red, squash(t, 1, 1<<20), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		cl.Seen(here)
	}
	if store.n != 0 {
		t.Errorf("prepared %d times for an image that is here", store.n)
	}
	away := uncached(t, cat, squash(t, 2, 1<<20))
	for range 3 {
		cl.Seen(away)
	}
	if store.n != 1 {
		t.Errorf("prepared %d times for three looks at an image that is not here, want once", store.n)
	}
}
