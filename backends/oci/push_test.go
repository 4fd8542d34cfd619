package oci_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/oci"
)

// TestLostEnd: a registry that did not get to answer the request which ends an
// upload has taken it all the same, and forgets the session.
func TestLostEnd(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 3*partSize/16)
	for what, ends := range map[string]struct {
		after bool   // the registry acts on the request that is lost
		what  []byte // whose upload's end
	}{
		"image":          {true, content},
		"configuration":  {true, []byte("{}")},
		"not acted upon": {false, []byte("{}")},
	} {
		t.Run(what, func(t *testing.T) {
			h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
			digest := fmt.Sprintf("sha256:%x", sha256.Sum256(ends.what))
			lost := false
			s := serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPut || r.URL.Query().Get("digest") != digest {
					h.ServeHTTP(w, r)
					return
				}
				switch {
				case lost && ends.after:
					http.Error(w, `{"errors": [{"code": "BLOB_UPLOAD_UNKNOWN"}]}`, http.StatusNotFound)
					return
				case lost:
					h.ServeHTTP(w, r)
					return
				}
				lost = true
				if ends.after {
					h.ServeHTTP(httptest.NewRecorder(), r)
				}
				http.Error(w, "", http.StatusBadGateway)
			}))
			store := open(t, s.URL)
			oci.SetPartSize(store, partSize)
			p, _ := backends.As[backends.Pusher](store)
			ref := backends.Ref{Collection: "c", Name: "i", Tag: "t"}
			u, err := p.Begin(t.Context(), ref, "")
			if err != nil {
				t.Fatal(err)
			}
			img, err := u.Commit(t.Context(), bytes.NewReader(content), int64(len(content)), backends.Content{})
			if err != nil || img.Size != int64(len(content)) {
				t.Errorf("Commit = %+v, %v", img, err)
			}
			if !lost {
				t.Error("nothing was lost")
			}
		})
	}
}

// TestTooLarge: a proxy's limit of bodies is not the registry's lack of space.
func TestTooLarge(t *testing.T) {
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > 1000 {
			http.Error(w, "<html>413", http.StatusRequestEntityTooLarge)
			return
		}
		h.ServeHTTP(w, r)
	}))
	p, _ := backends.As[backends.Pusher](open(t, s.URL))
	u, err := p.Begin(t.Context(), backends.Ref{Collection: "c", Name: "i", Tag: "t"}, "")
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("0123456789abcdef"), 100)
	_, err = u.Commit(t.Context(), bytes.NewReader(content), int64(len(content)), backends.Content{})
	if !errors.Is(err, syscall.EFBIG) || errors.Is(err, backends.ErrNoSpace) || !strings.Contains(backends.Hint(err), "proxy") {
		t.Errorf("Commit = %v", err)
	}
}
