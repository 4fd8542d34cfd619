package index

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
)

func at(img backends.Image, hour int) backends.Image {
	img.Modified = time.Date(2020, 1, 1, hour, 0, 0, 0, time.UTC)
	return img
}

func TestLookup(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	pinned := at(image("a/dup:1", "3", "third"), 5)
	pinned.Ref.Version = "v1"
	replace(t, x, []backends.Image{
		image("Pusheen/Asaurus:Red", "1", "mixed"),
		image("ÄÖ/Ü:ß", "2", "umlauts"),
		at(image("a/dup:1", "5", "older"), 4), pinned, at(image("a/dup:1", "4", "same time"), 5),
		image("nvidia/clara/x:latest", "6", "nested"),
		image("/top:latest", "7", "top"),
	})
	for _, c := range []struct {
		dir, file string
		fold      bool
		want      string // revision, "" for none
		all       int
	}{
		{"Pusheen", "Asaurus:Red.simg", false, "mixed", 1},
		{"Pusheen", "Asaurus:Red.simg", true, "mixed", 1},
		{"pusheen", "asaurus:red.simg", false, "", 0},
		{"pusheen", "asaurus:red.simg", true, "mixed", 1},
		{"PUSHEEN", "ASAURUS:RED.SIMG", true, "mixed", 1},
		{"äö", "ü:ß.simg", true, "umlauts", 1},
		{"äö", "ü:ß.simg", false, "", 0},
		{"a", "dup:1.simg", false, "same time", 3},
		{"a", "DUP:1.simg", true, "same time", 3},
		{"a", "dup:2.simg", true, "", 0},
		{"nvidia/clara", "x:latest.simg", false, "nested", 1},
		{"nvidia", "x:latest.simg", true, "", 0},
		{"", "top:latest.simg", false, "top", 1},
		{"a", "'; DROP TABLE image; --", true, "", 0},
	} {
		img, ok, err := x.Lookup(ctx, "dropbox", c.dir, c.file, c.fold)
		if err != nil || ok != (c.want != "") || img.Revision != c.want {
			t.Errorf("Lookup(%q, %q, %v) = %q, %v, %v; want %q", c.dir, c.file, c.fold, img.Revision, ok, err, c.want)
		}
		all, err := x.All(ctx, "dropbox", c.dir, c.file, c.fold)
		if err != nil || len(all) != c.all || c.all > 0 && all[0].Revision != c.want {
			t.Errorf("All(%q, %q, %v) = %+v, %v; want %d", c.dir, c.file, c.fold, all, err, c.all)
		}
	}
	all, err := x.All(ctx, "dropbox", "a", "dup:1.simg", false)
	if err != nil || all[1].Revision != "third" || all[2].Revision != "older" {
		t.Errorf("All is not newest first: %+v, %v", all, err)
	}
	if all[1].Ref.Version != "v1" {
		t.Errorf("version is %q", all[1].Ref.Version)
	}

	for _, c := range []struct {
		id, want string
	}{{"1", "mixed"}, {"4", "same time"}, {"", ""}, {"99", ""}, {"1' OR '1'='1", ""}} {
		img, ok, err := x.ByID(ctx, "dropbox", c.id)
		if err != nil || ok != (c.want != "") || img.Revision != c.want {
			t.Errorf("ByID(%q) = %q, %v, %v", c.id, img.Revision, ok, err)
		}
	}
	check(t, "IDs", collect(t, x.IDs(ctx, "dropbox")), []string{"1", "2", "3", "4", "5", "6", "7"})
	images, collections, err := x.Count(ctx, "dropbox")
	check(t, "Count", []any{images, collections, err}, []any{int64(7), int64(5), nil})
}

func collect[T any](t *testing.T, seq iter.Seq2[T, error]) []T {
	t.Helper()
	var all []T
	for v, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

func TestCollections(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	replace(t, x, []backends.Image{image("Nvidia/Clara/x:1", "1", "r"), image("a/b:1", "2", "r")}, "a-b", "a/c", ".hidden/y")
	for parent, want := range map[string][]string{
		"": {"%2Ehidden", "Nvidia", "a", "a-b"}, "Nvidia": {"Clara"}, "Nvidia/Clara": nil, "a": {"c"}, "%2Ehidden": {"y"}, "zz": nil,
	} {
		got, err := x.Collections(ctx, "dropbox", parent)
		check(t, "Collections of "+parent, []any{got, err}, []any{want, nil})
	}
	for _, c := range []struct {
		dir          string
		fold         bool
		name, actual string
	}{
		{"", false, "", ""},
		{"Nvidia", false, "Nvidia", "Nvidia"},
		{"nvidia/clara", false, "-", ""},
		{"nvidia/CLARA", true, "Nvidia/Clara", "Nvidia/Clara"},
		{"%2Ehidden/y", false, ".hidden/y", "%2Ehidden/y"},
		{"%2EHIDDEN", true, ".hidden", "%2Ehidden"},
		{"nothing", true, "-", ""},
	} {
		name, actual, ok, err := x.HasCollection(ctx, "dropbox", c.dir, c.fold)
		if err != nil || ok != (c.name != "-") || ok && (name != c.name || actual != c.actual) {
			t.Errorf("HasCollection(%q, %v) = %q, %q, %v, %v; want %q, %q", c.dir, c.fold, name, actual, ok, err, c.name, c.actual)
		}
	}
}

// TestNamesThatAreOneInTheTree checks that nothing is lost when two of the
// store's names come out the same.
func TestNamesThatAreOneInTheTree(t *testing.T) {
	x := openTest(t)
	one, two := image("a/b:1", "1", "r"), image("a/c:1", "2", "r")
	one.Ref.Collection, two.Ref.Collection = "x/%", "x/"
	if one.Ref.Dir() != two.Ref.Dir() {
		t.Fatalf("%q and %q differ", one.Ref.Dir(), two.Ref.Dir())
	}
	replace(t, x, []backends.Image{one, two})
	check(t, "tree", tree(t, x, "dropbox"), []string{"x/", "x/%/", "x/%/b:1.simg r", "x/%/c:1.simg r"})
	replace(t, x, nil)
	check(t, "tree", tree(t, x, "dropbox"), []string(nil))
}

// TestImagesPages lists more than a page, with runs of one name that reach
// over a page's end or fill several.
func TestImagesPages(t *testing.T) {
	x := openTest(t)
	x.page = 100
	var images []backends.Image
	var want []string
	n := 0
	add := func(name string, copies int) {
		for k := range copies {
			n++
			images = append(images, at(image("a/"+name+":1", fmt.Sprintf("id%06d", n), fmt.Sprint(k)), k%24))
		}
		newest := min(copies-1, 23)
		if copies > 24 {
			newest = (copies-24)/24*24 + 23 // the greatest ID of the last hour
		}
		want = append(want, fmt.Sprintf("%s:1.simg %d", name, newest))
	}
	for k := range x.page - 2 {
		add(fmt.Sprintf("b%05d", k), 1)
	}
	add("c", 5)
	add("d", 24*(2*x.page/24+1))
	add("e", 1)
	replace(t, x, images)
	var got []string
	for _, img := range collect(t, x.Images(t.Context(), "dropbox", "a")) {
		got = append(got, img.Ref.File()+" "+img.Revision)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %d images, want %d; ends\n%q, want\n%q", len(got), len(want), got[max(0, len(got)-4):], want[len(want)-4:])
	}
	names, err := x.Names(t.Context(), "dropbox", "a")
	if err != nil || len(names) != len(want) {
		t.Fatalf("%d names, error %v, want %d", len(names), err, len(want))
	}
	for i, name := range names {
		if file, _, _ := strings.Cut(want[i], " "); name != file {
			t.Fatalf("name %d is %s, want %s", i, name, file)
		}
	}
	for _, from := range []int{0, 1, 97, 98, 99, 100, 101} {
		for _, page := range []int{1, 7, 1000} {
			var got []string
			for _, img := range collect(t, x.ImagesFrom(t.Context(), "dropbox", "a", names[min(from, len(names)-1)], page)) {
				got = append(got, img.Ref.File()+" "+img.Revision)
			}
			if rest := want[min(from, len(want)-1):]; !slices.Equal(got, rest) {
				t.Errorf("from name %d by %d: %d images, want %d", from, page, len(got), len(rest))
			}
		}
	}
	ids := collect(t, x.IDs(t.Context(), "dropbox"))
	if len(ids) != n || !slices.IsSorted(ids) {
		t.Errorf("%d ids, want %d in order", len(ids), n)
	}
	for range x.Images(t.Context(), "dropbox", "a") {
		break // must not go on or hold anything
	}
}

// TestLoopsHoldNothing asks and writes from within as many loops as there are
// readers, and more.
func TestLoopsHoldNothing(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	replace(t, x, []backends.Image{image("a/b:1", "1", "r")})
	if err := x.SetNote(ctx, "k", "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	var nest func(depth int)
	nest = func(depth int) {
		if depth == 0 {
			if err := x.SetNote(ctx, "k", "other", []byte("v")); err != nil {
				t.Error(err)
			}
			if _, ok, err := x.Lookup(ctx, "dropbox", "a", "b:1.simg", true); !ok || err != nil {
				t.Error(ok, err)
			}
			return
		}
		for range x.Images(ctx, "dropbox", "a") {
			for range x.IDs(ctx, "dropbox") {
				for n := range x.Notes(ctx, "k") {
					if n.Key == "k" {
						nest(depth - 1)
					}
				}
			}
		}
	}
	nest(2 * readers)
}

// TestAgainstAModel does random things and compares with a plain map, and each
// Diff with what really changed.
func TestAgainstAModel(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	random := newRandom(t)
	objects := map[string]backends.Image{} // by ID
	own := map[string]bool{}
	// What a place means: for a file, the newest image; for a directory that
	// it is there.
	meaning := func() map[Place]string {
		m := map[Place]string{}
		dir := func(name string) {
			for d := backends.CollectionPath(name); d != ""; {
				m[Place{d, ""}] = "there"
				i := strings.LastIndexByte(d, '/')
				d = d[:max(i, 0)]
			}
		}
		best := map[Place]stored{}
		for _, img := range objects {
			p := Place{img.Ref.Dir(), img.Ref.File()}
			s := stored{image: img, object: objectOf(img)}
			if old, ok := best[p]; !ok || newer(s, old) < 0 {
				best[p], m[p] = s, fmt.Sprint(img)
			}
			dir(img.Ref.Collection)
		}
		for c := range own {
			dir(c)
		}
		return m
	}
	collections := []string{"", "a", "a/b", "a/b/c", "B", "a-b"}
	randomImage := func() backends.Image {
		id := fmt.Sprint(random.IntN(30))
		uri := collections[random.IntN(len(collections))] + "/" + string(rune('p'+random.IntN(4))) + ":1"
		return at(image(uri, id, fmt.Sprint(random.IntN(3))), random.IntN(3))
	}
	put := func(img backends.Image) {
		for id, other := range objects {
			if other.Key == img.Key {
				delete(objects, id)
			}
		}
		objects[img.ID] = img
	}
	steps := 150
	if testing.Short() {
		steps = 30
	}
	for step := range steps {
		before := meaning()
		var d Diff
		var err error
		var did string
		switch random.IntN(6) {
		case 0:
			img := randomImage()
			did = "put " + img.Ref.String()
			put(img)
			d, err = x.PutImage(ctx, "dropbox", img)
		case 1:
			img := randomImage()
			did = "remove " + img.ID
			delete(objects, img.ID)
			d, err = x.RemoveImage(ctx, "dropbox", img)
		case 2:
			name := collections[1+random.IntN(len(collections)-1)]
			did = "mkdir " + name
			own[name] = true
			d.Full = true // not told
			err = x.PutCollection(ctx, "dropbox", name)
		case 3:
			name := collections[1+random.IntN(len(collections)-1)]
			did = "rmdir " + name
			delete(own, name)
			d.Full = true
			err = x.RemoveCollection(ctx, "dropbox", name)
		case 4:
			did = "list"
			clear(objects)
			clear(own)
			var images []backends.Image
			for range random.IntN(20) {
				img := randomImage()
				if slices.ContainsFunc(images, func(o backends.Image) bool { return o.Key == img.Key && o.ID != img.ID }) {
					continue // a store has one object at a path
				}
				images = append(images, img)
				objects[img.ID] = img
			}
			name := collections[1+random.IntN(len(collections)-1)]
			own[name] = true
			d, err = x.ReplaceListing(ctx, "dropbox", entries(images, []string{name}, nil), "")
		case 5:
			did = "feed"
			var changes []backends.Change
			for range random.IntN(6) {
				img := randomImage()
				switch random.IntN(3) {
				case 0:
					changes = append(changes, backends.Change{Deleted: true, Entry: backends.Entry{Image: backends.Image{ID: img.ID}}})
					delete(objects, img.ID)
				case 1:
					folder := "/" + strings.ToLower(img.Ref.Collection)
					if folder == "/" {
						continue
					}
					changes = append(changes, backends.Change{Deleted: true, Entry: backends.Entry{Image: backends.Image{Key: folder}}})
					for id, o := range objects {
						if strings.HasPrefix(o.Key, folder+"/") {
							delete(objects, id)
						}
					}
					for c := range own {
						if strings.HasPrefix("/"+strings.ToLower(c)+"/", folder+"/") {
							delete(own, c)
						}
					}
				default:
					changes = append(changes, backends.Change{Entry: backends.Entry{Image: img}})
					put(img)
				}
			}
			d, err = x.Apply(ctx, "dropbox", changes, "")
		}
		if err != nil {
			t.Fatalf("step %d, %s: %v", step, did, err)
		}
		after := meaning()
		var want []string
		for p, m := range after {
			if p.File == "" {
				want = append(want, p.Dir+"/")
			} else {
				for _, img := range objects {
					if p == (Place{img.Ref.Dir(), img.Ref.File()}) && fmt.Sprint(img) == m {
						want = append(want, strings.TrimPrefix(p.Dir+"/", "/")+p.File+" "+img.Revision)
						break
					}
				}
			}
		}
		got := tree(t, x, "dropbox")
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("step %d, %s: tree is\n%q, want\n%q", step, did, got, want)
		}
		if d.Full {
			continue
		}
		for _, m := range []map[Place]string{before, after} {
			for p := range m {
				if before[p] != after[p] && !slices.Contains(d.Changed, p) {
					t.Fatalf("step %d, %s: %+v changed from %q to %q and is not in %+v", step, did, p, before[p], after[p], d)
				}
			}
		}
	}
}

// TestNamesReadNoImages: the names of a directory come from an index that holds
// them, not from the images, which are some hundred bytes each.
func TestNamesReadNoImages(t *testing.T) {
	plan := planOf(t, openTest(t), namesQuery, 1, "", 10)
	for _, detail := range plan {
		if strings.Contains(detail, "image") && !strings.Contains(detail, "COVERING INDEX image_file") {
			t.Errorf("it reads images: %q", plan)
		}
	}
}

// planOf is how SQLite will answer a query, step by step.
func planOf(t *testing.T, x *Index, query string, args ...any) (plan []string) {
	t.Helper()
	rows, err := x.state.read.rows(t.Context(), "EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		plan = append(plan, detail)
	}
	if err := rows.Err(); err != nil || len(plan) == 0 {
		t.Fatalf("no plan: %v", err)
	}
	return plan
}

// TestDeletionsReadNoOtherImages: what a change feed tells to be gone is found
// by its path, not by a look at every image of the client.
func TestDeletionsReadNoOtherImages(t *testing.T) {
	x := openTest(t)
	for _, q := range []struct {
		condition string
		args      []any
	}{{atPath, []any{1, "/c/a:1.simg"}}, {belowPath, []any{1, "/c/", "/c0"}}} {
		plan := planOf(t, x, removeSelect(q.condition), q.args...)
		if !strings.Contains(plan[0], "INDEX image_path (client=? AND path") {
			t.Errorf("%s: %q", q.condition, plan)
		}
	}
}

// TestNamesOfOneDirectoryOfTwoCollections: what the store calls by two names
// and the tree by one is one directory, each name in it once.
func TestNamesOfOneDirectoryOfTwoCollections(t *testing.T) {
	x := openTest(t)
	images := []backends.Image{image("a/c:1", "1", "r"), image("a/b:1", "2", "r"), image("a/d:1", "3", "r"), image("a/b:1", "4", "r")}
	for i := range images {
		images[i].Ref.Collection = []string{"x/%", "x/"}[i%2]
	}
	replace(t, x, images)
	names, err := x.Names(t.Context(), "dropbox", "x/%")
	if err != nil {
		t.Fatal(err)
	}
	check(t, "names", names, []string{"b:1.simg", "c:1.simg", "d:1.simg"})
}
