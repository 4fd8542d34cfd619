package oci

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sregfs/sregfs/backends"
)

// FuzzManifest: whatever a registry gives for a manifest, an index or a
// configuration, it is understood or refused, and what is understood can be
// used.
func FuzzManifest(f *testing.F) {
	const digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
	for _, seed := range []string{
		`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.sylabs.sif.config.v1+json","digest":"` + digest + `","size":2},"layers":[{"mediaType":"application/vnd.sylabs.sif.layer.v1.sif","digest":"` + digest + `","size":2,"annotations":{"org.opencontainers.image.title":"a.sif"}}]}`,
		`{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"` + digest + `","size":2,"data":"e30="},"layers":[{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","digest":"` + digest + `","size":-1}]}`,
		`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + digest + `","size":2,"platform":{"os":"linux","architecture":"amd64","variant":"v3"}},{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"` + digest + `","size":2}]}`,
		`{"schemaVersion":1,"architecture":"amd64","fsLayers":[{"blobSum":"` + digest + `"},{"blobSum":"` + emptyLayer + `"}],"history":[{"v1Compatibility":"{\"created\":\"2016-01-01T00:00:00Z\",\"config\":{\"Labels\":{\"a\":\"b\"}}}"}]}`,
		`{"created":"2016-01-01T00:00:00Z","config":{"Labels":{"a":"b"},"Env":["A=b"]},"rootfs":{"type":"layers","diff_ids":["` + digest + `"]}}`,
		`{"layers":[{}]}`, `{"config":{}}`, `null`, `[]`, ``,
	} {
		f.Add([]byte(seed))
	}
	ctx, stop := context.WithCancel(context.Background())
	stop() // nothing is to be asked for
	s := &Store{client: "mine", creds: &credentials{}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if chosen, err := newPlatform("linux", "amd64").choose(raw); err == nil && !digestName.MatchString(chosen) {
			t.Errorf("chose %q", chosen)
		}
		for _, mediaType := range []types.MediaType{types.OCIManifestSchema1, types.DockerManifestSchema1Signed} {
			m, err := s.understand(ctx, "c/a", fetched{digest, mediaType, raw})
			if err != nil {
				continue
			}
			for _, d := range m.oldLayers() {
				if !digestName.MatchString(d) {
					t.Errorf("a layer's digest is %q", d)
				}
			}
			img := s.image(backends.Ref{Collection: "c", Name: "a", Tag: "1"}, m)
			if img.Size < 0 && !img.Layered {
				t.Errorf("an image of %d bytes", img.Size)
			}
		}
		var f facts
		f.readConfig(json.RawMessage(raw))
	})
}

// FuzzContentRange: no range passes for another.
func FuzzContentRange(f *testing.F) {
	f.Add("bytes 5-9/10", int64(5), int64(5))
	f.Add("bytes 5-9/*", int64(5), int64(5))
	f.Add("Bytes 0-0/-2", int64(0), int64(1))
	f.Fuzz(func(t *testing.T, header string, off, n int64) {
		size, err := contentRange(header, off, n)
		if err == nil && size < -1 || err != nil && !errors.Is(err, backends.ErrUnreachable) {
			t.Errorf("contentRange(%q, %d, %d) = %d, %v", header, off, n, size, err)
		}
	})
}

// FuzzParseAddress: what passes for a registry's address is a host and no more, and
// what is shown of another holds no user and password.
func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"quay.io", "http://[::1]:5000/v2/", "https://user:secret@host", "docker.io", "ftp://x", "x?y", "a b", "host:port"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, address string) {
		host, _, err := parseAddress(address)
		if err != nil && !errors.Is(err, backends.ErrNotConfigured) || err == nil && (host == "" || strings.ContainsAny(host, "/@?#")) {
			t.Errorf("parseAddress(%q) = %q, %v", address, host, err)
		}
		if err != nil && strings.Contains(err.Error(), "user:secret@") {
			t.Errorf("the error tells the password: %v", err)
		}
	})
}

// FuzzNames: a registry's name for an image is the image's, and leads back to it.
func FuzzNames(f *testing.F) {
	f.Add("library/ubuntu", "22.04")
	f.Add("nvidia/clara/x", "a_b")
	f.Add("a//b", "..")
	f.Fuzz(func(t *testing.T, repository, tag string) {
		ref := refOf(repository, tag)
		if !validRepository(repository) || !tagName.MatchString(tag) {
			return
		}
		if !valid(ref) {
			t.Errorf("%q, tag %q became %+v, which no registry takes", repository, tag, ref)
		}
		if got := repositoryOf(ref.Collection, ref.Name); got != repository {
			t.Errorf("%q became %+v, which is %q", repository, ref, got)
		}
		if strings.Contains(ref.File(), "%~") {
			return // cut names go by the index
		}
		if back, sidecar, ok := backends.ParseFile(ref.File()); !ok || sidecar || back != (backends.Ref{Name: ref.Name, Tag: ref.Tag}) {
			t.Errorf("%+v is shown as %q, which is %+v", ref, ref.File(), back)
		}
	})
}
