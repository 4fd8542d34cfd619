package oci

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"strings"
)

// digester checks bytes against a digest.
type digester struct {
	hash.Hash
	want string
}

// newDigester returns a digester for a digest in the form that the OCI image
// specification (descriptor.md, "Digests") gives it.
func newDigester(digest string) (*digester, error) {
	algorithm, sum, _ := strings.Cut(digest, ":")
	var h hash.Hash
	switch algorithm {
	case "sha256":
		h = sha256.New()
	case "sha512":
		h = sha512.New()
	default:
		return nil, unsupported("digest %.100q", digest)
	}
	if raw, err := hex.DecodeString(sum); err != nil || len(raw) != h.Size() || strings.ToLower(sum) != sum {
		return nil, corrupt("digest %.200q", digest)
	}
	return &digester{Hash: h, want: digest}, nil
}

// got is the digest of what was written.
func (d *digester) got() string {
	algorithm, _, _ := strings.Cut(d.want, ":")
	return algorithm + ":" + hex.EncodeToString(d.Sum(nil))
}

// check reports whether what was written is what the digest says.
func (d *digester) check(what string) error {
	if got := d.got(); got != d.want {
		return corrupt("%s has the digest %s, not %s", what, got, d.want)
	}
	return nil
}

// keyName makes a digest a file name.
func keyName(digest string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, digest)
}
