package oci

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// understood is what is made of a manifest of that kind with the configuration {},
// of that media type, and one layer.
func understood(t *testing.T, mediaType types.MediaType, config, layer string) error {
	t.Helper()
	const digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
	raw := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":2,"data":"e30="},`+
		`"layers":[{"mediaType":%q,"digest":%q,"size":2}]}`, mediaType, config, digest, layer, digest)
	s := &Store{client: "mine", creds: &credentials{}}
	_, err := s.understand(t.Context(), "c/a", fetched{digest, mediaType, []byte(raw)})
	return err
}

// TestOldConfigTypes: images whose configurations lost their media type in a
// registry are images; artifacts with such configurations are none.
func TestOldConfigTypes(t *testing.T) {
	for _, config := range []string{"application/octet-stream", "application/json", "text/html"} {
		if err := understood(t, types.DockerManifestSchema2, config, string(types.DockerLayer)); err != nil {
			t.Errorf("an image with the configuration type %q: %v", config, err)
		}
		if err := understood(t, types.OCIManifestSchema1, config, string(types.OCILayer)); !errors.Is(err, iofs.ErrNotExist) {
			t.Errorf("an artifact with the configuration type %q: %v", config, err)
		}
	}
	if err := understood(t, types.DockerManifestSchema2, "application/vnd.docker.plugin.v1+json", string(types.DockerLayer)); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("a plugin: %v", err)
	}
}

// TestEncryptedLayers: an image that needs a key is refused before its layers are
// fetched, and does not pass for a corrupt one.
func TestEncryptedLayers(t *testing.T) {
	err := understood(t, types.OCIManifestSchema1, string(types.OCIConfigJSON), string(types.OCILayer)+"+encrypted")
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "encrypted") {
		t.Errorf("understand = %v, want %v", err, errors.ErrUnsupported)
	}
}
