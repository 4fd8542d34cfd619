package oci

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sregfs/sregfs/backends"
)

// errNotSupported is errors.ErrUnsupported with a word that reads well at the end
// of a sentence.
var errNotSupported = fmt.Errorf("that is beyond this program: %w", errors.ErrUnsupported)

// platform is what an image is wanted for.
type platform struct{ os, arch, variant string }

// newPlatform makes a platform of the settings; an architecture may have its
// variant with it, "arm/v7".
func newPlatform(os, arch string) platform {
	p := platform{os: cmp.Or(strings.ToLower(os), "linux")}
	p.arch, p.variant, _ = strings.Cut(cmp.Or(strings.ToLower(arch), "amd64"), "/")
	switch p.arch { // what uname calls them
	case "x86_64":
		p.arch = "amd64"
	case "aarch64":
		p.arch = "arm64"
	}
	p.variant = plainVariant(p.arch, p.variant)
	return p
}

// plainVariant leaves out the variant that all machines of an architecture have:
// some builders write it and some do not.
func plainVariant(arch, variant string) string {
	if arch == "arm64" && variant == "v8" || arch == "amd64" && variant == "v1" {
		return ""
	}
	return variant
}

func (p platform) String() string {
	s := p.os + "/" + p.arch
	if p.variant != "" {
		s += "/" + p.variant
	}
	return s
}

// choose finds the manifest for the platform in an index (OCI image
// specification, image-index.md). Where a variant is wanted, it is the most
// demanding that runs there; otherwise the one without a name or the least
// demanding, which runs on every such machine. An error names the platforms that
// there are.
func (p platform) choose(index []byte) (string, error) {
	im, err := v1.ParseIndexManifest(bytes.NewReader(index))
	if err != nil {
		return "", fmt.Errorf("%w: the index cannot be parsed", backends.ErrCorrupt)
	}
	var fit []v1.Descriptor
	var there []string
	for _, d := range im.Manifests {
		if !d.MediaType.IsImage() && !d.MediaType.IsIndex() || isArtifact(d.ArtifactType) {
			continue
		}
		if d.Platform == nil {
			fit = append(fit, d) // an index in an index, or an odd builder's image
			continue
		}
		has := platform{d.Platform.OS, d.Platform.Architecture, plainVariant(d.Platform.Architecture, d.Platform.Variant)}
		if has.os == "unknown" {
			continue // an attestation
		}
		if has.os == p.os && has.arch == p.arch && (p.variant == "" || has.variant <= p.variant) {
			fit = append(fit, d)
		} else if s := has.String(); !slices.Contains(there, s) {
			there = append(there, s)
		}
	}
	if len(fit) == 0 {
		what := "there are none that can be told"
		if len(there) > 0 {
			slices.Sort(there)
			if len(there) > 20 {
				there = append(there[:20], "…")
			}
			what = "there are " + strings.Join(there, ", ")
		}
		return "", &backends.Error{Op: "choose the platform", Err: fmt.Errorf("not for %s; %s: %w", p, what, errors.ErrUnsupported),
			Hint: "set " + ArchitectureSetting + " or " + OSSetting}
	}
	best := slices.MinFunc(fit, func(a, b v1.Descriptor) int {
		switch {
		case a.Platform == nil && b.Platform == nil:
			return 0
		case a.Platform == nil:
			return 1 // after those that say what they are
		case b.Platform == nil:
			return -1
		case p.variant != "":
			a, b = b, a
		}
		return strings.Compare(plainVariant(p.arch, a.Platform.Variant), plainVariant(p.arch, b.Platform.Variant))
	})
	if !digestName.MatchString(best.Digest.String()) {
		return "", fmt.Errorf("%w: an index with a digest that is none", backends.ErrCorrupt)
	}
	return best.Digest.String(), nil
}
