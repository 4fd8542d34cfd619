package local

import (
	"context"
	"errors"
	iofs "io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// watcher keeps a picture of the folder, compares it with what is there when
// something moves, and tells the feed of the difference. Since it always
// compares, it does not matter how it learns that there is something to look
// at: inotify names directories, an overflow of its queue or the lapse of time
// names all of them. One goroutine has it.
type watcher struct {
	store   *Store
	inotify *inotify // nil where it is not to be had
	every   bool     // look from time to time as well; others' changes may not be told

	dirs   map[string]*watched       // by path
	groups map[backends.Ref][]*known // by name without version

	// What the comparison under way has found.
	touched map[backends.Ref]bool
	changes []backends.Change
}

// watched is a directory as it was last seen.
type watched struct {
	collection bool
	images     map[string]*known // by path
	dirs       map[string]bool
	links      bool // there are symbolic links, whose targets change unseen
}

// known is an image's file as it was last seen. There may be very many.
type known struct {
	found
	told   bool  // the feed has told of it
	shown  bool  // as the image of the bare name
	before stamp // what it told of
}

const (
	// settle is how long the watcher waits for more after something moved: a
	// copy makes several events.
	settle = 20 * time.Millisecond
	// maxSettle bounds that wait for folders that take long to look through.
	maxSettle = 400 * time.Millisecond
)

func newWatcher(s *Store) *watcher {
	w := &watcher{store: s,
		dirs: map[string]*watched{}, groups: map[backends.Ref][]*known{},
		touched: map[backends.Ref]bool{}}
	if s.noInotify {
		w.every = true
		return w
	}
	var err error
	if w.inotify, err = newInotify(); err != nil {
		w.giveUpInotify(err)
	}
	// Other machines' changes in a shared folder are not told.
	w.every = w.every || onNetwork(s.dir)
	return w
}

// begin takes the first picture.
func (w *watcher) begin(ctx context.Context) error {
	if err := w.compare(ctx, map[string]bool{"": true}, true); err != nil {
		return err
	}
	w.finish()
	w.changes = nil
	return nil
}

func (w *watcher) close() {
	if w.inotify != nil {
		w.inotify.close()
	}
}

// giveUpInotify goes on by looking from time to time.
func (w *watcher) giveUpInotify(err error) {
	w.store.log.Warn("changes in the folder are looked for every few seconds, since the system does not tell of them",
		"client", w.store.client, "dir", w.store.dir, "err", err)
	w.close()
	w.inotify, w.every = nil, true
}

// run watches until ctx is done.
func (w *watcher) run(ctx context.Context) {
	defer w.close()
	if w.inotify != nil {
		ino := w.inotify
		defer context.AfterFunc(ctx, ino.interrupt)()
	}
	pause := settle
	next := time.Now().Add(w.store.poll)
	for ctx.Err() == nil {
		var until time.Time
		if w.every {
			until = next
		}
		dirty, all := w.wait(ctx, until, pause)
		if ctx.Err() != nil {
			return
		}
		if w.every && !time.Now().Before(next) {
			all = true
		}
		if all {
			dirty = map[string]bool{"": true}
		}
		for dir, d := range w.dirs {
			if d.links && !all {
				dirty[dir] = true
			}
		}
		began := time.Now()
		err := w.store.alive()
		if err == nil {
			err = w.compare(ctx, dirty, all)
		}
		if ctx.Err() != nil {
			return
		}
		w.finish()
		w.store.feed.add(w.changes, err)
		w.changes = nil
		took := time.Since(began)
		pause = min(max(settle, 4*took), maxSettle)
		if all {
			next = time.Now().Add(max(w.store.poll, 20*took))
		}
		if err != nil {
			// What could not be looked at is looked at again.
			w.every = true
		}
	}
}

// wait returns when something has moved, or at until unless that is zero.
func (w *watcher) wait(ctx context.Context, until time.Time, pause time.Duration) (dirty map[string]bool, all bool) {
	dirty = map[string]bool{}
	if w.inotify == nil {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		return dirty, true
	}
	deadline := until
	for {
		timeout, err := w.inotify.read(deadline, func(dir string, overflow bool) {
			all = all || overflow
			dirty[dir] = true
		})
		switch {
		case err != nil:
			if ctx.Err() == nil {
				w.giveUpInotify(err)
			}
			return dirty, true
		case timeout:
			return dirty, all
		case len(dirty) > 0 && (deadline.IsZero() || deadline.Equal(until)):
			deadline = time.Now().Add(pause)
		}
	}
}

// compare looks at the given directories, and at all below them when deep is
// set.
func (w *watcher) compare(ctx context.Context, dirs map[string]bool, deep bool) error {
	var first error
	for dir := range dirs {
		if dir != "" && w.dirs[dir] == nil {
			continue // gone by now, or seen with its parent
		}
		if err := w.look(ctx, dir, deep); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// look compares one directory with its picture.
func (w *watcher) look(ctx context.Context, dir string, deep bool) error {
	// Told of first and read then, so that nothing falls between.
	if w.inotify != nil {
		if err := w.watch(dir); err != nil && !errors.Is(err, iofs.ErrNotExist) {
			w.giveUpInotify(err)
		}
	}
	now, err := w.store.readDir(ctx, dir)
	if errors.Is(err, iofs.ErrNotExist) && dir != "" {
		w.drop(dir)
		return nil
	}
	if err != nil {
		return err
	}
	was := w.dirs[dir]
	if was == nil {
		was = &watched{images: map[string]*known{}, dirs: map[string]bool{}}
		w.dirs[dir] = was
	}
	if now.collection != was.collection {
		was.collection = now.collection
		c := backends.Change{Entry: backends.Entry{Collection: dir}}
		if !now.collection {
			c.Deleted = true
		}
		w.changes = append(w.changes, c)
	}
	gone := maps.Clone(was.images)
	was.links = false
	for _, f := range now.images {
		delete(gone, f.path)
		was.links = was.links || f.link
		switch k := was.images[f.path]; {
		case k == nil:
			k = &known{found: f}
			was.images[f.path] = k
			g := f.ref.Latest()
			w.groups[g] = append(w.groups[g], k)
			w.touched[g] = true
		case k.stamp != f.stamp:
			k.found = f
			w.touched[f.ref.Latest()] = true
		}
	}
	for p, k := range gone {
		delete(was.images, p)
		w.remove(k)
	}
	goneDirs := maps.Clone(was.dirs)
	var failed error
	for _, sub := range now.dirs {
		delete(goneDirs, sub)
		if was.dirs[sub] && !deep {
			continue
		}
		was.dirs[sub] = true
		if err := w.look(ctx, sub, true); err != nil && failed == nil {
			failed = err
		}
	}
	for sub := range goneDirs {
		w.drop(sub)
	}
	return failed
}

func (w *watcher) watch(dir string) error {
	d, err := w.store.openDir(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return w.inotify.watch(d, dir)
}

func (w *watcher) remove(k *known) {
	g := k.ref.Latest()
	w.groups[g] = slices.DeleteFunc(w.groups[g], func(o *known) bool { return o == k })
	if len(w.groups[g]) == 0 {
		delete(w.groups, g)
	}
	w.touched[g] = true
	w.tellGone(k)
}

func (w *watcher) tellGone(k *known) {
	if !k.told {
		return
	}
	k.told = false
	w.changes = append(w.changes, backends.Change{Deleted: true,
		Entry: backends.Entry{Image: backends.Image{Ref: k.ref, Key: keyOf(k.path)}}})
}

// drop forgets a directory that has gone, and all below it.
func (w *watcher) drop(dir string) {
	d := w.dirs[dir]
	if d == nil {
		return
	}
	delete(w.dirs, dir)
	if up := w.dirs[parent(dir)]; up != nil {
		delete(up.dirs, dir)
	}
	for _, k := range d.images {
		w.remove(k)
	}
	for sub := range d.dirs {
		w.drop(sub)
	}
	if w.inotify != nil {
		w.inotify.forget(dir)
	}
	if d.collection {
		w.changes = append(w.changes, backends.Change{Deleted: true,
			Entry: backends.Entry{Collection: dir, Image: backends.Image{Key: keyOf(dir)}}})
	}
}

// parent is the path of the directory that holds dir.
func parent(dir string) string {
	up, _ := path.Split(dir)
	return strings.TrimSuffix(up, "/")
}

// finish tells of the images whose file or name has changed. What an image is
// called can depend on the others of its name; see resolve.
func (w *watcher) finish() {
	for g := range w.touched {
		group := w.groups[g]
		files := make([]found, len(group))
		for i, k := range group {
			files[i] = k.found
		}
		images := w.store.resolve(files)
		for _, k := range group {
			i := slices.IndexFunc(images, func(img backends.Image) bool { return img.Key == keyOf(k.path) })
			if i < 0 {
				w.tellGone(k)
				continue
			}
			bare := images[i].Ref.Version == ""
			if k.told && k.before == k.stamp && k.shown == bare {
				continue
			}
			k.told, k.before, k.shown = true, k.stamp, bare
			w.changes = append(w.changes, backends.Change{Entry: backends.Entry{Image: images[i]}})
		}
	}
	w.touched = map[backends.Ref]bool{} // the first picture made it large
}
