package gdrive

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	iofs "io/fs"

	"google.golang.org/api/drive/v3"
	"google.golang.org/api/googleapi"

	"github.com/sregfs/sregfs/backends"
)

func TestRefOf(t *testing.T) {
	image := func(c, n, tag, v string) backends.Ref {
		return backends.Ref{Collection: c, Name: n, Tag: tag, Version: v}
	}
	const hash = "ed9755a0871f04db3e14971bec56a33f"
	for _, c := range []struct {
		name   string
		props  map[string]string
		folder string
		want   backends.Ref
	}{
		{"expfactory/expfactory:master.simg", nil, "", image("expfactory", "expfactory", "master", "")},
		{"vsoch/hello-world:pancakes@" + hash + ".simg", nil, "", image("vsoch", "hello-world", "pancakes", hash)},
		{"vsoch/hello-world.simg", nil, "", image("vsoch", "hello-world", "latest", "")},
		{"a/b/c:1.sif", nil, "", image("a/b", "c", "1", "")},
		{"asaurus:red.simg", nil, "pusheen", image("pusheen", "asaurus", "red", "")},
		{"asaurus:red.simg", nil, "", image("", "asaurus", "red", "")},
		{"x/asaurus:red.simg", nil, "pusheen", image("x", "asaurus", "red", "")},
		{"some upload", nil, "", image("", "some upload", "latest", "")},
		{"a/", nil, "", image("", "a/", "latest", "")},
		{"@x.simg", nil, "", image("", "@x", "latest", "")},
		// The properties say it, also where the name could not.
		{"v/a:b:t.simg", map[string]string{"collection": "v", "image": "a:b", "tag": "t", "storage": "v/a:b:t.simg", "version": "1"}, "", image("v", "a:b", "t", "1")},
		{"n:t.simg", map[string]string{"image": "n", "tag": "t", "storage": "n:t.simg"}, "", image("", "n", "t", "")},
		{"v/i:t.simg", map[string]string{"collection": "v", "image": "i", "tag": "t"}, "", image("v", "i", "t", "")},
		// Renamed in the browser since.
		{"new/name:t.simg", map[string]string{"collection": "v", "image": "i", "tag": "t", "storage": "v/i:t.simg"}, "", image("new", "name", "t", "")},
		// Half a description is none.
		{"v/i:t.simg", map[string]string{"image": "other"}, "", image("v", "i", "t", "")},
	} {
		if got := refOf(&drive.File{Name: c.name, Properties: c.props}, c.folder); got != c.want {
			t.Errorf("refOf(%q, %v, %q) = %+v, want %+v", c.name, c.props, c.folder, got, c.want)
		}
	}
}

func FuzzRefOf(f *testing.F) {
	f.Add("vsoch/hello-world:pancakes@ed97.simg", "collection", "", "")
	f.Add("", "", "", "x")
	f.Fuzz(func(t *testing.T, name, collection, img, folder string) {
		file := &drive.File{Id: "1x", Name: name, Properties: map[string]string{"collection": collection, "image": img, "tag": img}}
		if got := refOf(file, folder); got.Name == "" || got.Tag == "" {
			t.Fatalf("refOf(%q, %q, %q) = %+v", name, img, folder, got)
		}
	})
}

func TestProperties(t *testing.T) {
	labels := map[string]string{"": "no key", "type": "evil", "tag": "evil", "maintainer": "v", "long": strings.Repeat("x", 121)}
	p := properties(ref, "ed97", "name.simg", labels)
	for k, want := range map[string]string{
		"type": "container", "collection": "vsoch", "image": "hello-world", "tag": "pancakes", "storage": "name.simg",
		"version": "ed97", "uri": "vsoch/hello-world:pancakes@ed97", "maintainer": "v", "long": "", "": "",
	} {
		if p[k] != want {
			t.Errorf("property %q is %q, want %q", k, p[k], want)
		}
	}
	// A name that does not fit is in the file's name alone.
	long := backends.Ref{Collection: strings.Repeat("é", 60), Name: "n", Tag: "t"}
	p = properties(long, "ed97", objectName(long), nil)
	for _, k := range []string{"collection", "image", "tag", "uri", "storage"} {
		if v, ok := p[k]; ok {
			t.Errorf("property %q of a long name is %q", k, v)
		}
	}
	if p["type"] != "container" || p["version"] != "ed97" {
		t.Errorf("properties of a long name: %v", p)
	}
	// Labels give way.
	many := map[string]string{}
	for i := range 100 {
		many[fmt.Sprintf("label%03d", i)] = "x"
	}
	p = properties(ref, "ed97", "n", many)
	if len(p) != maxProperties || p["tag"] == "" || p["label000"] == "" || p["label099"] != "" {
		t.Errorf("%d properties: %v", len(p), p)
	}
	for k, v := range p {
		if !fits(k, v) {
			t.Errorf("property %q does not fit", k)
		}
	}
}

func TestRenamed(t *testing.T) {
	to := backends.Ref{Collection: "c", Name: "i", Tag: "t"}
	for old, want := range map[string]string{
		"expfactory/expfactory:master.simg": "c/i:t.simg",
		"a/b:x@111.simg":                    "c/i:t@222.simg",
		"a/b:x@111.sif":                     "c/i:t@222.sif",
		"b.img":                             "c/i:t.img",
		"some upload":                       "c/i:t@222.simg",
	} {
		if got := renamed(old, to, "222"); got != want {
			t.Errorf("renamed(%q) = %q, want %q", old, got, want)
		}
	}
}

func TestQuote(t *testing.T) {
	if got, want := hasProperty(`o'k`, `b\s'`), `properties has { key='o\'k' and value='b\\s\'' }`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestExplain(t *testing.T) {
	api := func(code int, reason string) error {
		e := &googleapi.Error{Code: code, Message: "planted-text", Body: "planted-text"}
		if reason != "" {
			e.Errors = []googleapi.ErrorItem{{Reason: reason, Message: "planted-text"}}
		}
		return e
	}
	s := &Store{client: "gdrive"}
	for _, c := range []struct {
		err  error
		kind error
		hint bool
	}{
		{api(401, "authError"), backends.ErrAuth, true},
		{api(401, "required"), backends.ErrAuth, true},
		{api(401, ""), backends.ErrAuth, true},
		{api(403, "rateLimitExceeded"), backends.ErrBusy, false},
		{api(403, "userRateLimitExceeded"), backends.ErrBusy, false},
		{api(429, "rateLimitExceeded"), backends.ErrBusy, false},
		{api(429, ""), backends.ErrBusy, false},
		{api(403, "storageQuotaExceeded"), backends.ErrNoSpace, true},
		{api(403, "downloadQuotaExceeded"), backends.ErrQuota, true},
		{api(403, "dailyLimitExceeded"), backends.ErrQuota, true},
		{api(403, "insufficientFilePermissions"), iofs.ErrPermission, false},
		{api(403, "cannotDownloadAbusiveFile"), iofs.ErrPermission, true},
		{api(403, "accessNotConfigured"), backends.ErrAuth, true},
		{api(403, "somethingNew"), iofs.ErrPermission, false},
		{api(403, ""), iofs.ErrPermission, false},
		{api(400, "required"), iofs.ErrInvalid, false},
		{api(400, "invalidSharingRequest"), iofs.ErrInvalid, true},
		{api(404, "notFound"), iofs.ErrNotExist, false},
		{api(410, ""), iofs.ErrNotExist, false},
		{api(409, "fileIdInUse"), iofs.ErrExist, false},
		{api(500, "backendError"), backends.ErrUnreachable, false},
		{api(503, ""), backends.ErrUnreachable, false},
		{&url.Error{Op: "Put", URL: "https://x/?upload_id=planted-text", Err: errors.New("connection reset")}, backends.ErrUnreachable, false},
		{&url.Error{Op: "Get", URL: "https://x/planted-text", Err: backends.ErrBusy}, backends.ErrBusy, false},
		{backends.ErrStale, backends.ErrStale, false},
	} {
		err := s.fail(context.Background(), "read", ref, fmt.Errorf("wrapped: %w", c.err))
		if !errors.Is(err, c.kind) || !strings.HasPrefix(err.Error(), "read gdrive://vsoch/hello-world:pancakes: ") {
			t.Errorf("%v: got %v, want %v", c.err, err, c.kind)
		}
		if _, known := c.err.(*googleapi.Error); known && strings.Contains(err.Error(), "planted") {
			t.Errorf("the service's text is in %v", err)
		}
		if (backends.Hint(err) != "") != c.hint {
			t.Errorf("%v: hint %q", err, backends.Hint(err))
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	wantKind(t, s.fail(ctx, "read", ref, api(500, "")), context.Canceled, "a call whose context is done")
}

func TestLostHidesURL(t *testing.T) {
	err := lost(&url.Error{Op: "Put", URL: "https://x/?upload_id=planted", Err: http.ErrHandlerTimeout})
	if strings.Contains(err.Error(), "planted") {
		t.Errorf("the URL is in %v", err)
	}
}
