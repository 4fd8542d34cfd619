package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"hash"
	iofs "io/fs"
	"net/http"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sregfs/sregfs/backends"
)

// The media types of a Singularity image in a registry, as Apptainer 1.4.5
// writes and reads them.
const (
	sifConfigType = "application/vnd.sylabs.sif.config.v1+json"
	sifLayerType  = "application/vnd.sylabs.sif.layer.v1.sif"
	// protoLayerType is the prototype's, misspelt as it was.
	protoLayerType = "appliciation/vnd.sylabs.sif.layer.tar"
)

const (
	// maxManifest is how long a manifest may be; registries take no longer
	// ones (OCI distribution specification, "Pushing manifests").
	maxManifest = 4 << 20
	// maxConfig is how long a configuration may be.
	maxConfig = 8 << 20
	// maxLayers is how many layers an image may have: eight times what Docker
	// can run.
	maxLayers = 1000
	// maxDepth is how deep indexes may be nested.
	maxDepth = 4
)

// acceptManifest are the kinds of manifest that are understood.
var acceptManifest = []string{
	string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
	string(types.OCIImageIndex), string(types.DockerManifestList),
	string(types.DockerManifestSchema1Signed), string(types.DockerManifestSchema1),
}

// facts are what a manifest says. They never change.
type facts struct {
	digest    string // of the manifest
	raw       []byte
	mediaType types.MediaType
	old       bool // schema 1
	manifest  v1.Manifest
	// sif is the blob of a Singularity image, nil of a container image.
	sif *v1.Descriptor
	// config is a container image's configuration, "{}" where there is none.
	config  json.RawMessage
	labels  map[string]string
	created time.Time
}

// fetched is a manifest or an index as it came.
type fetched struct {
	digest    string
	mediaType types.MediaType
	raw       []byte
}

// resolve asks which image a tag or digest of a repository stands for now. It
// costs one HEAD for what is remembered: the services that limit pulls do not
// count those (https://docs.docker.com/docker-hub/usage/pulls/).
func (s *Store) resolve(ctx context.Context, repository, reference string) (*facts, error) {
	resp, err := s.do(ctx, call{session: session{repository, pull}, method: http.MethodHead,
		url: repository + "/manifests/" + reference, accept: acceptManifest}, http.StatusOK)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	digest := resp.Header.Get("Docker-Content-Digest")
	if !digestName.MatchString(digest) {
		// Not all registries say it.
		return s.describe(ctx, repository, reference)
	}
	return s.recall(ctx, repository, digest)
}

// recall is the image that a digest stands for, which may be remembered.
func (s *Store) recall(ctx context.Context, repository, digest string) (*facts, error) {
	if f := s.memory.get(repository, digest); f != nil {
		return f, nil
	}
	return s.describe(ctx, repository, digest)
}

// describe fetches a manifest and what it needs to be understood.
func (s *Store) describe(ctx context.Context, repository, reference string) (*facts, error) {
	m, err := s.manifest(ctx, repository, reference)
	if err != nil {
		return nil, err
	}
	asked := m.digest
	for depth := 0; m.mediaType.IsIndex(); depth++ {
		if depth == maxDepth {
			return nil, fmt.Errorf("%w: more than %d indexes, one in the other", backends.ErrCorrupt, maxDepth)
		}
		child, err := s.platform.choose(m.raw)
		if err != nil {
			return nil, err
		}
		if f := s.memory.get(repository, child); f != nil {
			s.memory.put(repository, asked, f)
			return f, nil
		}
		if m, err = s.manifest(ctx, repository, child); err != nil {
			return nil, err
		}
	}
	if isStandIn(m.raw) {
		return nil, fmt.Errorf("%w: it was being deleted when its deleter died", iofs.ErrNotExist)
	}
	f, err := s.understand(ctx, repository, m)
	if err != nil {
		return nil, err
	}
	s.memory.put(repository, f.digest, f)
	s.memory.put(repository, asked, f)
	return f, nil
}

// manifest fetches a manifest or an index and checks its digest.
func (s *Store) manifest(ctx context.Context, repository, reference string) (fetched, error) {
	resp, raw, err := s.get(ctx, call{session: session{repository, pull}, method: http.MethodGet,
		url: repository + "/manifests/" + reference, accept: acceptManifest}, maxManifest)
	if err != nil {
		return fetched{}, err
	}
	m := fetched{mediaType: mediaTypeOf(resp.Header.Get("Content-Type")), raw: raw}
	var head struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     types.MediaType   `json:"mediaType"`
		Manifests     []json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(m.raw, &head); err != nil {
		return fetched{}, fmt.Errorf("%w: the manifest is no JSON object", backends.ErrCorrupt)
	}
	switch {
	case head.SchemaVersion == 1:
		m.mediaType = types.DockerManifestSchema1
	case head.MediaType != "":
		m.mediaType = head.MediaType
	case len(head.Manifests) > 0:
		m.mediaType = types.OCIImageIndex
	case !m.mediaType.IsImage() && !m.mediaType.IsIndex():
		m.mediaType = types.OCIManifestSchema1
	}
	m.digest = digestOf(m.raw)
	if digestName.MatchString(reference) {
		// A signed manifest of schema 1 has the digest of what was signed, which
		// nothing but its own signature could tell.
		if !strings.HasPrefix(reference, "sha256:") {
			m.digest, _ = digestBy(reference, m.raw)
		}
		if m.digest != reference && head.SchemaVersion != 1 {
			return fetched{}, fmt.Errorf("%w: the manifest %s comes with the digest %s", backends.ErrCorrupt, reference, m.digest)
		}
		m.digest = reference
	}
	return m, nil
}

func mediaTypeOf(contentType string) types.MediaType {
	t, _, _ := strings.Cut(contentType, ";")
	return types.MediaType(strings.TrimSpace(t))
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return fmt.Sprintf("sha256:%x", sum)
}

// digestBy is b's digest by the algorithm of another one.
func digestBy(other string, b []byte) (string, bool) {
	algorithm, _, _ := strings.Cut(other, ":")
	var h hash.Hash
	switch algorithm {
	case "sha256":
		h = sha256.New()
	case "sha512":
		h = sha512.New()
	default:
		return "", false
	}
	h.Write(b)
	return fmt.Sprintf("%s:%x", algorithm, h.Sum(nil)), true
}

// understand says what a manifest is the manifest of.
func (s *Store) understand(ctx context.Context, repository string, m fetched) (*facts, error) {
	f := &facts{digest: m.digest, raw: m.raw, mediaType: m.mediaType}
	if m.mediaType.IsSchema1() {
		return f, f.readOld()
	}
	parsed, err := v1.ParseManifest(bytes.NewReader(m.raw))
	if err != nil {
		return nil, fmt.Errorf("%w: the manifest %s cannot be parsed", backends.ErrCorrupt, m.digest)
	}
	f.manifest = *parsed
	if len(f.manifest.Layers) > maxLayers {
		return nil, fmt.Errorf("it has %d layers, %d are the most: %w", len(f.manifest.Layers), maxLayers, errNotSupported)
	}
	for _, d := range f.manifest.Layers {
		if d.Size < 0 {
			return nil, fmt.Errorf("%w: a layer of %d bytes", backends.ErrCorrupt, d.Size)
		}
	}
	switch kind := kindOf(m.mediaType, &f.manifest); kind {
	case singularity:
		f.sif = &f.manifest.Layers[0]
		return f, nil
	case other:
		return nil, fmt.Errorf("%w: it is an artifact of the type %q: %w", errNotImage, artifactType(&f.manifest), iofs.ErrNotExist)
	}
	for _, l := range f.manifest.Layers {
		// As https://github.com/containers/ocicrypt marks what needs a key.
		if strings.HasSuffix(string(l.MediaType), "+encrypted") {
			return nil, fmt.Errorf("its layers are encrypted: %w", errNotSupported)
		}
	}
	if f.config, err = s.config(ctx, repository, f.manifest.Config); err != nil {
		return nil, err
	}
	f.readConfig(f.config)
	return f, nil
}

// kind is what a manifest may be the manifest of.
type kind int

const (
	container kind = iota
	singularity
	other
)

// kindOf goes by the layers, as Apptainer does: a Singularity image may have
// any configuration.
func kindOf(mediaType types.MediaType, m *v1.Manifest) kind {
	for _, l := range m.Layers {
		if l.MediaType == sifLayerType || l.MediaType == protoLayerType {
			if len(m.Layers) == 1 {
				return singularity
			}
			return other
		}
	}
	if isArtifact(m.ArtifactType) {
		return other
	}
	switch m.Config.MediaType {
	case types.OCIConfigJSON, types.DockerConfigJSON, "":
	case "application/octet-stream", "application/json", "text/html":
		// Registries of 2016 changed it to these
		// (https://github.com/distribution/distribution/issues/1621); Docker takes
		// such images still. In OCI's manifests they are those of artifacts.
		if mediaType != types.DockerManifestSchema2 {
			return other
		}
	default:
		return other
	}
	if len(m.Layers) == 0 {
		return container
	}
	for _, l := range m.Layers {
		// Signatures and attestations have an image's configuration, but
		// layers that are no archives.
		if strings.Contains(string(l.MediaType), "tar") {
			return container
		}
	}
	return other
}

// isArtifact reports whether something says that it is no image. Some builders
// note the type of an image's configuration there.
func isArtifact(t string) bool {
	return t != "" && t != string(types.OCIConfigJSON) && t != string(types.DockerConfigJSON)
}

func artifactType(m *v1.Manifest) string {
	t := m.ArtifactType
	if t == "" {
		t = string(m.Config.MediaType)
	}
	return t[:min(len(t), 100)]
}

// config fetches a configuration and checks its digest.
func (s *Store) config(ctx context.Context, repository string, d v1.Descriptor) (json.RawMessage, error) {
	if d.Size > maxConfig || d.Size < 0 {
		return nil, fmt.Errorf("%w: a configuration of %d bytes", backends.ErrCorrupt, d.Size)
	}
	if !digestName.MatchString(d.Digest.String()) {
		return nil, fmt.Errorf("a configuration with a digest of an unknown kind: %w", errNotSupported)
	}
	raw := d.Data // may be embedded (OCI image specification, descriptor.md)
	if len(raw) == 0 {
		_, got, err := s.get(ctx, call{session: session{repository, pull}, method: http.MethodGet,
			url: repository + "/blobs/" + d.Digest.String()}, maxConfig)
		if statusOf(err) == http.StatusNotFound {
			return nil, fmt.Errorf("%w: the registry lacks its configuration %s", backends.ErrCorrupt, d.Digest)
		} else if err != nil {
			return nil, err
		}
		raw = got
	}
	if sum, _ := digestBy(d.Digest.String(), raw); sum != d.Digest.String() {
		return nil, fmt.Errorf("%w: the configuration %s comes with the digest %s", backends.ErrCorrupt, d.Digest, sum)
	}
	return raw, nil
}

// readConfig takes out what a record shows. A configuration that cannot be
// parsed has nothing to show; whoever makes the image will say so.
func (f *facts) readConfig(raw []byte) {
	var c struct {
		Created string `json:"created"`
		Config  struct {
			Labels map[string]string `json:"Labels"`
		} `json:"config"`
	}
	if json.Unmarshal(raw, &c) != nil {
		return
	}
	f.labels = c.Config.Labels
	if t, err := time.Parse(time.RFC3339Nano, c.Created); err == nil && t.Year() > 1970 {
		f.created = t
	}
}

// remembered bounds what is kept of manifests, in bytes.
const remembered = 16 << 20

// memory remembers manifests by digest. Its zero value is empty.
type memory struct {
	mu    sync.Mutex
	facts map[string]*facts
	bytes int
}

func (m *memory) get(repository, digest string) *facts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.facts[repository+"@"+digest]
}

func (m *memory) put(repository, digest string, f *facts) {
	m.mu.Lock()
	defer m.mu.Unlock()
	cost := len(f.raw) + len(f.config) + 512
	if m.facts == nil || m.bytes+cost > remembered {
		m.facts, m.bytes = make(map[string]*facts), 0
	}
	if m.facts[repository+"@"+digest] == nil {
		m.facts[repository+"@"+digest] = f
		m.bytes += cost
	}
}
