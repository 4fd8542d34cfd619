package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
)

// TestOthersChanges: what other programs do in the folder is told.
func TestOthersChanges(t *testing.T) {
	for name, o := range map[string]Options{"Inotify": {}, "Polling": {NoInotify: true}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "c/i:x.simg", "x")
			write(t, dir, "d/deep/j:x.simg", "x")
			s := open(t, dir, o)
			s.poll = 50 * time.Millisecond
			cursor, err := s.Cursor(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			at := func(name string) string { return filepath.Join(dir, name) }
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			for _, step := range []struct {
				what string
				do   func()
				want []string // in any order, among others
			}{
				{"write", func() { write(t, dir, "c/new:x.simg", "x") }, []string{"+c/new:x"}},
				{"write into a new folder", func() { write(t, dir, "e/f/k:x.simg", "x") }, []string{"+e/", "+e/f/", "+e/f/k:x"}},
				{"rename", func() { must(os.Rename(at("c/i:x.simg"), at("c/k:y.simg"))) }, []string{"-/c/i:x.simg", "+c/k:y"}},
				{"link", func() { must(os.Link(at("c/k:y.simg"), at("c/l:y.simg"))) }, []string{"+c/l:y"}},
				{"delete", func() { must(os.Remove(at("c/new:x.simg"))) }, []string{"-/c/new:x.simg"}},
				{"rename a folder", func() { must(os.Rename(at("d"), at("g"))) },
					[]string{"-/d/deep/j:x.simg", "-d/", "-d/deep/", "+g/", "+g/deep/", "+g/deep/j:x"}},
				{"write into the renamed folder", func() { write(t, dir, "g/deep/m:x.simg", "x") }, []string{"+g/deep/m:x"}},
				{"a new folder under the old name", func() { write(t, dir, "d/deep/n:x.simg", "x") }, []string{"+d/", "+d/deep/n:x"}},
				{"another folder in a folder's place", func() {
					write(t, dir, ".next/deep/p:x.simg", "x")
					must(os.Rename(at("d"), at("h")))
					must(os.Rename(at(".next"), at("d")))
				}, []string{"-/d/deep/n:x.simg", "+h/deep/n:x", "+d/deep/p:x"}},
				{"delete a tree", func() { must(os.RemoveAll(at("g"))) }, []string{"-/g/deep/j:x.simg", "-g/"}},
				{"a version beside", func() { write(t, dir, "v/i:x@1.simg", "1"); age(t, dir, "v/i:x@1.simg", time.Hour) }, []string{"+v/i:x"}},
				{"a newer version", func() { write(t, dir, "v/i:x@2.simg", "2") }, []string{"+v/i:x", "+v/i:x@1"}},
				{"the bare name", func() { write(t, dir, "v/i:x.simg", "3") }, []string{"+v/i:x", "+v/i:x@2"}},
			} {
				step.do()
				missing := slices.Clone(step.want)
				var seen []string
				for end := time.Now().Add(5 * time.Second); len(missing) > 0; {
					ch, err := s.Changes(t.Context(), cursor, 100*time.Millisecond)
					must(err)
					cursor = ch.Cursor
					for _, c := range ch.List {
						told := tell(c)
						seen = append(seen, told)
						missing = slices.DeleteFunc(missing, func(s string) bool { return s == told })
					}
					if time.Now().After(end) {
						t.Fatalf("%s: not told of %q, only of %q", step.what, missing, seen)
					}
				}
			}
		})
	}
}

func tell(c backends.Change) string {
	what := c.Entry.Image.Ref.String()
	if c.Deleted {
		what = c.Entry.Image.Key
	}
	if c.Entry.Collection != "" {
		what = c.Entry.Collection + "/"
	}
	if c.Deleted {
		return "-" + what
	}
	return "+" + what
}

// TestFeedAfterRestart: what happened while nobody watched is not in it.
func TestFeedAfterRestart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	cursor, err := s.Cursor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	again := open(t, dir, Options{})
	for range 2 { // before and after the new feed runs
		if _, err := again.Changes(t.Context(), cursor, 0); !errors.Is(err, backends.ErrCursorReset) {
			t.Errorf("Changes from before the restart = %v, want ErrCursorReset", err)
		}
		if _, err := again.Cursor(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFeedForgets what is too long ago.
func TestFeedForgets(t *testing.T) {
	f := newFeed()
	f.id = "feed"
	change := backends.Change{Entry: backends.Entry{Collection: "c"}}
	f.add([]backends.Change{change}, nil)
	f.add(slices.Repeat([]backends.Change{change}, maxLog), nil)
	if _, err := f.since(t.Context(), "feed.0", 0); !errors.Is(err, backends.ErrCursorReset) {
		t.Errorf("since(0) = %v, want ErrCursorReset", err)
	}
	if ch, err := f.since(t.Context(), "feed.1", 0); err != nil || len(ch.List) != maxLog || ch.Cursor != fmt.Sprintf("feed.%d", maxLog+1) {
		t.Errorf("since(1) = %d changes, %q, %v", len(ch.List), ch.Cursor, err)
	}
}

func FuzzParseEvents(f *testing.F) {
	f.Add([]byte(strings.Repeat("\x01\x00\x00\x00", 3) + "\x04\x00\x00\x00abc\x00"))
	f.Add(make([]byte, unix.SizeofInotifyEvent))
	f.Fuzz(func(t *testing.T, b []byte) {
		parseEvents(b, func(wd int32, mask uint32, name string) {
			if len(name) > len(b) {
				t.Errorf("a name of %d bytes out of %d", len(name), len(b))
			}
		})
	})
}
