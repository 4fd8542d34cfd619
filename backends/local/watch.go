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

	dirs map[string]*watched // by path
	// odd are the files that usual does not lead to, by name without version:
	// those with a version in their names, and records.
	odd map[backends.Ref][]*known

	// What the comparison under way has found. There may be very many in the
	// first picture, of which nobody wants to be told.
	first   bool
	round   uint32 // of looking at one directory
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

// known is an image's file as it was last seen. There may be very many, so what
// its path tells is not kept.
type known struct {
	path   string
	stamp  stamp
	record *record // see found
	round  uint32  // watcher.round when it was last seen
	told   bool    // the feed has told of it
	shown  bool    // as the image of the bare name
	moved  bool    // it has changed since
	link   bool
}

func (k *known) see(f found) {
	k.path, k.stamp, k.record, k.link = f.path, f.stamp, f.record, f.link
}

// ref is what the file is called, with the version that its name has.
func (k *known) ref() backends.Ref {
	if k.record != nil {
		ref, _ := recordRef(k.path)
		return ref
	}
	ref, _, _ := refOf(k.path)
	return ref
}

func (k *known) found() found {
	return found{path: k.path, ref: k.ref(), stamp: k.stamp, link: k.link, record: k.record}
}

// isOdd reports whether the file f is to be found in watcher.odd.
func isOdd(f found) bool {
	return f.ref.Version != "" || f.isRecord() || !slices.Contains(usual(f.ref), f.path)
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
		dirs: map[string]*watched{}, odd: map[backends.Ref][]*known{},
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
	w.first = true
	defer func() { w.first = false }()
	if err := w.compare(ctx, map[string]bool{"": true}, true); err != nil {
		return err
	}
	for _, d := range w.dirs {
		for _, k := range d.images {
			if !k.told {
				w.resolve(k.ref().Latest())
			}
		}
	}
	return nil
}

// touch has the images of the bare name g resolved when the comparison is over.
func (w *watcher) touch(g backends.Ref) {
	if !w.first {
		w.touched[g] = true
	}
}

func (w *watcher) tell(c backends.Change) {
	if !w.first {
		w.changes = append(w.changes, c)
	}
}

// group are the files of the bare name g.
func (w *watcher) group(g backends.Ref) []*known {
	list := slices.Clone(w.odd[g])
	for _, p := range usual(g) {
		d := w.dirs[parent(p)]
		if d == nil {
			continue
		}
		if k := d.images[p]; k != nil && k.ref() == g && k.record == nil {
			list = append(list, k)
		}
	}
	return list
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
		same, err := w.watch(dir)
		if err != nil && !errors.Is(err, iofs.ErrNotExist) {
			w.giveUpInotify(err)
		}
		// Nothing is known of what lies below another directory of that name.
		deep = deep || !same
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
		w.tell(c)
	}
	was.links = false
	w.round++
	for _, f := range now.images {
		was.links = was.links || f.link
		k := was.images[f.path]
		switch {
		case k == nil:
			k = &known{}
			k.see(f)
			was.images[f.path] = k
			g := f.ref.Latest()
			if isOdd(f) {
				w.odd[g] = append(w.odd[g], k)
			}
			w.touch(g)
		case k.stamp != f.stamp:
			k.see(f)
			k.moved = true
			w.touch(f.ref.Latest())
		}
		k.round = w.round
	}
	for p, k := range was.images {
		if k.round != w.round {
			delete(was.images, p)
			w.remove(k)
		}
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

func (w *watcher) watch(dir string) (same bool, err error) {
	d, err := w.store.openDir(dir)
	if err != nil {
		return false, err
	}
	defer d.Close()
	return w.inotify.watch(d, dir)
}

func (w *watcher) remove(k *known) {
	g := k.ref().Latest()
	if odd := slices.DeleteFunc(w.odd[g], func(o *known) bool { return o == k }); len(odd) == 0 {
		delete(w.odd, g)
	} else {
		w.odd[g] = odd
	}
	w.touch(g)
	w.tellGone(k)
}

func (w *watcher) tellGone(k *known) {
	if !k.told {
		return
	}
	k.told = false
	w.tell(backends.Change{Deleted: true,
		Entry: backends.Entry{Image: backends.Image{Ref: k.ref(), Key: keyOf(k.path)}}})
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
		w.tell(backends.Change{Deleted: true,
			Entry: backends.Entry{Collection: dir, Image: backends.Image{Key: keyOf(dir)}}})
	}
}

// parent is the path of the directory that holds dir.
func parent(dir string) string {
	up, _ := path.Split(dir)
	return strings.TrimSuffix(up, "/")
}

// finish tells of the images whose file or name has changed.
func (w *watcher) finish() {
	for g := range w.touched {
		w.resolve(g)
	}
	w.touched = map[backends.Ref]bool{} // an overflow made it large
}

// resolve finds out what the files of the bare name g are called, which can
// depend on the others; see Store.resolve.
func (w *watcher) resolve(g backends.Ref) {
	group := w.group(g)
	if w.first && len(group) == 1 {
		// What stands alone has the bare name. Most do.
		group[0].told, group[0].shown = true, true
		return
	}
	files := make([]found, len(group))
	for i, k := range group {
		files[i] = k.found()
	}
	images := w.store.resolve(files)
	for _, k := range group {
		i := slices.IndexFunc(images, func(img backends.Image) bool { return img.Key == keyOf(k.path) })
		if i < 0 {
			w.tellGone(k)
			continue
		}
		bare := images[i].Ref.Version == ""
		if k.told && !k.moved && k.shown == bare {
			continue
		}
		k.told, k.moved, k.shown = true, false, bare
		w.tell(backends.Change{Entry: backends.Entry{Image: images[i]}})
	}
}
