//go:build integration

package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sregfs/sregfs/image/imagetest"
)

// act is something that a daemon does, to be cut off at any of its steps.
type act struct {
	name string
	// clients that it is tried with; nil for all.
	clients []string
	args    []string
	// before prepares a mount whose steps do not count yet.
	before func(c *crash, d *mounted)
	// do is the act. It ends when the daemon is killed or nothing more is to
	// come; d is nil for an act that is over when the daemon is ready.
	do func(c *crash, d *mounted)
}

var remotes = []string{"dropbox", "gdrive", "lab"}

// The contents of the moments' images, by index.
const (
	smallContent = iota
	largeContent
	otherContent
	thirdContent
)

// What is there at first, by index of crash.names: a small image, two large
// ones, and two names that are free.
const (
	smallName = iota
	largeName
	otherName
	freeName
	anotherName
)

var acts = []act{
	{name: "start"},
	{name: "read", clients: remotes, do: func(c *crash, d *mounted) {
		c.read1(d, c.names[largeName])
		c.verified(d, c.names[largeName])
	}},
	{name: "evict", clients: remotes, args: []string{"--cache-size=32M"},
		before: func(c *crash, d *mounted) {
			c.read1(d, c.names[largeName])
			c.verified(d, c.names[largeName])
		},
		do: func(c *crash, d *mounted) {
			c.read1(d, c.names[otherName])
			c.verified(d, c.names[otherName])
		}},
	{name: "push small", do: func(c *crash, d *mounted) {
		c.push(d, c.rng, c.names[freeName], smallContent, "")
		c.cleared(d)
	}},
	{name: "push large", do: func(c *crash, d *mounted) {
		c.push(d, c.rng, c.names[freeName], thirdContent, "")
		c.cleared(d)
	}},
	{name: "push by rename", do: func(c *crash, d *mounted) {
		c.push(d, c.rng, c.names[freeName], thirdContent, ".image.Xy12Zz")
		c.cleared(d)
	}},
	{name: "overwrite", do: func(c *crash, d *mounted) {
		c.push(d, c.rng, c.names[largeName], thirdContent, "")
		c.cleared(d)
	}},
	{name: "resume", clients: remotes, before: func(c *crash, d *mounted) {
		// A first crash, when the copy is done but for the last request.
		at := map[string]moment{
			"dropbox": {"before POST 2.files.upload_session.finish", 1},
			"gdrive":  {"before PUT upload.drive.v3.files in a session", 3},
			"lab":     {"before PUT v2.c1.image3.blobs.uploads.SESSION", 1},
		}[c.a.client]
		c.w.arm(at)
		c.push(d, c.rng, c.names[freeName], thirdContent, "")
		if !c.w.disarm() {
			c.t.Fatalf("%s never came; there were %q", at, c.w.seen)
		}
		c.await(d)
	}},
	{name: "rename", do: func(c *crash, d *mounted) { c.move(d, c.names[largeName], c.names[freeName]) }},
	{name: "delete", do: func(c *crash, d *mounted) { c.move(d, c.names[largeName], nil) }},
	{name: "stop", before: func(c *crash, d *mounted) {
		c.read1(d, c.names[largeName])
		c.push(d, c.rng, c.names[freeName], smallContent, "")
	}, do: func(c *crash, d *mounted) {
		_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		d.died(30 * time.Second)
	}},
	{name: "build", clients: []string{"lab"}, do: func(c *crash, d *mounted) {
		got, err := os.ReadFile(c.path(d, containerName))
		if !c.went(d, "read of a container image", err) || c.w.hasFired() {
			return
		}
		d.eventually("the image to be kept whole", func() error {
			if c.w.hasFired() {
				return nil
			}
			_, _, err := d.try("test \"$(getfattr --only-values -n user.sregistry.cached lab/%s.simg)\" = %d", containerName, len(got))
			return err
		})
	}},
}

// containerName is a container image in the registry, which is computed when
// it is read.
const containerName = "app/tool:v1"

// TestMoments kills the daemon at chosen moments of each act with each client,
// mounts again and checks what is left: at every change that the act makes to
// the disk, just before it, and at every request to the service, before it
// arrives, in its middle and before its answer does. The moments are those of a
// first run that nobody disturbs. The short form tries some of each act, by the
// seed; "go test -run" with a moment's name tries that one.
func TestMoments(t *testing.T) {
	needRoot(t)
	seed := crashSeed(t)
	contents := momentContents(t)
	container := busyboxImage(t)
	// A generator for each, so that one alone is repeated as well as all are.
	random := func(name string) *rand.Rand {
		h := fnv.New64a()
		h.Write([]byte(name))
		return rand.New(rand.NewPCG(seed, h.Sum64()))
	}
	for _, client := range append([]string{"local"}, remotes...) {
		mine := slices.DeleteFunc(slices.Clone(acts), func(a act) bool { return a.clients != nil && !slices.Contains(a.clients, client) })
		if !long() {
			random(client).Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
			mine = mine[:3]
		}
		for _, a := range mine {
			t.Run(client+"/"+a.name, func(t *testing.T) {
				run := func(t *testing.T, at moment) (seen []string, came bool) {
					t.Helper()
					return runMoment(t, seed, contents, container, client, a, at)
				}
				var seen []string
				t.Run("undisturbed", func(t *testing.T) { seen, _ = run(t, moment{}) })
				moments := pickMoments(seen, random(t.Name()))
				if len(moments) == 0 {
					t.Fatal("the act has no steps")
				}
				// How many ranges a read is fetched by depends on the time each
				// takes: a kind's later steps may stay away, its first may not.
				came, ran, kinds, kindsCame := 0, 0, 0, 0
				for _, at := range moments {
					t.Run(at.String(), func(t *testing.T) {
						ran++
						if at.nth == 1 {
							kinds++
						}
						if _, ok := run(t, at); ok {
							came++
							if at.nth == 1 {
								kindsCame++
							}
						} else {
							t.Log("the moment did not come this time; the daemon was killed after the act")
						}
						if t.Failed() {
							t.Logf("repeat with SREGFS_CRASH_SEED=%d", seed)
						}
					})
				}
				t.Logf("killed at %d of %d moments, and at the first of %d of %d kinds", came, ran, kindsCame, kinds)
				if kinds > 4 && kindsCame < kinds/2 {
					t.Error("hardly any kind of step came: they are called otherwise in each run")
				}
			})
		}
	}
}

// pickMoments chooses moments of an act whose steps were seen: in the long form
// the first, the second, one in the middle and the last of each kind, otherwise
// one of all these.
func pickMoments(seen []string, rng *rand.Rand) []moment {
	count := map[string]int{}
	for _, name := range seen {
		count[name]++
	}
	var all []moment
	for _, name := range slices.Sorted(maps.Keys(count)) {
		n := count[name]
		nths := []int{1, 2, (n + 1) / 2, n}
		slices.Sort(nths)
		for _, nth := range slices.Compact(nths) {
			if nth <= n {
				all = append(all, moment{name, nth})
			}
		}
	}
	if long() {
		return all
	}
	if len(all) == 0 {
		return nil
	}
	return []moment{all[rng.IntN(len(all))]}
}

// runMoment does an act on a machine and an account of its own, kills the
// daemon at the moment, or after the act when that is zero or never comes, and
// checks what is left.
func runMoment(t *testing.T, seed uint64, contents [][]byte, container v1.Image, client string, a act, at moment) (seen []string, came bool) {
	t.Helper()
	w := &tripwire{}
	var acc account
	switch client {
	case "local":
		acc = localAccount(t)
	case "dropbox":
		acc = dropboxAccount(t)
	case "gdrive":
		acc = driveAccount(t)
	case "lab":
		if a.name != "build" {
			container = nil
		}
		acc = registryAccount(t, container)
	}
	behind := acc
	for i, kv := range acc.env {
		if name, base, _ := strings.Cut(kv, "="); strings.HasSuffix(name, "_BASE") {
			acc.env = slices.Clone(acc.env)
			acc.env[i] = name + "=" + w.proxy(t, base)
		} else if name == "SREGISTRY_STORAGE" {
			w.roots = append(w.roots, root{base, kindInStorage})
		}
	}
	if acc.registry != "" {
		acc.args = []string{"--registry=lab=" + w.proxy(t, acc.registry)}
	}
	c := &crash{t: t, a: acc, w: w, contents: contents, rng: rand.New(rand.NewPCG(seed, 2)), m: newMachine(t, acc.env...)}
	c.args = append([]string{"--client=" + acc.client, "--cache-size=112M"}, acc.args...)
	c.args = append(c.args, a.args...)
	if a.name == "build" {
		c.fixed = map[string]func([]byte){containerName: c.sameContainer}
	}
	w.roots = append(w.roots, root{filepath.Join(c.m.home, ".singularity"), kindInHome})
	w.tripped = func() { c.killed.Store(true) }
	for i, content := range []int{smallContent, largeContent, otherContent, -1, -1} {
		n := &crashName{name: fmt.Sprintf("c%d/image%d:v1", i%2, i), current: content}
		c.names = append(c.names, n)
		if content >= 0 {
			file := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(file, contents[content], 0o644); err != nil {
				t.Fatal(err)
			}
			behind.put(t, n.name, file)
		}
	}
	mount := func() *mounted {
		t.Helper()
		d, err := c.m.mountTripped(w, c.args...)
		if err != nil {
			return d // killed while it started
		}
		return d
	}
	var d *mounted
	if a.do == nil {
		if a.before != nil {
			a.before(c, mount())
			c.killed.Store(false)
		}
		w.arm(at)
		d = mount()
		d.eventually("uploads to end", func() error {
			out, errOut, err := d.try("%s status --json", program)
			var s status
			switch {
			case w.hasFired():
				return nil
			case err != nil:
				return fmt.Errorf("%w: %s", err, errOut)
			}
			if err := json.Unmarshal([]byte(out), &s); err != nil {
				return err
			}
			for _, h := range s.Held {
				if h.State == "uploading" || h.State == "ready" {
					return fmt.Errorf("%s is %s", h.Image, h.State)
				}
			}
			return nil
		})
	} else {
		d = mount()
		d.run("ls %s/*", c.a.client) // the listing is another act
		if a.before != nil {
			a.before(c, d)
		}
		w.arm(at)
		a.do(c, d)
	}
	came = w.disarm()
	w.mu.Lock()
	seen = w.seen
	w.mu.Unlock()
	c.killed.Store(true)
	select {
	case err := <-d.end:
		d.end <- err
	default:
		if came {
			c.await(d)
		} else {
			d.kill()
		}
	}
	c.check(d)
	return seen, came
}

// await waits for the end of a daemon that was killed.
func (c *crash) await(d *mounted) {
	c.t.Helper()
	if !d.died(10 * time.Second) {
		d.kill() // also where it waits for itself in the kernel
	}
}

// read1 reads all of an image.
func (c *crash) read1(d *mounted, n *crashName) {
	c.t.Helper()
	got, err := os.ReadFile(c.path(d, n.name))
	if c.went(d, "read of "+n.name, err) && !bytes.Equal(got, c.contents[n.current]) {
		c.t.Errorf("%s reads as content %d, want %d", n.name, c.which(got), n.current)
	}
	if err == nil {
		c.read.Add(int64(len(got)))
	}
}

// verified waits until an image has been checked as a whole, the cache's files say
// so and its version is known, or the daemon is killed. The version alone may come
// from the service, long before.
func (c *crash) verified(d *mounted, n *crashName) {
	c.t.Helper()
	d.eventually("the image to be verified", func() error {
		if c.w.hasFired() {
			return nil
		}
		files, err := filepath.Glob(filepath.Join(c.m.stateDir(), "objects/objects/*.json"))
		if err != nil {
			return err
		}
		for _, file := range files {
			var is struct {
				Size     int
				Complete bool
			}
			// It may be evicted meanwhile.
			if data, err := os.ReadFile(file); err == nil && json.Unmarshal(data, &is) == nil && is.Complete && is.Size == len(c.contents[n.current]) {
				v, _, err := d.try("getfattr --only-values -n user.sregistry.version %s/%s.simg", c.a.client, n.name)
				if err == nil && v == "" {
					err = errors.New("its version is not known")
				}
				return err
			}
		}
		return fmt.Errorf("none of %d descriptions says it", len(files))
	})
}

// cleared waits until nothing is left of pushes in the staging area, or the
// daemon is killed.
func (c *crash) cleared(d *mounted) {
	c.t.Helper()
	d.eventually("the staging area to be cleared", func() error {
		left, err := filepath.Glob(filepath.Join(c.m.stateDir(), "staging/*.data"))
		if err == nil && len(left) > 0 && !c.w.hasFired() {
			err = fmt.Errorf("there is %q", left)
		}
		return err
	})
}

// sameContainer: the container image is what another machine makes of it that
// nobody disturbs.
func (c *crash) sameContainer(got []byte) {
	c.t.Helper()
	d := newMachine(c.t, c.a.env...).mount(c.args...)
	defer d.unmount()
	want, err := os.ReadFile(c.path(d, containerName))
	if err != nil {
		c.t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		c.t.Errorf("the container image reads as other %d bytes than the %d of another machine", len(got), len(want))
	}
}

// momentContents are a small image and large ones, which go up in parts.
func momentContents(t *testing.T) [][]byte {
	t.Helper()
	var contents [][]byte
	for i, size := range []int64{70_000, 17 << 20, 18 << 20, 19 << 20} {
		data, err := os.ReadFile(imagetest.SIF(t, imagetest.Opts{Seed: uint64(200 + i), NoShell: true, ExtraBytes: size}))
		if err != nil {
			t.Fatal(err)
		}
		contents = append(contents, data)
	}
	return contents
}

// busyboxImage is a container image of two layers.
func busyboxImage(t *testing.T) v1.Image {
	t.Helper()
	return imageOf(t, v1.Config{Cmd: []string{"/bin/sh"}}, busybox(t),
		layerOf(t, folder("data/", 0o755), regular("data/noise", 0o644, string(noise(3, 3<<20)))))
}

// registryAccount is a real docker-registry, with Singularity images in it as
// "apptainer push" makes them, and a container image if there is one.
func registryAccount(t *testing.T, container v1.Image) account {
	t.Helper()
	r := startRegistry(t, registryOptions{})
	if container != nil {
		r.push(containerName, container)
	}
	base := "http://" + r.host
	do := func(method, at, kind string, body []byte) (*http.Response, []byte, error) {
		if !strings.HasPrefix(at, "http") {
			at = base + "/v2/" + at
		}
		req, err := http.NewRequestWithContext(t.Context(), method, at, bytes.NewReader(body))
		if err != nil {
			return nil, nil, err
		}
		req.Header.Set("Content-Type", kind)
		req.Header.Set("Accept", manifestType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, nil, err
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode >= 300 {
			err = fmt.Errorf("%s %s: %s %s", method, at, resp.Status, data)
		}
		return resp, data, err
	}
	blob := func(repository string, data []byte) (string, error) {
		resp, _, err := do(http.MethodPost, repository+"/blobs/uploads/", "", nil)
		if err != nil {
			return "", err
		}
		digest := fmt.Sprintf("sha256:%x", sha256.Sum256(data))
		at := resp.Header.Get("Location") + "&digest=" + url.QueryEscape(digest)
		_, _, err = do(http.MethodPut, at, "application/octet-stream", data)
		return digest, err
	}
	return account{
		client:   "lab",
		registry: base,
		retags:   true,
		put: func(t *testing.T, name, file string) {
			t.Helper()
			repository, tag, _ := strings.Cut(name, ":")
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			content, err := blob(repository, data)
			if err != nil {
				t.Fatal(err)
			}
			config, err := blob(repository, []byte("{}"))
			if err != nil {
				t.Fatal(err)
			}
			manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.sylabs.sif.config.v1+json","digest":%q,"size":2},`+
				`"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`, manifestType, config, sifType, content, len(data))
			if _, _, err := do(http.MethodPut, repository+"/manifests/"+tag, manifestType, []byte(manifest)); err != nil {
				t.Fatal(err)
			}
		},
		get: func(name string) ([]byte, bool) {
			repository, tag, _ := strings.Cut(name, ":")
			_, data, err := do(http.MethodGet, repository+"/manifests/"+tag, "", nil)
			var m v1.Manifest
			if err != nil || json.Unmarshal(data, &m) != nil || len(m.Layers) != 1 || string(m.Layers[0].MediaType) != sifType {
				return nil, false
			}
			_, data, err = do(http.MethodGet, repository+"/blobs/"+m.Layers[0].Digest.String(), "", nil)
			return data, err == nil
		},
		names: func() []string {
			var catalog struct{ Repositories []string }
			_, data, err := do(http.MethodGet, "_catalog?n=1000", "", nil)
			if err != nil || json.Unmarshal(data, &catalog) != nil {
				return nil
			}
			var names []string
			for _, repository := range catalog.Repositories {
				var tags struct{ Tags []string }
				if _, data, err := do(http.MethodGet, repository+"/tags/list", "", nil); err == nil && json.Unmarshal(data, &tags) == nil {
					for _, tag := range tags.Tags {
						names = append(names, repository+":"+tag)
					}
				}
			}
			return names
		},
	}
}

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	sifType      = "application/vnd.sylabs.sif.layer.v1.sif"
)
