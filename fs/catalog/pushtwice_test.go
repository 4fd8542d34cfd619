package catalog

import (
	"bytes"
	"context"
	iofs "io/fs"
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
)

// thrifty is a store that need not be sent what it has.
type thrifty struct {
	*backendtest.MemoryStore
	tags []string // of red's name
}

func (thrifty) Deduplicates() {}

func (s thrifty) Tags(ctx context.Context, collection, name string) ([]string, error) {
	if collection != red.Collection || name != red.Name || s.tags == nil {
		return nil, iofs.ErrNotExist
	}
	return s.tags, nil
}

// TestHasLike: an image that is being written is known by its beginning, when
// the store has it under another tag, from whomever.
func TestHasLike(t *testing.T) {
	size := aheadMin + 100_000
	ours := squash(t, 9, size)
	changed := func(at int) []byte {
		data := bytes.Clone(ours)
		data[at]++
		return data
	}
	for name, c := range map[string]struct {
		theirs []byte
		want   bool
	}{
		"the same":                        {theirs: ours, want: true},
		"a longer one":                    {theirs: append(bytes.Clone(ours), 1), want: true},
		"changed behind what is compared": {theirs: changed(aheadMin), want: true},
		"another beginning":               {theirs: changed(100)},
		"changed at the end of it":        {theirs: changed(aheadMin - 100)},
		"a small one":                     {theirs: ours[:aheadMin-1]},
		"none":                            {},
	} {
		t.Run(name, func(t *testing.T) {
			store := thrifty{MemoryStore: backendtest.Memory()}
			if c.theirs != nil {
				store.tags = []string{"gone", "blue", "green"}
				blue, green := red, red
				blue.Tag, green.Tag = "blue", "green"
				store.Put(blue, squash(t, 1, size), nil)
				store.Put(green, c.theirs, nil)
			}
			cl := open(t, t.TempDir(), map[string]backends.Store{"mem": store}).Client("mem")
			if got := cl.hasLike(t.Context(), red, bytes.NewReader(ours)); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
	plain := backendtest.Memory()
	plain.Put(red, ours, nil)
	cl := open(t, t.TempDir(), map[string]backends.Store{"mem": plain}).Client("mem")
	if cl.hasLike(t.Context(), red, bytes.NewReader(ours)) {
		t.Error("true of a store that is sent everything")
	}
}
