package gdrive

import (
	"bytes"
	"context"
	"errors"
	iofs "io/fs"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/gdrive/gdrivetest"
)

const pancakes = "vsoch/hello-world:pancakes@ed9755a0871f04db3e14971bec56a33f.simg"

// TestPythonFiles: what the Python client has pushed is listed, found, and
// described in its terms; what it does not show is not shown.
func TestPythonFiles(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	a.add(python(pancakes, []byte("pancakes!")))
	master := a.add(python("expfactory/expfactory:master.simg", []byte("master")))
	check(t, a.Trash(a.add(python("vsoch/binned:1.simg", nil))))
	a.add(gdrivetest.Seed{Name: "by/hand:1.simg", Content: []byte("x")})
	a.add(gdrivetest.Seed{Name: "notes.txt"})
	a.add(gdrivetest.Seed{Name: "v/doc:1.simg", MimeType: "application/vnd.google-apps.document", Properties: map[string]string{"type": "container"}})
	elsewhere, err := a.Add(python("else/where:1.simg", []byte("elsewhere")))
	check(t, err)
	other, err := a.Add(gdrivetest.Seed{Name: "production", MimeType: gdrivetest.FolderType})
	check(t, err)
	a.add(gdrivetest.Seed{Name: "expfactory/expfactory:master.simg", Parent: other, Content: []byte("other"), Properties: map[string]string{"type": "container"}})
	s := a.open()
	if got, want := listed(t, s), []string{"expfactory/expfactory:master 6", "vsoch/hello-world:pancakes 9"}; !slices.Equal(got, want) {
		t.Errorf("listed: %q, want %q", got, want)
	}
	img := stat(t, s, backends.Ref{Collection: "expfactory", Name: "expfactory", Tag: "master"})
	if img.ID != master || img.Labels["org.label-schema.build-size"] != "544MB" || len(img.Labels) != 1 {
		t.Errorf("image %+v", img)
	}
	// The version that stands in the name need not be the content's.
	if img := stat(t, s, ref.WithVersion("ed9755a0871f04db3e14971bec56a33f")); img.Size != 9 {
		t.Errorf("image %+v", img)
	}
	for _, absent := range []string{"vsoch/binned:1", "by/hand:1", "v/doc:1", "else/where:1", "vsoch/hello-world:Pancakes", "expfactory/expfactory:latest"} {
		r, err := backends.ParseRef(absent)
		check(t, err)
		_, err = s.Stat(t.Context(), r)
		wantKind(t, err, iofs.ErrNotExist, absent)
	}
	// By its id any file is found.
	if img, err := s.Find(t.Context(), elsewhere); err != nil || img.Ref.String() != "else/where:1" {
		t.Errorf("Find: %+v, %v", img, err)
	}
	shared, err := a.Add(gdrivetest.Seed{Name: "from a friend", Shared: true, Content: []byte("shared")})
	check(t, err)
	img, err = s.Find(t.Context(), shared)
	if err != nil || img.Ref.String() != "/from a friend:latest" || !img.ReadOnly {
		t.Errorf("Find of a shared file: %+v, %v", img, err)
	}
	if got, err := read(s, t.Context(), img, 0, -1); err != nil || string(got) != "shared" {
		t.Errorf("a shared file reads as %q, %v", got, err)
	}
	for _, id := range []string{"", "root", other, "../about", "a/b"} {
		_, err := s.Find(t.Context(), id)
		wantKind(t, err, iofs.ErrNotExist, "Find of "+id)
	}

	a.env[UntypedSetting] = "yes"
	if got := listed(t, a.open()); !slices.Contains(got, "by/hand:1 1") || len(got) != 3 {
		t.Errorf("with %s listed: %q", UntypedSetting, got)
	}
}

// sharedDrive answers as Drive does for files of shared drives: who does not say
// that it knows of such drives is told that there is no such file.
type sharedDrive struct{ id string }

func (d sharedDrive) RoundTrip(req *http.Request) (*http.Response, error) {
	if strings.Contains(req.URL.Path+"/", "/files/"+d.id+"/") && req.URL.Query().Get("supportsAllDrives") != "true" {
		req = req.Clone(req.Context())
		req.URL.Path += "-not-there"
	}
	return http.DefaultTransport.RoundTrip(req)
}

// TestSharedDrive: a file is found by its id in whatever drive it lies, and is
// shared, renamed and deleted there.
func TestSharedDrive(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	id, err := a.Add(gdrivetest.Seed{Name: "c/i:t.simg", Content: []byte("shared")})
	check(t, err)
	settings := a.settings()
	settings.Transport = sharedDrive{id}
	s, err := Open(t.Context(), settings)
	check(t, err)
	img, err := s.Find(t.Context(), id)
	check(t, err)
	if got, err := read(s, t.Context(), img, 0, -1); err != nil || string(got) != "shared" {
		t.Errorf("it reads as %q, %v", got, err)
	}
	_, err = s.Share(t.Context(), img, "")
	check(t, err)
	img, err = s.Rename(t.Context(), img, backends.Ref{Collection: "c", Name: "i", Tag: "u"})
	check(t, err)
	check(t, s.Remove(t.Context(), img))
}

// TestFolders: folders below the root are collections when images lie in them.
func TestFolders(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	typed := map[string]string{"type": "container"}
	folder := func(name, parent string, props map[string]string) string {
		return a.add(gdrivetest.Seed{Name: name, Parent: parent, MimeType: gdrivetest.FolderType, Properties: props})
	}
	pusheen := folder("pusheen", "", nil)
	deep := folder("deep", pusheen, nil)
	folder("nothing", "", nil)
	folder("marked", deep, map[string]string{"type": "collection"})
	a.add(gdrivetest.Seed{Name: "asaurus:red.simg", Parent: pusheen, Content: []byte("red"), Properties: typed})
	id := a.add(gdrivetest.Seed{Name: "asaurus.simg", Parent: deep, Content: []byte("deep"), Properties: typed})
	s := a.open()
	want := []string{"pusheen/asaurus:red 3", "pusheen/deep/asaurus:latest 4", "pusheen/deep/marked/"}
	if got := listed(t, s); !slices.Equal(got, want) {
		t.Errorf("listed: %q, want %q", got, want)
	}
	img := stat(t, s, backends.Ref{Collection: "pusheen/deep", Name: "asaurus", Tag: "latest"})
	if img.ID != id {
		t.Errorf("found %+v", img)
	}
	if got, err := s.Find(t.Context(), id); err != nil || got.Ref != img.Ref {
		t.Errorf("Find: %+v, %v", got, err)
	}
	// An image that gets a new name comes to lie beside the others.
	if _, err := s.Rename(t.Context(), img, ref); err != nil {
		t.Error(err)
	}
	if f, err := a.File(id); err != nil || f.Parent != a.root() || f.Name != "vsoch/hello-world:pancakes.simg" {
		t.Errorf("renamed: %+v, %v", f, err)
	}
	// What lies in a folder is overwritten where it lies.
	red := stat(t, s, backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "red"})
	if got := push(t, s, red.Ref, []byte("new"), content([]byte("new"), &red)); got.ID != red.ID || got.Ref != red.Ref {
		t.Errorf("pushed %+v", got)
	}
	if got := listed(t, s); len(got) != 3 {
		t.Errorf("listed: %q", got)
	}
}

// TestDuplicates: of several files of one name the newest is the image, and
// the others are its versions.
func TestDuplicates(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	old := a.add(python(pancakes, []byte("old")))
	mid := a.add(python(pancakes, []byte("middle")))
	cur := a.add(python(pancakes, []byte("newest")))
	check(t, a.Replace(mid, []byte("middle, again")))
	check(t, a.Replace(cur, []byte("newest, again")))
	s := a.open()
	if got := listed(t, s); len(got) != 3 {
		t.Errorf("listed: %q", got)
	}
	if img := stat(t, s, ref); img.ID != cur {
		t.Errorf("found %+v", img)
	}
	all, err := s.Versions(t.Context(), ref)
	check(t, err)
	var got []string
	for _, v := range all {
		data, err := read(s, t.Context(), v, 0, -1)
		check(t, err)
		got = append(got, string(data))
		if img := stat(t, s, v.Ref); img.Revision != v.Revision {
			t.Errorf("Stat(%s) = %+v", v.Ref, img)
		}
	}
	if want := []string{"newest, again", "middle, again", "newest", "middle", "old"}; !slices.Equal(got, want) {
		t.Errorf("versions %q, want %q", got, want)
	}
	n := 0
	for img, err := range s.Search(t.Context(), "PANCAKES") {
		check(t, err)
		n++
		if img.ID != cur {
			t.Errorf("Search yields %+v", img)
		}
	}
	if n != 1 {
		t.Errorf("Search yields %d images", n)
	}
	// A push goes to the newest.
	img := stat(t, s, ref)
	if got := push(t, s, ref, []byte("pushed"), content([]byte("pushed"), &img)); got.ID != cur {
		t.Errorf("pushed to %s, want %s; oldest is %s", got.ID, cur, old)
	}
}

// TestSearchLabels: labels and ids are searched too.
func TestSearchLabels(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	id := a.add(python(pancakes, nil))
	a.add(gdrivetest.Seed{Name: "v/other:1.simg", Properties: map[string]string{"type": "container"}})
	s := a.open()
	for word, want := range map[string]int{"544mb": 1, "build-size": 1, id[3:12]: 1, "hello": 1, "v": 2, "container": 0} {
		n := 0
		for _, err := range s.Search(t.Context(), word) {
			check(t, err)
			n++
		}
		if n != want {
			t.Errorf("%q: %d images, want %d", word, n, want)
		}
	}
}

// TestRoots: which folder is the root, and when there is one.
func TestRoots(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	var log strings.Builder
	open := func() *Store {
		st := a.settings()
		st.Log = slog.New(slog.NewTextHandler(&log, nil))
		s, err := Open(t.Context(), st)
		check(t, err)
		return s
	}
	s := open()
	if got := listed(t, s); len(got) != 0 {
		t.Errorf("listed: %q", got)
	}
	if _, err := s.Stat(t.Context(), ref); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("Stat: %v", err)
	}
	if n := len(a.Files()); n != 0 {
		t.Errorf("reading made %d files", n)
	}
	folder := func(name, parent string) string {
		id, err := a.Add(gdrivetest.Seed{Name: name, Parent: parent, MimeType: gdrivetest.FolderType})
		check(t, err)
		return id
	}
	// Others of that name: in another folder, in the bin, in other letters.
	in := folder("in", "")
	for _, id := range []string{folder("sregistry", in), folder("Sregistry", "")} {
		a.add(gdrivetest.Seed{Name: "x/y:z.simg", Parent: id, Properties: map[string]string{"type": "container"}})
	}
	check(t, a.Trash(folder("sregistry", "")))
	if got := listed(t, open()); len(got) != 0 {
		t.Errorf("listed: %q", got)
	}
	first := push(t, s, ref, []byte("x"), content([]byte("x"), nil))
	f, err := a.File(first.ID)
	check(t, err)
	folder("sregistry", "")
	if got := listed(t, open()); len(got) != 1 || !strings.Contains(log.String(), f.Parent) {
		t.Errorf("with two folders listed: %q, log: %s", got, &log)
	}
	a.env[rootMisspelt] = "in"
	if s := open(); s.root != "in" || !strings.Contains(log.String(), "misspelt") {
		t.Errorf("root %q, log: %s", s.root, &log)
	}
	a.env[RootSetting] = "it's mine"
	s = open()
	push(t, s, ref, []byte("x"), content([]byte("x"), nil))
	if got := listed(t, s); len(got) != 1 {
		t.Errorf("listed: %q", got)
	}
}

// TestIncompleteListing: a page that cannot be had is an error, never the end.
func TestIncompleteListing(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	for range 5 {
		a.add(python(pancakes, nil))
	}
	s := a.open()
	s.page = 2
	a.on("files.list", 3, 99, gdrivetest.Fault{Status: 403, Reason: "dailyLimitExceeded"})
	var last error
	n := 0
	for _, err := range s.List(t.Context()) {
		if last != nil {
			t.Fatal("List goes on after an error")
		}
		if last = err; err == nil {
			n++
		}
	}
	wantKind(t, last, backends.ErrQuota, "List")
	if n != 2 {
		t.Errorf("%d images before the error", n)
	}
	// A body that breaks off is asked for again.
	a.on("files.list", 2, 2, gdrivetest.Fault{Kind: gdrivetest.CutResponse, At: 40})
	if got := listed(t, s); len(got) != 5 {
		t.Errorf("listed: %q", got)
	}
}

// TestHostileNames: whatever a file is called, it is an image of some name.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	names := []string{"../../etc/passwd:1.simg", "/:x.simg", "//.simg", "a//b:c.simg", "\x00\n:1.simg", strings.Repeat("x", 3000) + ":1.simg", ".simg", "a/", "a/b:c@.simg"}
	for _, name := range names {
		a.add(gdrivetest.Seed{Name: name, Content: []byte(name), Properties: map[string]string{"type": "container"}})
	}
	a.add(gdrivetest.Seed{Name: "x", Content: []byte("props"), Properties: map[string]string{"type": "container", "collection": "../..", "image": "../x", "tag": "/"}})
	s := a.open()
	n := 0
	for e, err := range s.List(t.Context()) {
		check(t, err)
		n++
		img := e.Image
		if img.Ref.Name == "" || img.Ref.Tag == "" {
			t.Errorf("an image without a name: %+v", img.Ref)
		}
		found, err := s.Stat(t.Context(), img.Ref)
		if err != nil || found.ID != img.ID {
			t.Errorf("Stat(%q) = %+v, %v", img.Ref, found.Ref, err)
		}
		if got, err := read(s, context.Background(), img, 0, -1); err != nil || !bytes.Contains([]byte(strings.Join(append(names, "props"), "|")), got) {
			t.Errorf("%q reads as %q, %v", img.Ref, got, err)
		}
	}
	if n != len(names)+1 {
		t.Errorf("%d images are listed, want %d", n, len(names)+1)
	}
}
