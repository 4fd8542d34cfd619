package backendtest

import (
	"context"
	"errors"
	iofs "io/fs"
	"strings"

	"github.com/sregfs/sregfs/backends"
)

func canRemove(o Opts) bool  { return o.HasRemove }
func canRename(o Opts) bool  { return o.HasRename }
func canCollect(o Opts) bool { return o.HasCollections }

var changeCases = []testCase{
	{"Remove/Image", canRemove, func(e *env) {
		red, blue := ref("c", "i", "red"), ref("c", "i", "blue")
		img := e.push(red, []byte("red"))
		e.push(blue, []byte("blue"))
		e.must(capability[backends.Remover](e).Remove(e.ctx, img), "Remove")
		e.wantNone(red)
		e.wantOne(blue)
		e.wantContent(e.stat(blue), []byte("blue"))
	}},
	{"Remove/Absent", canRemove, func(e *env) {
		r := ref("c", "i", "x")
		img := e.push(r, []byte("x"))
		rm := capability[backends.Remover](e)
		e.must(rm.Remove(e.ctx, img), "Remove")
		e.wantErr(rm.Remove(e.ctx, img), iofs.ErrNotExist, "Remove a second time")
	}},
	{"Remove/Cancelled", canRemove, func(e *env) {
		img := e.push(ref("c", "i", "x"), []byte("x"))
		ctx, cancel := context.WithCancel(e.ctx)
		cancel()
		e.wantErr(capability[backends.Remover](e).Remove(ctx, img), context.Canceled, "Remove with a cancelled context")
		e.wantOne(img.Ref)
	}},

	{"Rename/Tag", canRename, func(e *env) {
		e.rename(ref("c", "i", "x"), ref("c", "i", "y"))
	}},
	{"Rename/NewCollection", canRename, func(e *env) {
		e.rename(ref("c", "i", "x"), ref("d/new", "j", "x"))
	}},
	{"Rename/OddName", canRename, func(e *env) {
		e.rename(ref("c d", "é's 100%", "x"), ref("c d", "a#b?c+d é", "x"))
	}},
	{"Rename/Case", canRename, func(e *env) {
		e.rename(ref("c", "image", "x"), ref("c", "Image", "x"))
	}},
	{"Rename/Over", canRename, func(e *env) {
		to := ref("c", "other", "x")
		e.push(to, []byte("what is replaced"))
		e.rename(ref("c", "i", "x"), to)
	}},
	{"Rename/Absent", canRename, func(e *env) {
		img := e.push(ref("c", "i", "x"), []byte("x"))
		to := ref("c", "j", "x")
		rn := capability[backends.Renamer](e)
		_, err := rn.Rename(e.ctx, img, ref("c", "k", "x"))
		e.must(err, "Rename")
		if rm, ok := backends.As[backends.Remover](e.store); ok {
			e.must(rm.Remove(e.ctx, e.stat(ref("c", "k", "x"))), "Remove")
			_, err = rn.Rename(e.ctx, img, to)
			e.wantErr(err, iofs.ErrNotExist, "Rename of an image that is gone")
			e.wantNone(to)
		}
	}},

	{"Collections/Make", canCollect, func(e *env) {
		c := capability[backends.Collector](e)
		for _, name := range []string{"empty", "two words", "é's 100%", "a/b"} {
			e.must(c.MakeCollection(e.ctx, name), "MakeCollection(%q)", name)
			if _, ok := e.list().collections[name]; !ok {
				e.Errorf("%q is not listed: %v", name, e.list().collections)
			}
			e.wantErr(c.MakeCollection(e.ctx, name), iofs.ErrExist, "MakeCollection(%q) a second time", name)
		}
		e.push(ref("empty", "i", "x"), []byte("x"))
		e.wantOne(ref("empty", "i", "x"))
	}},
	{"Collections/MakeOfImages", canCollect, func(e *env) {
		e.push(ref("c", "i", "x"), []byte("x"))
		e.wantErr(capability[backends.Collector](e).MakeCollection(e.ctx, "c"), iofs.ErrExist, "MakeCollection of one that holds an image")
		e.wantOne(ref("c", "i", "x"))
	}},
	{"Collections/Find", func(o Opts) bool { return o.HasCollections && o.FindsCollections }, func(e *env) {
		f := capability[backends.CollectionFinder](e)
		e.must(capability[backends.Collector](e).MakeCollection(e.ctx, "two Words"), "MakeCollection")
		e.push(ref("Full", "i", "x"), []byte("x"))
		e.push(ref("one/Two", "i", "x"), []byte("x"))
		for _, name := range []string{"two Words", "Full", "one/Two"} {
			if got, err := f.FindCollection(e.ctx, name); err != nil || got != name {
				e.Errorf("FindCollection(%q) = %q, %v", name, got, err)
			}
			asked := strings.ToUpper(name)
			switch got, err := f.FindCollection(e.ctx, asked); {
			case e.opts.FoldsCase && (err != nil || got != name):
				e.Errorf("FindCollection(%q) = %q, %v; want %q", asked, got, err, name)
			case !e.opts.FoldsCase && !errors.Is(err, iofs.ErrNotExist) && !errors.Is(err, errors.ErrUnsupported):
				e.Errorf("FindCollection(%q) = %q, %v; want none", asked, got, err)
			}
		}
		for _, name := range []string{"nobody", "Full/i:x.simg", "Full/nobody", "..", ""} {
			if got, err := f.FindCollection(e.ctx, name); !errors.Is(err, iofs.ErrNotExist) && !errors.Is(err, errors.ErrUnsupported) {
				e.Errorf("FindCollection(%q) = %q, %v; want none", name, got, err)
			}
		}
	}},
	{"Collections/Remove", canCollect, func(e *env) {
		c := capability[backends.Collector](e)
		for _, name := range []string{"a", "b b", "b b/c"} {
			e.must(c.MakeCollection(e.ctx, name), "MakeCollection(%q)", name)
		}
		for _, name := range []string{"a", "b b/c", "b b"} {
			e.must(c.RemoveCollection(e.ctx, name), "RemoveCollection(%q)", name)
			if _, ok := e.list().collections[name]; ok {
				e.Errorf("%q is still listed", name)
			}
			e.wantErr(c.RemoveCollection(e.ctx, name), iofs.ErrNotExist, "RemoveCollection(%q) a second time", name)
		}
	}},
	{"Collections/RemoveNotEmpty", canCollect, func(e *env) {
		c := capability[backends.Collector](e)
		e.push(ref("full", "i", "x"), []byte("x"))
		e.must(c.MakeCollection(e.ctx, "outer/inner"), "MakeCollection")
		for _, name := range []string{"full", "outer"} {
			e.wantErr(c.RemoveCollection(e.ctx, name), backends.ErrNotEmpty, "RemoveCollection(%q)", name)
		}
		e.wantOne(ref("full", "i", "x"))
		e.wantContent(e.stat(ref("full", "i", "x")), []byte("x"))
		if _, ok := e.list().collections["outer/inner"]; !ok {
			e.Error("the inner collection is gone")
		}
	}},
}

// rename pushes an image as from, renames it, and checks all that follows.
func (e *env) rename(from, to backends.Ref) {
	e.Helper()
	data := random(40, 50_000)
	img := e.push(from, data)
	bystander := ref("c", "bystander", "x")
	e.push(bystander, []byte("stays"))
	now, err := capability[backends.Renamer](e).Rename(e.ctx, img, to)
	e.must(err, "Rename(%s, %s)", from, to)
	if now.Ref != to || now.Size != img.Size {
		e.Errorf("Rename returns %+v", now)
	}
	stat := e.stat(to)
	if stat.Ref != to || identity(stat) != identity(now) || stat.Revision != now.Revision {
		e.Errorf("Rename returns %+v, Stat %+v", now, stat)
	}
	if e.opts.HasIDs && now.ID != img.ID {
		e.Errorf("the ID was %q and is %q", img.ID, now.ID)
	}
	e.wantOne(to)
	e.wantContent(now, data)
	e.wantContent(stat, data)
	if !e.opts.FoldsCase || !equalFold(from, to) {
		e.wantNone(from)
	}
	e.wantOne(bystander)
	if n := len(e.list().images); n != 2 {
		e.Errorf("%d images are listed, want 2", n)
	}
}

var extraCases = []testCase{
	{"Share/Link", func(o Opts) bool { return o.HasShare }, func(e *env) {
		img := e.push(ref("c", "it's 1", "x"), []byte("x"))
		s := capability[backends.Sharer](e)
		first, err := s.Share(e.ctx, img, "")
		e.must(err, "Share")
		if first.URL == "" {
			e.Error("sharing gave no link")
		}
		second, err := s.Share(e.ctx, img, "")
		if err != nil || second != first {
			e.Errorf("sharing again gave %+v, %v; want %+v", second, err, first)
		}
	}},
	{"Share/Email", func(o Opts) bool { return o.HasShareEmail }, func(e *env) {
		img := e.push(ref("c", "i", "x"), []byte("x"))
		s := capability[backends.Sharer](e)
		first, err := s.Share(e.ctx, img, "friend@example.org")
		e.must(err, "Share")
		second, err := s.Share(e.ctx, img, "friend@example.org")
		if err != nil || second != first {
			e.Errorf("sharing again gave %+v, %v; want %+v", second, err, first)
		}
	}},
	{"Share/Absent", func(o Opts) bool { return o.HasShare && o.HasRemove }, func(e *env) {
		img := e.push(ref("c", "i", "x"), []byte("x"))
		e.must(capability[backends.Remover](e).Remove(e.ctx, img), "Remove")
		_, err := capability[backends.Sharer](e).Share(e.ctx, img, "")
		e.wantErr(err, iofs.ErrNotExist, "Share of an image that is gone")
	}},

	{"Search/Word", func(o Opts) bool { return o.HasSearch }, func(e *env) {
		e.push(ref("pusheen", "asaurus", "green"), []byte("1"))
		e.push(ref("pusheen", "asaurus", "red"), []byte("2"))
		e.push(ref("vsoch", "hello", "green"), []byte("3"))
		for word, want := range map[string]int{"green": 2, "asaurus": 2, "hello": 1, "nothing-of-that": 0} {
			var found map[string]bool
			var err error
			if !e.eventually(func() bool {
				found, err = e.search(word)
				return err != nil || len(found) == want
			}) || err != nil {
				e.Errorf("Search(%q) = %v, %v; want %d images", word, found, err, want)
			}
		}
	}},
	{"Search/Cancelled", func(o Opts) bool { return o.HasSearch }, func(e *env) {
		ctx, cancel := context.WithCancel(e.ctx)
		cancel()
		n := 0
		for _, err := range capability[backends.Searcher](e).Search(ctx, "x") {
			n++
			e.wantErr(err, context.Canceled, "Search with a cancelled context")
		}
		if n != 1 {
			e.Errorf("Search with a cancelled context yields %d times, want one error", n)
		}
	}},

	{"Find/ByID", func(o Opts) bool { return o.HasFind }, func(e *env) {
		img := e.push(ref("c", "i", "x"), []byte("x"))
		e.push(ref("c", "j", "x"), []byte("y"))
		got, err := capability[backends.Finder](e).Find(e.ctx, img.ID)
		if err != nil || got.Ref != img.Ref || got.ID != img.ID || got.Revision != img.Revision {
			e.Errorf("Find(%q) = %+v, %v; want %+v", img.ID, got, err, img)
		}
	}},
	{"Find/Absent", func(o Opts) bool { return o.HasFind }, func(e *env) {
		_, err := capability[backends.Finder](e).Find(e.ctx, "no-such-id")
		e.wantErr(err, iofs.ErrNotExist, "Find of an unknown ID")
	}},

	{"Versions/Old", func(o Opts) bool { return o.HasVersions }, func(e *env) {
		r := ref("c", "i", "x")
		contents := [][]byte{[]byte("the first"), []byte("second"), random(50, 200_000)}
		for _, data := range contents {
			e.push(r, data)
		}
		all, err := capability[backends.Versioner](e).Versions(e.ctx, r)
		e.must(err, "Versions")
		if len(all) != len(contents) {
			e.Fatalf("%d versions: %+v; want %d", len(all), all, len(contents))
		}
		names := map[string]bool{}
		for i, v := range all {
			want := contents[len(contents)-1-i]
			if v.Ref.Version == "" || v.Ref.Latest() != r || names[v.Ref.Version] {
				e.Errorf("version %d is named %s", i, v.Ref)
			}
			names[v.Ref.Version] = true
			e.wantContent(v, want)
			got := e.stat(v.Ref)
			if got.Ref != v.Ref || got.Revision != v.Revision {
				e.Errorf("Stat(%s) = %+v, want %+v", v.Ref, got, v)
			}
			e.wantContent(got, want)
		}
		if now := e.stat(r); all[0].Revision != now.Revision {
			e.Errorf("the newest version is %s, Stat says %s", all[0].Revision, now.Revision)
		}
		e.wantOne(r)
	}},
	{"Versions/Absent", func(o Opts) bool { return o.HasVersions }, func(e *env) {
		_, err := capability[backends.Versioner](e).Versions(e.ctx, ref("c", "i", "x"))
		e.wantErr(err, iofs.ErrNotExist, "Versions of an absent image")
	}},

	{"Usage/Plausible", func(o Opts) bool { return o.HasUsage }, func(e *env) {
		e.push(ref("c", "i", "x"), random(51, 100_000))
		u, err := capability[backends.Usager](e).Usage(e.ctx)
		e.must(err, "Usage")
		if u.Used <= 0 || u.Total < 0 || u.Total > 0 && u.Used > u.Total {
			e.Errorf("Usage = %+v", u)
		}
	}},
	{"Account/Named", func(o Opts) bool { return o.HasAccount }, func(e *env) {
		name, err := capability[backends.Accounter](e).Account(e.ctx)
		if err != nil || name == "" {
			e.Errorf("Account = %q, %v", name, err)
		}
	}},
}

func (e *env) search(word string) (map[string]bool, error) {
	found := map[string]bool{}
	for img, err := range capability[backends.Searcher](e).Search(e.ctx, word) {
		if err != nil {
			return found, err
		}
		if found[img.Ref.String()] {
			return found, errors.New("twice: " + img.Ref.String())
		}
		found[img.Ref.String()] = true
	}
	return found, nil
}
