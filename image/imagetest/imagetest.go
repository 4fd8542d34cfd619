// Package imagetest makes small real images for tests: a statically linked
// busybox as /bin/sh with all its applets, and Singularity's metadata around
// it, packed by mksquashfs. Apptainer runs them, and needs no network for it.
//
// It wants mksquashfs (Debian's squashfs-tools) and a static busybox (Debian's
// busybox-static), and fails a test that has not got them. The same Opts give
// the same bytes on one machine.
package imagetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sylabs/sif/v2/pkg/sif"
)

// LaunchLine is what a .simg has before its squashfs, and a SIF at its head.
const LaunchLine = "#!/usr/bin/env run-singularity\n"

// DefaultRunscript is the runscript of an image whose Opts have none: it runs
// its arguments in a shell.
const DefaultRunscript = "#!/bin/sh\n\nexec /bin/sh \"$@\"\n"

// Opts say what an image holds. The zero value is an image that runs a shell.
type Opts struct {
	// Runscript is DefaultRunscript if empty, and left out with NoRunscript.
	Runscript   string
	NoRunscript bool
	// What follows is absent from the image if empty. Env is shell code.
	Env, Help, Test, Startscript, Deffile string
	Labels                                map[string]string

	// Files are further files by their path: executable if they begin with
	// "#!". Links are symbolic links, path to target.
	Files, Links map[string]string
	// NoShell leaves busybox out: a smaller image that cannot run.
	NoShell bool
	// ExtraBytes adds a file /padding of so many random bytes, stored without
	// compression. Seed makes another one.
	ExtraBytes int64
	Seed       uint64

	// Compressor is mksquashfs's -comp, gzip if empty, and Mksquashfs its
	// further arguments.
	Compressor string
	Mksquashfs []string

	// NoMetadata makes a SIF without the objects beside the file system that
	// inspect reads, as Singularity did until 3.5.
	NoMetadata bool
	// Encrypted declares a SIF's file system as encrypted; it is random bytes.
	Encrypted bool
	// Arch is a SIF's architecture, amd64 if empty.
	Arch string
	// Before and After are a SIF's further objects, on either side of the
	// primary partition.
	Before, After []sif.DescriptorInput
}

// SIF makes an image in the Singularity Image Format and returns its path, in a
// directory that goes away with the test.
func SIF(t testing.TB, o Opts) string {
	t.Helper()
	fsType := sif.FsSquash
	var content io.Reader
	if o.Encrypted {
		fsType = sif.FsEncryptedSquashfs
		content = io.LimitReader(random(o.Seed), 1<<20)
	} else {
		f, err := os.Open(Squashfs(t, o))
		if err != nil {
			t.Fatalf("open the file system: %v", err)
		}
		defer f.Close()
		content = f
	}
	arch := o.Arch
	if arch == "" {
		arch = "amd64"
	}
	var objects []sif.DescriptorInput
	add := func(typ sif.DataType, r io.Reader, opts ...sif.DescriptorInputOpt) {
		d, err := sif.NewDescriptorInput(typ, r, opts...)
		if err != nil {
			t.Fatalf("make a SIF object: %v", err)
		}
		objects = append(objects, d)
	}
	if !o.NoMetadata {
		if o.Deffile != "" {
			add(sif.DataDeffile, strings.NewReader(o.Deffile))
		}
		add(sif.DataGenericJSON, bytes.NewReader(o.metadata(t)), sif.OptObjectName("inspect-metadata.json"))
	}
	objects = append(objects, o.Before...)
	add(sif.DataPartition, content, sif.OptPartitionMetadata(fsType, sif.PartPrimSys, arch))
	objects = append(objects, o.After...)

	name := filepath.Join(t.TempDir(), "image.sif")
	f, err := sif.CreateContainerAtPath(name, sif.OptCreateDeterministic(),
		sif.OptCreateWithLaunchScript(LaunchLine), sif.OptCreateWithDescriptors(objects...))
	if err != nil {
		t.Fatalf("make a SIF: %v", err)
	}
	if err := f.UnloadContainer(); err != nil {
		t.Fatalf("make a SIF: %v", err)
	}
	executable(t, name)
	return name
}

// Simg makes an image as Singularity 2.4 did, a squashfs behind a launch line,
// and returns its path.
func Simg(t testing.TB, o Opts) string {
	t.Helper()
	from, err := os.Open(Squashfs(t, o))
	if err != nil {
		t.Fatalf("open the file system: %v", err)
	}
	defer from.Close()
	name := filepath.Join(t.TempDir(), "image.simg")
	to, err := os.Create(name)
	if err != nil {
		t.Fatalf("make a simg: %v", err)
	}
	defer to.Close()
	if _, err := io.WriteString(to, LaunchLine); err != nil {
		t.Fatalf("make a simg: %v", err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatalf("make a simg: %v", err)
	}
	executable(t, name)
	return name
}

// Squashfs makes an image that is nothing but its file system, and returns its
// path.
func Squashfs(t testing.TB, o Opts) string {
	t.Helper()
	tree := Tree(t, o)
	name := filepath.Join(t.TempDir(), "image.sqfs")
	comp := o.Compressor
	if comp == "" {
		comp = "gzip"
	}
	args := []string{tree, name, "-comp", comp, "-noappend", "-quiet", "-no-progress", "-all-root",
		"-mkfs-time", "0", "-all-time", "0"}
	if o.ExtraBytes > 0 {
		args = append(args, "-action", "uncompressed@name("+padding+")")
	}
	out, err := exec.CommandContext(t.Context(), tool(t, "mksquashfs", "squashfs-tools"),
		append(args, o.Mksquashfs...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	executable(t, name)
	return name
}

const padding = "padding"

// Tree makes the directory that becomes an image's file system, and returns its
// path.
func Tree(t testing.TB, o Opts) string {
	t.Helper()
	root := t.TempDir()
	// A test's directory is the user's alone, and would be so in the image.
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatalf("make a tree: %v", err)
	}
	for _, dir := range []string{"bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "usr/bin", "var/tmp",
		".singularity.d/env", ".singularity.d/libs"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatalf("make a tree: %v", err)
		}
	}
	for name, content := range o.files(t) {
		write(t, root, name, content)
	}
	links := maps.Clone(o.Links)
	if links == nil {
		links = map[string]string{}
	}
	if !o.NoShell {
		busybox := Busybox(t)
		b, err := os.ReadFile(busybox)
		if err != nil {
			t.Fatalf("read busybox: %v", err)
		}
		list, err := exec.CommandContext(t.Context(), busybox, "--list").Output()
		if err != nil {
			t.Fatalf("busybox --list: %v", err)
		}
		for applet := range strings.FieldsSeq(string(list)) {
			if applet != "busybox" {
				links["bin/"+applet] = "busybox"
			}
		}
		write(t, root, "bin/busybox", string(b))
		if err := os.Chmod(filepath.Join(root, "bin/busybox"), 0o755); err != nil {
			t.Fatalf("make a tree: %v", err)
		}
	}
	for name, target := range links {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatalf("make a tree: %v", err)
		}
		if err := os.Symlink(target, name); err != nil {
			t.Fatalf("make a tree: %v", err)
		}
	}
	if o.ExtraBytes > 0 {
		f, err := os.Create(filepath.Join(root, padding))
		if err != nil {
			t.Fatalf("make the padding: %v", err)
		}
		defer f.Close()
		if _, err := io.CopyN(f, random(o.Seed), o.ExtraBytes); err != nil {
			t.Fatalf("make the padding: %v", err)
		}
	}
	return root
}

// files are the image's files by their path, but for busybox and padding.
func (o Opts) files(t testing.TB) map[string]string {
	files := map[string]string{
		"etc/passwd":                           "root:x:0:0:root:/root:/bin/sh\n",
		"etc/group":                            "root:x:0:\n",
		"etc/hosts":                            "",
		"etc/resolv.conf":                      "",
		".singularity.d/env/90-environment.sh": o.env(),
	}
	for name, content := range map[string]string{
		"runscript":      o.runscript(),
		"startscript":    o.Startscript,
		"test":           o.Test,
		"runscript.help": o.Help,
		"Singularity":    o.Deffile,
	} {
		if content != "" {
			files[".singularity.d/"+name] = content
		}
	}
	if o.Labels != nil {
		b, err := json.MarshalIndent(o.Labels, "", "\t")
		if err != nil {
			t.Fatalf("marshal the labels: %v", err)
		}
		files[".singularity.d/labels.json"] = string(b)
	}
	maps.Copy(files, o.Files)
	return files
}

func (o Opts) runscript() string {
	switch {
	case o.NoRunscript:
		return ""
	case o.Runscript == "":
		return DefaultRunscript
	}
	return o.Runscript
}

func (o Opts) env() string {
	if o.Env == "" {
		return "#!/bin/sh\n# Custom environment shell code should follow\n\n"
	}
	return o.Env
}

// metadata is the inspect object as Apptainer writes it.
func (o Opts) metadata(t testing.TB) []byte {
	attributes := map[string]any{
		"environment": map[string]string{"/.singularity.d/env/90-environment.sh": strings.TrimRight(o.env(), "\n")},
	}
	if o.Labels != nil {
		attributes["labels"] = o.Labels
	}
	for key, content := range map[string]string{
		"deffile": o.Deffile, "helpfile": o.Help, "runscript": o.runscript(), "startscript": o.Startscript, "test": o.Test,
	} {
		if content != "" {
			attributes[key] = strings.TrimRight(content, "\n")
		}
	}
	b, err := json.MarshalIndent(map[string]any{
		"data": map[string]any{"attributes": attributes}, "type": "container",
	}, "", "\t")
	if err != nil {
		t.Fatalf("marshal the metadata: %v", err)
	}
	return b
}

// Busybox returns the path of a statically linked busybox.
func Busybox(t testing.TB) string {
	t.Helper()
	const static = "/bin/busybox"
	if _, err := os.Stat(static); err == nil {
		return static
	}
	return tool(t, "busybox", "busybox-static")
}

func tool(t testing.TB, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: install Debian's %s", err, pkg)
	}
	return path
}

func write(t testing.TB, root, name, content string) {
	t.Helper()
	name = filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatalf("make a tree: %v", err)
	}
	mode := os.FileMode(0o644)
	if strings.HasPrefix(content, "#!") {
		mode = 0o755
	}
	if err := os.WriteFile(name, []byte(content), mode); err != nil {
		t.Fatalf("make a tree: %v", err)
	}
}

func executable(t testing.TB, name string) {
	t.Helper()
	if err := os.Chmod(name, 0o755); err != nil {
		t.Fatalf("make an image executable: %v", err)
	}
}

// random is an endless stream of the same random bytes.
func random(seed uint64) io.Reader {
	key := slices.Repeat([]byte(fmt.Sprintf("%016x", seed)), 2)
	return rand.NewChaCha8([32]byte(key))
}
