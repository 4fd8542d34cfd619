// Package test holds what proves the project as a whole. This file pins its
// architecture: which room may import which, and why. ARCHITECTURE.md describes
// the rooms.
package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sregfs/sregfs"

// pkg is what "go list -json" says of one package. Tests' imports do not count:
// they may reach wherever they need.
type pkg struct {
	ImportPath string
	Name       string
	Imports    []string // direct
	Deps       []string // transitive
}

// A rule speaks of the rooms that match its pattern. Patterns are import paths
// below the module; "x/..." is x and all below it.
type rule struct {
	room string
	// only lists what of ours the room may depend on, directly or not, beside
	// what shares its first two folders; nil puts no limit.
	only []string
	// never lists what it must not import itself, ours (patterns as above) or
	// others' (import paths, "..." as well).
	never []string
	// unlinked lists what it must not depend on in any way, in the same form.
	unlinked []string
	// except are rooms that match room but that the rule does not speak of.
	except []string
	why    string
}

var rules = []rule{
	{room: "backends", only: []string{},
		why: "it is the vocabulary that everything else speaks; it can depend on nobody who speaks it"},
	{room: "backends/...", only: []string{"backends", "backends/login", "backends/pacer"},
		except: []string{"backends", "backends/all", "backends/backendtest"},
		why:    "a client is one store over its own library; it knows nothing of FUSE, cache, index or other clients"},
	{room: "cache/...", only: []string{},
		why: "it keeps ranges of bytes, whoever reads or delivers them, and declares the source it reads from"},
	{room: "image/...", only: []string{"image/..."},
		why: "it reads what is inside an image through io.ReaderAt, wherever the image lies"},
	{room: "index/...", only: []string{"backends", "index/..."},
		why: "it records what was seen in the shared vocabulary's types"},
	{room: "fs/...", only: []string{"backends", "cache", "cache/...", "index", "index/...", "image", "image/...", "fs/..."},
		why: "it knows the interfaces that a store fulfils, and no client by name"},
	{room: "...", never: []string{"backends/all"}, except: []string{"cmd/...", "test/..."},
		why: "the list of clients is for the wiring alone"},
	{room: "...", never: []string{"github.com/hanwen/go-fuse/v2/..."}, except: []string{"fs/...", "test/..."},
		why: "only the tree's nodes speak FUSE"},
	{room: "...", never: []string{"github.com/dropbox/..."}, except: []string{"backends/dropbox/..."},
		why: "a vendor's types stay inside of its client"},
	{room: "...", never: []string{"google.golang.org/api/drive/..."}, except: []string{"backends/gdrive/..."},
		why: "a vendor's types stay inside of its client"},
	{room: "...", never: []string{"modernc.org/sqlite/...", "database/sql"}, except: []string{"index/...", "cache/..."},
		why: "SQL stays with the rooms that keep records"},
	{room: "cmd/...", unlinked: []string{"testing", "net/http/httptest", "backends/backendtest",
		"backends/dropbox/dropboxtest", "backends/gdrive/gdrivetest"},
		why: "emulators and test helpers are no part of the program"},
}

// TestArchitecture holds the code against the rules.
func TestArchitecture(t *testing.T) {
	packages := list(t)
	if len(packages) < 5 {
		t.Fatalf("go list found %d packages; the rules would prove nothing", len(packages))
	}
	for _, b := range broken(packages, rules) {
		t.Error(b)
	}
	for _, p := range packages {
		if slices.Contains([]string{"util", "utils", "common", "helpers", "misc"}, p.Name) {
			t.Errorf("%s: a package is named for what it gives", p.ImportPath)
		}
	}
}

// TestRules shows that the rules bite: each case is a graph with one fault.
func TestRules(t *testing.T) {
	ours := func(p string) string { return module + "/" + p }
	tests := map[string]struct {
		p    pkg
		want string // part of the complaint; "" for none
	}{
		"a client may use the vocabulary": {
			p: pkg{ImportPath: ours("backends/dropbox"), Deps: []string{ours("backends"), "net/http"}}},
		"a client reaches the cache": {
			p:    pkg{ImportPath: ours("backends/dropbox"), Deps: []string{ours("backends"), ours("cache")}},
			want: "a client is one store"},
		"a client reaches another": {
			p:    pkg{ImportPath: ours("backends/dropbox"), Deps: []string{ours("backends/gdrive")}},
			want: "a client is one store"},
		"the vocabulary imports a room": {
			p:    pkg{ImportPath: ours("backends"), Deps: []string{ours("image")}},
			want: "it is the vocabulary"},
		"the cache speaks FUSE": {
			p:    pkg{ImportPath: ours("cache"), Imports: []string{"github.com/hanwen/go-fuse/v2/fs"}},
			want: "only the tree's nodes"},
		"the tree names a client": {
			p:    pkg{ImportPath: ours("fs"), Deps: []string{ours("backends/gdrive")}},
			want: "no client by name"},
		"a vendor's type outside of its client": {
			p:    pkg{ImportPath: ours("index"), Imports: []string{"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"}},
			want: "a vendor's types"},
		"the program contains an emulator": {
			p:    pkg{ImportPath: ours("cmd/sregfs"), Deps: []string{ours("backends/dropbox/dropboxtest")}},
			want: "emulators"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := broken([]pkg{tt.p}, rules)
			switch {
			case tt.want == "" && len(got) > 0:
				t.Errorf("got %q, want none", got)
			case tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)):
				t.Errorf("got %q, want one complaint with %q", got, tt.want)
			}
		})
	}
}

// broken returns a sentence for each rule that a package breaks.
func broken(packages []pkg, rules []rule) []string {
	var out []string
	for _, p := range packages {
		room := below(p.ImportPath)
		for _, r := range rules {
			if !match(r.room, room) || matchAny(r.except, room) {
				continue
			}
			for _, d := range p.Deps {
				if b := below(d); r.only != nil && b != d && !related(b, room) && !matchAny(r.only, b) {
					out = append(out, fmt.Sprintf("%s depends on %s: %s", room, b, r.why))
				}
			}
			for _, d := range p.Imports {
				if matchAny(r.never, below(d)) {
					out = append(out, fmt.Sprintf("%s imports %s: %s", room, below(d), r.why))
				}
			}
			for _, d := range p.Deps {
				if matchAny(r.unlinked, below(d)) {
					out = append(out, fmt.Sprintf("%s contains %s: %s", room, below(d), r.why))
				}
			}
		}
	}
	return out
}

// below cuts the module's path off; other import paths stay as they are.
func below(importPath string) string {
	return strings.TrimPrefix(importPath, module+"/")
}

// related reports whether two rooms share their first two folders, as an emulator
// does with its client.
func related(a, b string) bool {
	first := func(s string) string {
		parts := strings.SplitN(s, "/", 3)
		return strings.Join(parts[:min(2, len(parts))], "/")
	}
	return first(a) == first(b)
}

func match(pattern, p string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "..."); ok {
		return strings.HasPrefix(p, prefix) || p == strings.TrimSuffix(prefix, "/")
	}
	return pattern == p
}

func matchAny(patterns []string, p string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return match(pattern, p) })
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Name,Imports,Deps", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var packages []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
