package catalog

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/cache"
)

// FuzzProfile: a profile's file that was damaged, or comes from elsewhere, has no
// part of an image fetched that it does not have, and no reader fails for it.
func FuzzProfile(f *testing.F) {
	f.Add([]byte(`{"began":"2026-01-01T00:00:00Z","ranges":[{"Off":0,"N":4096},{"Off":65536,"N":1}]}`))
	f.Add([]byte(`{"ranges":[{"Off":-5,"N":10},{"Off":9223372036854775807,"N":9223372036854775807},{"Off":1,"N":-1}]}`))
	f.Add([]byte(`{"ranges":null}`))
	f.Add([]byte(`[]`))
	made, err := json.Marshal(profile{Ranges: []cache.Range{{Off: 10, N: 20}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(made)
	store := backendtest.Memory()
	ref := backends.Ref{Collection: "c", Name: "a", Tag: "1"}
	data := make([]byte, 300_000)
	store.Put(ref, data, nil)
	cat := open(f, f.TempDir(), map[string]backends.Store{"mem": store})
	cat.opts.Profiles = f.TempDir()
	cl := cat.Client("mem")
	f.Fuzz(func(t *testing.T, text []byte) {
		img, err := cl.Find(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(cat.opts.Profiles, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(cl.profileFile(img), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if p, ok := cl.profile(img); ok && covered(p.Ranges) < 0 {
			t.Errorf("%s covers %d bytes", text, covered(p.Ranges))
		}
		c, err := cl.Open(t.Context(), img)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if n, err := c.ReadAt(t.Context(), make([]byte, 100), 1000); n != 100 || err != nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
	})
}
