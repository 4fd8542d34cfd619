//go:build integration

package integration

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/sregfs/sregfs/image/imagetest"
)

// sentBytes is how many bytes of blobs have come to the registry through the
// front.
func (f *front) sentBytes() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.taken
}

// TestRegistryPushFaults: a push to a registry whose connection breaks arrives
// whole or not at all, and what the registry has is not sent again.
func TestRegistryPushFaults(t *testing.T) {
	real := startRegistry(t, registryOptions{})
	large, small := imagetest.SIF(t, imagetest.Opts{Seed: 4, ExtraBytes: 90 << 20}), smallImage(t, 5)
	info, err := os.Stat(large)
	if err != nil {
		t.Fatal(err)
	}
	size := info.Size()
	patch := func(n int, x fault) func(*http.Request) *fault {
		return func(r *http.Request) *fault {
			if r.Method != http.MethodPatch {
				return nil
			}
			if n--; n != 0 {
				return nil
			}
			return &x
		}
	}
	method := func(m, kind string, n int, x fault) func(*http.Request) *fault {
		return func(r *http.Request) *fault {
			if r.Method != m || kindOf(r) != kind || n == 0 {
				return nil
			}
			n--
			return &x
		}
	}
	for i, c := range []struct {
		name  string
		fault func(*http.Request) *fault
		most  int64  // bytes sent
		want  string // what cp says, "" for success
	}{
		{name: "nothing", most: size},
		{name: "500 to the third chunk", fault: patch(3, fault{status: 500}), most: size},
		{name: "the third chunk is cut", fault: patch(3, fault{lost: true, at: 5 << 20}), most: 2*size + 1<<20},
		{name: "401 to every chunk", fault: method(http.MethodPatch, uploads, -1, fault{status: 401}), want: "Permission denied"},
		{name: "the request that opens the session is cut", fault: method(http.MethodPost, uploads, 1, fault{lost: true}), most: size},
		{name: "the request that closes the session is cut", fault: method(http.MethodPut, uploads, 1, fault{lost: true}), most: 2 * size},
		{name: "503 to the manifest", fault: method(http.MethodPut, manifests, 1, fault{status: 503}), most: size},
		{name: "the manifest is refused", fault: method(http.MethodPut, manifests, -1, fault{status: 400}), want: "Input/output error"},
		{name: "pushing is forbidden", fault: method(http.MethodPost, uploads, -1, fault{status: 403}), want: "Permission denied"},
		{name: "too large", fault: method(http.MethodPatch, uploads, -1, fault{status: 507}), want: "No space left"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := behind(t, real)
			d := f.mount(t)
			collection := fmt.Sprint("push", i)
			d.run("mkdir lab/%s", collection)
			f.troubled(c.fault)
			if c.want != "" {
				d.fails(c.want, "cp %s lab/%s/a:1.simg", large, collection)
				f.troubled(nil)
				if err := exec.Command("skopeo", "inspect", "--raw", "--tls-verify=false", "docker://"+real.host+"/"+collection+"/a:1").Run(); err == nil {
					t.Error("the registry has what cp was told it has not")
				}
				d.run("cp %s lab/%s/a:1.simg", large, collection)
			} else {
				d.run("cp %s lab/%s/a:1.simg", large, collection)
				if n := f.sentBytes(); n > c.most+100 { // the configuration
					t.Errorf("%d bytes were sent for %d", n, size)
				}
			}
			// Small ones go in one request.
			f.troubled(c.fault)
			if _, _, err := d.try("cp %s lab/%s/small:1.simg", small, collection); err != nil {
				f.troubled(nil)
				d.run("cp %s lab/%s/small:1.simg", small, collection)
			}
			f.troubled(nil)
			check := real.mount(t)
			check.run("cmp %s lab/%s/a:1.simg && cmp %s lab/%s/small:1.simg", large, collection, small, collection)
			// A second name of the same content sends none of it again.
			before := f.sentBytes()
			d.run("cp %s lab/%s/small:2.simg && cp %s lab/%s/a:2.simg", small, collection, large, collection)
			if n := f.sentBytes() - before; n != 0 {
				t.Errorf("a second name of the same content sent %d bytes", n)
			}
			check.run("cmp %s lab/%s/a:2.simg", large, collection)
		})
	}
}

// TestSentBefore: a large image that another machine has pushed is not sent again
// under a second tag, and what is looked at to know that is little.
func TestSentBefore(t *testing.T) {
	real := startRegistry(t, registryOptions{})
	f := behind(t, real)
	d := f.mount(t)
	theirs := real.mount(t)
	one, other := imagetest.SIF(t, imagetest.Opts{Seed: 4, ExtraBytes: 40 << 20}), imagetest.SIF(t, imagetest.Opts{Seed: 5, ExtraBytes: 40 << 20})
	theirs.run("mkdir lab/x && cp %s lab/x/a:1.simg && cp %s lab/x/a:2.simg", one, other)
	d.run("cp %s lab/x/a:3.simg", one)
	f.mu.Lock()
	sent, fetched := f.taken, f.served
	f.mu.Unlock()
	if sent > 0 || fetched > 64<<10 {
		t.Errorf("%d bytes were sent and %d fetched", sent, fetched)
	}
	theirs.run("cmp %s lab/x/a:3.simg", one)
	fresh := imagetest.SIF(t, imagetest.Opts{Seed: 6, ExtraBytes: 40 << 20})
	d.run("cp %s lab/x/a:4.simg", fresh)
	theirs.run("cmp %s lab/x/a:4.simg", fresh)
}

// TestRegistryTimes: registries keep no times, so that this machine does. What
// another one has pushed has the same time in every mount.
func TestRegistryTimes(t *testing.T) {
	real := startRegistry(t, registryOptions{})
	one, two := smallImage(t, 1), smallImage(t, 2)
	d, theirs := real.mount(t), real.mount(t)
	old := filepath.Join(t.TempDir(), "old")
	if err := os.WriteFile(old, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d.run("mkdir lab/x; cp %s lab/x/a:1.simg && test lab/x/a:1.simg -nt %s", one, old)
	d.run("touch -d 2020-01-01 lab/x/a:1.simg && cp %s lab/x/a:1.simg && test lab/x/a:1.simg -nt %s", two, old)
	d.run("cp -u %s lab/x/a:1.simg && cmp %s lab/x/a:1.simg", one, two)
	d.run("rsync -a %s lab/x/a:2.simg && test $(stat -c %%Y lab/x/a:2.simg) = $(stat -c %%Y %[1]s)", one)
	theirs.run("test $(stat -c %%Y lab/x/a:1.simg) = 0")
}

// TestRegistryPushResumes: a daemon that is killed in the middle of a push to a
// registry leaves it to the next one, which sends what is missing and no more.
func TestRegistryPushResumes(t *testing.T) {
	f := behind(t, startRegistry(t, registryOptions{}))
	large := imagetest.SIF(t, imagetest.Opts{Seed: 6, ExtraBytes: 90 << 20})
	info, err := os.Stat(large)
	if err != nil {
		t.Fatal(err)
	}
	d := f.mount(t)
	d.run("mkdir lab/pusheen")
	reached, release := make(chan struct{}), make(chan struct{})
	n := 0
	f.troubled(func(r *http.Request) *fault {
		if r.Method == http.MethodPatch {
			if n++; n == 5 {
				close(reached)
				return &fault{until: release, lost: true}
			}
		}
		return nil
	})
	cp := d.command(t.Context(), "cp", large, filepath.Join(d.dir, "lab/pusheen/a:1.simg"))
	if err := cp.Start(); err != nil {
		t.Fatal(err)
	}
	<-reached
	// All bytes are here, and four parts of them there.
	d.eventually("the file to be copied", func() error {
		for _, h := range d.status().Held {
			if h.Bytes == info.Size() && h.State == "uploading" {
				return nil
			}
		}
		return fmt.Errorf("held: %v", d.status().Held)
	})
	d.kill()
	_ = cp.Wait()
	f.troubled(nil)
	close(release)
	before := f.sentBytes()
	d = d.machine.mount("--client=lab", "--registry=lab="+f.scheme+"://"+f.host)
	d.eventually("the push to be finished", func() error {
		_, _, err := d.try("cmp %s lab/pusheen/a:1.simg", large)
		return err
	})
	if n := f.sentBytes() - before; n > info.Size()-4*16<<20+100 {
		t.Errorf("%d bytes of %d were sent, though four parts were there", n, info.Size())
	}
}
