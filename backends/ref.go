package backends

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Defaults of a URI that leaves parts out, as Docker Hub has them.
const (
	DefaultCollection = "library"
	DefaultTag        = "latest"
)

// Ref names an image within one client. Its fields are the names as the store
// has them; Dir and File give their form in the tree. A Ref made by one of the
// Parse functions is valid; the zero value is no name. It is comparable.
type Ref struct {
	// Collection may be nested ("nvidia/clara") and is empty for an image that
	// the store keeps outside of all collections.
	Collection string
	Name       string
	Tag        string
	// Version is empty for the newest version.
	Version string
}

// IsZero reports whether r names nothing.
func (r Ref) IsZero() bool { return r == Ref{} }

// String is the seeds' uri, COLLECTION/NAME:TAG[@VERSION]. An image outside of
// all collections begins with "/". A collection alone is its name.
func (r Ref) String() string {
	if r == (Ref{Collection: r.Collection}) {
		return r.Collection
	}
	s := r.Collection + "/" + r.Name + ":" + r.Tag
	if r.Version != "" {
		s += "@" + r.Version
	}
	return s
}

// Latest is r without its version.
func (r Ref) Latest() Ref { r.Version = ""; return r }

// WithVersion is r with that version.
func (r Ref) WithVersion(v string) Ref { r.Version = v; return r }

// ParseRef parses COLLECTION/NAME[:TAG][@VERSION]. No collection means
// "library", no tag "latest"; a leading "/" means outside of all collections.
// An extension .simg, .sif or .img is cut off. Case is kept.
func ParseRef(s string) (Ref, error) {
	bad := func(why string) (Ref, error) {
		return Ref{}, &Error{Op: "parse", Err: fmt.Errorf("%q: %w: %s", s, ErrInvalidName, why),
			Hint: "write it as COLLECTION/IMAGE:TAG"}
	}
	rest := s
	root := strings.HasPrefix(rest, "/")
	rest = strings.TrimPrefix(rest, "/")
	collection := ""
	if i := strings.LastIndex(rest, "/"); i >= 0 {
		collection, rest = rest[:i], rest[i+1:]
	} else if !root {
		collection = DefaultCollection
	}
	for seg := range strings.SplitSeq(collection, "/") {
		if collection != "" && (seg == "" || seg == "." || seg == "..") {
			return bad("an empty, \".\" or \"..\" part")
		}
	}
	r, ok := parseLeaf(trimExt(rest))
	if !ok || strings.ContainsRune(s, 0) {
		return bad("no image name in it")
	}
	r.Collection = collection
	return r, nil
}

// ParseURI parses a Ref with or without a client before it:
// dropbox://pusheen/asaurus:red. The client is "" when there is none.
func ParseURI(s string) (client string, ref Ref, err error) {
	if c, rest, ok := strings.Cut(s, "://"); ok {
		client, s = strings.ReplaceAll(strings.ToLower(c), "_", "-"), rest
		if client == "" {
			return "", Ref{}, &Error{Op: "parse", Err: fmt.Errorf("%q: %w: no client before \"://\"", s, ErrInvalidName)}
		}
	}
	ref, err = ParseRef(s)
	return client, ref, err
}

// Extensions that name an image, the listed one first.
var Extensions = []string{".simg", ".sif", ".img"}

// HasExtension reports whether a file's name has an image's extension.
func HasExtension(name string) bool { return trimExt(name) != name }

func trimExt(name string) string {
	for _, e := range Extensions {
		if len(name) > len(e) && strings.HasSuffix(name, e) {
			return name[:len(name)-len(e)]
		}
	}
	return name
}

// ParseObject parses the name that a store keeps an image under,
// NAME[:TAG][@VERSION] with an image's extension. A name that has no such
// extension is no image: ok is false. Nothing is decoded.
func ParseObject(name string) (r Ref, ok bool) {
	if !HasExtension(name) {
		return Ref{}, false
	}
	stem := trimExt(name)
	if r, ok = parseLeaf(stem); !ok {
		// ":red.simg", "@x.simg": an image all the same, under its whole name.
		r = Ref{Name: stem, Tag: DefaultTag}
	}
	return r, true
}

// parseLeaf splits NAME[:TAG][@VERSION]: the tag begins at the first colon,
// the version at the last "@" behind it, or at a digest, whose colon begins no
// tag.
func parseLeaf(s string) (Ref, bool) {
	r := Ref{Tag: DefaultTag}
	at := digestAt(s)
	if at < 0 {
		colon := max(strings.Index(s, ":"), 0)
		if i := strings.LastIndex(s[colon:], "@"); i >= 0 {
			at = colon + i
		}
	}
	if at >= 0 {
		s, r.Version = s[:at], s[at+1:]
		if r.Version == "" {
			return Ref{}, false
		}
	}
	name, tag, tagged := strings.Cut(s, ":")
	if tagged {
		r.Tag = tag
	}
	r.Name = name
	return r, r.Name != "" && r.Tag != ""
}

// digestAt is where the "@" stands of the digest that s ends in (OCI image
// specification, "Digests"), -1 when it ends in none.
func digestAt(s string) int {
	for _, algorithm := range []string{"@sha256:", "@sha512:"} {
		if i := strings.LastIndex(s, algorithm); i >= 0 {
			if hex := s[i+len(algorithm):]; hex != "" && strings.Trim(hex, "0123456789abcdef") == "" {
				return i
			}
		}
	}
	return -1
}

// Object is the name NAME:TAG.simg under which stores keep r, with @VERSION
// where r has one.
func (r Ref) Object() string {
	s := r.Name + ":" + r.Tag
	if r.Version != "" {
		s += "@" + r.Version
	}
	return s + Extensions[0]
}

// MaxName is the longest name of a file in the tree, in bytes.
const MaxName = 255

// File is r's file name in the tree, NAME:TAG[@VERSION].simg, with whatever
// cannot stand in a path percent-encoded. A name that is still too long is cut
// and ends in a hash of the whole. ParseFile reverses all but that: of a cut name
// it makes a Ref that no store has, with the same File.
func (r Ref) File() string { return r.file(Extensions[0]) }

// Sidecar is the file name of r's record, NAME:TAG[@VERSION].json.
func (r Ref) Sidecar() string { return r.file(SidecarExtension) }

// SidecarExtension is the ending of a record's name in the tree.
const SidecarExtension = ".json"

func (r Ref) file(ext string) string {
	stem := strings.ReplaceAll(escape(r.Name), ":", "%3A") + ":" + escape(r.Tag)
	if r.Tag == DefaultTag && wasCut(r.Name) {
		stem = strings.TrimSuffix(stem, ":"+DefaultTag) // the tag was cut off with the rest
	}
	if r.Version != "" {
		stem += "@" + escape(r.Version)
	}
	return shorten(stem, len(ext)) + ext
}

// Dir is r's collection as a path in the tree, "" for none.
func (r Ref) Dir() string { return CollectionPath(r.Collection) }

// CollectionPath is a collection's path in the tree: each part percent-encoded
// where it must be.
func CollectionPath(collection string) string {
	if collection == "" {
		return ""
	}
	segs := strings.Split(collection, "/")
	for i, s := range segs {
		// escape takes the leading dot of ".", ".." and ".search".
		s = escape(s)
		switch {
		case s == "":
			s = "%"
		case HasExtension(s) || strings.HasSuffix(s, SidecarExtension):
			// A folder must not look like an image of the tree.
			j := strings.LastIndex(s, ".")
			s = s[:j] + "%2E" + s[j+1:]
		}
		segs[i] = shorten(s, 0)
	}
	return strings.Join(segs, "/")
}

// ParseCollection reverses CollectionPath, but for names that were cut.
func ParseCollection(path string) string {
	if path == "" {
		return ""
	}
	segs := strings.Split(path, "/")
	for i, s := range segs {
		if s == "%" {
			segs[i] = ""
			continue
		}
		segs[i] = unescape(s)
	}
	return strings.Join(segs, "/")
}

// ParseFile parses a file's name in the tree, NAME[:TAG][@VERSION] with an
// image's extension or a sidecar's, and decodes it. ok is false for a name
// that cannot be an image's.
func ParseFile(name string) (r Ref, sidecar, ok bool) {
	stem, sidecar := strings.CutSuffix(name, SidecarExtension)
	if sidecar {
		stem = trimExt(stem) // x:t.simg.json
	} else if !HasExtension(name) {
		return Ref{}, false, false
	} else {
		stem = trimExt(name)
	}
	r, ok = parseLeaf(stem)
	if !ok || strings.HasPrefix(name, ".") {
		return Ref{}, false, false
	}
	r.Name, r.Tag, r.Version = unescape(r.Name), unescape(r.Tag), unescape(r.Version)
	return r, sidecar, r.Name != "" && r.Tag != ""
}

// escape percent-encodes the bytes that cannot stand in a path or would garble
// a terminal, and every "%" that unescape would otherwise take for its own.
func escape(s string) string {
	first := 0
	for first < len(s) && !mustEscape(s, first) {
		first++
	}
	if first == len(s) {
		return s
	}
	var b strings.Builder
	b.WriteString(s[:first])
	for i := first; i < len(s); i++ {
		if mustEscape(s, i) {
			fmt.Fprintf(&b, "%%%02X", s[i])
		} else {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func mustEscape(s string, i int) bool {
	c := s[i]
	// A leading dot would make a name that tools hide or take for a temporary
	// one.
	return c == '/' || c < 0x20 || c == 0x7f || c == '.' && i == 0 || c == '%' && escapeAt(s[i:])
}

// escapeAt reports whether s begins with a sequence that escape writes.
func escapeAt(s string) bool {
	if len(s) < 3 || s[0] != '%' {
		return false
	}
	v, err := hex.DecodeString(s[1:3])
	if err != nil {
		return false
	}
	c := v[0]
	return c == '/' || c == '%' || c == '.' || c == ':' || c < 0x20 || c == 0x7f
}

func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if escapeAt(s[i:]) {
			v, _ := hex.DecodeString(s[i+1 : i+3])
			b.WriteByte(v[0])
			i += 2
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// cutMark stands in a name before the hash of what was cut.
const cutMark = "%~"

// IsCut reports whether a path of the tree may have a name in it that was too long
// and was cut, so that no Parse function leads back to it.
func IsCut(path string) bool { return strings.Contains(path, cutMark) }

// wasCut reports whether s ends as shorten makes names end.
func wasCut(s string) bool {
	i := strings.LastIndex(s, cutMark)
	if i < 0 || len(s)-i != len(cutMark)+16 {
		return false
	}
	_, err := hex.DecodeString(s[i+len(cutMark):])
	return err == nil
}

// shorten cuts s so that with an extension of ext bytes it is no longer than
// MaxName; what was cut is replaced by a hash of the whole.
func shorten(s string, ext int) string {
	if len(s)+ext <= MaxName {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	mark := cutMark + hex.EncodeToString(sum[:8])
	return s[:MaxName-ext-len(mark)] + mark
}
