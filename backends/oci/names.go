package oci

import (
	"regexp"
	"strings"

	"github.com/sregfs/sregfs/backends"
)

// What repositories and tags may be called (OCI distribution specification,
// "Pulling manifests").
var (
	repositoryName = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagName        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	digestName     = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$`)
)

// maxRepository is the longest name that registries take.
const maxRepository = 255

// repositoryOf is the repository of an image.
func repositoryOf(collection, name string) string {
	if collection == "" {
		return name
	}
	return collection + "/" + name
}

// refOf is the image that a tag of a repository names.
func refOf(repository, tag string) backends.Ref {
	r := backends.Ref{Name: repository, Tag: tag}
	if i := strings.LastIndexByte(repository, '/'); i >= 0 {
		r.Collection, r.Name = repository[:i], repository[i+1:]
	}
	return r
}

// validRepository reports whether a registry can have such a repository.
func validRepository(repository string) bool {
	return len(repository) <= maxRepository && repositoryName.MatchString(repository)
}

// valid reports whether a registry can have an image of that name.
func valid(ref backends.Ref) bool {
	return validRepository(repositoryOf(ref.Collection, ref.Name)) && tagName.MatchString(ref.Tag)
}

// invalidName is the error of an act that would give an image a name which no
// registry takes.
func (s *Store) invalidName(op string, ref backends.Ref) error {
	return &backends.Error{Op: op, Client: s.client, Ref: ref, Err: backends.ErrInvalidName,
		Hint: "registries take lower-case letters, digits and single . _ - in names, and upper-case letters in tags"}
}
