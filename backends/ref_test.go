package backends

import (
	"strings"
	"testing"
)

func TestParseURI(t *testing.T) {
	for _, c := range []struct {
		in, client string
		want       Ref
	}{
		{"dropbox://pusheen/asaurus:red", "dropbox", Ref{"pusheen", "asaurus", "red", ""}},
		{"google_drive://vsoch/x", "google-drive", Ref{"vsoch", "x", "latest", ""}},
		{"ubuntu", "", Ref{"library", "ubuntu", "latest", ""}},
		{"/ubuntu:22.04", "", Ref{"", "ubuntu", "22.04", ""}},
		{"nvidia/clara/x:1@02c08a25c8f4697e16e896239e549a2b", "", Ref{"nvidia/clara", "x", "1", "02c08a25c8f4697e16e896239e549a2b"}},
		{"library/ubuntu@sha256:ab", "", Ref{"library", "ubuntu", "latest", "sha256:ab"}},
		{"library/ubuntu:v@sha256:ab.simg", "", Ref{"library", "ubuntu", "v", "sha256:ab"}},
		{"a/Case:PATCH23Oct.sif", "", Ref{"a", "Case", "PATCH23Oct", ""}},
		{"a/we@ird:t", "", Ref{"a", "we@ird", "t", ""}},
	} {
		client, got, err := ParseURI(c.in)
		if err != nil || client != c.client || got != c.want {
			t.Errorf("ParseURI(%q) = %q, %+v, %v; want %q, %+v", c.in, client, got, err, c.client, c.want)
		}
	}
	for _, in := range []string{"", "a/", "a/:t", "a/b:", "a/b@", "../b", "a//b", "a/./b", "://x", "a/b\x00"} {
		if _, got, err := ParseURI(in); err == nil {
			t.Errorf("ParseURI(%q) = %+v, want an error", in, got)
		}
	}
}

func TestFileNames(t *testing.T) {
	for _, c := range []struct {
		ref  Ref
		want string
	}{
		{Ref{Name: "asaurus", Tag: "red"}, "asaurus:red.simg"},
		{Ref{Name: "a", Tag: "t", Version: "sha256:00"}, "a:t@sha256:00.simg"},
		{Ref{Name: "a/b", Tag: "t"}, "a%2Fb:t.simg"},
		{Ref{Name: "..", Tag: "t"}, "%2E.:t.simg"},
		{Ref{Name: "50%off 100%20", Tag: "t"}, "50%off 100%20:t.simg"},
		{Ref{Name: "a%2Fb", Tag: "t"}, "a%252Fb:t.simg"},
		{Ref{Name: "new\nline", Tag: "t"}, "new%0Aline:t.simg"},
		{Ref{Name: ":x", Tag: "t"}, "%3Ax:t.simg"},
	} {
		if got := c.ref.File(); got != c.want {
			t.Errorf("%+v.File() = %q, want %q", c.ref, got, c.want)
		}
		if got, sidecar, ok := ParseFile(c.want); !ok || sidecar || got != c.ref {
			t.Errorf("ParseFile(%q) = %+v, %v, %v; want %+v", c.want, got, sidecar, ok, c.ref)
		}
	}
	long := Ref{Name: strings.Repeat("n", 300), Tag: "t"}
	other := Ref{Name: strings.Repeat("n", 300), Tag: "u"}
	if got := long.File(); len(got) != MaxName || got == other.File() || !strings.HasSuffix(got, ".simg") {
		t.Errorf("long name became %d bytes: %q", len(got), got)
	}
	for _, name := range []string{"readme.txt", ".simg", ".a:t.simg", ":t.simg", "a:.simg", "a:t@.simg", ".sreg.json"} {
		if got, _, ok := ParseFile(name); ok {
			t.Errorf("ParseFile(%q) = %+v, want none", name, got)
		}
	}
	if got := CollectionPath("../.search/a.simg//x"); got != "%2E./%2Esearch/a%2Esimg/%/x" {
		t.Errorf("CollectionPath = %q", got)
	}
}

// FuzzFileNames checks that a tree name stays one harmless path element and
// leads back to the names it was made from.
func FuzzFileNames(f *testing.F) {
	f.Add("pusheen", "asaurus", "red", "")
	f.Add("../x", "a/b%2F", "%25", "sha256:0@1")
	f.Fuzz(func(t *testing.T, collection, name, tag, version string) {
		if name == "" || tag == "" {
			return
		}
		r := Ref{Name: name, Tag: tag, Version: version}
		file := r.File()
		if len(file) > MaxName || strings.ContainsAny(file, "/\x00") || strings.HasPrefix(file, ".") {
			t.Fatalf("%+v.File() = %q", r, file)
		}
		if strings.Contains(file, "%~") || strings.ContainsAny(tag, "@:") || strings.ContainsAny(version, "@:") || strings.Contains(name, "@") {
			return // ambiguous by nature; look-ups go by the tree's name
		}
		if got, _, ok := ParseFile(file); !ok || got != r {
			t.Fatalf("ParseFile(%q) = %+v, %v; want %+v", file, got, ok, r)
		}
		for seg := range strings.SplitSeq(CollectionPath(collection), "/") {
			if seg == "." || seg == ".." || len(seg) > MaxName || collection != "" && seg == "" {
				t.Fatalf("CollectionPath(%q) = %q", collection, CollectionPath(collection))
			}
		}
	})
}

// FuzzParseRef checks that whatever parses prints as something that parses to
// the same.
func FuzzParseRef(f *testing.F) {
	f.Add("pusheen/asaurus:red@02c08a25c8f4697e16e896239e549a2b")
	f.Add("/a@sha256:b")
	f.Add("@sha256@0")
	f.Add("a@sha512:ff@sha256:ab")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil || HasExtension(r.Version) || HasExtension(r.Tag) {
			return
		}
		if again, err := ParseRef(r.String()); err != nil || again != r {
			t.Fatalf("ParseRef(%q) = %+v; its String %q gives %+v, %v", s, r, r.String(), again, err)
		}
	})
}

// TestCutName: a name that was cut has a file name of its own, by which the image
// is found again.
func TestCutName(t *testing.T) {
	for _, ref := range []Ref{
		{Name: strings.Repeat("n", 250), Tag: "1"},
		{Name: strings.Repeat("n", 300), Tag: DefaultTag},
		{Name: "n", Tag: strings.Repeat("t", 300)},
		{Name: strings.Repeat("ñ", 130), Tag: "1"},
	} {
		file := ref.File()
		again, sidecar, ok := ParseFile(file)
		if !IsCut(file) || len(file) > MaxName || !ok || sidecar || again.File() != file {
			t.Errorf("%q leads to %+v, %v and back to %q", file, again, ok, again.File())
		}
	}
	if file := (Ref{Name: "a%~1", Tag: DefaultTag}).File(); file != "a%~1:latest.simg" {
		t.Errorf("one that was not cut is %q", file)
	}
}
