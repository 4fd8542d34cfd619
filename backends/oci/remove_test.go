package oci_test

import (
	"errors"
	iofs "io/fs"
	"net/http"
	"strings"
	"testing"

	"github.com/sregfs/sregfs/backends"
)

// TestLeftStandIn: a tag whose deleter died half-way is no image.
func TestLeftStandIn(t *testing.T) {
	srv := serve(t)
	store := open(t, srv.URL)
	const manifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",` +
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,` +
		`"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},` +
		`"layers":[],"annotations":{"io.sregfs.deleted":"x"}}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, srv.URL+"/v2/c/i/manifests/gone", strings.NewReader(manifest))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("the registry takes no such manifest: %s", resp.Status)
	}
	ref := backends.Ref{Collection: "c", Name: "i", Tag: "gone"}
	if img, err := store.Stat(t.Context(), ref); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("Stat = %v, %v; want none", img.Ref, err)
	}
	for e, err := range store.List(t.Context()) {
		if err != nil {
			t.Errorf("List: %v", err)
		} else if e.Image.Ref.Tag == ref.Tag {
			t.Errorf("%v is listed", e.Image.Ref)
		}
	}
}
