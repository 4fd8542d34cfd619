//go:build integration

package oci

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	iofs "io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/diskfs/go-diskfs/backend"
	diskfile "github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/squashfs"
)

// hardLayers have everything that a layer may hold and Apptainer takes.
func hardLayers(t *testing.T) []Layer {
	at := func(m member, sec int64) member {
		return m.with(func(h *tar.Header) { h.ModTime = time.Unix(sec, 500) })
	}
	var many []member
	for i := range 1500 {
		many = append(many, at(file(fmt.Sprintf("many/%s%d", strings.Repeat("m", i%60), i), noise(i)), int64(i)*1_000_000))
	}
	dir := func(name string, mode int64, uid int) member {
		return at(folder(name), 1_000_000_000).with(func(h *tar.Header) { h.Mode, h.Uid, h.Gid = mode, uid, uid })
	}
	first := slices.Concat(busybox(t), many, []member{
		dir("./", 0o711, 0), dir("many/", 0o755, 0), dir("bin/", 0o755, 0), dir("etc/", 0o755, 0), dir("d/", 0o1777, 12), dir("o/", 0o755, 0), dir("real/", 0o755, 0), dir("r/", 0o755, 0),
		file("etc/passwd", "root:x:0:0:root:/:/bin/sh\n"), file("d/gone", "1"), file("d/kept", "2"), file("d/replaced", "3"),
		file("o/gone", "1"), dir("o/sub/", 0o700, 3), file("o/sub/gone", "1"),
		symlink("via", "real"), symlink("abs", "/real"), symlink("dangling", "no/where"), symlink("long", strings.Repeat("x/", 1000)),
		file("big", noise(3<<20+5)), file("zeros", strings.Repeat("\x00", 500_000)), file("block", noise(128<<10)),
		file("suid", "s").with(func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o6755, 1234, 4_000_000_000 }),
		file("secret", "s").with(func(h *tar.Header) { h.Mode = 0 }),
		file("\xff\xfe", "bytes"), file("new\nline", "n"), file(strings.Repeat("n", 255), "long"),
		{Header: tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}},
		{Header: tar.Header{Name: "disk", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 259, Devminor: 300}},
		fifo("pipe"), hardlink("d/hard", "big"), hardlink("hardlink-to-link", "via"),
		file("caps", "c").with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{
				"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
				"SCHILY.xattr.user.u":              "v\x00w"}
		}),
		// No entry has three attributes: go-diskfs 1.9.4 panics at the third.
		file("trusted", "c").with(func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.t": "z"} }),
		file("r/a", "file"), dir("r/b/", 0o755, 0), file("r/b/x", "x"), symlink("r/c", "b"),
	})
	second := []member{
		file("d/.wh.gone", ""), at(file("d/replaced", "new"), 5), dir("o/", 0o750, 9), file("o/new", "n"), file("o/.wh..wh..opq", ""),
		file("via/through", "t"), file("abs/through2", "t"), hardlink("late", "suid"), dir("r/a/", 0o755, 0), file("r/b", "f"), dir("r/c/", 0o700, 0),
		file("r/c/in", "i"), file(".wh.not-there", ""), dir("d/", 0o1770, 13),
	}
	third := []member{file("suid", "other"), file(".wh.big", ""), file("many/.wh.1", "")}
	return []Layer{layer(t, first...), layer(t, second...), layer(t, third...)}
}

// describeDisk has a line for each entry below root.
func describeDisk(t *testing.T, root string, xattrs bool) map[string]string {
	t.Helper()
	out := map[string]string{}
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, _ iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%o %d:%d %d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", st.Size, h.Sum(nil)[:8])
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" %d,%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			line += " same as " + first[st.Ino]
		}
		buf := make([]byte, 4096)
		if n, err := unix.Llistxattr(path, buf); err != nil {
			return err
		} else if xattrs {
			names := strings.Split(string(buf[:n]), "\x00")
			slices.Sort(names)
			for _, x := range names {
				if x == "" {
					continue
				}
				val := make([]byte, 4096)
				n, err := unix.Lgetxattr(path, x, val)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" %s=%q", x, val[:n])
			}
		}
		out[name] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func diff(t *testing.T, got, want map[string]string) {
	t.Helper()
	bad := 0
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			if bad++; bad <= 10 {
				t.Errorf("%.60q\n got %s\nwant %s", name, got[name], want[name])
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			t.Errorf("%.60q is %s, and should not be", name, got[name])
		}
	}
	if bad > 10 {
		t.Errorf("and %d more", bad-10)
	}
}

// partition writes the file system of a SIF to a file.
func partition(t *testing.T, sif string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root.sqfs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(apptainer(t), "sif", "dump", "4", sif)
	cmd.Stdout = f
	if err := cmd.Run(); err != nil {
		t.Fatalf("sif dump: %v", err)
	}
	return path
}

func unsquash(t *testing.T, image string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command("unsquashfs", "-no-progress", "-strict-errors", "-d", dir, image).CombinedOutput(); err != nil {
		t.Fatalf("unsquashfs: %v\n%s", err, out)
	}
	return dir
}

// ociLayout writes the image as an OCI layout, which Apptainer can pull from.
func ociLayout(t *testing.T, config []byte, layers ...Layer) string {
	t.Helper()
	dir := t.TempDir()
	blobs := filepath.Join(dir, "blobs/sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	type descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int64             `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	put := func(p []byte, mediaType string) descriptor {
		d := descriptor{MediaType: "application/vnd.oci.image." + mediaType, Digest: sha(p), Size: int64(len(p))}
		if err := os.WriteFile(filepath.Join(blobs, strings.TrimPrefix(d.Digest, "sha256:")), p, 0o644); err != nil {
			t.Fatal(err)
		}
		return d
	}
	marshal := func(v any) []byte {
		p, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	var list []descriptor
	for _, l := range layers {
		body, err := l.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, put(p, "layer.v1.tar+gzip"))
	}
	manifest := put(marshal(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": put(config, "config.v1+json"), "layers": list}), "manifest.v1+json")
	manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	for name, v := range map[string]any{
		"index.json": map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}},
		"oci-layout": map[string]any{"imageLayoutVersion": "1.0.0"},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), marshal(v), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestEqualsApptainer compares the root file system, entry by entry, with the
// one that Apptainer makes of the same image.
func TestEqualsApptainer(t *testing.T) {
	layers := hardLayers(t)
	config := map[string]any{"Cmd": []string{"/bin/true"}, "Env": []string{"A=b"}, "Labels": map[string]string{"k": "v"}}
	theirs := filepath.Join(t.TempDir(), "theirs.sif")
	if got := run(t, []string{"APPTAINER_CACHEDIR=" + t.TempDir()}, "pull", "--disable-cache", theirs, "oci:"+ociLayout(t, configFor(t, config, layers...), layers...)); got.code != 0 {
		t.Fatalf("apptainer pull: %s", got.err)
	}
	want := describeDisk(t, unsquash(t, partition(t, theirs)), true)
	got := describeDisk(t, unsquash(t, partition(t, build(t, config, Options{}, layers...))), true)

	for _, m := range []map[string]string{got, want} {
		for name, line := range m {
			fields := strings.Fields(line)
			switch {
			case isGenerated(name):
				// The text of the scripts and the time are each builder's own.
				keep := fields[:2]
				if strings.HasPrefix(fields[0], "120") {
					keep = append(keep, fields[3])
				}
				m[name] = strings.Join(keep, " ")
			case name == "etc", name == "d", name == "real", name == "r/c", name == "o", name == "many", name == "r", name == "r/b":
				// Extraction changes a folder's time when it puts entries in.
				m[name] = strings.Join(append(fields[:2:2], fields[3:]...), " ")
			}
		}
	}
	diff(t, got, want)
}

// isGenerated reports whether a path is one that conversion adds.
func isGenerated(name string) bool {
	switch name {
	case ".", "dev", "home", "proc", "root", "sys", "tmp", "var", "var/tmp", "etc/hosts", "etc/resolv.conf", "environment", "singularity":
		return true
	}
	return strings.HasPrefix(name, ".singularity.d") || slices.Contains([]string{".exec", ".run", ".shell", ".test"}, name)
}

// TestReadersAgreeOnImage reads one hard image by four readers.
func TestReadersAgreeOnImage(t *testing.T) {
	path := partition(t, build(t, nil, Options{}, hardLayers(t)...))
	want := describeDisk(t, unsquash(t, path), true)
	for name, command := range map[string][]string{
		"kernel":        {"mount", "-t", "squashfs", "-o", "loop,ro"},
		"squashfuse_ll": {"squashfuse_ll"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			args := append(command[1:], path, dir)
			if out, err := exec.Command(command[0], args...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", command, err, out)
			}
			defer unix.Unmount(dir, unix.MNT_DETACH)
			// squashfuse 0.1 shows trusted attributes under other prefixes.
			if ll := name != "kernel"; ll {
				diff(t, describeDisk(t, dir, false), describeDisk(t, unsquash(t, path), false))
				return
			}
			diff(t, describeDisk(t, dir, true), want)
		})
	}
	t.Run("go-diskfs", func(t *testing.T) {
		var f backend.Storage
		f, err := diskfile.OpenFromPath(path, true)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		fs, err := squashfs.Read(f, st.Size(), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		err = iofs.WalkDir(fs, ".", func(name string, d iofs.DirEntry, err error) error {
			if err != nil {
				return fmt.Errorf("%q: %w", name, err)
			}
			n++
			if !d.Type().IsRegular() || !iofs.ValidPath(name) {
				return nil // package io/fs has no names that are not UTF-8
			}
			if strings.HasPrefix(name, "many/") && n%50 != 0 {
				return nil // it reads the whole listing at each open
			}
			p, err := iofs.ReadFile(fs, name)
			if err != nil {
				return fmt.Errorf("%q: %w", name, err)
			}
			if s := sha256.Sum256(p); !strings.Contains(want[name], fmt.Sprintf(" %d %x", len(p), s[:8])) {
				t.Errorf("%q has %d other bytes, want %s", name, len(p), want[name])
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if n != len(want) {
			t.Errorf("%d entries, want %d", n, len(want))
		}
	})
}
