//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sregfs/sregfs/image/imagetest"
)

// apptainer is the real Apptainer: the machine's own, or the one that make
// unpacks.
func apptainer(t *testing.T) string {
	t.Helper()
	if path, err := exec.LookPath("apptainer"); err == nil {
		return path
	}
	path, err := filepath.Abs("../../.deps/apptainer/usr/bin/apptainer")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("there is no Apptainer; make test unpacks one: %v", err)
	}
	return path
}

// TestApptainer pushes an image and has the real Apptainer run it out of the
// mount, as root and as an ordinary user, who mounts it for himself.
func TestApptainer(t *testing.T) {
	run := apptainer(t)
	eachClient(t, func(t *testing.T, a account) {
		image := imagetest.SIF(t, imagetest.Opts{
			Labels:    map[string]string{"maintainer": "vsoch"},
			Runscript: "#!/bin/sh\necho \"run with $*\"\n",
			Env:       "export COLOUR=red\n",
		})
		for _, uid := range []int{0, 1000} {
			t.Run(fmt.Sprint("uid", uid), func(t *testing.T) {
				m := newMachine(t, a.env...)
				image := m.give(image)
				flags := "--no-privs"
				if uid != 0 {
					a.chown(t, uid)
					m.asUser(uid)
					flags = ""
				}
				d := m.mount("--client=" + a.client)
				file := fmt.Sprintf("%s/pusheen%d/asaurus:red.simg", a.client, uid)
				d.run("mkdir %s && cp %s %s", filepath.Dir(file), image, file)
				d.want("run with a b", "%s run %s %s a b", run, flags, file)
				d.want("red", "%s exec %s %s sh -c 'echo $COLOUR'", run, flags, file)
				d.want("run with", "%s run %s %s/.search/red/*%d-asaurus:red.simg", run, flags, a.client, uid)
				if out := d.run("%s inspect %s", run, file); !strings.Contains(out, "maintainer: vsoch") {
					t.Errorf("inspect prints %s", out)
				}
				// Singularity's images run as programs, where a run-singularity
				// is to be found.
				d.run("mkdir -p %s/bin && printf '#!/bin/sh\\nexec %s run %s \"$@\"\\n' > %s/bin/run-singularity && chmod +x %s/bin/run-singularity",
					d.home, run, flags, d.home, d.home)
				d.want("run with x", "PATH=%s/bin:$PATH ./%s x", d.home, file)
			})
		}
	})
}

// TestLazyRun: a run of a large image fetches what it reads and little more.
func TestLazyRun(t *testing.T) {
	run := apptainer(t)
	image := imagetest.SIF(t, imagetest.Opts{Seed: 7, ExtraBytes: 300 << 20})
	info, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	eachClient(t, func(t *testing.T, a account) {
		if a.sent == nil {
			t.Log("a folder sends nothing")
			return
		}
		a.put(t, "pusheen/large:1", image)
		d := newMachine(t, a.env...).mount("--client=" + a.client)
		before := a.sent()
		d.want("hello", "%s exec --no-privs %s/pusheen/large:1.simg echo hello", run, a.client)
		sent := a.sent() - before
		t.Logf("%d bytes of %d fetched", sent, info.Size())
		if sent == 0 || sent > info.Size()/50 {
			t.Errorf("a run fetched %d bytes of %d", sent, info.Size())
		}
		// What was fetched survives a restart, and is not fetched again.
		d.unmount()
		d = d.machine.mount("--client=" + a.client)
		before = a.sent()
		d.want("hello", "%s exec --no-privs %s/pusheen/large:1.simg echo hello", run, a.client)
		if again := a.sent() - before; again > sent/4 {
			t.Errorf("the second run fetched %d bytes, the first %d", again, sent)
		}
		// Reading all of it fetches all of it once, but for what was on its way
		// when a transfer gave way to a reader.
		d.run("cmp %s %s/pusheen/large:1.simg", image, a.client)
		all := a.sent()
		t.Logf("reading all of it fetched %.2f %% more than there is", float64(all-info.Size())*100/float64(info.Size()))
		if all > info.Size()+info.Size()/50 {
			t.Errorf("reading all of %d bytes fetched %d", info.Size(), all)
		}
		before = a.sent()
		d.eventually("the whole image to be verified", func() error {
			if v, _, err := d.try("getfattr --only-values -n user.sregistry.version %s/pusheen/large:1.simg", a.client); err != nil || len(v) != 32 {
				return fmt.Errorf("version %q: %v", v, err)
			}
			return nil
		})
		d.run("cmp %s %s/pusheen/large:1.simg", image, a.client)
		if more := a.sent() - before; more != 0 {
			t.Errorf("reading a cached image fetched %d bytes", more)
		}
	})
}

// TestMounted loop-mounts an image out of the tree, as a setuid runtime does,
// and by squashfuse, as an unprivileged one does.
func TestMounted(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		image := imagetest.Squashfs(t, imagetest.Opts{Files: map[string]string{"etc/colour": "red\n"}})
		a.put(t, "pusheen/asaurus:red", image)
		d := newMachine(t, a.env...).mount("--client=" + a.client)
		file := a.client + "/pusheen/asaurus:red.simg"
		at := filepath.Join(d.home, "inside")
		d.run("mkdir %s && mount -o loop,ro %s %s", at, file, at)
		d.want("red", "cat %s/etc/colour; umount %s", at, at)
		d.run("squashfuse %s %s", file, at)
		d.want("red", "cat %s/etc/colour; fusermount3 -u %s", at, at)
		d.eventually("the image to be let go of", func() error {
			_, _, err := d.try("! losetup -a | grep -q %s", d.dir)
			return err
		})
	})
}
