package oci

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sregfs/sregfs/image/squash"
)

func TestFlatten(t *testing.T) {
	cases := []struct {
		name   string
		layers [][]member
		want   map[string]string
	}{
		{"whiteout of a lower file", [][]member{
			{folder("a/"), file("a/x", "1"), file("a/y", "2")},
			{file("a/.wh.x", "")},
		}, map[string]string{"a": "dir 755", "a/y": `file 644 "2"`}},
		{"whiteout of a directory", [][]member{
			{file("a/b/x", "1"), file("a/y", "2")},
			{file("a/.wh.b", "")},
		}, map[string]string{"a": "dir 755", "a/y": `file 644 "2"`}},
		{"whiteout leaves the layer's own, before it", [][]member{
			{file("a/x", "old")},
			{file("a/x", "new"), file("a/.wh.x", "")},
		}, map[string]string{"a": "dir 755", "a/x": `file 644 "new"`}},
		{"whiteout leaves the layer's own, after it", [][]member{
			{file("a/x", "old")},
			{file("a/.wh.x", ""), file("a/x", "new")},
		}, map[string]string{"a": "dir 755", "a/x": `file 644 "new"`}},
		{"whiteout of a directory that the layer fills again", [][]member{
			{folder("a/").with(func(h *tar.Header) { h.Mode = 0o700 }), file("a/old", "1")},
			{file("a/new", "2"), file(".wh.a", "")},
		}, map[string]string{"a": "dir 755", "a/new": `file 644 "2"`}},
		{"whiteout of what is not there", [][]member{
			{file("x", "1")},
			{file(".wh.y", ""), file("no/such/.wh.z", "")},
		}, map[string]string{"x": `file 644 "1"`}},
		{"opaque directory", [][]member{
			{file("a/b/x", "1"), file("a/y", "2"), file("z", "3")},
			{folder("a/"), file("a/new", "4"), file("a/.wh..wh..opq", "")},
		}, map[string]string{"a": "dir 755", "a/new": `file 644 "4"`, "z": `file 644 "3"`}},
		{"opaque root", [][]member{
			{file("a/b/x", "1"), file("z", "3")},
			{file(".wh..wh..opq", ""), file("a/n", "2")},
		}, map[string]string{"a": "dir 755", "a/n": `file 644 "2"`}},
		{"whiteout goes through a lower link", [][]member{
			{folder("real"), file("real/x", "1"), symlink("l", "real")},
			{file("l/.wh.x", "")},
		}, map[string]string{"real": "dir 755", "l": "-> real"}},
		{"entries go through a lower link", [][]member{
			{folder("usr/lib"), symlink("lib", "usr/lib")},
			{file("lib/x", "1")},
		}, map[string]string{"usr": "dir 755", "usr/lib": "dir 755", "lib": "-> usr/lib", "usr/lib/x": `file 644 "1"`}},
		{"a directory replaces a link", [][]member{
			{folder("usr/lib"), symlink("lib", "usr/lib")},
			{folder("lib/"), file("lib/x", "1")},
		}, map[string]string{"usr": "dir 755", "usr/lib": "dir 755", "lib": "dir 755", "lib/x": `file 644 "1"`}},
		{"links stay inside", [][]member{
			{symlink("up", "../../../../etc"), symlink("abs", "/etc"), symlink("dots", "a/../../x")},
			{file("up/one", "1"), file("abs/two", "2"), file("dots/three", "3")},
		}, map[string]string{"up": "-> ../../../../etc", "abs": "-> /etc", "dots": "-> a/../../x", "etc": "dir 755",
			"etc/one": `file 644 "1"`, "etc/two": `file 644 "2"`, "a": "dir 755", "x": "dir 755", "x/three": `file 644 "3"`}},
		{"names stay inside", [][]member{
			{file("../../etc/passwd", "1"), file("/abs", "2"), file("./a/../../b", "3"), file("c//d/./e", "4")},
		}, map[string]string{"etc": "dir 755", "etc/passwd": `file 644 "1"`, "abs": `file 644 "2"`,
			"b": `file 644 "3"`, "c": "dir 755", "c/d": "dir 755", "c/d/e": `file 644 "4"`}},
		{"hard links", [][]member{
			{file("a", "1"), hardlink("b", "a"), hardlink("d/c", "./a")},
		}, map[string]string{"a": `file 644 "1"`, "b": "same as a", "d": "dir 755", "d/c": "same as b"}},
		{"hard link to a lower layer, which is replaced", [][]member{
			{file("a", "1")},
			{hardlink("b", "/a")},
			{file("a", "2")},
		}, map[string]string{"a": `file 644 "2"`, "b": `file 644 "1"`}},
		{"hard link of what goes", [][]member{
			{file("a", "1")},
			{hardlink("b", "a"), file(".wh.a", "")},
		}, map[string]string{"b": `file 644 "1"`}},
		{"hard links before their targets", [][]member{
			{hardlink("c", "b"), hardlink("b", "a"), file("a", "1")},
		}, map[string]string{"a": `file 644 "1"`, "b": "same as a", "c": "same as b"}},
		{"hard link to a link", [][]member{
			{symlink("l", "nowhere"), hardlink("m", "l")},
		}, map[string]string{"l": "-> nowhere", "m": "same as l"}},
		{"hard link to itself", [][]member{
			{file("a", "1"), hardlink("a", "a")},
		}, map[string]string{"a": `file 644 "1"`}},
		{"types are replaced", [][]member{
			{file("a", "1"), folder("b"), file("b/x", "2"), symlink("c", "b"), fifo("d")},
			{folder("a"), file("b", "3"), fifo("c"), symlink("d", "a")},
		}, map[string]string{"a": "dir 755", "b": `file 644 "3"`, "c": "fifo 600", "d": "-> a"}},
		{"a file in the way of a directory", [][]member{
			{file("a", "1")},
			{file("a/b/c", "2")},
		}, map[string]string{"a": "dir 755", "a/b": "dir 755", "a/b/c": `file 644 "2"`}},
		{"the last of a name counts", [][]member{
			{file("a", "1"), file("a", "2"), folder("d").with(func(h *tar.Header) { h.Mode = 0o700 }), file("d/x", "3"), folder("d")},
		}, map[string]string{"a": `file 644 "2"`, "d": "dir 755", "d/x": `file 644 "3"`}},
		{"odd names", [][]member{
			{file("\xff\xfe", "1"), file("new\nline", "2"), file(strings.Repeat("n", 255), "3"), file(" ", "4")},
		}, map[string]string{"\xff\xfe": `file 644 "1"`, "new\nline": `file 644 "2"`, strings.Repeat("n", 255): `file 644 "3"`, " ": `file 644 "4"`}},
		{"AUFS's own", [][]member{
			{folder(".wh..wh.plnk"), file(".wh..wh.plnk/7.8", "1"), hardlink("a", ".wh..wh.plnk/7.8"), file(".wh..wh.aufs", ""), file("d/.wh..wh.orph", "")},
		}, map[string]string{"a": `file 644 "1"`}},
		{"owners, modes, devices, attributes", [][]member{{
			file("suid", "s").with(func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o6755, 1000, 4_000_000_000 }),
			member{Header: tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}},
			member{Header: tar.Header{Name: "disk", Typeflag: tar.TypeBlock, Mode: 0o600, Devmajor: 259, Devminor: 70000}},
			file("x", "").with(func(h *tar.Header) {
				h.PAXRecords = map[string]string{"SCHILY.xattr.user.b": "2", "SCHILY.xattr.security.capability": "\x01\x00",
					"SCHILY.xattr.trusted.t": "", "SCHILY.xattr.security.selinux": "l", "SCHILY.xattr.system.posix_acl_access": "x"}
			}),
		}}, map[string]string{"suid": `file 6755 1000:4000000000 "s"`, "null": "char 666 1,3", "disk": "block 600 259,70000",
			"x": `file 644 "" security.capability="\x01\x00" trusted.t="" user.b="2"`}},
		{"eStargz's own", [][]member{
			{file(".prefetch.landmark", "\x0f"), file("a", "1"), file("d/stargz.index.json", "2"), file("stargz.index.json", "{}")},
			{file(".no.prefetch.landmark", "kept, because no index ends this layer")},
		}, map[string]string{"a": `file 644 "1"`, "d": "dir 755", "d/stargz.index.json": `file 644 "2"`,
			".no.prefetch.landmark": `file 644 "kept, because no index ends this layer"`}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var layers []Layer
			for _, members := range c.layers {
				layers = append(layers, layer(t, members...))
			}
			got, err := flat(t, layers...)
			if err != nil {
				t.Fatalf("flatten: %v", err)
			}
			for _, name := range slices.Sorted(maps.Keys(c.want)) {
				if got[name] != c.want[name] {
					t.Errorf("%q = %s, want %s", name, got[name], c.want[name])
				}
			}
			for name := range got {
				if _, ok := c.want[name]; !ok {
					t.Errorf("%q = %s, want nothing", name, got[name])
				}
			}
		})
	}
}

func TestFlattenRoot(t *testing.T) {
	s := scanLayers(t, layer(t, folder("./").with(func(h *tar.Header) { h.Mode, h.Uid = 0o711, 5 })))
	tr := newTree(squash.Inode{})
	if err := flatten(t.Context(), tr, s.contents); err != nil {
		t.Fatal(err)
	}
	if i := tr.root.inode; i.Mode != 0o40711 || i.UID != 5 {
		t.Errorf("root is %o, owner %d", i.Mode, i.UID)
	}
}

func TestFlattenRefuses(t *testing.T) {
	loop := []member{symlink("a", "b"), symlink("b", "a"), file("a/x", "")}
	var deep []member
	at := "d"
	for i := range 12 { // each link leads 200 folders deeper than the one before
		deep = append(deep, folder(at+strings.Repeat("/d", 200)), symlink(fmt.Sprint("l", i), at+strings.Repeat("/d", 200)))
		at = fmt.Sprint("l", i)
	}
	cases := []struct {
		name    string
		members []member
		kind    error
	}{
		{"links in a circle", loop, ErrCorrupt},
		{"hard link to nothing", []member{hardlink("a", "b")}, ErrCorrupt},
		{"hard links in a circle", []member{hardlink("a", "b"), hardlink("b", "a")}, ErrCorrupt},
		{"hard link to a directory", []member{folder("a"), hardlink("b", "a")}, ErrCorrupt},
		{"too deep", deep, ErrUnsupported},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := flat(t, layer(t, c.members...))
			var le *LayerError
			if !errors.Is(err, c.kind) || !errors.As(err, &le) {
				t.Errorf("flatten = %v, want %v in a LayerError", err, c.kind)
			}
		})
	}
}

// TestFlattenCancelled: contexts count also while links wait for their targets,
// each of which may be a long way through other links.
func TestFlattenCancelled(t *testing.T) {
	s := scanLayers(t, layer(t, hardlink("a", "b")))
	// It is asked before the layer, and before its entries.
	ctx := &endingContext{t.Context(), 2}
	if err := flatten(ctx, newTree(squash.Inode{}), s.contents); !errors.Is(err, context.Canceled) {
		t.Errorf("flatten = %v, want context.Canceled", err)
	}
}

// TestThousandsOfLayers would not end if a layer cost more than its entries.
func TestThousandsOfLayers(t *testing.T) {
	base := []member{}
	for i := range 3000 {
		base = append(base, file(fmt.Sprintf("dir/%d", i), "x"))
	}
	s := scanLayers(t, layer(t, base...), layer(t, file("dir/.wh.5", ""), file("dir/n", "1"), file("other/.wh..wh..opq", "")))
	root := &Contents{}
	for i := range 20_000 {
		root.list = appendEntry(root.list, &entry{kind: kindDir, name: fmt.Sprint(i)})
	}
	many := []*Contents{root, s.contents[0]}
	for range 20_000 {
		many = append(many, s.contents[1])
	}
	tr := newTree(squash.Inode{})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := flatten(ctx, tr, many); err != nil {
		t.Fatal(err)
	}
	if n := len(tr.root.children["dir"].children); n != 3000 {
		t.Errorf("%d names, want 3000", n)
	}
}
