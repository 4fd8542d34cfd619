package local

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
)

func open(t *testing.T, dir string, o Options) *Store {
	t.Helper()
	s, err := New(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	for name, o := range map[string]Options{"Inotify": {}, "Polling": {NoInotify: true}} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backends.Store {
				s := open(t, filepath.Join(t.TempDir(), "shub"), o)
				s.poll = 50 * time.Millisecond
				return s
			}, backendtest.Opts{
				HasPush: true, HasRemove: true, HasRename: true, HasCollections: true, HasWatch: true, HasUsage: true,
				ChecksReplaces: true, ChecksContent: true,
				Reopen: func(t *testing.T, s backends.Store) backends.Store {
					return open(t, s.(*Store).dir, o)
				},
			})
		})
	}
}
