package gdrivetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
	"google.golang.org/api/drive/v3"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"
)

func jsonText(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start gives a Drive and the unmodified client library on it.
func start(t *testing.T, opts Options) (*Server, *drive.Service) {
	t.Helper()
	s := NewServer(opts)
	t.Cleanup(func() { check(t, s.Close()) })
	hc := oauth2.NewClient(context.Background(), oauth2.StaticTokenSource(&oauth2.Token{AccessToken: s.AccessToken()}))
	svc, err := drive.NewService(context.Background(), option.WithHTTPClient(hc), option.WithEndpoint(s.Endpoint()))
	check(t, err)
	return s, svc
}

// reason is an error's code and reason, "" for nil.
func reason(err error) string {
	var e *googleapi.Error
	if !errors.As(err, &e) {
		return fmt.Sprint(err)
	}
	r := ""
	if len(e.Errors) > 0 {
		r = e.Errors[0].Reason
	}
	return fmt.Sprintf("%d %s", e.Code, r)
}

func random(n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(n)})
	b := make([]byte, n)
	r.Read(b)
	return b
}

func TestUploadsBySDK(t *testing.T) {
	s, svc := start(t, Options{})
	for _, n := range []int{0, 1, 256 << 10, 3<<20 + 17} {
		data := random(n)
		f, err := svc.Files.Create(&drive.File{Name: fmt.Sprint(n), Properties: map[string]string{"type": "container"}}).
			Media(bytes.NewReader(data), googleapi.ChunkSize(1<<20)).Fields("id,size,md5Checksum,sha256Checksum,properties,trashed,headRevisionId").Do()
		check(t, err)
		want := bytesContent(data)
		if f.Size != int64(n) || f.Md5Checksum != want.md5 || f.Sha256Checksum != want.sha256 || f.Properties["type"] != "container" {
			t.Errorf("%d bytes: %+v", n, f)
		}
		resp, err := svc.Files.Get(f.Id).Download()
		check(t, err)
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: read %d, %v", n, len(got), err)
		}
		again, err := svc.Files.Update(f.Id, &drive.File{}).Media(strings.NewReader("new"), googleapi.ChunkSize(0)).Fields("headRevisionId,size").Do()
		check(t, err)
		if again.Size != 3 || again.HeadRevisionId == f.HeadRevisionId {
			t.Errorf("update: %+v", again)
		}
		revs, err := svc.Revisions.List(f.Id).Do()
		check(t, err)
		if len(revs.Revisions) != 2 {
			t.Errorf("%d revisions", len(revs.Revisions))
		}
		old, err := svc.Revisions.Get(f.Id, f.HeadRevisionId).Download()
		check(t, err)
		got, err = io.ReadAll(old.Body)
		old.Body.Close()
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("old revision: %d bytes, %v", len(got), err)
		}
	}
	if got := s.Counts()["upload"].Requests; got != 4 {
		t.Errorf("%d parts for 3 MiB and a bit in parts of 1 MiB", got)
	}
}

func do(t *testing.T, s *Server, method, target string, header map[string]string, body []byte) *http.Response {
	t.Helper()
	req, err := http.NewRequest(method, target, bytes.NewReader(body))
	check(t, err)
	req.Header.Set("Authorization", "Bearer "+s.AccessToken())
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	check(t, err)
	b, err := io.ReadAll(resp.Body)
	check(t, err)
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(b))
	return resp
}

func TestResumable(t *testing.T) {
	s := NewServer(Options{})
	defer s.Close()
	begin := func() string {
		r := do(t, s, "POST", s.URL+"/upload/drive/v3/files?uploadType=resumable", map[string]string{"X-Upload-Content-Type": "application/octet-stream"}, []byte(`{"name":"x"}`))
		if r.StatusCode != 200 || r.Header.Get("Location") == "" {
			t.Fatalf("session: %s", r.Status)
		}
		return r.Header.Get("Location")
	}
	data := random(600 << 10)
	type step struct {
		rng    string
		body   []byte
		code   int
		answer string // Range header
	}
	unit := 256 << 10
	for name, steps := range map[string][]step{
		"whole":   {{"", data, 200, ""}, {"bytes */*", nil, 200, ""}},
		"known":   {{fmt.Sprintf("bytes 0-%d/%d", len(data)-1, len(data)), data, 200, ""}},
		"unknown": {{fmt.Sprintf("bytes 0-%d/*", unit-1), data[:unit], 308, fmt.Sprintf("bytes=0-%d", unit-1)}, {"bytes */*", nil, 308, fmt.Sprintf("bytes=0-%d", unit-1)}, {fmt.Sprintf("bytes %d-%d/%d", unit, len(data)-1, len(data)), data[unit:], 200, ""}},
		"empty":   {{"bytes */*", nil, 308, ""}, {"bytes */0", nil, 200, ""}},
		"exact":   {{fmt.Sprintf("bytes 0-%d/*", 2*unit-1), data[:2*unit], 308, fmt.Sprintf("bytes=0-%d", 2*unit-1)}, {fmt.Sprintf("bytes */%d", 2*unit), nil, 200, ""}},
		"odd":     {{"bytes 0-99/*", data[:100], 400, ""}},
		"gap":     {{fmt.Sprintf("bytes %d-%d/*", unit, 2*unit-1), data[:unit], 400, ""}},
		"again":   {{fmt.Sprintf("bytes 0-%d/*", unit-1), data[:unit], 308, fmt.Sprintf("bytes=0-%d", unit-1)}, {fmt.Sprintf("bytes 0-%d/%d", len(data)-1, len(data)), data, 200, ""}},
		"short":   {{"bytes 0-99/600", data[:50], 400, ""}},
	} {
		t.Run(name, func(t *testing.T) {
			loc := begin()
			for i, st := range steps {
				h := map[string]string{}
				if st.rng != "" {
					h["Content-Range"] = st.rng
				}
				r := do(t, s, "PUT", loc, h, st.body)
				if r.StatusCode != st.code || r.Header.Get("Range") != st.answer {
					t.Fatalf("step %d %s: %s, Range %q", i, st.rng, r.Status, r.Header.Get("Range"))
				}
				if st.code == 200 {
					var f struct{ ID string }
					check(t, json.NewDecoder(r.Body).Decode(&f))
					got, err := s.Content(f.ID)
					check(t, err)
					if !bytes.Equal(got, data[:len(got)]) || (name != "empty" && len(got) == 0) {
						t.Errorf("stored %d other bytes", len(got))
					}
				}
			}
		})
	}
	loc := begin()
	if r := do(t, s, "DELETE", loc, nil, nil); r.StatusCode != 499 {
		t.Errorf("cancel: %s", r.Status)
	}
	if r := do(t, s, "PUT", loc, map[string]string{"Content-Range": "bytes */*"}, nil); r.StatusCode != 499 {
		t.Errorf("after cancel: %s", r.Status)
	}
	loc = begin()
	s.ForgetUploads()
	if r := do(t, s, "PUT", loc, map[string]string{"Content-Range": "bytes */*"}, nil); r.StatusCode != 404 {
		t.Errorf("expired: %s", r.Status)
	}
}

func TestRanges(t *testing.T) {
	s, _ := start(t, Options{})
	data := random(1000)
	id, err := s.Add(Seed{Name: "x", Content: data})
	check(t, err)
	for rng, want := range map[string]struct {
		code       int
		start, end int
		header     string
	}{
		"":               {200, 0, 1000, ""},
		"bytes=0-0":      {206, 0, 1, "bytes 0-0/1000"},
		"bytes=10-19":    {206, 10, 20, "bytes 10-19/1000"},
		"bytes=990-":     {206, 990, 1000, "bytes 990-999/1000"},
		"bytes=-10":      {206, 990, 1000, "bytes 990-999/1000"},
		"bytes=-5000":    {206, 0, 1000, "bytes 0-999/1000"},
		"bytes=900-5000": {206, 900, 1000, "bytes 900-999/1000"},
		"bytes=1000-":    {416, 0, 0, "bytes */1000"},
		"bytes=5-2":      {200, 0, 1000, ""},
		"lines=5-2":      {200, 0, 1000, ""},
	} {
		h := map[string]string{}
		if rng != "" {
			h["Range"] = rng
		}
		r := do(t, s, "GET", s.URL+"/drive/v3/files/"+id+"?alt=media", h, nil)
		body, _ := io.ReadAll(r.Body)
		if r.StatusCode != want.code || r.Header.Get("Content-Range") != want.header {
			t.Errorf("%q: %s %q", rng, r.Status, r.Header.Get("Content-Range"))
		} else if want.code != 416 && !bytes.Equal(body, data[want.start:want.end]) {
			t.Errorf("%q: %d other bytes", rng, len(body))
		}
	}
}

func TestTypedErrors(t *testing.T) {
	s, svc := start(t, Options{Quota: 1000})
	folder, err := s.Add(Seed{Name: "f", MimeType: FolderType})
	check(t, err)
	file, err := s.Add(Seed{Name: "x", Content: random(600)})
	check(t, err)
	shared, err := s.Add(Seed{Name: "s", Shared: true})
	check(t, err)
	bad, err := s.Add(Seed{Name: "b", Abusive: true})
	check(t, err)
	many := map[string]string{}
	for i := range 31 {
		many[fmt.Sprint(i)] = "v"
	}
	call := func(_ any, err error) error { return err }
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"absent":         {call(svc.Files.Get("nope").Do()), "404 notFound"},
		"bad q":          {call(svc.Files.List().Q("name").Do()), "400 invalid"},
		"bad field":      {call(svc.Files.Get(file).Fields("nope").Do()), "400 invalidParameter"},
		"page size":      {call(svc.Files.List().PageSize(1001).Do()), "400 invalidParameter"},
		"page token":     {call(svc.Files.List().PageToken("x").Do()), "400 invalid"},
		"order":          {call(svc.Files.List().OrderBy("size").Do()), "400 invalid"},
		"order fullText": {call(svc.Files.List().Q("fullText contains 'x'").OrderBy("name").Do()), "400 badRequest"},
		"folder media":   {call(svc.Files.Get(folder).Download()), "403 fileNotDownloadable"},
		"malware":        {call(svc.Files.Get(bad).Download()), "403 cannotDownloadAbusiveFile"},
		"read-only":      {call(svc.Files.Update(shared, &drive.File{Name: "y"}).Do()), "403 insufficientFilePermissions"},
		"long property":  {call(svc.Files.Update(file, &drive.File{Properties: map[string]string{"k": strings.Repeat("é", 62)}}).Do()), "400 invalid"},
		"fits":           {call(svc.Files.Update(file, &drive.File{Properties: map[string]string{"kk": strings.Repeat("é", 61)}}).Do()), "<nil>"},
		"properties":     {call(svc.Files.Update(file, &drive.File{Properties: many}).Do()), "403 propertiesLimitExceeded"},
		"thumbnail":      {call(svc.Files.Update(file, &drive.File{ContentHints: &drive.FileContentHints{Thumbnail: &drive.FileContentHintsThumbnail{Image: "!", MimeType: "image/png"}}}).Do()), "400 invalid"},
		"quota":          {call(svc.Files.Create(&drive.File{}).Media(bytes.NewReader(random(500))).Do()), "403 storageQuotaExceeded"},
		"same id":        {call(svc.Files.Create(&drive.File{Id: file}).Do()), "409 fileIdInUse"},
		"no parent":      {call(svc.Files.Create(&drive.File{Parents: []string{"nope"}}).Do()), "404 notFound"},
		"about":          {call(svc.About.Get().Do()), "400 required"},
		"changes":        {call(svc.Changes.List("nope").Do()), "400 invalid"},
		"future":         {call(svc.Changes.List("99999").Do()), "400 invalid"},
		"share":          {call(svc.Permissions.Create(file, &drive.Permission{Type: "user", Role: "reader", EmailAddress: "nobody"}).Do()), "400 invalidSharingRequest"},
		"share others'":  {call(svc.Permissions.Create(shared, &drive.Permission{Type: "anyone", Role: "reader"}).Do()), "403 insufficientFilePermissions"},
		"revisions":      {call(svc.Revisions.List(shared).Do()), "403 insufficientFilePermissions"},
		"revision":       {call(svc.Revisions.Get(file, "nope").Do()), "404 notFound"},
		"cycle":          {call(svc.Files.Update(folder, &drive.File{}).AddParents(folder).RemoveParents("root").Do()), "400 badRequest"},
	} {
		if got := reason(tc.err); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
	s.ExpireTokens()
	if _, err := svc.Files.List().Do(); reason(err) != "401 authError" {
		t.Errorf("expired token: %v", err)
	}
	resp, err := http.Get(s.Endpoint() + "files")
	check(t, err)
	resp.Body.Close()
	if resp.StatusCode != 401 {
		t.Errorf("no token: %s", resp.Status)
	}
}

func TestPaging(t *testing.T) {
	s, svc := start(t, Options{})
	for i := range 25 {
		_, err := s.Add(Seed{Name: fmt.Sprintf("%02d", i)})
		check(t, err)
	}
	var names []string
	err := svc.Files.List().PageSize(10).OrderBy("name").Fields("nextPageToken,files(name)").Pages(context.Background(), func(l *drive.FileList) error {
		for _, f := range l.Files {
			names = append(names, f.Name)
		}
		if len(names) == 10 {
			// What goes away meanwhile is not listed any more.
			for _, f := range s.Files() {
				if f.Name == "15" {
					return s.Delete(f.ID)
				}
			}
		}
		return nil
	})
	check(t, err)
	if len(names) != 24 || !slices.IsSorted(names) || slices.Contains(names, "15") {
		t.Errorf("%d names: %q", len(names), names)
	}
}

func TestChanges(t *testing.T) {
	s, svc := start(t, Options{})
	tok, err := svc.Changes.GetStartPageToken().Do()
	check(t, err)
	a, err := s.Add(Seed{Name: "a"})
	check(t, err)
	b, err := s.Add(Seed{Name: "b"})
	check(t, err)
	check(t, s.Rename(a, "A"))
	check(t, s.Delete(b))
	l, err := svc.Changes.List(tok.StartPageToken).Fields("newStartPageToken,changes(fileId,removed,file(name,trashed))").Do()
	check(t, err)
	if len(l.Changes) != 2 || l.Changes[0].File == nil || l.Changes[0].File.Name != "A" || !l.Changes[1].Removed || l.Changes[1].FileId != b {
		t.Errorf("changes: %s", jsonText(t, l))
	}
	again, err := svc.Changes.List(l.NewStartPageToken).Do()
	check(t, err)
	if len(again.Changes) != 0 || again.NewStartPageToken != l.NewStartPageToken {
		t.Errorf("nothing new: %s", jsonText(t, again))
	}
	check(t, s.Rename(a, "AA"))
	s.ForgetChanges()
	if _, err := svc.Changes.List(l.NewStartPageToken).Do(); reason(err) != "400 invalid" {
		t.Errorf("forgotten: %v", err)
	}
}

func TestSharing(t *testing.T) {
	s, svc := start(t, Options{})
	id, err := s.Add(Seed{Name: "a"})
	check(t, err)
	for range 2 {
		p, err := svc.Permissions.Create(id, &drive.Permission{Type: "user", Role: "reader", EmailAddress: "v@example.com"}).EmailMessage("hi").Do()
		check(t, err)
		if p.Id != permissionID("v@example.com") {
			t.Errorf("id %s", p.Id)
		}
		p, err = svc.Permissions.Create(id, &drive.Permission{Type: "anyone", Role: "reader"}).Do()
		check(t, err)
		if p.Id != "anyoneWithLink" {
			t.Errorf("id %s", p.Id)
		}
	}
	f, err := s.File(id)
	check(t, err)
	if want := []string{"owner user vanessa@example.com", "reader user v@example.com", "reader anyone"}; !slices.Equal(f.Permissions, want) {
		t.Errorf("permissions %q", f.Permissions)
	}
	if m := s.Mails(); len(m) == 0 || m[0] != (Mail{"v@example.com", id, "hi"}) {
		t.Errorf("mails %v", m)
	}
}

func TestOAuth(t *testing.T) {
	ctx := context.Background()
	s := NewServer(Options{})
	defer s.Close()
	conf, err := google.ConfigFromJSON(ClientFile(s.URL), drive.DriveScope)
	check(t, err)
	conf.RedirectURL = "http://127.0.0.1:1/"
	verifier := oauth2.GenerateVerifier()
	consent := func() string {
		hc := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		resp, err := hc.Get(conf.AuthCodeURL("state", oauth2.AccessTypeOffline, oauth2.S256ChallengeOption(verifier)))
		check(t, err)
		resp.Body.Close()
		to, err := url.Parse(resp.Header.Get("Location"))
		check(t, err)
		if to.Query().Get("state") != "state" || to.Query().Get("code") == "" {
			t.Fatalf("redirect to %s", to)
		}
		return to.Query().Get("code")
	}
	if _, err := conf.Exchange(ctx, consent(), oauth2.VerifierOption("wrong")); err == nil {
		t.Error("a wrong verifier was accepted")
	}
	code := consent()
	tok, err := conf.Exchange(ctx, code, oauth2.VerifierOption(verifier))
	check(t, err)
	if _, err := conf.Exchange(ctx, code, oauth2.VerifierOption(verifier)); err == nil {
		t.Error("a code was accepted twice")
	}
	svc, err := drive.NewService(ctx, option.WithTokenSource(conf.TokenSource(ctx, &oauth2.Token{RefreshToken: tok.RefreshToken})), option.WithEndpoint(s.Endpoint()))
	check(t, err)
	about, err := svc.About.Get().Fields("user/displayName,storageQuota").Do()
	check(t, err)
	if about.User.DisplayName != "Vanessa S" || about.StorageQuota.Limit != 15<<30 {
		t.Errorf("about: %s", jsonText(t, about))
	}
	s.Revoke()
	if _, err := conf.TokenSource(ctx, &oauth2.Token{RefreshToken: tok.RefreshToken}).Token(); err == nil {
		t.Error("a revoked token was refreshed")
	}
	key, err := ServiceAccountFile(s.URL)
	check(t, err)
	jwt, err := google.JWTConfigFromJSON(key, drive.DriveScope)
	check(t, err)
	if _, err := jwt.TokenSource(ctx).Token(); err != nil {
		t.Errorf("service account: %v", err)
	}
	jwt.Scopes = []string{"other"}
	if _, err := jwt.TokenSource(ctx).Token(); err == nil {
		t.Error("a scope that the Drive does not know was granted")
	}
}

func TestFaults(t *testing.T) {
	s, svc := start(t, Options{})
	data := random(1000)
	id, err := s.Add(Seed{Name: "x", Content: data})
	check(t, err)
	read := func() ([]byte, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		r, err := svc.Files.Get(id).Context(ctx).Download()
		if err != nil {
			return nil, err
		}
		defer r.Body.Close()
		return io.ReadAll(r.Body)
	}
	set := func(f Fault) {
		s.SetFaults(func(r Request) Fault {
			if r.Method == "files.get.media" {
				return f
			}
			return Fault{}
		})
	}
	set(Fault{Status: 403, Reason: "userRateLimitExceeded", RetryAfter: time.Second})
	if _, err := read(); reason(err) != "403 userRateLimitExceeded" {
		t.Errorf("status: %v", err)
	}
	set(Fault{Kind: CutResponse, At: 100})
	if got, err := read(); err == nil || !bytes.Equal(got, data[:len(got)]) || len(got) > 100 {
		t.Errorf("cut: %d bytes, %v", len(got), err)
	}
	set(Fault{Kind: FlipResponse, At: 100})
	if got, err := read(); err != nil || got[100] != data[100]^1 || !bytes.Equal(got[101:], data[101:]) {
		t.Errorf("flip: %d bytes, %v", len(got), err)
	}
	set(Fault{Kind: StallResponse, At: 100})
	if _, err := read(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stall: %v", err)
	}
	s.SetFaults(func(r Request) Fault {
		if r.Method == "files.create" {
			return Fault{Kind: LoseResponse}
		}
		return Fault{}
	})
	if _, err := svc.Files.Create(&drive.File{Name: "lost"}).Do(); err == nil {
		t.Error("the answer was not lost")
	}
	if files := s.Files(); files[len(files)-1].Name != "lost" {
		t.Error("nothing was made")
	}
	if got := s.Counts()["files.get.media"]; got.Requests != 4 || got.Out < 1200 {
		t.Errorf("counts: %+v", got)
	}
}

func TestSeedFromFileAndTree(t *testing.T) {
	s, svc := start(t, Options{NoSHA256: true})
	name := filepath.Join(t.TempDir(), "big")
	check(t, os.WriteFile(name, random(5000), 0o600))
	top, err := s.Add(Seed{Name: "d", MimeType: FolderType})
	check(t, err)
	id, err := s.Add(Seed{Name: "x", Parent: top, File: name})
	check(t, err)
	f, err := svc.Files.Get(id).Fields("*").Do()
	check(t, err)
	if f.Size != 5000 || f.Md5Checksum != bytesContent(random(5000)).md5 || f.Sha256Checksum != "" || f.Parents[0] != top {
		t.Errorf("%+v", f)
	}
	_, err = svc.Files.Update(top, &drive.File{Trashed: true}).Do()
	check(t, err)
	if f, err := svc.Files.Get(id).Fields("trashed,explicitlyTrashed").Do(); err != nil || !f.Trashed || f.ExplicitlyTrashed {
		t.Errorf("below the bin: %+v %v", f, err)
	}
	check(t, svc.Files.EmptyTrash().Do())
	if _, err := svc.Files.Get(id).Do(); reason(err) != "404 notFound" {
		t.Errorf("after emptying: %v", err)
	}
	about, err := svc.About.Get().Fields("storageQuota").Do()
	check(t, err)
	if about.StorageQuota.Usage != 0 {
		t.Errorf("usage %d", about.StorageQuota.Usage)
	}
}
