package catalog

import (
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/image/imagetest"
	"github.com/sregfs/sregfs/test/bubble"
)

// touch opens img and reads one byte at each of the offsets.
func touch(t *testing.T, cl *Client, img backends.Image, offsets ...int64) *Content {
	t.Helper()
	c, err := cl.Open(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range offsets {
		if _, err := c.ReadAt(t.Context(), make([]byte, 1), off); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// eventually waits for what transfers in the background bring about.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 2000 {
		if done() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("never came: " + what)
}

// uncached pushes data, and has the cache forget it.
func uncached(t *testing.T, cat *Catalog, data []byte) backends.Image {
	t.Helper()
	cl := cat.Client("mem")
	img, err := push(t, cl, red, data, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Cache().Remove(cl.CacheKey(img)); err != nil {
		t.Fatal(err)
	}
	return img
}

func asked(counter *backendtest.Counter) (bytes int64) {
	for _, c := range counter.Calls("OpenRange") {
		bytes += c.N
	}
	return bytes
}

// The first byte of an image brings the tables that a mount needs, and little
// else.
func TestTablesComeWithTheFirstByte(t *testing.T) {
	data, err := os.ReadFile(imagetest.Squashfs(t, imagetest.Opts{Seed: 3, ExtraBytes: 16 << 20}))
	if err != nil {
		t.Fatal(err)
	}
	bubble.Test(t, func(t *testing.T) {
		store, counter := backendtest.Counting(backendtest.Memory())
		cat := open(t, t.TempDir(), map[string]backends.Store{"mem": store})
		cl := cat.Client("mem")
		img := uncached(t, cat, data)
		c := touch(t, cl, img, 0)
		defer c.Close()
		synctest.Wait() // until all that was asked for ahead is here
		last := int64(0)
		for _, call := range counter.Calls("OpenRange") {
			last = max(last, call.Off+call.N)
		}
		if last != int64(len(data)) {
			t.Errorf("it was asked for up to %d of %d", last, len(data))
		}
		before := asked(counter)
		c2 := touch(t, cl, img, int64(len(data))-1)
		defer c2.Close()
		synctest.Wait()
		if more := asked(counter) - before; more != 0 {
			t.Errorf("a read of the tables' end asked for %d bytes", more)
		}
		if all := asked(counter); all > 1<<20 {
			t.Errorf("the first byte of an image of %d brought %d", len(data), all)
		}
	})
}

// What a start reads through several handles comes by itself at the next one,
// whatever cache that has.
func TestFirstStartIsRemembered(t *testing.T) {
	m := backendtest.Memory()
	profiles := t.TempDir()
	data := squash(t, 5, 64<<20)
	places := []int64{0, 40 << 20, 3 << 20, 25 << 20}

	first := open(t, t.TempDir(), map[string]backends.Store{"mem": m})
	first.opts.Profiles = profiles
	img := uncached(t, first, data)
	for _, place := range places {
		c := touch(t, first.Client("mem"), img, place)
		first.Client("mem").Learn(img, c)
		c.Close()
	}

	store, counter := backendtest.Counting(m)
	second := open(t, t.TempDir(), map[string]backends.Store{"mem": store})
	second.opts.Profiles = profiles
	cl := second.Client("mem")
	c := touch(t, cl, img, places[0])
	defer c.Close()
	for _, place := range places {
		eventually(t, "a place that the first start has read", func() bool {
			for _, call := range counter.Calls("OpenRange") {
				if call.Off <= place && place < call.Off+call.N {
					return true
				}
			}
			return false
		})
	}
	if all := asked(counter); all > 1<<20 {
		t.Errorf("four places that were read brought %d bytes", all)
	}
}

// A copy of an image teaches nothing.
func TestCopyIsNotAStart(t *testing.T) {
	cat := open(t, t.TempDir(), map[string]backends.Store{"mem": backendtest.Memory()})
	cat.opts.Profiles = t.TempDir()
	cl := cat.Client("mem")
	img := uncached(t, cat, squash(t, 6, 4<<20))
	c := touch(t, cl, img)
	defer c.Close()
	if _, err := c.ReadAt(t.Context(), make([]byte, 4<<20), 0); err != nil {
		t.Fatal(err)
	}
	cl.Learn(img, c)
	if _, known := cl.profile(img); known {
		t.Error("a profile was kept")
	}
}
