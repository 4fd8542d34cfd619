//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sregfs/sregfs/image/imagetest"
)

// TestPassthrough: once all of an image is here, the kernel reads it without
// the daemon, at each open, from the first one on that nobody else's handle
// stands in the way of; and for a user who may not have that, it keeps what it
// has read. While the image becomes complete, no reader sees an error.
func TestPassthrough(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		image := imagetest.SIF(t, imagetest.Opts{Seed: 11, ExtraBytes: 8 << 20})
		a.put(t, "pusheen/asaurus:red", image)
		for _, uid := range []int{0, 1000} {
			t.Run(fmt.Sprint("uid", uid), func(t *testing.T) {
				if uid != 0 {
					a.chown(t, uid)
				}
				for try := 1; ; try++ {
					hits, passes := readAgain(t, a, uid, image)
					if hits == 0 {
						break
					}
					t.Logf("the daemon was asked %d times for what the kernel had read", hits)
					// A kernel that is to spare memory lets go of pages that it has only
					// read, now and then. What the daemon does wrong it does on each
					// machine.
					if passes || try == 3 {
						t.Fatal("the kernel has not kept it")
					}
				}
			})
		}
	})
}

// readAgain has a new machine read an image until all of it is here, and again. It
// returns how often the daemon was asked that last time, and whether the kernel can
// read files itself.
func readAgain(t *testing.T, a account, uid int, image string) (hits int64, passes bool) {
	t.Helper()
	m := newMachine(t, a.env...)
	if uid != 0 {
		m.asUser(uid)
	}
	d := m.mount("--client=" + a.client)
	defer d.unmount()
	file := a.client + "/pusheen/asaurus:red.simg"
	// Eight readers, of whom some open it before it is complete, some while that
	// happens, and some afterwards.
	d.run(`all=; for reader in 1 2 3 4 5 6 7 8; do
		(for n in $(seq 40); do tail -c $((n*20000)) %s >/dev/null || exit 1; done) & all="$all $!"
	done; cat %s >/dev/null && for one in $all; do wait $one || exit 1; done`, file, file)
	d.eventually("the whole image to be here", func() error {
		if where, _, err := d.try("getfattr --only-values -n user.sregistry.location %s", file); err != nil || where != "local" {
			return fmt.Errorf("location %q: %v", where, err)
		}
		return nil
	})
	d.run("cat %s >/dev/null", file) // the page cache has all of it
	d.eventually("the daemon to have read what its record says", func() error {
		read := d.status().Cache.Hits
		time.Sleep(500 * time.Millisecond)
		if again := d.status().Cache.Hits; again != read {
			return fmt.Errorf("%d reads, and then %d", read, again)
		}
		return nil
	})
	before := d.status()
	d.run("for n in $(seq 10); do cat %s | cmp - %s || exit 1; done; exec 3<%s; cat %s >/dev/null",
		file, d.give(image), file, file)
	after := d.status()
	kernel, daemon := after.Opens.Kernel-before.Opens.Kernel, after.Opens.Daemon-before.Opens.Daemon
	out, passes := d.passesThrough()
	switch {
	case passes:
		if kernel < 12 || daemon != 0 {
			t.Errorf("the kernel read %d opens by itself and left %d to the daemon, want all", kernel, daemon)
		}
	default:
		t.Logf("no passthrough: %s", out)
		if kernel != 0 || daemon < 12 {
			t.Errorf("the kernel read %d opens by itself, the daemon %d", kernel, daemon)
		}
	}
	return after.Cache.Hits - before.Cache.Hits, passes
}

// passesThrough reports whether the kernel can read files itself here, and what
// the doctor says of that.
func (d *mounted) passesThrough() (says string, ok bool) {
	d.t.Helper()
	out, _, err := d.try("%s doctor --offline | grep passthrough", program)
	if err != nil {
		d.t.Errorf("doctor does not tell of passthrough: %s", out)
	}
	return out, strings.HasPrefix(out, "ok")
}
