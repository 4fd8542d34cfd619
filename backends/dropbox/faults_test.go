package dropbox_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	iofs "io/fs"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/dropbox"
	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

// once makes a hook that gives the fault to the first request of a route.
func once(route string, f *dropboxtest.Fault) func(*http.Request) *dropboxtest.Fault {
	var done atomic.Bool
	return func(r *http.Request) *dropboxtest.Fault {
		if dropboxtest.Route(r) == route && done.CompareAndSwap(false, true) {
			return f
		}
		return nil
	}
}

// TestErrorKinds: what Dropbox, or something before it, answers, and the kind
// that the caller gets.
func TestErrorKinds(t *testing.T) {
	refused, failed := dropboxtest.Refused, dropboxtest.Failed
	stat, pushing, removing, renaming, reading, sharing := "files/get_metadata", "files/upload", "files/delete_v2",
		"files/move_v2", "files/download", "sharing/create_shared_link_with_settings"
	quoting := &dropboxtest.Fault{Status: 400, Body: `Invalid authorization value in HTTP header "Authorization": "Bearer ` + dropboxtest.DefaultToken + `"`}
	for _, c := range []struct {
		route string
		fault *dropboxtest.Fault
		want  error // nil: an error of no kind
		hint  string
	}{
		{stat, refused("path", "not_found"), iofs.ErrNotExist, ""},
		{stat, refused("path", "not_file"), iofs.ErrNotExist, ""},
		{stat, refused("path", "restricted_content"), iofs.ErrPermission, ""},
		{stat, refused("path", "locked"), backends.ErrBusy, ""},
		{stat, refused("path", "other"), nil, ""},
		{stat, refused("a_tag", "that_is_new"), nil, ""},
		{stat, dropboxtest.Unauthorized("expired_access_token"), backends.ErrAuth, "sregfs login dropbox"},
		{stat, dropboxtest.Unauthorized("invalid_access_token"), backends.ErrAuth, dropbox.TokenSetting},
		{stat, dropboxtest.Unauthorized("user_suspended"), backends.ErrAuth, ""},
		{stat, &dropboxtest.Fault{Status: 401, Body: `{"error_summary": "missing_scope/.",
			"error": {".tag": "missing_scope", "required_scope": "files.metadata.read"}}`}, iofs.ErrPermission, "files.metadata.read"},
		{stat, &dropboxtest.Fault{Status: 403, Body: `{"error_summary": "no_permission/",
			"error": {".tag": "no_permission", "no_permission": {".tag": "other"}}}`}, iofs.ErrPermission, ""},
		{stat, dropboxtest.RateLimited("too_many_requests", time.Hour), backends.ErrBusy, ""},
		{stat, quoting, backends.ErrAuth, dropbox.TokenSetting},
		{stat, failed(401), backends.ErrAuth, ""},
		{stat, failed(403), iofs.ErrPermission, ""},
		{stat, failed(404), backends.ErrUnreachable, ""},
		{stat, failed(407), backends.ErrUnreachable, ""},
		{stat, failed(409), nil, ""},
		{stat, failed(200), backends.ErrUnreachable, ""}, // a portal's page
		{stat, &dropboxtest.Fault{Status: 302, Header: http.Header{"Location": {"https://portal.example/"}}}, backends.ErrUnreachable, ""},
		{pushing, refused("payload_too_large"), errors.ErrUnsupported, ""},
		{pushing, refused("content_hash_mismatch"), backends.ErrCorrupt, ""},
		{removing, refused("path_write", "no_write_permission"), iofs.ErrPermission, ""},
		{removing, refused("path_lookup", "not_found"), iofs.ErrNotExist, ""},
		{removing, refused("path_write", "conflict", "file"), backends.ErrStale, ""},
		{renaming, refused("to", "insufficient_space"), backends.ErrNoSpace, "space"},
		{renaming, refused("to", "disallowed_name"), backends.ErrInvalidName, ""},
		{renaming, refused("insufficient_quota"), backends.ErrNoSpace, ""},
		{reading, refused("path", "restricted_content"), iofs.ErrPermission, ""},
		{reading, refused("unsupported_file"), nil, ""},
		{reading, failed(206), backends.ErrUnreachable, ""},
		{sharing, refused("email_not_verified"), iofs.ErrPermission, ""},
		{sharing, refused("path", "not_found"), iofs.ErrNotExist, ""},
	} {
		s := serve(t, dropboxtest.Options{})
		store := open(t, s)
		img := mustPush(t, store, red, []byte("data"))
		s.SetHook(func(r *http.Request) *dropboxtest.Fault {
			if dropboxtest.Route(r) == c.route || c.fault == quoting {
				return c.fault
			}
			return nil
		})
		var err error
		switch c.route {
		case stat:
			_, err = store.Stat(t.Context(), red)
		case pushing:
			_, err = push(t, store, red, []byte("other"))
		case removing:
			err = store.Remove(t.Context(), img)
		case renaming:
			_, err = store.Rename(t.Context(), img, backends.Ref{Collection: "c", Name: "new", Tag: "x"})
		case reading:
			_, err = read(t, store, img, 0, -1)
		case sharing:
			_, err = store.Share(t.Context(), img, "")
		}
		if err == nil {
			t.Errorf("%s with %d %s succeeded", c.route, c.fault.Status, c.fault.Body)
			continue
		}
		kinds := []error{iofs.ErrNotExist, iofs.ErrExist, iofs.ErrPermission, errors.ErrUnsupported, backends.ErrAuth, backends.ErrNoSpace,
			backends.ErrQuota, backends.ErrBusy, backends.ErrUnreachable, backends.ErrStale, backends.ErrCorrupt, backends.ErrInvalidName}
		for _, k := range kinds {
			if errors.Is(err, k) != (k == c.want) {
				t.Errorf("%s with %d %s: error %q, want of kind %v", c.route, c.fault.Status, c.fault.Body, err, c.want)
				break
			}
		}
		if !strings.Contains(backends.Hint(err), c.hint) {
			t.Errorf("%s with %d: hint %q, want %q in it", c.route, c.fault.Status, backends.Hint(err), c.hint)
		}
		if strings.Contains(err.Error(), s.Token()) {
			t.Errorf("the token is in %q", err)
		}
	}
}

// TestPassingFaults: what a retry mends, nobody sees. The answer's being lost
// after the act is the worst of them.
func TestPassingFaults(t *testing.T) {
	faults := map[string]*dropboxtest.Fault{
		"Failed":     dropboxtest.Failed(503),
		"Limited":    dropboxtest.RateLimited("too_many_requests", 0),
		"Contended":  dropboxtest.RateLimited("too_many_write_operations", 0),
		"LostAnswer": {Act: true, Drop: true},
	}
	big := random(9 << 20)
	to := backends.Ref{Collection: "c", Name: "new", Tag: "x"}
	acts := map[string]func(*testing.T, *dropbox.Store, backends.Image) error{
		"files/get_metadata": func(t *testing.T, s *dropbox.Store, img backends.Image) error {
			_, err := s.Stat(t.Context(), red)
			return err
		},
		"files/delete_v2": func(t *testing.T, s *dropbox.Store, img backends.Image) error {
			return s.Remove(t.Context(), img)
		},
		"files/move_v2": func(t *testing.T, s *dropbox.Store, img backends.Image) error {
			_, err := s.Rename(t.Context(), img, to)
			return err
		},
		"files/create_folder_v2": func(t *testing.T, s *dropbox.Store, img backends.Image) error {
			return s.MakeCollection(t.Context(), "made")
		},
		"files/upload": func(t *testing.T, s *dropbox.Store, img backends.Image) error {
			_, err := push(t, s, red, []byte("other"))
			return err
		},
		"files/upload_session/append_v2": func(t *testing.T, s *dropbox.Store, img backends.Image) error {
			_, err := push(t, s, to, big)
			return err
		},
		"files/upload_session/finish": func(t *testing.T, s *dropbox.Store, img backends.Image) error {
			_, err := push(t, s, red, big)
			return err
		},
		"sharing/create_shared_link_with_settings": func(t *testing.T, s *dropbox.Store, img backends.Image) error {
			_, err := s.Share(t.Context(), img, "")
			return err
		},
	}
	// All at once: they wait for their retries most of the time.
	var wg sync.WaitGroup
	for name, f := range faults {
		for route, act := range acts {
			s := serve(t, dropboxtest.Options{})
			store := open(t, s)
			img := mustPush(t, store, red, []byte("data"))
			s.ResetCounts()
			s.SetHook(once(route, f))
			wg.Go(func() {
				if err := act(t, store, img); err != nil {
					t.Errorf("%s of %s: %v", name, route, err)
				}
				if n := s.Count(route).Requests; n < 2 || n > 4 {
					t.Errorf("%s of %s: sent %d times", name, route, n)
				}
			})
		}
	}
	wg.Wait()
}

// TestRetriesAreBounded: a service that asks for more patience than there is
// gets no more requests meanwhile.
func TestRetriesAreBounded(t *testing.T) {
	s := serve(t, dropboxtest.Options{})
	store := open(t, s)
	s.SetHook(func(*http.Request) *dropboxtest.Fault { return dropboxtest.RateLimited("too_many_requests", time.Hour) })
	for range 3 {
		if _, err := store.Stat(t.Context(), red); !errors.Is(err, backends.ErrBusy) {
			t.Errorf("Stat = %v, want ErrBusy", err)
		}
	}
	if n := s.Count("files/get_metadata").Requests; n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

func TestReadFaults(t *testing.T) {
	s := serve(t, dropboxtest.Options{})
	store := open(t, s)
	data := random(300_000)
	img := mustPush(t, store, red, data)
	for name, c := range map[string]struct {
		fault *dropboxtest.Fault
		want  error
		n     int
	}{
		"Cut":        {&dropboxtest.Fault{Break: dropboxtest.Cut, At: 100_000}, io.ErrUnexpectedEOF, 100_000},
		"CutAtStart": {&dropboxtest.Fault{Break: dropboxtest.Cut}, io.ErrUnexpectedEOF, 0},
	} {
		s.SetHook(once("files/download", c.fault))
		got, err := read(t, store, img, 1000, 200_000)
		if !errors.Is(err, c.want) || len(got) != c.n || !bytes.Equal(got, data[1000:1000+c.n]) {
			t.Errorf("%s: %d bytes, %v; want %d, %v", name, len(got), err, c.n, c.want)
		}
	}
	s.SetHook(once("files/download", &dropboxtest.Fault{Break: dropboxtest.Stall, At: 100_000}))
	ctx, cancel := context.WithCancel(t.Context())
	body, err := store.OpenRange(ctx, img, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.ReadFull(body, make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := body.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled read of a stalled body: %v", err)
	}
}

// TestStale: a revision that Dropbox has no more is read from the file while
// that has the same content, and never otherwise.
func TestStale(t *testing.T) {
	s := serve(t, dropboxtest.Options{})
	store := open(t, s)
	img := mustPush(t, store, red, []byte("content"))
	s.Move("/pusheen/asaurus:red.simg", "/elsewhere/x.simg")
	s.Forget("/pusheen/asaurus:red.simg")
	if got, err := read(t, store, img, 3, 2); err != nil || string(got) != "te" {
		t.Errorf("after a move: %q, %v", got, err)
	}
	s.Put("/elsewhere/x.simg", []byte("another"))
	if got, err := read(t, store, img, 0, -1); !errors.Is(err, backends.ErrStale) {
		t.Errorf("after a replacement: %q, %v; want ErrStale", got, err)
	}
	s.Delete("/elsewhere/x.simg")
	if got, err := read(t, store, img, 0, -1); !errors.Is(err, backends.ErrStale) {
		t.Errorf("after a deletion: %q, %v; want ErrStale", got, err)
	}
	if err := store.Remove(t.Context(), img); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("Remove of what is gone: %v", err)
	}
	now := mustPush(t, store, red, []byte("new"))
	if err := store.Remove(t.Context(), img); !errors.Is(err, backends.ErrStale) {
		t.Errorf("Remove of what was replaced: %v", err)
	}
	old := now
	mustPush(t, store, red, []byte("newer"))
	old.Ref.Version = old.Revision
	if err := store.Remove(t.Context(), old); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Remove of an old version: %v", err)
	}
}
