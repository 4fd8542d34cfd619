package gdrive

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/api/drive/v3"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/gdrive/gdrivetest"
	"github.com/sregfs/sregfs/test/bubble"
)

// told are the changes since a cursor, as "+REF", "+COLLECTION/" and "-ID".
func told(t *testing.T, s *Store, cursor *string) []string {
	t.Helper()
	ch, err := s.Changes(t.Context(), *cursor, 0)
	check(t, err)
	*cursor = ch.Cursor
	got := []string{}
	for _, c := range ch.List {
		switch {
		case c.Deleted:
			got = append(got, "-"+c.Entry.Image.ID)
		case c.Entry.Collection != "":
			got = append(got, "+"+c.Entry.Collection+"/")
		default:
			got = append(got, "+"+c.Entry.Image.Ref.String())
		}
	}
	return got
}

func TestChanges(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	root := a.root()
	outside, err := a.Add(gdrivetest.Seed{Name: "outside", MimeType: gdrivetest.FolderType})
	check(t, err)
	s := a.open()
	cursor, err := s.Cursor(t.Context())
	check(t, err)
	want := func(what string, want ...string) {
		t.Helper()
		if got := told(t, s, &cursor); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	id := a.add(python(pancakes, []byte("1")))
	want("a new file", "+vsoch/hello-world:pancakes")
	check(t, a.Rename(id, "vsoch/renamed:1.simg"))
	want("a file renamed in the browser", "+vsoch/renamed:1")
	check(t, a.Trash(id))
	want("a file in the bin", "-"+id)
	check(t, a.Delete(id))
	want("a file deleted for good", "-"+id)
	_, err = a.Add(gdrivetest.Seed{Name: "letter", MimeType: "application/vnd.google-apps.document"})
	check(t, err)
	want("a document")
	far, err := a.Add(python(pancakes, []byte("far")))
	check(t, err)
	want("an image outside of the folder", "-"+far)
	_, err = a.Add(gdrivetest.Seed{Name: "more", Parent: outside, MimeType: gdrivetest.FolderType})
	check(t, err)
	want("a folder elsewhere")
	a.add(gdrivetest.Seed{Name: "c/i:t.uploading", Properties: map[string]string{"type": "upload"}})
	want("an upload under way")
	mark := a.add(gdrivetest.Seed{Name: "empty", MimeType: gdrivetest.FolderType, Properties: map[string]string{"type": "collection"}})
	want("a collection", "-"+mark, "+empty/")
	check(t, a.Trash(mark))
	want("a collection in the bin", "-"+mark)
	sub := a.add(gdrivetest.Seed{Name: "sub", MimeType: gdrivetest.FolderType})
	want("an empty folder")
	a.add(gdrivetest.Seed{Name: "i:t.simg", Parent: sub, Properties: map[string]string{"type": "container"}})
	want("an image in a folder", "+sub/i:t")
	reset := func(what string) {
		t.Helper()
		_, err := s.Changes(t.Context(), cursor, 0)
		wantKind(t, err, backends.ErrCursorReset, what)
		cursor, err = s.Cursor(t.Context())
		check(t, err)
	}
	check(t, a.Rename(sub, "bus"))
	reset("a folder with images renamed")
	check(t, a.Trash(sub))
	reset("a folder with images in the bin")
	check(t, a.Trash(root))
	reset("the root folder in the bin")
	if got := listed(t, s); len(got) != 0 {
		t.Errorf("listed: %q", got)
	}
	// A first root folder brings all that is in it.
	again, err := a.Add(gdrivetest.Seed{Name: "tmp", MimeType: gdrivetest.FolderType})
	check(t, err)
	_, err = a.Add(gdrivetest.Seed{Name: "v/i:t.simg", Parent: again, Properties: map[string]string{"type": "container"}})
	check(t, err)
	told(t, s, &cursor)
	check(t, a.Rename(again, "sregistry"))
	if got := told(t, s, &cursor); !slices.Contains(got, "+v/i:t") {
		t.Errorf("a first root folder: %q", got)
	}
	a.ForgetChanges()
	cursor = "1 " + again
	reset("a forgotten position")
}

// TestFolderMovedUnseen: a feed that goes on where another process left it does
// not know which folders lay below the root.
func TestFolderMovedUnseen(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	sub := a.add(gdrivetest.Seed{Name: "sub", MimeType: gdrivetest.FolderType})
	a.add(gdrivetest.Seed{Name: "i:t.simg", Parent: sub, Properties: map[string]string{"type": "container"}})
	empty := a.add(gdrivetest.Seed{Name: "empty", MimeType: gdrivetest.FolderType})
	s := a.open()
	cursor, err := s.Cursor(t.Context())
	check(t, err)
	if got, want := listed(t, s), []string{"sub/i:t 0"}; !slices.Equal(got, want) {
		t.Fatalf("listed: %q, want %q", got, want)
	}
	move := func(id string) {
		t.Helper()
		_, err := s.svc.Files.Update(id, &drive.File{}).AddParents(a.Root()).RemoveParents(a.root()).Do()
		check(t, err)
	}
	move(empty)
	s = a.open()
	if got := told(t, s, &cursor); len(got) != 0 {
		t.Errorf("an empty folder moved away: %q", got)
	}
	move(sub)
	s = a.open()
	_, err = s.Changes(t.Context(), cursor, 0)
	wantKind(t, err, backends.ErrCursorReset, "a folder with images moved away")
	cursor, err = s.Cursor(t.Context())
	check(t, err)
	if got := listed(t, s); len(got) != 0 {
		t.Errorf("listed: %q", got)
	}
	_, err = s.svc.Files.Update(sub, &drive.File{Name: "bus"}).Do()
	check(t, err)
	if got := told(t, s, &cursor); len(got) != 0 {
		t.Errorf("a folder elsewhere, after a listing: %q", got)
	}
}

// TestFilledCollection: what lies in the folder of a collection changes with it.
func TestFilledCollection(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	mark := a.add(gdrivetest.Seed{Name: "c", MimeType: gdrivetest.FolderType, Properties: map[string]string{"type": "collection"}})
	a.add(gdrivetest.Seed{Name: "i:t.simg", Parent: mark, Properties: map[string]string{"type": "container"}})
	s := a.open()
	cursor, err := s.Cursor(t.Context())
	check(t, err)
	if got, want := listed(t, s), []string{"c/", "c/i:t 0"}; !slices.Equal(got, want) {
		t.Fatalf("listed: %q, want %q", got, want)
	}
	_, err = s.svc.Files.Update(mark, &drive.File{Name: "d"}).Do()
	check(t, err)
	_, err = s.Changes(t.Context(), cursor, 0)
	wantKind(t, err, backends.ErrCursorReset, "a collection with an image in its folder renamed")
}

// TestChangesPages: more changes than an answer holds.
func TestChangesPages(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	a.root()
	s := a.open()
	s.page = 3
	cursor, err := s.Cursor(t.Context())
	check(t, err)
	for i := range 10 {
		a.add(python(fmt.Sprintf("c/i:%d.simg", i), nil))
	}
	if got := told(t, s, &cursor); len(got) != 10 {
		t.Errorf("%d changes", len(got))
	}
	if got := told(t, s, &cursor); len(got) != 0 {
		t.Errorf("told again: %q", got)
	}
}

// TestPauseEnds: a wait between two tries of a part ends with its context.
func TestPauseEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		begin := time.Now()
		wantKind(t, pause(ctx, 3), context.DeadlineExceeded, "pause")
		if d := time.Since(begin); d != 10*time.Millisecond {
			t.Errorf("it took %s", d)
		}
		check(t, pause(t.Context(), 1))
		if d := time.Since(begin); d != 210*time.Millisecond {
			t.Errorf("it took %s", d)
		}
	})
}
