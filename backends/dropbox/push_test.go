package dropbox_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/dropbox"
	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

// TestPushSizes pushes images of sizes on each side of what parts and blocks
// make of them.
func TestPushSizes(t *testing.T) {
	s := serve(t, dropboxtest.Options{})
	store := open(t, s)
	const part = 8 << 20
	for _, n := range []int{0, 1, 4<<20 - 1, 4 << 20, 4<<20 + 1, part, part + 1, 2 * part, 2*part + 4<<20} {
		ref := backends.Ref{Collection: "c", Name: fmt.Sprint(n), Tag: "x"}
		data := random(n)
		img := mustPush(t, store, ref, data)
		if got, ok := s.Get(img.Key); !ok || !bytes.Equal(got, data) || img.Size != int64(n) {
			t.Errorf("%d bytes arrived as %d (%v), size %d", n, len(got), ok, img.Size)
		}
	}
	if n := s.OpenSessions(); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
	if up, all := s.Count("files/upload_session/append_v2").In+s.Count("files/upload").In, s.Used(); up != all {
		t.Errorf("%d bytes went up for %d bytes of images", up, all)
	}
}

// TestPushConflicts: nothing is replaced that the pusher has not seen.
func TestPushConflicts(t *testing.T) {
	for _, n := range []int{100, 9 << 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := serve(t, dropboxtest.Options{})
			store := open(t, s)
			data := random(n)
			commit := func(ref backends.Ref, replaces *backends.Image) error {
				u, err := store.Begin(t.Context(), ref, "")
				if err != nil {
					t.Fatal(err)
				}
				_, err = u.Commit(t.Context(), bytes.NewReader(data), int64(n), backends.Content{Replaces: replaces})
				return err
			}
			s.Put("/pusheen/asaurus:red.simg", []byte("somebody else's"))
			if err := commit(red, nil); !errors.Is(err, backends.ErrStale) {
				t.Errorf("push upon nothing seen: %v, want ErrStale", err)
			}
			seen, err := store.Stat(t.Context(), red)
			if err != nil {
				t.Fatal(err)
			}
			s.Put("/pusheen/asaurus:red.simg", []byte("changed meanwhile"))
			if err := commit(red, &seen); !errors.Is(err, backends.ErrStale) {
				t.Errorf("push upon what was replaced: %v, want ErrStale", err)
			}
			s.Put("/pusheen/asaurus:red.simg", data)
			if err := commit(red, &seen); err != nil {
				t.Errorf("push of what is there already: %v", err)
			}
			s.Delete("/pusheen/asaurus:red.simg")
			if err := commit(red, &seen); err != nil {
				t.Errorf("push upon what was deleted: %v", err)
			}
			s.Mkdir("/c/i:x.simg")
			if err := commit(backends.Ref{Collection: "c", Name: "i", Tag: "x"}, nil); !errors.Is(err, iofs.ErrExist) {
				t.Errorf("push upon a folder: %v, want ErrExist", err)
			}
			s.Put("/file", nil)
			if err := commit(backends.Ref{Collection: "file", Name: "i", Tag: "x"}, nil); !errors.Is(err, iofs.ErrExist) {
				t.Errorf("push into a file: %v, want ErrExist", err)
			}
			s.SetSpace(s.Used() + int64(n) - 1)
			if err := commit(backends.Ref{Collection: "c", Name: "big", Tag: "x"}, nil); !errors.Is(err, backends.ErrNoSpace) {
				t.Errorf("push into a full account: %v, want ErrNoSpace", err)
			}
		})
	}
}

// TestPushForgotten: an upload whose session Dropbox has dropped begins anew.
func TestPushForgotten(t *testing.T) {
	s := serve(t, dropboxtest.Options{})
	store := open(t, s)
	data := random(20 << 20)
	u, err := store.Begin(t.Context(), red, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Part(t.Context(), 0, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	state := u.State()
	s.ForgetSessions()
	err = u.Part(t.Context(), u.PartSize(), bytes.NewReader(data))
	if !errors.Is(err, backends.ErrUnreachable) || u.Sent() != 0 || u.State() != "" {
		t.Errorf("Part of a forgotten upload: %v, sent %d, state %q", err, u.Sent(), u.State())
	}
	again, err := open(t, s).Begin(t.Context(), red, state)
	if err != nil || again.Sent() != 0 {
		t.Fatalf("Begin with a forgotten upload: sent %d, %v", again.Sent(), err)
	}
	for _, u := range []backends.Upload{again, u} {
		if _, err := u.Commit(t.Context(), bytes.NewReader(data), int64(len(data)), backends.Content{}); err != nil {
			t.Errorf("Commit after all: %v", err)
		}
	}
}

// holds keeps the first answer to an append until it is let go.
type holds struct {
	http.RoundTripper
	first      *atomic.Bool
	held, goOn chan struct{}
}

func (h holds) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := h.RoundTripper.RoundTrip(req)
	if dropboxtest.Route(req) == "files/upload_session/append_v2" {
		if h.first.CompareAndSwap(false, true) {
			close(h.held)
			<-h.goOn
		}
	}
	return resp, err
}

// TestPushForgottenMeanwhile: a part that was on its way when its session was
// given up is no part of the next one.
func TestPushForgottenMeanwhile(t *testing.T) {
	s := serve(t, dropboxtest.Options{})
	set := settings(s)
	base := set.Transport.(*http.Transport)
	t.Cleanup(base.CloseIdleConnections)
	h := holds{base, new(atomic.Bool), make(chan struct{}), make(chan struct{})}
	set.Transport = h
	store, err := dropbox.Open(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	data := random(20 << 20)
	u, err := store.Begin(t.Context(), red, "")
	if err != nil {
		t.Fatal(err)
	}
	late := make(chan error)
	go func() { late <- u.Part(t.Context(), 0, bytes.NewReader(data)) }()
	<-h.held
	s.ForgetSessions()
	for _, want := range []error{backends.ErrUnreachable, nil} {
		if err := u.Part(t.Context(), u.PartSize(), bytes.NewReader(data)); !errors.Is(err, want) {
			t.Fatalf("Part = %v, want %v", err, want)
		}
	}
	close(h.goOn)
	if err := <-late; !errors.Is(err, backends.ErrUnreachable) || u.Sent() != 0 {
		t.Errorf("Part into a session that was given up = %v, sent %d", err, u.Sent())
	}
	if _, err := u.Commit(t.Context(), bytes.NewReader(data), int64(len(data)), backends.Content{}); err != nil {
		t.Errorf("Commit = %v", err)
	}
}

// tamper changes what Dropbox says of an upload.
type tamper struct{ http.RoundTripper }

func (tr tamper) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := tr.RoundTripper.RoundTrip(req)
	if err != nil || resp.StatusCode != 200 || !strings.HasPrefix(dropboxtest.Route(req), "files/upload") {
		return resp, err
	}
	var m map[string]any
	err = json.NewDecoder(resp.Body).Decode(&m)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	m["content_hash"] = strings.Repeat("0", 64)
	b, err := json.Marshal(m)
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	return resp, err
}

// TestPushCorrupt: what arrived damaged is taken back.
func TestPushCorrupt(t *testing.T) {
	s := serve(t, dropboxtest.Options{})
	set := settings(s)
	base := set.Transport.(*http.Transport)
	defer base.CloseIdleConnections()
	set.Transport = tamper{base}
	store, err := dropbox.Open(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := push(t, store, red, []byte("damaged")); !errors.Is(err, backends.ErrCorrupt) {
		t.Errorf("push = %v, want ErrCorrupt", err)
	}
	if got := s.Paths(); len(got) != 0 {
		t.Errorf("what is damaged stays: %q", got)
	}
	s.Put("/pusheen/asaurus:red.simg", []byte("the old one"))
	if _, err := push(t, store, red, []byte("damaged")); !errors.Is(err, backends.ErrCorrupt) {
		t.Errorf("push = %v, want ErrCorrupt", err)
	}
	if got, _ := s.Get("/pusheen/asaurus:red.simg"); string(got) != "the old one" {
		t.Errorf("the old image is now %q", got)
	}
}

// TestRenameLosesNothing: wherever a rename fails, both images are as they
// were.
func TestRenameLosesNothing(t *testing.T) {
	blue := backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "blue"}
	for _, c := range []struct {
		name string
		to   backends.Ref
		// fails is which call of files/move_v2 fails.
		fails int
	}{
		{"Over", blue, 1},
		{"CaseFirst", backends.Ref{Collection: "pusheen", Name: "ASAURUS", Tag: "red"}, 1},
		{"CaseSecond", backends.Ref{Collection: "pusheen", Name: "ASAURUS", Tag: "red"}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, dropboxtest.Options{})
			store := open(t, s)
			img := mustPush(t, store, red, []byte("red"))
			mustPush(t, store, blue, []byte("blue"))
			n := 0
			s.SetHook(func(r *http.Request) *dropboxtest.Fault {
				if dropboxtest.Route(r) == "files/move_v2" {
					if n++; n == c.fails {
						return dropboxtest.Refused("to", "no_write_permission")
					}
				}
				return nil
			})
			if _, err := store.Rename(t.Context(), img, c.to); !errors.Is(err, iofs.ErrPermission) {
				t.Errorf("Rename = %v, want ErrPermission", err)
			}
			for ref, want := range map[backends.Ref]string{red: "red", blue: "blue"} {
				now, err := store.Stat(t.Context(), ref)
				if err != nil || now.Ref != ref {
					t.Errorf("Stat(%s) = %s, %v", ref, now.Ref, err)
					continue
				}
				if got, err := read(t, store, now, 0, -1); err != nil || string(got) != want {
					t.Errorf("%s reads %q, %v", ref, got, err)
				}
			}
			if len(s.Paths()) != 2 {
				t.Errorf("files %q", s.Paths())
			}
		})
	}
}

// TestRemoveCollectionKeepsLateComers: what is put into a folder between the
// look and the deletion is not deleted with it.
func TestRemoveCollectionKeepsLateComers(t *testing.T) {
	s := serve(t, dropboxtest.Options{})
	store := open(t, s)
	if err := store.MakeCollection(t.Context(), "Empty"); err != nil {
		t.Fatal(err)
	}
	s.SetHook(func(r *http.Request) *dropboxtest.Fault {
		if dropboxtest.Route(r) == "files/move_v2" {
			s.SetHook(nil)
			s.Put("/Empty/late:x.simg", []byte("late"))
		}
		return nil
	})
	if err := store.RemoveCollection(t.Context(), "Empty"); !errors.Is(err, backends.ErrNotEmpty) {
		t.Errorf("RemoveCollection = %v, want ErrNotEmpty", err)
	}
	if got := s.Paths(); len(got) != 1 || got[0] != "/Empty/late:x.simg" {
		t.Errorf("files %q", got)
	}
	if err := store.RemoveCollection(t.Context(), ""); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("RemoveCollection of the root = %v", err)
	}
}
