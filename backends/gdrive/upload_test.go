package gdrive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/color"
	"image/png"
	"io"
	iofs "io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"image"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/gdrive/gdrivetest"
)

// TestPushedFile: a pushed file looks as the Python client leaves its own.
func TestPushedFile(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	s := a.open()
	data := random(1000)
	c := content(data, nil)
	c.Labels = map[string]string{"org.label-schema.build-size": "544MB"}
	c.Modified = time.Date(2018, 1, 1, 5, 38, 25, 0, time.UTC)
	img := push(t, s, ref, data, c)
	f, err := a.File(img.ID)
	check(t, err)
	if want := "vsoch/hello-world:pancakes@" + sum(data) + ".simg"; f.Name != want || f.MimeType != "application/octet-stream" || f.Parent != a.root() {
		t.Errorf("the file is %+v, want the name %s", f, want)
	}
	for k, want := range map[string]string{
		"type": "container", "uri": "vsoch/hello-world:pancakes@" + sum(data), "collection": "vsoch", "image": "hello-world",
		"tag": "pancakes", "storage": f.Name, "version": sum(data), "org.label-schema.build-size": "544MB",
	} {
		if f.Properties[k] != want {
			t.Errorf("property %s is %q, want %q", k, f.Properties[k], want)
		}
	}
	if !f.Modified.Equal(c.Modified) || !img.Modified.Equal(c.Modified) {
		t.Errorf("modified %s, %s; want %s", f.Modified, img.Modified, c.Modified)
	}
	if pic, err := png.Decode(bytes.NewReader(f.Thumbnail)); err != nil || pic.Bounds().Dx() < minThumbnailWidth {
		t.Errorf("thumbnail: %v", err)
	}
	if want := fmt.Sprintf(`{"id":%q,"name":%q,"properties":{`, f.ID, f.Name); !strings.HasPrefix(string(img.Remote), want) {
		t.Errorf("Remote is %s, want %s…", img.Remote, want)
	}
	if want := "https://www.googleapis.com/drive/v3/files/" + f.ID + "?alt=media"; img.URL != want || img.Version != sum(data) || img.Labels["org.label-schema.build-size"] != "544MB" || len(img.Labels) != 1 {
		t.Errorf("image %+v", img)
	}
}

// TestPushCosts: a small new image takes one look-up, one session, one part.
func TestPushCosts(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	s := a.open()
	push(t, s, ref, []byte("first"), content([]byte("first"), nil))
	a.ResetCounts()
	other := ref
	other.Tag = "other"
	push(t, s, other, []byte("second"), content([]byte("second"), nil))
	if got := a.Counts(); got["files.list"].Requests != 1 || got["files.create"].Requests != 1 || got["upload"].Requests != 1 || a.Total().Requests != 3 {
		t.Errorf("requests: %+v", got)
	}
}

// TestOverwrite: new content is a new revision of the same file, and the old
// answers to its version.
func TestOverwrite(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	s := a.open()
	old, data := random(300_000), random(600_000)
	c := content(old, nil)
	c.Labels = map[string]string{"gone": "x", "stays": "x"}
	first := push(t, s, ref, old, c)
	c = content(data, &first)
	c.Labels = map[string]string{"stays": "y"}
	second := push(t, s, ref, data, c)
	f, err := a.File(first.ID)
	check(t, err)
	if second.ID != first.ID || len(f.Revisions) != 2 || f.Name != "vsoch/hello-world:pancakes@"+sum(data)+".simg" || f.Properties["gone"] != "" || f.Properties["stays"] != "y" {
		t.Errorf("the file is %+v", f)
	}
	back := stat(t, s, ref.WithVersion(sum(old)))
	if got, err := read(s, t.Context(), back, 0, -1); err != nil || !bytes.Equal(got, old) {
		t.Errorf("the old version reads as %d bytes, %v", len(got), err)
	}
	// Of an old version only that revision goes.
	check(t, s.Remove(t.Context(), back))
	_, err = s.Stat(t.Context(), ref.WithVersion(sum(old)))
	wantKind(t, err, iofs.ErrNotExist, "the removed version")
	if got, err := read(s, t.Context(), stat(t, s, ref), 0, -1); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the present version reads as %d bytes, %v", len(got), err)
	}
}

// TestSameContent: nothing is uploaded for what is there already.
func TestSameContent(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	s := a.open()
	data := random(1000)
	id := a.add(python("vsoch/hello-world:pancakes.simg", data))
	a.ResetCounts()
	c := content(data, nil)
	c.Labels = map[string]string{"new": "label"}
	img := push(t, s, ref, data, c)
	f, err := a.File(id)
	check(t, err)
	if img.ID != id || len(f.Revisions) != 1 || f.Name != "vsoch/hello-world:pancakes.simg" || f.Properties["new"] != "label" {
		t.Errorf("the file is %+v", f)
	}
	if n := a.Counts()["upload"].Requests; n != 0 {
		t.Errorf("%d requests with content", n)
	}
	if got := listed(t, s); len(got) != 1 {
		t.Errorf("listed: %q", got)
	}
}

// TestFaultyUploads: whatever happens to the connection, the image is there
// once and whole in the end.
func TestFaultyUploads(t *testing.T) {
	data := random(1_000_000) // three parts and a bit
	for name, f := range map[string]struct {
		method string
		n      int
		fault  gdrivetest.Fault
	}{
		"part cut":             {"upload", 2, gdrivetest.Fault{Kind: gdrivetest.CutRequest, At: 100_000}},
		"part's answer lost":   {"upload", 2, gdrivetest.Fault{Kind: gdrivetest.LoseResponse}},
		"last part cut":        {"upload", 4, gdrivetest.Fault{Kind: gdrivetest.CutRequest, At: 1000}},
		"last answer lost":     {"upload", 4, gdrivetest.Fault{Kind: gdrivetest.LoseResponse}},
		"last answer cut":      {"upload", 4, gdrivetest.Fault{Kind: gdrivetest.CutResponse, At: 20}},
		"part refused":         {"upload", 2, gdrivetest.Fault{Status: 503}},
		"part limited":         {"upload", 2, gdrivetest.Fault{Status: 403, Reason: "userRateLimitExceeded"}},
		"session refused":      {"files.create", 1, gdrivetest.Fault{Status: 500}},
		"session's answer":     {"files.create", 1, gdrivetest.Fault{Kind: gdrivetest.LoseResponse}},
		"session forgotten":    {"upload", 3, gdrivetest.Fault{Status: 404, Reason: "notFound"}},
		"token expired":        {"upload", 3, gdrivetest.Fault{Status: 401, Reason: "authError"}},
		"folder's answer lost": {"files.create", 1, gdrivetest.Fault{Kind: gdrivetest.LoseResponse}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAccount(t, gdrivetest.Options{})
			if !strings.HasPrefix(name, "folder") {
				a.root()
			}
			s := a.open()
			a.on(f.method, f.n, f.n, f.fault)
			img := push(t, s, ref, data, content(data, nil))
			a.SetFaults(nil)
			if got, err := a.Content(img.ID); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes arrived, %v", len(got), err)
			}
			if n := len(a.Files()); n != 2 {
				t.Errorf("%d files are there: %+v", n, a.Files())
			}
			if img := stat(t, s, ref); img.Version != sum(data) {
				t.Errorf("found %+v", img)
			}
		})
	}
}

// TestResumeAfterCut: an upload that a crash has interrupted within a part goes
// on where the service has got to.
func TestResumeAfterCut(t *testing.T) {
	t.Parallel()
	data := random(3 << 20)
	for _, overwrite := range []bool{false, true} {
		a := newAccount(t, gdrivetest.Options{})
		s := a.open()
		s.part = 1 << 20
		var replaces *backends.Image
		if overwrite {
			img := push(t, s, ref, []byte("old"), content([]byte("old"), nil))
			replaces = &img
		}
		u, err := s.Begin(t.Context(), ref, "")
		check(t, err)
		check(t, u.Part(t.Context(), 0, bytes.NewReader(data)))
		state := u.State()
		// The service is gone for good, as far as this process lives to see.
		ctx, cancel := context.WithCancel(t.Context())
		a.ResetCounts()
		a.SetFaults(func(r gdrivetest.Request) gdrivetest.Fault {
			if r.Method != "upload" {
				return gdrivetest.Fault{}
			}
			if r.N > 1 {
				cancel()
			}
			return gdrivetest.Fault{Kind: gdrivetest.CutRequest, At: 600 << 10}
		})
		if err := u.Part(ctx, 1<<20, bytes.NewReader(data)); err == nil {
			t.Fatal("a part got through a cut connection")
		}
		cancel()
		a.SetFaults(nil)
		if strings.Contains(state, "upload") || strings.Contains(state, "http") {
			t.Errorf("the state shows the session: %s", state)
		}

		s = a.open()
		s.part = 1 << 20
		u, err = s.Begin(t.Context(), ref, state)
		check(t, err)
		if u.Sent() != 1<<20 {
			t.Errorf("Sent() = %d", u.Sent())
		}
		if acked := u.(*upload).ses.acked; acked != 3<<19 {
			t.Errorf("the service has %d bytes, want what came before the cut in whole units", acked)
		}
		a.ResetCounts()
		img, err := u.Commit(t.Context(), bytes.NewReader(data), int64(len(data)), content(data, replaces))
		check(t, err)
		if got := a.Counts()["upload"].In; got > 3<<19 {
			t.Errorf("%d bytes were sent again", got)
		}
		if got, err := a.Content(img.ID); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes arrived, %v", len(got), err)
		}
		if got := listed(t, s); len(got) != 1 {
			t.Errorf("listed: %q", got)
		}
		if overwrite && img.ID != replaces.ID {
			t.Error("an overwrite made another file")
		}
	}
}

// TestResumeFinished: the process died between the last byte and the name.
func TestResumeFinished(t *testing.T) {
	t.Parallel()
	t.Run("named", func(t *testing.T) { resumeFinished(t, gdrivetest.LoseResponse, 0) })
	t.Run("unnamed", func(t *testing.T) { resumeFinished(t, gdrivetest.LoseResponse, 503) })
}

func resumeFinished(t *testing.T, kind gdrivetest.Kind, status int) {
	a := newAccount(t, gdrivetest.Options{})
	s := a.open()
	data := random(300_000)
	u, err := s.Begin(t.Context(), ref, "")
	check(t, err)
	check(t, u.Part(t.Context(), 0, bytes.NewReader(data)))
	state := u.State()
	ctx, cancel := context.WithCancel(t.Context())
	a.SetFaults(func(r gdrivetest.Request) gdrivetest.Fault {
		if r.Method != "files.update" {
			return gdrivetest.Fault{}
		}
		cancel()
		return gdrivetest.Fault{Kind: kind, Status: status}
	})
	_, err = u.Commit(ctx, bytes.NewReader(data), int64(len(data)), content(data, nil))
	wantKind(t, err, context.Canceled, "Commit")
	a.SetFaults(nil)
	s = a.open()
	u, err = s.Begin(t.Context(), ref, state)
	check(t, err)
	img, err := u.Commit(t.Context(), bytes.NewReader(data), int64(len(data)), content(data, nil))
	check(t, err)
	if got := listed(t, s); len(got) != 1 || len(a.Files()) != 2 || img.Version != sum(data) {
		t.Errorf("listed: %q, files: %+v", got, a.Files())
	}
}

// TestStateIsSealed: a state is worth nothing under other credentials.
func TestStateIsSealed(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	u, err := a.open().Begin(t.Context(), ref, "")
	check(t, err)
	check(t, u.Part(t.Context(), 0, bytes.NewReader(random(256<<10))))
	a.env["SREGISTRY_GDRIVE_REFRESH_TOKEN"] = a.RefreshToken()
	again, err := a.open().Begin(t.Context(), ref, u.State())
	check(t, err)
	if again.Sent() != 0 {
		t.Error("another login resumes the upload")
	}
}

// TestWrongContent: bytes that are not the announced ones never become an
// image, and never replace one.
func TestWrongContent(t *testing.T) {
	t.Parallel()
	for name, part := range map[string]bool{"at once": false, "in parts": true} {
		t.Run(name, func(t *testing.T) {
			a := newAccount(t, gdrivetest.Options{})
			s := a.open()
			old := push(t, s, ref, []byte("old"), content([]byte("old"), nil))
			data := random(600_000)
			u, err := s.Begin(t.Context(), ref, "")
			check(t, err)
			if part {
				check(t, u.Part(t.Context(), 0, bytes.NewReader(data)))
			}
			bad := bytes.Clone(data)
			bad[500_000] ^= 1
			_, err = u.Commit(t.Context(), bytes.NewReader(bad), int64(len(data)), content(data, &old))
			wantKind(t, err, backends.ErrCorrupt, "Commit")
			check(t, u.Abort(t.Context()))
			f, err := a.File(old.ID)
			check(t, err)
			if len(f.Revisions) != 1 || f.MD5 != sum([]byte("old")) {
				t.Errorf("the file is %+v", f)
			}
		})
	}
}

// TestDamagedOnTheWay: the service's own sum is what counts in the end.
func TestDamagedOnTheWay(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	st := a.settings()
	st.Transport = flipping{}
	s, err := Open(t.Context(), st)
	check(t, err)
	data := random(300_000)
	u, err := s.Begin(t.Context(), ref, "")
	check(t, err)
	_, err = u.Commit(t.Context(), bytes.NewReader(data), int64(len(data)), content(data, nil))
	wantKind(t, err, backends.ErrCorrupt, "Commit")
	if got := listed(t, s); len(got) != 0 {
		t.Errorf("listed: %q", got)
	}
}

// flipping damages the content of uploads.
type flipping struct{}

func (flipping) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodPut && req.ContentLength > 1000 {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		body[999] ^= 1
		req = req.Clone(req.Context())
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	return http.DefaultTransport.RoundTrip(req)
}

// TestNoSpace: the account fills up in the midst of an upload.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{Quota: 1 << 20})
	s := a.open()
	u, err := s.Begin(t.Context(), ref, "")
	check(t, err)
	data := random(2 << 20)
	for off := int64(0); err == nil && off < int64(len(data)); off += u.PartSize() {
		err = u.Part(t.Context(), off, bytes.NewReader(data))
	}
	wantKind(t, err, backends.ErrNoSpace, "Part")
	_, err = u.Commit(t.Context(), bytes.NewReader(data), int64(len(data)), content(data, nil))
	wantKind(t, err, backends.ErrNoSpace, "Commit")
	if got := listed(t, s); len(got) != 0 {
		t.Errorf("listed: %q", got)
	}
}

// TestLateWriter: somebody replaces the image while its last bytes are on their
// way.
func TestLateWriter(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	s := a.open()
	old := push(t, s, ref, []byte("old"), content([]byte("old"), nil))
	data := random(1_000_000)
	var once sync.Once
	a.ResetCounts()
	a.SetFaults(func(r gdrivetest.Request) gdrivetest.Fault {
		if r.Method == "upload" && r.N == 2 {
			once.Do(func() { check(t, a.Replace(old.ID, []byte("somebody else's"))) })
		}
		return gdrivetest.Fault{}
	})
	u, err := s.Begin(t.Context(), ref, "")
	check(t, err)
	_, err = u.Commit(t.Context(), bytes.NewReader(data), int64(len(data)), content(data, &old))
	wantKind(t, err, backends.ErrStale, "Commit")
	if got, err := a.Content(old.ID); err != nil || string(got) != "somebody else's" {
		t.Errorf("the file holds %d bytes, %v", len(got), err)
	}
}

// TestConcurrentFirstPush: two that see no image make one between them.
func TestConcurrentFirstPush(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	s := a.open()
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() {
			data := random(1000 + i)
			u, err := s.Begin(t.Context(), ref, "")
			if err == nil {
				_, err = u.Commit(t.Context(), bytes.NewReader(data), int64(len(data)), content(data, nil))
			}
			errs[i] = err
		})
	}
	wg.Wait()
	good := 0
	for _, err := range errs {
		if err == nil {
			good++
		} else {
			wantKind(t, err, backends.ErrStale, "Commit")
		}
	}
	if got := listed(t, s); good != 1 || len(got) != 1 {
		t.Errorf("%d pushes succeed, listed: %q", good, got)
	}
}

// TestSweep: what an upload left unnamed long ago goes; what is under way stays.
func TestSweep(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	leftover := gdrivetest.Seed{Name: "c/i:t.simg.uploading", Content: []byte("x"), Properties: map[string]string{"type": "upload"}}
	fresh := a.add(leftover)
	leftover.Modified = time.Now().Add(-30 * 24 * time.Hour)
	old := a.add(leftover)
	s := a.open()
	if got := listed(t, s); len(got) != 0 {
		t.Errorf("listed: %q", got)
	}
	push(t, s, ref, []byte("x"), content([]byte("x"), nil))
	if _, err := a.File(old); err == nil {
		t.Error("the old leftover is still there")
	}
	if _, err := a.File(fresh); err != nil {
		t.Error("what may be under way is gone")
	}
}

func TestThumbnail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		name = filepath.Join(dir, name)
		check(t, os.WriteFile(name, data, 0o600))
		return name
	}
	picture := func(side int) []byte {
		img := image.NewRGBA(image.Rect(0, 0, side, side))
		img.Set(1, 1, color.White)
		var b bytes.Buffer
		check(t, png.Encode(&b, img))
		return b.Bytes()
	}
	own := picture(300)
	for path, want := range map[string][]byte{
		write("own.png", own):                   own,
		write("small.png", picture(100)):        robot(),
		write("no.png", []byte("GIF89a")):       robot(),
		write("big.png", make([]byte, 2<<20+1)): robot(),
		filepath.Join(dir, "missing.png"):       robot(),
		dir:                                     robot(),
		"":                                      robot(),
	} {
		a := newAccount(t, gdrivetest.Options{})
		a.env[ThumbnailSetting] = path
		img := push(t, a.open(), ref, []byte("x"), content([]byte("x"), nil))
		f, err := a.File(img.ID)
		check(t, err)
		if !bytes.Equal(f.Thumbnail, want) {
			t.Errorf("with %s the thumbnail has %d bytes, want %d", filepath.Base(path), len(f.Thumbnail), len(want))
		}
	}
}

// TestInvisibleUntilCommit: parts make no image, in any listing or search.
func TestInvisibleUntilCommit(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	a.env[UntypedSetting] = "yes"
	s := a.open()
	u, err := s.Begin(t.Context(), ref, "")
	check(t, err)
	data := random(300_000)
	check(t, u.Part(t.Context(), 0, bytes.NewReader(data)))
	a.on("files.update", 1, 99, gdrivetest.Fault{Status: 403, Reason: "forbidden"})
	_, err = u.Commit(t.Context(), bytes.NewReader(data), int64(len(data)), content(data, nil))
	wantKind(t, err, iofs.ErrPermission, "Commit")
	a.SetFaults(nil)
	if got := listed(t, s); len(got) != 0 {
		t.Errorf("listed: %q", got)
	}
	if _, err := s.Stat(t.Context(), ref); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("Stat: %v", err)
	}
	check(t, u.Abort(t.Context()))
	if n := len(a.Files()); n != 1 {
		t.Errorf("after Abort there are %d files", n)
	}
	if slices.Contains(listed(t, s), "") {
		t.Error("an image without a name")
	}
}

// TestPushAfterRootBinned: an image does not follow its folder into the bin.
func TestPushAfterRootBinned(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	s := a.open()
	push(t, s, ref, []byte("1"), content([]byte("1"), nil))
	check(t, a.Trash(a.root()))
	push(t, s, ref, []byte("2"), content([]byte("2"), nil))
	if got, want := listed(t, s), []string{ref.String() + " 1"}; !slices.Equal(got, want) {
		t.Errorf("listed: %q, want %q", got, want)
	}
}
