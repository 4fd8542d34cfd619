package dropboxtest_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/auth"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/sharing"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/users"
	"golang.org/x/oauth2"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

// start returns a server and an SDK configuration that leads to it.
func start(t *testing.T, opts dropboxtest.Options) (*dropboxtest.Server, dropbox.Config) {
	t.Helper()
	s := dropboxtest.New(opts)
	t.Cleanup(s.Close)
	return s, dropbox.Config{Token: s.Token(), URLGenerator: func(_, namespace, route string) string {
		return s.URL + "/2/" + namespace + "/" + route
	}}
}

func hashOf(data []byte) string {
	h := backends.NewHash(backends.DropboxHash)
	h.Write(data)
	return backends.SumOf(backends.DropboxHash, h).Hex
}

func names(entries []files.IsMetadata) []string {
	var out []string
	for _, e := range entries {
		switch m := e.(type) {
		case *files.FileMetadata:
			out = append(out, m.PathDisplay)
		case *files.FolderMetadata:
			out = append(out, m.PathDisplay+"/")
		case *files.DeletedMetadata:
			out = append(out, "-"+m.PathLower)
		}
	}
	return out
}

// TestUploadModes checks what each write mode does to what stands there, row
// by row of WriteMode's and strict_conflict's documentation.
func TestUploadModes(t *testing.T) {
	for _, c := range []struct {
		name   string
		there  string // content, "" for nothing
		mode   string
		oldRev bool // update names a revision that is gone
		strict bool
		auto   bool
		data   string
		want   string // path written, or the conflict's tag
	}{
		{name: "add to nothing", mode: "add", data: "a", want: "/C/i.simg"},
		{name: "add over other", there: "b", mode: "add", data: "a", want: "file"},
		{name: "add over same", there: "a", mode: "add", data: "a", want: "/C/i.simg"},
		{name: "strict add over same", there: "a", mode: "add", strict: true, data: "a", want: "file"},
		{name: "autorename", there: "b", mode: "add", auto: true, data: "a", want: "/C/i (1).simg"},
		{name: "overwrite", there: "b", mode: "overwrite", data: "a", want: "/C/i.simg"},
		{name: "update", there: "b", mode: "update", data: "a", want: "/C/i.simg"},
		{name: "update of another", there: "b", mode: "update", oldRev: true, data: "a", want: "file"},
		{name: "update of nothing", mode: "update", oldRev: true, data: "a", want: "/C/i.simg"},
		{name: "strict update of nothing", mode: "update", oldRev: true, strict: true, data: "a", want: "file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, conf := start(t, dropboxtest.Options{})
			api := files.NewContext(conf)
			mode := &files.WriteMode{Tagged: dropbox.Tagged{Tag: c.mode}, Update: "0123456789abcde"}
			if c.there != "" {
				rev := s.Put("/C/i.simg", []byte(c.there))
				if !c.oldRev {
					mode.Update = rev
				}
			}
			arg := files.NewUploadArg("/c/i.simg")
			if c.there == "" {
				arg.Path = "/C/i.simg"
			}
			arg.Mode, arg.StrictConflict, arg.Autorename = mode, c.strict, c.auto
			m, err := api.UploadContext(t.Context(), arg, strings.NewReader(c.data))
			var aerr files.UploadAPIError
			switch {
			case err == nil && m.PathDisplay == c.want:
			case errors.As(err, &aerr) && aerr.EndpointError.Path.Reason.Conflict.Tag == c.want:
			default:
				t.Fatalf("upload = %+v, %v; want %q", m, err, c.want)
			}
			if err == nil && m.ContentHash != hashOf([]byte(c.data)) {
				t.Errorf("content_hash %q", m.ContentHash)
			}
		})
	}
}

func TestListingAndChanges(t *testing.T) {
	s, conf := start(t, dropboxtest.Options{LongpollMax: 50 * time.Millisecond})
	api := files.NewContext(conf)
	ctx := t.Context()
	for i := range 7 {
		s.Put(fmt.Sprintf("/Col/i%d.simg", i), []byte{byte(i)})
	}
	arg := files.NewListFolderArg("")
	arg.Recursive, arg.Limit = true, 3
	res, err := api.ListFolderContext(ctx, arg)
	if err != nil {
		t.Fatal(err)
	}
	all, pages := res.Entries, 1
	s.Put("/Col/i0.simg", []byte("changed while listing"))
	for ; res.HasMore; pages++ {
		if res, err = api.ListFolderContinueContext(ctx, files.NewListFolderContinueArg(res.Cursor)); err != nil {
			t.Fatal(err)
		}
		all = append(all, res.Entries...)
	}
	if got := names(all); len(got) != 9 || got[0] != "/Col/" || got[8] != "/Col/i0.simg" || pages != 4 {
		t.Fatalf("%d pages: %q", pages, got)
	}

	poll := files.NewListFolderLongpollArg(res.Cursor)
	ucfg := conf
	ucfg.Client = http.DefaultClient // longpoll takes no token
	if p, err := files.NewContext(ucfg).ListFolderLongpollContext(ctx, poll); err != nil || p.Changes {
		t.Fatalf("quiet longpoll = %+v, %v", p, err)
	}
	s.Delete("/Col")
	s.Put("/COL/new.simg", nil)
	s.SetBackoff(3 * time.Second)
	if p, err := files.NewContext(ucfg).ListFolderLongpollContext(ctx, poll); err != nil || !p.Changes || p.Backoff != 3 {
		t.Fatalf("longpoll = %+v, %v", p, err)
	}
	old := res.Cursor
	res, err = api.ListFolderContinueContext(ctx, files.NewListFolderContinueArg(old))
	if want := []string{"-/col", "/COL/", "/COL/new.simg"}; err != nil || !slices.Equal(names(res.Entries), want) {
		t.Fatalf("changes = %q, %v; want %q", names(res.Entries), err, want)
	}
	s.ResetCursors()
	_, err = api.ListFolderContinueContext(ctx, files.NewListFolderContinueArg(res.Cursor))
	var cerr files.ListFolderContinueAPIError
	if !errors.As(err, &cerr) || cerr.EndpointError.Tag != files.ListFolderContinueErrorReset {
		t.Fatalf("continue after reset: %v", err)
	}
}

func TestSessions(t *testing.T) {
	const block = 4 << 20
	data := bytes.Repeat([]byte("0123456789abcdef"), (2*block+4096)/16)
	s, conf := start(t, dropboxtest.Options{})
	api := files.NewContext(conf)
	ctx := t.Context()
	begin := func(typ string) string {
		t.Helper()
		arg := files.NewUploadSessionStartArg()
		arg.SessionType = &files.UploadSessionType{Tagged: dropbox.Tagged{Tag: typ}}
		res, err := api.UploadSessionStartContext(ctx, arg, nil)
		if err != nil {
			t.Fatal(err)
		}
		return res.SessionId
	}
	add := func(id string, from, to int, last bool) string {
		arg := files.NewUploadSessionAppendArg(files.NewUploadSessionCursor(id, uint64(from)))
		arg.Close = last
		err := api.UploadSessionAppendV2Context(ctx, arg, bytes.NewReader(data[from:to]))
		var aerr files.UploadSessionAppendV2APIError
		if errors.As(err, &aerr) {
			if o := aerr.EndpointError.IncorrectOffset; o != nil {
				return fmt.Sprintf("%s %d", aerr.EndpointError.Tag, o.CorrectOffset)
			}
			return aerr.EndpointError.Tag
		}
		if err != nil {
			t.Fatal(err)
		}
		return ""
	}
	finish := func(id string, size int) (string, error) {
		arg := files.NewUploadSessionFinishArg(files.NewUploadSessionCursor(id, uint64(size)), files.NewCommitInfo("/c/"+fmt.Sprint(size)+".simg"))
		m, err := api.UploadSessionFinishContext(ctx, arg, nil)
		if err != nil {
			return "", err
		}
		return m.ContentHash, nil
	}

	id := begin("concurrent")
	for _, step := range []struct {
		from, to int
		last     bool
		want     string
	}{
		{0, 100, false, "concurrent_session_invalid_data_size"},
		{100, 100 + block, false, "concurrent_session_invalid_offset"},
		{2 * block, len(data), true, ""}, // the last one may come first
		{0, block, false, ""},
	} {
		if got := add(id, step.from, step.to, step.last); got != step.want {
			t.Errorf("append [%d,%d) = %q, want %q", step.from, step.to, got, step.want)
		}
	}
	if _, err := finish(id, len(data)); err == nil {
		t.Error("finish with a part missing succeeded")
	}
	add(id, block, 2*block, false)
	if got, err := finish(id, len(data)); err != nil || got != hashOf(data) {
		t.Errorf("finish = %q, %v", got, err)
	}

	id = begin("sequential")
	for _, step := range []struct {
		from, to int
		want     string
	}{{0, 1000, ""}, {900, 1900, "incorrect_offset 1000"}, {1000, 1234, ""}} {
		if got := add(id, step.from, step.to, false); got != step.want {
			t.Errorf("append [%d,%d) = %q, want %q", step.from, step.to, got, step.want)
		}
	}
	if got, err := finish(id, 1234); err != nil || got != hashOf(data[:1234]) {
		t.Errorf("finish = %q, %v", got, err)
	}
	if s.OpenSessions() != 0 {
		t.Errorf("%d sessions left", s.OpenSessions())
	}
}

func TestRangesAndRevisions(t *testing.T) {
	s, conf := start(t, dropboxtest.Options{})
	api := files.NewContext(conf)
	ctx := t.Context()
	old := s.Put("/ä/x.simg", []byte("0123456789"))
	s.Put("/ä/x.simg", []byte("new"))
	for _, c := range []struct{ rng, want string }{
		{"", "0123456789"}, {"bytes=0-0", "0"}, {"bytes=8-100", "89"}, {"bytes=-3", "789"}, {"bytes=5-", "56789"},
	} {
		arg := files.NewDownloadArg("rev:" + old)
		if c.rng != "" {
			arg.ExtraHeaders = map[string]string{"Range": c.rng}
		}
		m, body, err := api.DownloadContext(ctx, arg)
		if err != nil {
			t.Fatalf("%q: %v", c.rng, err)
		}
		got, err := io.ReadAll(body)
		body.Close()
		if err != nil || string(got) != c.want || m.Rev != old || m.PathDisplay != "/ä/x.simg" {
			t.Errorf("%q = %q, %v of %+v", c.rng, got, err, m)
		}
	}
	arg := files.NewDownloadArg("rev:" + old)
	arg.ExtraHeaders = map[string]string{"Range": "bytes=10-"}
	if _, _, err := api.DownloadContext(ctx, arg); err == nil || !errors.As(err, new(dropbox.SDKInternalError)) {
		t.Errorf("range past the end: %v", err)
	}
	s.Move("/ä/x.simg", "/ä/y.simg")
	revs, err := api.ListRevisionsContext(ctx, files.NewListRevisionsArg("/ä/x.simg"))
	if err != nil || !revs.IsDeleted || len(revs.Entries) != 2 || revs.Entries[1].Rev != old {
		t.Errorf("revisions = %+v, %v", revs, err)
	}
	s.Forget("/ä/x.simg")
	var derr files.DownloadAPIError
	if _, _, err = api.DownloadContext(ctx, files.NewDownloadArg("rev:"+old)); !errors.As(err, &derr) || derr.EndpointError.Path.Tag != "not_found" {
		t.Errorf("forgotten revision: %v", err)
	}
}

func TestMoveCopyDelete(t *testing.T) {
	s, conf := start(t, dropboxtest.Options{})
	api := files.NewContext(conf)
	ctx := t.Context()
	rev := s.Put("/A/one.simg", []byte("1"))
	s.Put("/A/two.simg", []byte("2"))
	move := func(from, to string) error {
		_, err := api.MoveV2Context(ctx, files.NewRelocationArg(from, to))
		return err
	}
	var merr files.MoveV2APIError
	if err := move("/a/one.simg", "/a/two.simg"); !errors.As(err, &merr) || merr.EndpointError.To.Conflict.Tag != "file" {
		t.Errorf("move over a file: %v", err)
	}
	if err := move("/a/one.simg", "/A/ONE.simg"); err != nil || !slices.Contains(s.Paths(), "/A/one.simg") {
		t.Errorf("case-only move: %v, %q", err, s.Paths())
	}
	if err := move("/a", "/a/b"); err == nil {
		t.Error("a folder moved into itself")
	}
	if err := move("/A", "/B/C"); err != nil || !slices.Equal(s.Paths(), []string{"/B/C/one.simg", "/B/C/two.simg"}) {
		t.Errorf("move of a folder: %v, %q", err, s.Paths())
	}
	if _, err := api.CopyV2Context(ctx, files.NewRelocationArg("/B", "/D")); err != nil || len(s.Paths()) != 4 {
		t.Errorf("copy of a folder: %v, %q", err, s.Paths())
	}
	del := files.NewDeleteArg("/b/c/one.simg")
	del.ParentRev = rev // the move gave it another
	var derr files.DeleteV2APIError
	if _, err := api.DeleteV2Context(ctx, del); !errors.As(err, &derr) || derr.EndpointError.PathWrite.Conflict.Tag != "file" {
		t.Errorf("delete of another revision: %v", err)
	}
	if _, err := api.DeleteV2Context(ctx, files.NewDeleteArg("/b")); err != nil || len(s.Paths()) != 2 || s.Used() != 2 {
		t.Errorf("delete of a folder: %v, %q, %d bytes", err, s.Paths(), s.Used())
	}
}

func TestFaults(t *testing.T) {
	s, conf := start(t, dropboxtest.Options{})
	api := files.NewContext(conf)
	data := bytes.Repeat([]byte("x"), 100_000)
	s.Put("/x.simg", data)
	read := func(f *dropboxtest.Fault) ([]byte, error) {
		s.SetHook(func(*http.Request) *dropboxtest.Fault { return f })
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, body, err := api.DownloadContext(ctx, files.NewDownloadArg("/x.simg"))
		if err != nil {
			return nil, err
		}
		defer body.Close()
		return io.ReadAll(body)
	}
	if got, err := read(&dropboxtest.Fault{Break: dropboxtest.Cut, At: 50_000}); !errors.Is(err, io.ErrUnexpectedEOF) || len(got) != 50_000 {
		t.Errorf("cut: %d bytes, %v", len(got), err)
	}
	if got, err := read(&dropboxtest.Fault{Break: dropboxtest.Stall, At: 50_000}); !errors.Is(err, context.DeadlineExceeded) || len(got) != 50_000 {
		t.Errorf("stall: %d bytes, %v", len(got), err)
	}
	if got, err := read(&dropboxtest.Fault{Break: dropboxtest.Flip, At: 70_000}); err != nil || bytes.Equal(got, data) || got[70_000] != 'y' {
		t.Errorf("flip: %v", err)
	}
	if _, err := read(&dropboxtest.Fault{Drop: true}); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("drop: %v", err)
	}
	var rate auth.RateLimitAPIError
	if _, err := read(dropboxtest.RateLimited("too_many_requests", 7*time.Second)); !errors.As(err, &rate) || rate.RateLimitError.RetryAfter != 7 {
		t.Errorf("rate limit: %v", err)
	}
	var authErr auth.AuthAPIError
	if _, err := read(dropboxtest.Unauthorized("expired_access_token")); !errors.As(err, &authErr) || authErr.AuthError.Tag != "expired_access_token" {
		t.Errorf("expired: %v", err)
	}
	s.SetHook(func(*http.Request) *dropboxtest.Fault { return &dropboxtest.Fault{Act: true, Status: 503} })
	if _, err := api.DeleteV2Context(t.Context(), files.NewDeleteArg("/x.simg")); err == nil || len(s.Paths()) != 0 {
		t.Errorf("lost answer: %v, %q", err, s.Paths())
	}
	if n := s.Count("files/download"); n.Requests != 6 || n.Out < 200_000 || n.Errors != 2 {
		t.Errorf("counted %+v", n)
	}
}

func TestPeople(t *testing.T) {
	s, conf := start(t, dropboxtest.Options{Space: 1000})
	ctx := t.Context()
	s.Put("/pusheen/asaurus:green.simg", make([]byte, 300))
	if a, err := users.New(conf).GetCurrentAccount(); err != nil || a.Name.DisplayName != "Vanessa S" {
		t.Errorf("account = %+v, %v", a, err)
	}
	if u, err := users.New(conf).GetSpaceUsage(); err != nil || u.Used != 300 || u.Allocation.Individual.Allocated != 1000 {
		t.Errorf("usage = %+v, %v", u, err)
	}
	_, err := files.NewContext(conf).UploadContext(ctx, files.NewUploadArg("/big.simg"), bytes.NewReader(make([]byte, 701)))
	var uerr files.UploadAPIError
	if !errors.As(err, &uerr) || uerr.EndpointError.Path.Reason.Tag != "insufficient_space" {
		t.Errorf("upload into a full account: %v", err)
	}
	links := sharing.NewContext(conf)
	arg := sharing.NewCreateSharedLinkWithSettingsArg("/pusheen/asaurus:green.simg")
	l, err := links.CreateSharedLinkWithSettingsContext(ctx, arg)
	if err != nil {
		t.Fatal(err)
	}
	first := l.(*sharing.FileLinkMetadata).Url
	_, err = links.CreateSharedLinkWithSettingsContext(ctx, arg)
	var lerr sharing.CreateSharedLinkWithSettingsAPIError
	if !errors.As(err, &lerr) || lerr.EndpointError.SharedLinkAlreadyExists.Metadata.(*sharing.FileLinkMetadata).Url != first {
		t.Errorf("second link: %v", err)
	}
	q := files.NewSearchV2Arg("green push")
	if res, err := files.NewContext(conf).SearchV2Context(ctx, q); err != nil || len(res.Matches) != 0 {
		t.Errorf("search across folders = %+v, %v", res, err)
	}
	q.Query = "asau"
	res, err := files.NewContext(conf).SearchV2Context(ctx, q)
	if err != nil || len(res.Matches) != 1 || res.Matches[0].Metadata.Metadata.(*files.FileMetadata).Name != "asaurus:green.simg" {
		t.Errorf("search = %+v, %v", res, err)
	}
}

func TestOAuth(t *testing.T) {
	s, conf := start(t, dropboxtest.Options{})
	ctx := t.Context()
	app := oauth2.Config{ClientID: s.AppKey(), RedirectURL: "http://localhost:1/done",
		Endpoint: oauth2.Endpoint{AuthURL: s.URL + "/oauth2/authorize", TokenURL: s.URL + "/oauth2/token", AuthStyle: oauth2.AuthStyleInParams}}
	verifier := oauth2.GenerateVerifier()
	code := func() string {
		t.Helper()
		client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		resp, err := client.Get(app.AuthCodeURL("st", oauth2.S256ChallengeOption(verifier), oauth2.SetAuthURLParam("token_access_type", "offline")))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		u, err := url.Parse(resp.Header.Get("Location"))
		if err != nil || u.Query().Get("state") != "st" {
			t.Fatalf("redirected to %v, %v", u, err)
		}
		return u.Query().Get("code")
	}
	if _, err := app.Exchange(ctx, code(), oauth2.VerifierOption("something else entirely that is long enough")); !isGrant(err) {
		t.Errorf("wrong verifier: %v", err)
	}
	used := code()
	tok, err := app.Exchange(ctx, used, oauth2.VerifierOption(verifier))
	if err != nil || tok.RefreshToken == "" {
		t.Fatalf("exchange = %+v, %v", tok, err)
	}
	if _, err := app.Exchange(ctx, used, oauth2.VerifierOption(verifier)); !isGrant(err) {
		t.Errorf("second use of a code: %v", err)
	}
	conf.Token = tok.AccessToken
	if _, err := users.New(conf).GetSpaceUsage(); err != nil {
		t.Error(err)
	}
	s.ExpireTokens()
	var aerr auth.AuthAPIError
	if _, err := users.New(conf).GetSpaceUsage(); !errors.As(err, &aerr) || aerr.AuthError.Tag != "expired_access_token" {
		t.Errorf("expired: %v", err)
	}
	fresh, err := app.TokenSource(ctx, &oauth2.Token{RefreshToken: tok.RefreshToken}).Token()
	if err != nil || fresh.AccessToken == tok.AccessToken {
		t.Fatalf("refresh = %+v, %v", fresh, err)
	}
	s.RevokeAll()
	if _, err := app.TokenSource(ctx, &oauth2.Token{RefreshToken: tok.RefreshToken}).Token(); !isGrant(err) {
		t.Errorf("refresh after revocation: %v", err)
	}
}

func isGrant(err error) bool {
	var r *oauth2.RetrieveError
	return errors.As(err, &r) && r.ErrorCode == "invalid_grant"
}

// TestTLS reaches the server under Dropbox's own names, each for its routes.
func TestTLS(t *testing.T) {
	s := dropboxtest.New(dropboxtest.Options{TLS: true})
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA())
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	post := func(host string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/2/users/get_space_usage", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		req.Header.Set("Authorization", "Bearer "+s.Token())
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var body json.RawMessage
		json.NewDecoder(resp.Body).Decode(&body)
		return resp.StatusCode, resp.Proto
	}
	if code, proto := post("api.dropboxapi.com"); code != 200 || proto != "HTTP/2.0" {
		t.Errorf("api host: %d %s", code, proto)
	}
	if code, _ := post("content.dropboxapi.com"); code != 400 {
		t.Errorf("content host for an rpc route: %d", code)
	}
}

// TestBandwidth checks that a transfer takes at least the time that the line
// allows; how much more is the machine's business.
func TestBandwidth(t *testing.T) {
	s, conf := start(t, dropboxtest.Options{Bandwidth: 10 << 20})
	s.Put("/x.simg", make([]byte, 1<<20))
	begun := time.Now()
	_, body, err := files.NewContext(conf).DownloadContext(t.Context(), files.NewDownloadArg("/x.simg"))
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.Copy(io.Discard, body); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < 90*time.Millisecond {
		t.Errorf("1 MiB at 10 MiB/s took %v", took)
	}
}
