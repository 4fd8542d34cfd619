//go:build integration

package integration

import (
	"net/http"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sregfs/sregfs/image/imagetest"
)

// registryFault is one thing that a registry does wrong, and what comes of it.
type registryFault struct {
	name  string
	fault func(*http.Request) *fault
	want  string // what cat says, "" where it succeeds
	says  string // in the status
	most  int    // requests of that kind

	minutes bool // it takes that long
}

// TestRegistryFaults: whatever a registry answers when it is asked for an
// image, the program that reads gets an errno, the user a sentence, the
// registry no more requests than it can bear, and the daemon goes on.
func TestRegistryFaults(t *testing.T) {
	real := startRegistry(t, registryOptions{})
	container := imageOf(t, v1.Config{Cmd: []string{"/bin/true"}}, busybox(t))
	real.push("library/tool:1", container)
	sif := imagetest.SIF(t, imagetest.Opts{Seed: 8, ExtraBytes: 3 << 20})
	shell(t, nil, "%s push --no-https -U %s oras://%s/library/sif:1", apptainer(t), sif, real.host)
	layers, err := container.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	hour := map[string]string{"Retry-After": "3600"}
	const busy, gone, late, denied, broken = "temporarily unavailable", "Stale file handle", "timed out", "Permission denied", "Input/output error"
	shared := func(kind, cut string) []registryFault {
		return []registryFault{
			{name: "401", fault: always(kind, fault{status: 401}), want: denied, says: "docker login", most: 20},
			{name: "403", fault: always(kind, fault{status: 403}), want: denied, says: "HTTP 403", most: 20},
			{name: "429 for an hour", fault: always(kind, fault{status: 429, header: hour}), want: busy, says: "left alone for 1h", most: 20},
			{name: "429 for a second", fault: firstOf(1, kind, fault{status: 429, header: map[string]string{"Retry-After": "1"}}), most: 20},
			{name: "500", fault: always(kind, fault{status: 500}), want: late, says: "cannot be reached", most: 40, minutes: kind == blobs},
			{name: "500 twice", fault: firstOf(2, kind, fault{status: 500}), most: 20},
			{name: "cut once", fault: firstOf(1, kind, fault{cut: true, at: 100}), most: 20},
			{name: "cut at once", fault: always(kind, fault{cut: true}), want: cut, most: 40},
		}
	}
	run := func(t *testing.T, c registryFault, kind, file string, beforeMount bool) {
		f := behind(t, real)
		if beforeMount {
			f.troubled(c.fault)
		}
		d := f.mount(t)
		if !beforeMount {
			d.run("stat %s", file)
			f.troubled(c.fault)
		}
		before := f.requests(kind)
		out, errOut, err := d.tryFor(300, "cat %s > /dev/null", file)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("cat failed: %s%s%v", out, errOut, err)
		case c.want != "" && (err == nil || !strings.Contains(errOut, c.want)):
			t.Errorf("cat said %q %v, want %q", errOut, err, c.want)
		}
		if n := f.requests(kind) - before; n > c.most {
			t.Errorf("%d requests", n)
		}
		if c.want != "" && c.want != "No such file" {
			var told bool
			for _, x := range d.status().Failures {
				told = told || strings.Contains(x.What, "/lab/library") && strings.Contains(x.What, c.says)
			}
			if !told {
				t.Errorf("status has %v, want %q", d.status().Failures, c.says)
			}
		}
		f.troubled(nil)
		if c.name == "429 for an hour" || c.want == "No such file" {
			return // so long it keeps quiet, or until the next listing
		}
		d.eventually("it to recover", func() error {
			_, _, err := d.try("cat %s > /dev/null", file)
			return err
		})
	}
	flipped := always(blobs, fault{flip: true, at: 50_000})
	for group, g := range map[string]struct {
		kind, file  string
		cut         string // what a body that always breaks off comes to
		beforeMount bool
		more        []registryFault
	}{
		"manifest": {manifests, "lab/library/tool:1.simg", late, true, []registryFault{
			{name: "404", fault: always(manifests, fault{status: 404}), want: "No such file", most: 20},
			{name: "flipped", fault: always(manifests, fault{flip: true, at: 50}), want: broken, says: "digest", most: 20},
			{name: "longer", fault: always(manifests, fault{longer: 10}), want: broken, says: "manifest", most: 20},
		}},
		"layer": {blobs, "lab/library/tool:1.simg", late, false, []registryFault{
			{name: "404", fault: always(blobs, fault{status: 404}), want: broken, says: "lacks its layer " + digest.String(), most: 20},
			{name: "flipped", fault: flipped, want: broken, says: digest.String(), most: 4},
			{name: "flipped once", fault: firstOf(1, blobs, fault{flip: true, at: 50_000}), most: 4},
			{name: "longer", fault: always(blobs, fault{longer: 10}), want: broken, says: digest.String(), most: 4},
			{name: "shorter", fault: always(blobs, fault{longer: -10}), want: broken, says: digest.String(), most: 4},
			{name: "standing still", fault: always(blobs, fault{stall: true}), want: late, says: digest.String(), most: 10, minutes: true},
			{name: "standing still once", fault: firstOf(1, blobs, fault{stall: true, at: 100_000}), most: 10, minutes: true},
		}},
		"sif": {blobs, "lab/library/sif:1.simg", broken, false, []registryFault{
			{name: "404", fault: always(blobs, fault{status: 404}), want: gone, says: "no more", most: 20},
			{name: "longer", fault: always(blobs, fault{longer: 10}), want: late, says: "the answer has", most: 20},
		}},
	} {
		t.Run(group, func(t *testing.T) {
			for _, c := range append(shared(g.kind, g.cut), g.more...) {
				if c.minutes && !long() {
					t.Logf("%s: only in the long form of the tests", c.name)
					continue
				}
				t.Run(c.name, func(t *testing.T) {
					t.Parallel()
					run(t, c, g.kind, g.file, g.beforeMount)
				})
			}
		})
	}
}
