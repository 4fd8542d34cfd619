//go:build integration

package integration

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sregfs/sregfs/image/imagetest"
)

// TestRegistryRun has the real Apptainer run a container image out of the
// mount, with every kind of registry.
func TestRegistryRun(t *testing.T) {
	run := apptainer(t)
	for name, o := range map[string]registryOptions{
		"plain": {}, "auth": {auth: true}, "tls": {tls: true}, "auth and tls": {auth: true, tls: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := startRegistry(t, o)
			r.push("library/tool:1.0", imageOf(t, v1.Config{
				Entrypoint: []string{"/bin/sh", "-c", `printf '<%s>' "$@"`, "sh"}, Cmd: []string{"a b", "it's", `"$HOME"`, "*"},
				Env: []string{"PATH=/bin", `ODD=a "b" $c \ 'd' ` + "`e`"}, Labels: map[string]string{"maintainer": "vsoch"},
			}, busybox(t)))
			r.push("library/tool:1", imageOf(t, v1.Config{Cmd: []string{"/bin/true"}}, busybox(t)))
			d := r.mount(t)
			d.want(`<a b><it's><"$HOME"><*>`, "%s run --no-privs lab/library/tool:1.0.simg", run)
			d.want(`<x y><z>`, "%s run --no-privs lab/library/tool:1.0.simg 'x y' z", run)
			d.want(`a "b" $c \ 'd' `+"`e`", "%s exec --no-privs --cleanenv lab/library/tool:1.0.simg sh -c 'printf %%s \"$ODD\"'", run)
			d.want("vsoch", "getfattr --only-values -n user.sregistry.label.maintainer lab/library/tool:1.0.simg")
			d.want("tool:1.0.simg tool:1.simg", "echo $(ls lab/library)")
			d.want("1 1.0", "echo $(ls lab/library/tool/)")
			d.want("../tool:1.0.simg", "readlink lab/library/tool/1.0")
			d.run("%s exec --no-privs lab/library/tool/1 true", run)
			d.fails("No such file", "stat lab/library/tool:2.simg")
			d.fails("No such file", "stat lab/library/tool/2")
			d.fails("No such file", "stat lab/library/nothing")
			d.run("cat lab/library/tool:1.0.json | python3 -c 'import json,sys; m=json.load(sys.stdin)[\"metrics\"]; assert m[\"2\"][\"layers\"] and m[\"selfLink\"].endswith(\"/v2/library/tool/manifests\"), m'")
			d.run("getfattr --only-values -n user.sregistry.manifest lab/library/tool:1.0.simg | grep -q schemaVersion")
			// Two names of one manifest are one file.
			size := d.run("stat -c %%s lab/library/tool:1.simg")
			d.want(strings.TrimSpace(size), "wc -c < lab/library/tool:1.simg")
		})
	}
}

// TestRegistryRefuses: what a registry says no to.
func TestRegistryRefuses(t *testing.T) {
	r := startRegistry(t, registryOptions{auth: true})
	r.push("library/secret:1", imageOf(t, v1.Config{Cmd: []string{"/bin/true"}}, busybox(t)))
	m := newMachine(t)
	d := m.mount("--client=lab", "--registry=lab=http://"+r.host)
	d.fails("Permission denied", "cat lab/library/secret:1.simg")
	if strings.Contains(d.log.String(), r.pass) {
		t.Error("the log holds the password")
	}
	wrong := newMachine(t, "SREGISTRY_LAB_USERNAME="+r.user, "SREGISTRY_LAB_PASSWORD=not-the-password").
		mount("--client=lab", "--registry=lab=http://"+r.host)
	wrong.fails("Permission denied", "cat lab/library/secret:1.simg")
	if strings.Contains(wrong.log.String(), "not-the-password") {
		t.Error("the log holds the password")
	}
	// The Docker credential file will do as well.
	file := newMachine(t)
	if err := os.MkdirAll(filepath.Join(file.home, ".docker"), 0o700); err != nil {
		t.Fatal(err)
	}
	shell(t, []string{"HOME=" + file.home}, "skopeo login --tls-verify=false --authfile $HOME/.docker/config.json -u '%s' -p '%s' %s", r.user, r.pass, r.host)
	with := file.mount("--client=lab", "--registry=lab=http://"+r.host)
	with.run("cat lab/library/secret:1.simg > /dev/null")
}

// TestRegistryOfTheMount: commands know a registry that only the mount was given.
func TestRegistryOfTheMount(t *testing.T) {
	r := startRegistry(t, registryOptions{})
	r.push("library/tool:1", imageOf(t, v1.Config{Cmd: []string{"/bin/true"}}, layerOf(t, regular("file", 0o644, "text"))))
	d := r.mount(t)
	d.want(filepath.Join(d.dir, "lab/library/tool:1.simg"), "%s get lab://library/tool:1", program)
	if out := d.run("%s clients", program); !strings.Contains(out, "\nlab ") {
		t.Errorf("clients does not tell of it:\n%s", out)
	}
	d.run("cat lab/library/tool:1.simg > /dev/null && %s rmi lab://library/tool:1", program)
	// A command's own word goes before, and without the mount nothing is known.
	other := startRegistry(t, registryOptions{})
	d.fails("no such image or tag", "%s get --registry=lab=http://%s lab://library/tool:1", program, other.host)
	d.unmount()
	if out, _, err := d.try("cd / && %s get lab://library/tool:1", program); err == nil {
		t.Errorf("without a mount: %s", out)
	}
}

// TestORAS: images go to and fro between sregfs and Apptainer.
func TestORAS(t *testing.T) {
	run := apptainer(t)
	red, green := imagetest.SIF(t, imagetest.Opts{Seed: 1, ExtraBytes: 40 << 20}), imagetest.SIF(t, imagetest.Opts{Seed: 2, ExtraBytes: 100_000})
	for name, o := range map[string]registryOptions{"plain": {}, "auth and tls": {auth: true, tls: true}} {
		t.Run(name, func(t *testing.T) {
			r := startRegistry(t, o)
			d := r.mount(t)
			at, oras := "lab/pusheen", "oras://"+r.host+"/pusheen"
			d.run("mkdir -p %s && cp %s %s/asaurus:red.simg && cmp %s %s/asaurus:red.simg", at, red, at, red, at)
			d.run("%s pull %s %s/back.sif %s/asaurus:red && cmp %s %s/back.sif", run, r.apptainerFlags(), d.home, oras, red, d.home)
			d.run("%s push %s -U %s %s/other:green", run, r.apptainerFlags(), green, oras)
			d.run("cmp %s %s/other:green.simg", green, at)
			d.run("%s exec --no-privs %s/other:green.simg true", run, at)
			// A name more, of the same content, and then the first goes.
			d.run("%s push %s -U %s %s/other:blue", run, r.apptainerFlags(), green, oras)
			d.run("cmp %s %s/other:blue.simg", green, at)
			d.run("mv %s/other:blue.simg %s/other:moved.simg && cmp %s %s/other:moved.simg && cmp %s %s/other:green.simg", at, at, green, at, green, at)
			d.run("rm %s/other:moved.simg && cmp %s %s/other:green.simg", at, green, at)
			d.fails("No such file", "stat %s/other:moved.simg", at)
			d.run("mkdir -p lab/vsoch && mv %s/other:green.simg lab/vsoch/elsewhere:1.simg", at)
			d.run("%s pull %s %s/moved.sif oras://%s/vsoch/elsewhere:1 && cmp %s %s/moved.sif", run, r.apptainerFlags(), d.home, r.host, green, d.home)
			d.run("cp %s %s/asaurus:red.simg && cmp %s %s/asaurus:red.simg", green, at, green, at)
			d.fails("Invalid argument", "cp %s '%s/Upper Case:1.simg'", green, at)
			d.fails("cannot move", "cp %s %s/.temporary && mv %s/.temporary %s/Upper:1.simg", green, at, at, at)
			d.run("rm %s/.temporary", at)
			if held := d.settled(); len(held) > 0 {
				t.Errorf("what no registry takes is kept for it: %v", held)
			}
		})
	}
}

// TestNoDeletion: a registry that lets nothing be deleted says so, and loses
// nothing.
func TestNoDeletion(t *testing.T) {
	r := startRegistry(t, registryOptions{noDelete: true})
	d := r.mount(t)
	green := smallImage(t, 2)
	d.run("mkdir -p lab/pusheen && cp %s lab/pusheen/a:1.simg", green)
	d.fails("not permitted", "rm lab/pusheen/a:1.simg")
	if _, _, err := d.try("mv lab/pusheen/a:1.simg lab/pusheen/a:2.simg"); err == nil {
		t.Error("mv succeeded where nothing can be deleted")
	}
	d.run("cmp %s lab/pusheen/a:1.simg", green)
	d.fails("No such file", "stat lab/pusheen/a:2.simg")
}

// TestTreeEquals compares the root file system with the one that Apptainer
// makes of the same image, entry by entry.
func TestTreeEquals(t *testing.T) {
	run := apptainer(t)
	r := startRegistry(t, registryOptions{})
	long := strings.Repeat("long", 60)
	capability := tar.Header{Name: "bin/capable", Mode: 0o755, PAXRecords: map[string]string{
		"SCHILY.xattr.user.colour": "red", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}}
	r.push("library/hard:1", imageOf(t, v1.Config{Entrypoint: []string{"/bin/sh"}, WorkingDir: "/srv", User: "1000:1000"},
		busybox(t),
		layerOf(t, folder("srv/", 0o750), regular("srv/gone", 0o644, "gone"), regular("srv/replaced", 0o644, "old"), folder("srv/opaque/", 0o755),
			regular("srv/opaque/old", 0o644, "old"), regular("srv/"+long, 0o600, "long name"), regular("srv/a", 0o644, "shared"), hard("srv/b", "srv/a"),
			folder("srv/becomes-file/", 0o755), regular("srv/becomes-file/x", 0o644, "x"),
			regular("srv/suid", 0o4755, "suid"), regular("srv/sgid", 0o2755, "sgid"), folder("srv/sticky/", 0o1777),
			entry{capability, "capable"}, entry{tar.Header{Name: "srv/owned", Mode: 0o640, Uid: 70000, Gid: 4_000_000_000}, "owned"},
			entry{tar.Header{Name: "srv/fifo", Typeflag: tar.TypeFifo, Mode: 0o620}, ""},
			entry{tar.Header{Name: "srv/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, ""},
			regular("srv/caf\xc3\xa9", 0o644, "utf"), regular("srv/caf\xe9", 0o644, "latin"), regular("srv/big", 0o644, strings.Repeat("0123456789abcdef", 60_000)),
			link("srv/absolute", "/etc/passwd"), link("srv/dangling", "nowhere")),
		layerOf(t, regular("srv/.wh.gone", 0, ""), regular("srv/replaced", 0o755, "new"), folder("srv/opaque/", 0o700), regular("srv/opaque/.wh..wh..opq", 0, ""),
			regular("srv/opaque/new", 0o644, "new"), regular("srv/.wh.a", 0, ""), regular("srv/becomes-file", 0o644, "a file now"), link("srv/sticky-link", "sticky"))))
	d := r.mount(t)
	env := []string{"APPTAINER_CACHEDIR=" + t.TempDir()}
	theirs, ours := filepath.Join(t.TempDir(), "theirs.sif"), filepath.Join(t.TempDir(), "ours.sif")
	shell(t, env, "%s pull %s %s docker://%s/library/hard:1", run, r.apptainerFlags(), theirs, r.host)
	d.run("cp lab/library/hard:1.simg %s", ours)
	sameTree(t, run, theirs, ours, 40)
	// What was first built by reading is what a second machine builds.
	again := filepath.Join(t.TempDir(), "again.sif")
	r.mount(t).run("cat lab/library/hard:1.simg > %s && cmp %s %s", again, ours, again)
}

// sameTree compares the trees in two images entry by entry, of which there must
// be some number.
func sameTree(t *testing.T, run, theirs, ours string, least int) {
	t.Helper()
	a, b := listTree(t, run, theirs), listTree(t, run, ours)
	for path := range b {
		if _, ok := a[path]; !ok {
			a[path] = "absent"
		}
	}
	var paths []string
	for path := range a {
		paths = append(paths, path)
	}
	sort.Strings(paths)
	for _, path := range paths {
		if ignoredInTrees(path) {
			continue
		}
		if a[path] != b[path] {
			t.Errorf("%s\n  Apptainer: %s\n  sregfs:    %s", path, a[path], b[path])
		}
	}
	if len(paths) < least {
		t.Errorf("only %d entries were compared", len(paths))
	}
}

// TestManyLayers: an image of some hundred layers is what Apptainer makes of it.
// One of more than anybody makes is refused, with a reason.
func TestManyLayers(t *testing.T) {
	run := apptainer(t)
	r := startRegistry(t, registryOptions{})
	const many, tooMany = 300, 1001
	layers := []v1.Layer{busybox(t)}
	for i := range many - 1 {
		list := []entry{folder("srv/", 0o755), regular(fmt.Sprintf("srv/%03d", i), 0o644, fmt.Sprint("file ", i)), regular("srv/last", 0o644, fmt.Sprint(i))}
		if i%3 == 2 {
			list = append(list, regular(fmt.Sprintf("srv/.wh.%03d", i-1), 0, ""))
		}
		layers = append(layers, layerOf(t, list...))
	}
	r.push("library/many:1", imageOf(t, v1.Config{Cmd: []string{"/bin/cat", "/srv/last"}}, layers...))
	same := make([]v1.Layer, tooMany)
	for i := range same {
		same[i] = layers[1]
	}
	r.push("library/toomany:1", imageOf(t, v1.Config{Cmd: []string{"x"}}, same...))
	d := r.mount(t)
	d.want(fmt.Sprint(many-2), "%s run --no-privs lab/library/many:1.simg", run)
	theirs, ours := filepath.Join(t.TempDir(), "theirs.sif"), filepath.Join(t.TempDir(), "ours.sif")
	shell(t, []string{"APPTAINER_CACHEDIR=" + t.TempDir()}, "%s pull %s %s docker://%s/library/many:1", run, r.apptainerFlags(), theirs, r.host)
	d.run("cp lab/library/many:1.simg %s", ours)
	sameTree(t, run, theirs, ours, 200)

	d.fails("not supported", "cat lab/library/toomany:1.simg")
	if out := d.run("%s status", program); !strings.Contains(out, "lab/library/toomany:1.simg") || !strings.Contains(out, "it has 1001 layers, 1000 are the most") {
		t.Errorf("status does not say what is wrong:\n%s", out)
	}
	d.run("ls lab/library/ && cat lab/library/many:1.simg > /dev/null") // and goes on
}

// ignoredInTrees are what the builders write each in its own way, the mount
// points that runtimes make where an image lacks them, and the empty files that
// Apptainer dates with the time of the build.
func ignoredInTrees(path string) bool {
	switch path {
	case "/home", "/etc/hosts", "/etc/resolv.conf":
		return true
	}
	return strings.HasPrefix(path, "/.singularity.d")
}

// listTree unpacks an image's file system and describes each of its entries.
func listTree(t *testing.T, apptainer, sif string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	out := shell(t, nil, `
id=$(%s sif list %s | awk -F'|' '/Squashfs/ {print $1+0}')
%s sif dump "$id" %s > %s/fs
unsquashfs -no-progress -q -d %s/tree %s/fs > /dev/null
cd %s/tree && python3 - <<'PY'
import os, stat, hashlib
for root, dirs, files in os.walk(b'.'):
    for name in [b'.'] + dirs + files if root == b'.' else dirs + files:
        p = os.path.join(root, name)
        s = os.lstat(p)
        what = [oct(s.st_mode), str(s.st_uid), str(s.st_gid), str(s.st_nlink) if stat.S_ISREG(s.st_mode) else '-']
        if stat.S_ISREG(s.st_mode):
            what += [str(s.st_size), hashlib.sha256(open(p, 'rb').read()).hexdigest()[:16], str(int(s.st_mtime))]
        elif stat.S_ISLNK(s.st_mode):
            what.append(repr(os.readlink(p)))
        elif not stat.S_ISDIR(s.st_mode):
            what.append(str(s.st_rdev))
        try:
            what += [repr((k, os.getxattr(p, k, follow_symlinks=False))) for k in sorted(os.listxattr(p, follow_symlinks=False))]
        except OSError:
            pass
        print(repr(os.path.normpath(p))[2:-1], ' '.join(what), sep='\t')
PY`, apptainer, sif, apptainer, sif, dir, dir, dir, dir)
	tree := map[string]string{}
	for line := range strings.Lines(out) {
		if path, what, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
			tree["/"+strings.TrimPrefix(path, "./")] = what
		}
	}
	return tree
}

// TestPlatforms: an index without this machine's platform names those it has.
func TestPlatforms(t *testing.T) {
	r := startRegistry(t, registryOptions{})
	r.pushIndex("library/multi:1", map[string]v1.Image{
		"arm64": imageOf(t, v1.Config{Cmd: []string{"arm64"}}, busybox(t)), "s390x": imageOf(t, v1.Config{Cmd: []string{"s390x"}}, busybox(t)),
	})
	d := r.mount(t)
	d.fails("not supported", "cat lab/library/multi:1.simg")
	if out := d.run("%s status", program); !strings.Contains(out, "linux/arm64") || !strings.Contains(out, "linux/s390x") {
		t.Errorf("status does not name the platforms:\n%s", out)
	}
	arm := r.mount(t, "SREGISTRY_DOCKER_ARCHITECTURE=arm64")
	arm.run("getfattr --only-values -n user.sregistry.runscript lab/library/multi:1.simg | grep -q arm64")
}

// TestCorruptLayer: bytes that are not what the manifest promised are never
// served.
func TestCorruptLayer(t *testing.T) {
	r := startRegistry(t, registryOptions{})
	l := layerOf(t, regular("data", 0o644, strings.Repeat("data", 10_000)))
	r.push("library/bad:1", imageOf(t, v1.Config{Cmd: []string{"/bin/true"}}, l))
	digest, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(r.data, "docker/registry/v2/blobs/sha256", digest.Hex[:2], digest.Hex, "data")
	b, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	bad := append([]byte(nil), b...)
	bad[len(bad)/2] ^= 0xff
	if err := os.WriteFile(blob, bad, 0o644); err != nil {
		t.Fatal(err)
	}
	d := r.mount(t)
	d.run("stat lab/library/bad:1.simg")
	d.fails("Input/output error", "cat lab/library/bad:1.simg")
	if !strings.Contains(d.run("%s status", program), digest.String()) {
		t.Error("status does not name the layer")
	}
	if err := os.WriteFile(blob, b, 0o644); err != nil {
		t.Fatal(err)
	}
	d.run("cat lab/library/bad:1.simg > /dev/null")
	if left := fmt.Sprint(d.run("ls -A %s", d.home)); !strings.Contains(left, ".singularity") {
		t.Errorf("the home holds %s", left)
	}
}
