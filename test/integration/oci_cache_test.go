//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// randomText is n bytes that nothing compresses.
func randomText(seed byte, n int) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return string(b)
}

// words is n bytes that compress well, but not to nothing.
func words(seed byte, n int) string {
	var b strings.Builder
	r := rand.New(rand.NewChaCha8([32]byte{seed}))
	for b.Len() < n {
		fmt.Fprintf(&b, "%d ", r.IntN(1000))
	}
	return b.String()[:n]
}

// onDisk is how much room the cache takes, and what in it is half-made.
func onDisk(t *testing.T, home string) (bytes int64, unfinished []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(home, ".singularity/sregfs/objects"), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil // gone meanwhile
		}
		if info, err := e.Info(); err == nil {
			bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		if strings.HasPrefix(e.Name(), "tmp.") {
			unfinished = append(unfinished, e.Name())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes, unfinished
}

// TestImageData: both ways of keeping container images give the same tree, are
// one version, and are kept apart.
func TestImageData(t *testing.T) {
	run := apptainer(t)
	r := startRegistry(t, registryOptions{})
	r.push("library/tool:1", imageOf(t, v1.Config{Cmd: []string{"/bin/echo", "hello"}}, busybox(t), layerOf(t, regular("words", 0o644, words(1, 8<<20)))))
	m := newMachine(t)
	sums, sizes, versions := map[string]string{}, map[string]string{}, map[string]string{}
	for _, how := range []string{"plain", "zstd", "plain"} {
		d := m.mount("--client=lab", "--registry=lab="+r.scheme+"://"+r.host, "--image-data="+how)
		file := "lab/library/tool:1.simg"
		d.want("hello", "%s run --no-privs %s", run, file)
		d.run("%s exec --no-privs %s sha256sum /words /bin/busybox > %s/inside", run, file, d.home)
		inside, err := os.ReadFile(filepath.Join(d.home, "inside"))
		if err != nil {
			t.Fatal(err)
		}
		sum, size := d.run("sha256sum < %s", file), d.run("stat -c %%s %s", file)
		if old, ok := sums[how]; ok && old != sum {
			t.Errorf("%s gives other bytes the second time", how)
		}
		sums[how], sizes[how], versions[how] = sum, size, d.run("getfattr --only-values -n user.sregistry.version %s", file)+string(inside)
		d.unmount()
	}
	if versions["plain"] != versions["zstd"] {
		t.Errorf("the versions or the trees differ: %q", versions)
	}
	if sums["plain"] == sums["zstd"] {
		t.Error("both are the same bytes")
	}
	var plain, zstd int
	fmt.Sscan(sizes["plain"], &plain)
	fmt.Sscan(sizes["zstd"], &zstd)
	if zstd >= plain*3/4 {
		t.Errorf("zstd takes %d bytes, plain %d", zstd, plain)
	}
	d := newMachine(t, "SREGFS_IMAGE_DATA=zstd").mount("--client=lab", "--registry=lab="+r.scheme+"://"+r.host)
	if got := d.run("sha256sum < lab/library/tool:1.simg"); got != sums["zstd"] {
		t.Error("the environment variable makes other bytes than the flag")
	}
}

// TestSmallCache: images beside a cache that is too small for them.
func TestSmallCache(t *testing.T) {
	r := startRegistry(t, registryOptions{})
	var layers []v1.Layer
	for i := range 6 {
		layers = append(layers, layerOf(t, regular(fmt.Sprint("noise", i), 0o644, randomText(byte(i), 8<<20))))
	}
	r.push("library/many:1", imageOf(t, v1.Config{Cmd: []string{"x"}}, layers...))
	r.push("library/words:1", imageOf(t, v1.Config{Cmd: []string{"x"}}, layerOf(t, regular("words", 0o644, words(7, 48<<20)))))
	r.push("library/noise:1", imageOf(t, v1.Config{Cmd: []string{"x"}}, layerOf(t, regular("noise", 0o644, randomText(8, 48<<20)))))
	r.push("library/small:1", imageOf(t, v1.Config{Cmd: []string{"x"}}, layerOf(t, regular("noise", 0o644, randomText(9, 1<<20)))))
	const limit = 32 << 20
	full := r.mount(t)
	sum := func(d *mounted, image string) string {
		return strings.TrimSpace(d.run("sha256sum < lab/library/%s.simg", image))
	}
	m := newMachine(t)
	small := func() *mounted {
		return m.mount("--client=lab", "--registry=lab="+r.scheme+"://"+r.host, fmt.Sprint("--cache-size=", limit))
	}
	d := small()
	within := func(what string) {
		t.Helper()
		if n, left := onDisk(t, d.home); n > limit+limit/16 || len(left) > 0 {
			t.Errorf("after %s the cache has %d bytes of %d, and %q", what, n, limit, left)
		}
	}
	// Layers that fit one by one.
	if got, want := sum(d, "many:1"), sum(full, "many:1"); got != want {
		t.Errorf("it reads as %s, want %s", got, want)
	}
	within("an image of many layers")
	// A layer that fits compressed alone.
	packed := sum(d, "words:1")
	if got, want := d.run("cp lab/library/words:1.simg %s/words && unsquashfs -o $(grep -abo hsqs %s/words | head -1 | cut -d: -f1) -cat %s/words words | sha256sum", d.home, d.home, d.home),
		full.run("cp lab/library/words:1.simg %s/words && unsquashfs -o $(grep -abo hsqs %s/words | head -1 | cut -d: -f1) -cat %s/words words | sha256sum", full.home, full.home, full.home); got != want {
		t.Errorf("the file in it reads as %s, want %s", got, want)
	}
	within("an image that is kept compressed")
	// One that does not fit at all.
	d.fails("No space left", "cat lab/library/noise:1.simg > /dev/null")
	if says := fmt.Sprint(d.status().Failures); !strings.Contains(says, "--cache-size") || !strings.Contains(says, "library/noise:1") {
		t.Errorf("status says %s", says)
	}
	within("an image that does not fit")
	d.run("cat lab/library/small:1.simg > /dev/null")
	d.unmount()
	// The next run keeps to it.
	d = small()
	if got := sum(d, "words:1"); got != packed {
		t.Error("the compressed image has other bytes in the next run")
	}
	within("the next run")
}

// TestInterruptedBuild: a daemon that is killed while an image is made leaves
// nothing half-made, and the next run makes it.
func TestInterruptedBuild(t *testing.T) {
	f := behind(t, startRegistry(t, registryOptions{}))
	body := randomText(3, 12<<20)
	f.push("library/tool:1", imageOf(t, v1.Config{Cmd: []string{"x"}}, layerOf(t, regular("noise", 0o644, body))))
	d := f.mount(t)
	d.run("stat lab/library/tool:1.simg")
	reached := make(chan struct{}, 100)
	f.troubled(func(req *http.Request) *fault {
		if kindOf(req) != blobs {
			return nil
		}
		reached <- struct{}{}
		return &fault{stall: true, at: 8 << 20}
	})
	cat := d.command(t.Context(), "cat", filepath.Join(d.dir, "lab/library/tool:1.simg"))
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	<-reached
	d.eventually("a part of it to be here", func() error {
		if n, _ := onDisk(t, d.home); n < 4<<20 {
			return fmt.Errorf("%d bytes", n)
		}
		return nil
	})
	d.kill()
	_ = cat.Wait()
	f.troubled(nil)
	d = d.machine.mount("--client=lab", "--registry=lab="+f.scheme+"://"+f.host)
	if n, left := onDisk(t, d.home); n > 1<<20 || len(left) > 0 {
		t.Errorf("the crash left %d bytes, %q", n, left)
	}
	out := d.run("cat lab/library/tool:1.simg")
	if !bytes.Contains([]byte(out), []byte(body)) {
		t.Error("the image does not hold its file")
	}
}

// TestLayersOnce: what images share is fetched once, however many are opened
// however often at once.
func TestLayersOnce(t *testing.T) {
	run := apptainer(t)
	f := behind(t, startRegistry(t, registryOptions{}))
	base, other := layerOf(t, regular("base", 0o644, randomText(1, 6<<20))), layerOf(t, regular("other", 0o644, randomText(2, 3<<20)))
	one := imageOf(t, v1.Config{Cmd: []string{"/bin/echo", "one"}}, busybox(t), base)
	f.push("library/one:1", one)
	f.push("library/one:2", one)
	f.push("library/two:1", imageOf(t, v1.Config{Cmd: []string{"/bin/echo", "two"}}, busybox(t), base, other))
	size := func(l v1.Layer) int64 {
		n, err := l.Size()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	d := f.mount(t)
	file := func(name string) string { return "lab/library/" + name + ".simg" }
	d.run("stat %s %s %s && getfattr -d -m- %s && cat lab/library/one:1.json", file("one:1"), file("one:2"), file("two:1"), file("one:1"))
	start := f.bytes()
	// The estimate is honest: neither nothing nor far beyond.
	estimate := 0
	fmt.Sscan(d.run("stat -c %%s %s", file("two:1")), &estimate)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, errOut, err := d.try("cat %s > /dev/null; head -c 100 %s > /dev/null", file("one:1"), file("one:2")); err != nil {
				t.Errorf("%s%v", errOut, err)
			}
		})
	}
	wg.Wait()
	want := size(busybox(t)) + size(base)
	if n := f.bytes() - start; n != want {
		t.Errorf("eight readers of two tags fetched %d bytes, want %d", n, want)
	}
	start = f.bytes()
	d.want("two", "%s run --no-privs %s", run, file("two:1"))
	if n := f.bytes() - start; n != size(other) {
		t.Errorf("a second image fetched %d bytes, want those of its own layer, %d", n, size(other))
	}
	real := 0
	fmt.Sscan(d.run("stat -c %%s %s", file("two:1")), &real)
	if estimate < real/3 || estimate > real*3 {
		t.Errorf("the estimate was %d bytes, the file has %d", estimate, real)
	}
	d.want(fmt.Sprint(real), "wc -c < %s", file("two:1"))
	// Two names, one object.
	d.eventually("the whole file to be written out", func() error {
		if v := strings.TrimSpace(d.run("getfattr --only-values -n user.sregistry.cached %s", file("one:2"))); v != strings.TrimSpace(d.run("stat -c %%s %s", file("one:1"))) {
			return fmt.Errorf("cached: %s", v)
		}
		return nil
	})
}

// TestReadsWhileArriving: of an image that is known from before, whose data are
// gone, what has come can be read while the rest still arrives.
func TestReadsWhileArriving(t *testing.T) {
	run := apptainer(t)
	f := behind(t, startRegistry(t, registryOptions{}))
	var list []entry
	for i := range 12 {
		list = append(list, regular(fmt.Sprintf("data%02d", i), 0o644, randomText(byte(i), 1<<20)))
	}
	// One layer, so that programs and data come by the same stream.
	list = append(busyboxEntries(t), list...)
	layer := layerOf(t, list...)
	digest, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	f.push("library/tool:1", imageOf(t, v1.Config{Cmd: []string{"/bin/echo", "hello"}}, layer))
	d := f.mount(t)
	file := "lab/library/tool:1.simg"
	sum := d.run("sha256sum < %s", file)
	d.unmount()
	if err := os.RemoveAll(filepath.Join(d.home, ".singularity/sregfs/objects")); err != nil {
		t.Fatal(err)
	}
	d = d.machine.mount("--client=lab", "--registry=lab="+f.scheme+"://"+f.host)
	d.run("stat %s", file)
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	f.troubled(func(req *http.Request) *fault {
		// Not the configuration: its connection would be used again while its
		// answer is held.
		if !strings.HasSuffix(req.URL.Path, digest.String()) {
			return nil
		}
		return &fault{at: 9 << 20, hold: gate}
	})
	d.want("hello", "%s run --no-privs %s", run, file)
	d.run("%s exec --no-privs %s cat /data03 > /dev/null", run, file)
	late := d.command(t.Context(), "sh", "-c", "sha256sum < "+filepath.Join(d.dir, file))
	var out bytes.Buffer
	late.Stdout = &out
	if err := late.Start(); err != nil {
		t.Fatal(err)
	}
	open()
	if err := late.Wait(); err != nil || out.String() != sum {
		t.Errorf("read while it arrived it has the sum %s%v, want %s", out.String(), err, sum)
	}
}

// TestReadsAfterEviction: an image whose data had to make room for others is
// open at once when it is wanted again, in the same mount and in the next, with
// its size and its bytes: what is known of its layer is kept, and what comes by
// of it is read while the rest still arrives.
func TestReadsAfterEviction(t *testing.T) {
	run := apptainer(t)
	f := behind(t, startRegistry(t, registryOptions{}))
	list := busyboxEntries(t)
	for i := range 12 {
		list = append(list, regular(fmt.Sprintf("data%02d", i), 0o644, randomText(byte(i), 1<<20)))
	}
	layer := layerOf(t, list...)
	digest, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	f.push("library/tool:1", imageOf(t, v1.Config{Cmd: []string{"/bin/echo", "hello"}}, layer))
	const others = 4
	for i := range 2 * others {
		f.push(fmt.Sprint("library/other:", i), imageOf(t, v1.Config{Cmd: []string{"x"}},
			layerOf(t, regular("noise", 0o644, randomText(byte(100+i), 14<<20)))))
	}
	// Room for one and a half of them, each twice: as a layer and as a file.
	m := newMachine(t)
	mount := func() *mounted {
		return m.mount("--client=lab", "--registry=lab="+f.scheme+"://"+f.host, fmt.Sprint("--cache-size=", 44<<20))
	}
	const file = "lab/library/tool:1.simg"
	d := mount()
	sum := d.run("sha256sum < %s", file)
	size := d.run("stat -c %%s %s", file)
	for k, next := range []bool{false, true} {
		t.Run(fmt.Sprint("next mount ", next), func(t *testing.T) {
			d.t = t
			for i := range others { // new to the kernel, too
				d.run("cat lab/library/other:%d.simg > /dev/null", k*others+i)
			}
			d.eventually("its data to be gone", func() error {
				if n := d.run("getfattr --only-values -n user.sregistry.cached %s", file); n != "0" {
					return fmt.Errorf("%s bytes are here", n)
				}
				return nil
			})
			if next {
				d.unmount()
				d = mount()
				d.t = t
			}
			gate, asked := make(chan struct{}), 0
			open := sync.OnceFunc(func() { close(gate) })
			defer open()
			f.troubled(func(req *http.Request) *fault {
				if !strings.HasSuffix(req.URL.Path, digest.String()) {
					return nil
				}
				asked++
				return &fault{at: 9 << 20, hold: gate}
			})
			d.run("dd if=%s iflag=nocache count=0 status=none", file) // the kernel has it, too
			if got := d.run("stat -c %%s %s", file); got != size {
				t.Errorf("it has %s bytes, had %s", got, size)
			}
			d.want("hello", "%s run --no-privs %s", run, file)
			d.run("%s exec --no-privs %s cat /data03 > %s/data", run, file, d.home)
			if got, err := os.ReadFile(filepath.Join(d.home, "data")); err != nil || string(got) != randomText(3, 1<<20) {
				t.Errorf("a file in it has other bytes: %v", err)
			}
			open()
			d.eventually("the whole file to be written out again", func() error {
				if n := d.run("getfattr --only-values -n user.sregistry.cached %s", file); n != strings.TrimSpace(size) {
					return fmt.Errorf("%s bytes are here", n)
				}
				return nil
			})
			if got := d.run("sha256sum < %s", file); got != sum {
				t.Errorf("it reads as %s, want %s", got, sum)
			}
			f.troubled(nil) // waits for its last call
			if asked != 1 {
				t.Errorf("its layer was fetched %d times", asked)
			}
		})
	}
}
