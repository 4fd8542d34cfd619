package oci

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/sregfs/sregfs/backends"
)

// oldManifest is a manifest of schema 1
// (https://distribution.github.io/distribution/spec/deprecated-schema-v1/), the
// newest layer first.
type oldManifest struct {
	Architecture string `json:"architecture"`
	FSLayers     []struct {
		BlobSum string `json:"blobSum"`
	} `json:"fsLayers"`
	History []struct {
		V1Compatibility string `json:"v1Compatibility"`
	} `json:"history"`
}

// emptyLayer is the archive without entries that stands in schema 1 for a step
// which changed no file.
const emptyLayer = "sha256:a3ed95caeb02ffe68cdd9fd84406680ae93d633cb16422d00e8a7c22955b46d4"

// readOld reads a manifest of schema 1. The configuration is that of its newest
// layer. Such an image has no diff ids, so that it can be recorded and not
// more.
func (f *facts) readOld() error {
	f.old = true
	var m oldManifest
	if err := json.Unmarshal(f.raw, &m); err != nil {
		return fmt.Errorf("%w: the manifest %s cannot be parsed", backends.ErrCorrupt, f.digest)
	}
	if len(m.FSLayers) > maxLayers {
		return fmt.Errorf("it has %d layers, %d are the most: %w", len(m.FSLayers), maxLayers, errNotSupported)
	}
	f.config = json.RawMessage("{}")
	if len(m.History) > 0 && json.Valid([]byte(m.History[0].V1Compatibility)) {
		f.config = json.RawMessage(m.History[0].V1Compatibility)
		f.readConfig(f.config)
	}
	return nil
}

// oldLayers are the digests of a manifest of schema 1, the base first.
func (f *facts) oldLayers() []string {
	var m oldManifest
	if json.Unmarshal(f.raw, &m) != nil {
		return nil
	}
	var list []string
	for _, l := range m.FSLayers {
		if l.BlobSum != emptyLayer && digestName.MatchString(l.BlobSum) {
			list = append(list, l.BlobSum)
		}
	}
	slices.Reverse(list)
	return list
}
