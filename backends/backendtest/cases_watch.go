package backendtest

import (
	"context"
	"errors"
	"maps"
	"strings"
	"time"

	"github.com/sregfs/sregfs/backends"
)

func canWatch(o Opts) bool { return o.HasWatch }

var watchCases = []testCase{
	{"Watch/Push", func(o Opts) bool { return o.HasWatch && o.HasPush }, func(e *env) {
		f := e.follow()
		e.push(ref("c", "i", "x"), []byte("x"))
		f.catchUp("a push")
		e.push(ref("new", "j", "x"), []byte("y"))
		f.catchUp("a push into a new collection")
	}},
	{"Watch/Overwrite", func(o Opts) bool { return o.HasWatch && o.HasPush }, func(e *env) {
		e.push(ref("c", "i", "x"), []byte("x"))
		f := e.follow()
		e.push(ref("c", "i", "x"), []byte("overwritten"))
		f.catchUp("an overwrite")
	}},
	{"Watch/Remove", func(o Opts) bool { return o.HasWatch && o.HasRemove }, func(e *env) {
		img := e.push(ref("c", "i", "x"), []byte("x"))
		e.push(ref("c", "stays", "x"), []byte("x"))
		f := e.follow()
		e.must(capability[backends.Remover](e).Remove(e.ctx, img), "Remove")
		f.catchUp("a removal")
	}},
	{"Watch/Rename", func(o Opts) bool { return o.HasWatch && o.HasRename }, func(e *env) {
		img := e.push(ref("c", "i", "x"), []byte("x"))
		e.push(ref("c", "over", "x"), []byte("is replaced"))
		f := e.follow()
		rn := capability[backends.Renamer](e)
		img, err := rn.Rename(e.ctx, img, ref("d", "j", "y"))
		e.must(err, "Rename")
		f.catchUp("a rename")
		_, err = rn.Rename(e.ctx, img, ref("c", "over", "x"))
		e.must(err, "Rename")
		f.catchUp("a rename over another image")
	}},
	{"Watch/Collections", func(o Opts) bool { return o.HasWatch && o.HasCollections }, func(e *env) {
		f := e.follow()
		c := capability[backends.Collector](e)
		e.must(c.MakeCollection(e.ctx, "empty"), "MakeCollection")
		f.catchUp("a new collection")
		if _, ok := f.seen.collections["empty"]; !ok {
			e.Error("the new collection was not told of")
		}
		e.must(c.RemoveCollection(e.ctx, "empty"), "RemoveCollection")
		f.catchUp("a removed collection")
		if _, ok := f.seen.collections["empty"]; ok {
			e.Error("that the collection is gone was not told")
		}
	}},
	{"Watch/FromAnotherProcess", func(o Opts) bool { return o.HasWatch && o.HasPush }, func(e *env) {
		f := e.follow()
		mine := e.store
		e.store = e.reopen()
		e.push(ref("c", "i", "x"), []byte("by another process"))
		e.store = mine
		f.catchUp("another process's push")
	}},
	{"Watch/CursorBeforeList", func(o Opts) bool { return o.HasWatch && o.HasPush }, func(e *env) {
		w := capability[backends.Watcher](e)
		cursor, err := w.Cursor(e.ctx)
		e.must(err, "Cursor")
		e.push(ref("c", "i", "x"), []byte("between cursor and listing"))
		f := &follower{env: e, watcher: w, cursor: cursor, seen: listing{images: map[string]backends.Image{}, collections: map[string]backends.Entry{}}}
		f.catchUp("what happened since the cursor was taken")
	}},
	{"Watch/Quiet", canWatch, func(e *env) {
		w := capability[backends.Watcher](e)
		cursor, err := w.Cursor(e.ctx)
		e.must(err, "Cursor")
		for range 3 {
			ch, err := w.Changes(e.ctx, cursor, 50*time.Millisecond)
			e.must(err, "Changes when nothing happens")
			if ch.Cursor == "" {
				e.Fatal("Changes returns no cursor")
			}
			cursor = ch.Cursor
		}
	}},
	{"Watch/Cancelled", canWatch, func(e *env) {
		w := capability[backends.Watcher](e)
		cursor, err := w.Cursor(e.ctx)
		e.must(err, "Cursor")
		ctx, cancel := context.WithCancel(e.ctx)
		time.AfterFunc(50*time.Millisecond, cancel)
		// What was done before may be told first.
		for end := time.Now().Add(e.opts.Settle); err == nil && time.Now().Before(end); {
			var ch backends.Changes
			ch, err = w.Changes(ctx, cursor, 10*time.Minute)
			cursor = ch.Cursor
		}
		e.wantErr(err, context.Canceled, "Changes whose context is cancelled")
		_, err = w.Cursor(ctx)
		e.wantErr(err, context.Canceled, "Cursor with a cancelled context")
	}},
	{"Watch/BadCursor", canWatch, func(e *env) {
		_, err := capability[backends.Watcher](e).Changes(e.ctx, "no such cursor", 50*time.Millisecond)
		e.wantErr(err, backends.ErrCursorReset, "Changes from a cursor that was never given")
	}},
}

// follower keeps a listing up to date by the feed, as users of it do.
type follower struct {
	*env
	watcher backends.Watcher
	cursor  string
	seen    listing
}

func (e *env) follow() *follower {
	e.Helper()
	w := capability[backends.Watcher](e)
	cursor, err := w.Cursor(e.ctx)
	e.must(err, "Cursor")
	return &follower{e, w, cursor, e.list()}
}

// catchUp applies changes until what was seen is what is listed.
func (f *follower) catchUp(after string) {
	f.Helper()
	ok := f.eventually(func() bool {
		ch, err := f.watcher.Changes(f.ctx, f.cursor, 100*time.Millisecond)
		if errors.Is(err, backends.ErrCursorReset) {
			f.Fatalf("after %s: the feed forgot a cursor that was just given", after)
		}
		f.must(err, "Changes after %s", after)
		f.cursor = ch.Cursor
		for _, c := range ch.List {
			f.apply(c)
		}
		return maps.Equal(f.seen.refs(), f.list().refs())
	})
	if !ok {
		f.Errorf("after %s the feed tells of\n%v\nbut listed is\n%v", after, f.seen.refs(), f.list().refs())
	}
}

// apply is what Change's documentation says.
func (f *follower) apply(c backends.Change) {
	img := c.Entry.Image
	switch {
	case c.Deleted:
		under := func(key string) bool {
			return img.Key != "" && (key == img.Key || strings.HasPrefix(key, img.Key+"/"))
		}
		for k, have := range f.seen.images {
			if img.ID != "" && have.ID == img.ID || under(have.Key) {
				delete(f.seen.images, k)
			}
		}
		for name, have := range f.seen.collections {
			if name == c.Entry.Collection || under(have.Image.Key) || img.ID != "" && have.Image.ID == img.ID {
				delete(f.seen.collections, name)
			}
		}
	case c.Entry.Collection != "":
		f.seen.collections[c.Entry.Collection] = c.Entry
	default:
		for k, have := range f.seen.images {
			// An object that has a new name, or a name that has a new object.
			if img.ID != "" && have.ID == img.ID || img.Key != "" && have.Key == img.Key {
				delete(f.seen.images, k)
			}
		}
		f.seen.images[identity(img)] = img
	}
}

func equalFold(a, b backends.Ref) bool { return strings.EqualFold(a.String(), b.String()) }
