package backendtest

import (
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// everything is what MemoryStore can do.
var everything = Opts{
	HasPush: true, HasRemove: true, HasRename: true, HasCollections: true, HasShare: true, HasSearch: true,
	HasFind: true, HasVersions: true, HasWatch: true, HasUsage: true, HasAccount: true, FindsCollections: true,
	HasIDs: true, HasParts: true, HasResume: true, HasShareEmail: true, ChecksReplaces: true, ChecksContent: true,
	PageSize: 10, Settle: 5 * time.Second,
}

func TestMemory(t *testing.T) {
	for name, set := range map[string]func(*MemoryStore, *Opts){
		"plain": func(*MemoryStore, *Opts) {},
		"folding, with parts in order": func(m *MemoryStore, o *Opts) {
			m.FoldCase, o.FoldsCase = true, true
			m.Workers = 1
		},
		"forgetful, without sums": func(m *MemoryStore, o *Opts) {
			m.ForgetOld, m.NoSum = true, true
			o.Without = map[string]string{"Versions/Old": "this store forgets on purpose"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := everything
			set(Memory(), &o)
			Run(t, func(t *testing.T) backends.Store {
				m := Memory()
				set(m, &Opts{})
				return m
			}, o)
		})
	}
}

// TestWrapped: the wrappers change nothing that the suite can see.
func TestWrapped(t *testing.T) {
	Run(t, func(t *testing.T) backends.Store {
		s, _ := Counting(Slow(Memory(), 0, 0))
		return s
	}, everything)
}
