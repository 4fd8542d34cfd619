//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sregfs/sregfs/image/imagetest"
)

// long says that the tests may take their time (make test-long).
func long() bool { return os.Getenv("SREGFS_LONG") != "" }

// crashSeed is what the random moments come from: SREGFS_CRASH_SEED, or a new
// one. The moments repeat with it as far as the machine's own timing does.
func crashSeed(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("SREGFS_CRASH_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("SREGFS_CRASH_SEED: %v", err)
		}
	}
	t.Logf("repeat with SREGFS_CRASH_SEED=%d", seed)
	return seed
}

// TestCrash kills the daemon at random moments while programs read, push small
// and large images, overwrite, rename and delete, mounts again and looks at
// what is left.
func TestCrash(t *testing.T) {
	seed := crashSeed(t)
	contents := crashContents(t)
	rounds := 5
	if long() {
		rounds = 100
	}
	run := func(t *testing.T, a account) {
		c := &crash{t: t, a: a, contents: contents, rng: rand.New(rand.NewPCG(seed, 1)), m: newMachine(t, a.env...)}
		c.args = []string{"--client=" + a.client, "--cache-size=112M"}
		for i := range 12 {
			c.names = append(c.names, &crashName{name: fmt.Sprintf("c%d/image%d:v1", i%3, i), current: -1})
		}
		for round := range rounds {
			c.round(round)
			if t.Failed() {
				t.Fatalf("in round %d", round)
			}
		}
		t.Logf("%d pushes were acknowledged, %d cut off, %d bytes read", c.acked.Load(), c.cut.Load(), c.read.Load())
		if c.acked.Load() == 0 || c.read.Load() == 0 {
			t.Error("the test did nothing")
		}
	}
	eachClient(t, run)
}

// crashContents are images that differ in every part: some are one request to
// push, some go up in parts.
func crashContents(t *testing.T) [][]byte {
	t.Helper()
	var contents [][]byte
	for i := range 8 {
		size := int64(50_000 + 61_000*i)
		if i >= 5 {
			size = 9<<20 + int64(i)*700_000
		}
		data, err := os.ReadFile(imagetest.SIF(t, imagetest.Opts{Seed: uint64(100 + i), NoShell: true, ExtraBytes: size}))
		if err != nil {
			t.Fatal(err)
		}
		contents = append(contents, data)
	}
	return contents
}

// crashName is a name in the account, and what must be there.
type crashName struct {
	name string

	mu      sync.RWMutex // held for writing while the name is worked at
	current int          // index of the acknowledged content, -1 for none
}

// crashPush is a push that was not acknowledged when the daemon was killed.
type crashPush struct {
	name    *crashName
	content int
	written int // bytes that write(2) has taken
	temp    string
	err     error
}

// crashMove is a rename or, without to, a removal of unknown outcome.
type crashMove struct{ from, to *crashName }

type crash struct {
	t        *testing.T
	a        account
	m        *machine
	args     []string  // of the mount
	w        *tripwire // nil for random moments
	contents [][]byte
	names    []*crashName
	rng      *rand.Rand
	// fixed are further images, which nobody changes, and what looks at them.
	fixed map[string]func([]byte)

	killed           atomic.Bool
	acked, cut, read atomic.Int64

	mu     sync.Mutex // guards what follows
	pushes []crashPush
	moves  []crashMove
}

func (c *crash) round(round int) {
	// What status has reported, and the test has seen, its user takes away.
	for _, dir := range []string{"staging"} {
		files, err := filepath.Glob(filepath.Join(c.m.home, ".singularity/sregfs", dir, "*.*"))
		if err != nil {
			c.t.Fatal(err)
		}
		for _, f := range files {
			if err := os.Remove(f); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	d := c.m.mount(c.args...)
	c.killed.Store(false)
	c.pushes, c.moves = nil, nil
	var work sync.WaitGroup
	for i := range 4 {
		rng := rand.New(rand.NewPCG(c.rng.Uint64(), uint64(i)))
		if i < 2 {
			mine := c.names[i*len(c.names)/2 : (i+1)*len(c.names)/2]
			work.Go(func() { c.change(d, rng, mine) })
		} else {
			work.Go(func() { c.readers(d, rng) })
		}
	}
	// The first round goes on until there is something to read.
	wait := time.Duration(c.rng.Int64N(int64(1200 * time.Millisecond)))
	if round == 0 {
		wait += 1500 * time.Millisecond
	}
	time.Sleep(wait)
	c.killed.Store(true)
	d.kill()
	work.Wait()
	c.check(d)
}

// went reports whether an act was done. When it was not, the crash must be the
// reason.
func (c *crash) went(d *mounted, what string, err error) bool {
	if err == nil {
		return true
	}
	if !c.killed.Load() {
		c.t.Errorf("%s before the crash: %v\n%s", what, err, d.log)
		c.killed.Store(true)
	}
	return false
}

// change pushes, renames and deletes under names of its own until the crash.
func (c *crash) change(d *mounted, rng *rand.Rand, mine []*crashName) {
	for !c.killed.Load() {
		n := mine[rng.IntN(len(mine))]
		content := rng.IntN(len(c.contents))
		switch act := rng.IntN(10); {
		case act < 5 || n.current < 0:
			c.push(d, rng, n, content, "")
		case act < 7:
			c.push(d, rng, n, content, fmt.Sprintf(".%s.%06d", filepath.Base(n.name), rng.IntN(1e6)))
		case act < 9:
			to := mine[rng.IntN(len(mine))]
			if to.current < 0 {
				c.move(d, n, to)
			}
		default:
			c.move(d, n, nil)
		}
	}
}

func (c *crash) path(d *mounted, name string) string {
	return filepath.Join(d.dir, c.a.client, name+".simg")
}

// makeCollection makes the folder of an image, and none above that: once a dead mount
// is taken away, there must be nothing in its place.
func makeCollection(image string) error {
	if err := os.Mkdir(filepath.Dir(image), 0o755); !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// push writes a content and closes it, or renames it into place.
func (c *crash) push(d *mounted, rng *rand.Rand, n *crashName, content int, temp string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := crashPush{name: n, content: content, temp: temp}
	final := c.path(d, n.name)
	at := final
	if temp != "" {
		at = filepath.Join(filepath.Dir(final), temp)
	}
	err := func() error {
		if err := makeCollection(final); err != nil {
			return err
		}
		f, err := os.Create(at)
		if err != nil {
			return err
		}
		defer f.Close()
		data := c.contents[content]
		for p.written < len(data) {
			k := min(len(data)-p.written, 1+rng.IntN(1<<20))
			w, err := f.Write(data[p.written : p.written+k])
			p.written += w
			if err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil || temp == "" {
			return err
		}
		return os.Rename(at, final)
	}()
	if c.went(d, "push of "+n.name, err) {
		n.current = content
		c.acked.Add(1)
		return
	}
	c.cut.Add(1)
	p.err = err
	c.mu.Lock()
	c.pushes = append(c.pushes, p)
	c.mu.Unlock()
}

// move renames an image to a free name, or deletes it.
func (c *crash) move(d *mounted, from, to *crashName) {
	if from == to {
		return
	}
	from.mu.Lock()
	defer from.mu.Unlock()
	if to == nil {
		if c.went(d, "rm of "+from.name, os.Remove(c.path(d, from.name))) {
			from.current = -1
			return
		}
	} else {
		to.mu.Lock()
		defer to.mu.Unlock()
		err := makeCollection(c.path(d, to.name))
		if err == nil {
			err = os.Rename(c.path(d, from.name), c.path(d, to.name))
		}
		if c.went(d, "mv of "+from.name, err) {
			to.current, from.current = from.current, -1
			return
		}
	}
	c.mu.Lock()
	c.moves = append(c.moves, crashMove{from, to})
	c.mu.Unlock()
}

// readers reads ranges until the crash. All that an open file gives must be of
// one and the same content.
func (c *crash) readers(d *mounted, rng *rand.Rand) {
	buf := make([]byte, 1<<20)
	for !c.killed.Load() {
		n := c.names[rng.IntN(len(c.names))]
		n.mu.RLock()
		want := n.current
		if want < 0 {
			n.mu.RUnlock()
			time.Sleep(time.Millisecond)
			continue
		}
		f, err := os.Open(c.path(d, n.name))
		n.mu.RUnlock()
		if !c.went(d, "open of "+n.name, err) {
			return
		}
		data := c.contents[want]
		for range 1 + rng.IntN(12) {
			off := rng.IntN(len(data))
			k := min(len(data)-off, 1+rng.IntN(len(buf)))
			got, err := f.ReadAt(buf[:k], int64(off))
			if !bytes.Equal(buf[:got], data[off:off+got]) {
				c.t.Errorf("%s: [%d,%d) is not of content %d; %s", n.name, off, off+got, want, c.whose(buf[:got], off))
			}
			c.read.Add(int64(got))
			if errors.Is(err, syscall.ESTALE) {
				break // replaced, and the old version could not be had
			}
			if err == io.EOF || !c.went(d, "read of "+n.name, err) {
				break
			}
		}
		f.Close()
	}
}

// check mounts again and compares the remote, the tree and the staged bytes
// with what was acknowledged.
func (c *crash) check(dead *mounted) {
	c.t.Helper()
	c.checkDatabases()
	c.remoteIsWhole("after the crash")
	d := c.m.mount(c.args...)
	defer func() {
		d.unmount()
		if c.t.Failed() {
			c.t.Logf("log before the crash:\n%s", dead.log)
		}
	}()
	held := d.settled()
	c.remoteIsWhole("after the next mount")
	for _, m := range c.moves {
		at := c.onRemote(m.from)
		if m.to == nil {
			if at != -1 && at != m.from.current {
				c.t.Errorf("%s, being deleted, became content %d", m.from.name, at)
			}
			m.from.current = at
			continue
		}
		to := c.onRemote(m.to)
		if c.a.retags && to == m.from.current {
			m.from.current, m.to.current = at, to // what was retagged may still have its old tag
		} else if (at == m.from.current) == (to == m.from.current) {
			c.t.Errorf("content %d on its way from %s to %s: they have %d and %d", m.from.current, m.from.name, m.to.name, at, to)
		} else {
			m.from.current, m.to.current = at, to
		}
	}
	for _, p := range c.pushes {
		switch at := c.onRemote(p.name); {
		case at == p.content:
			p.name.current = at // it had arrived, or was resumed
		case at != p.name.current:
			c.t.Errorf("%s has content %d, neither the acknowledged %d nor the pushed %d", p.name.name, at, p.name.current, p.content)
		case p.written > 0:
			c.kept(d, p, held)
		}
	}
	want := map[string]bool{}
	for _, n := range c.names {
		if at := c.onRemote(n); at != n.current {
			c.t.Errorf("%s has content %d on the remote, want the acknowledged %d", n.name, at, n.current)
		}
		if n.current < 0 {
			continue
		}
		want[n.name] = true
		got, err := os.ReadFile(c.path(d, n.name))
		if err != nil || !bytes.Equal(got, c.contents[n.current]) {
			c.t.Errorf("%s reads as content %d, want %d: %v", n.name, c.which(got), n.current, err)
		}
	}
	for name, check := range c.fixed {
		want[name] = true
		got, err := os.ReadFile(c.path(d, name))
		if err != nil {
			c.t.Errorf("%s: %v", name, err)
			continue
		}
		check(got)
	}
	listed := strings.Fields(d.run("find %s -type f -name '*.simg' -printf '%%P\\n'", c.a.client))
	for _, name := range listed {
		if !want[strings.TrimSuffix(name, ".simg")] {
			c.t.Errorf("%s is listed, and was never acknowledged", name)
		}
	}
	if len(listed) != len(want) {
		c.t.Errorf("%d images are listed, want %d: %q", len(listed), len(want), listed)
	}
}

// remoteIsWhole: each file on the remote is one of the contents.
func (c *crash) remoteIsWhole(when string) {
	c.t.Helper()
	seen := map[string]bool{}
	for _, name := range c.a.names() {
		if seen[name] {
			c.t.Errorf("%s: %s is there twice", when, name)
		}
		seen[name] = true
		if got, ok := c.a.get(name); ok && c.fixed[name] == nil && c.which(got) < 0 {
			c.t.Errorf("%s: %s is %d bytes that nobody pushed", when, name, len(got))
		}
	}
	for name := range seen {
		if c.fixed[name] == nil && !slices.ContainsFunc(c.names, func(n *crashName) bool { return n.name == name }) {
			c.t.Errorf("%s: the remote has a stray %s", when, name)
		}
	}
}

// onRemote is the index of the content that a name has on the remote.
func (c *crash) onRemote(n *crashName) int {
	data, ok := c.a.get(n.name)
	if !ok {
		return -1
	}
	if at := c.which(data); at >= 0 {
		return at
	}
	return -2
}

func (c *crash) which(data []byte) int {
	return slices.IndexFunc(c.contents, func(want []byte) bool { return bytes.Equal(data, want) })
}

// whose says which content a range is of.
func (c *crash) whose(data []byte, off int) string {
	for i, content := range c.contents {
		if off+len(data) <= len(content) && bytes.Equal(data, content[off:off+len(data)]) {
			return fmt.Sprintf("it is of content %d", i)
		}
	}
	return "it is of none"
}

// kept: status tells of a push that was cut off, and all that its writer wrote
// lies in the file that it names.
func (c *crash) kept(d *mounted, p crashPush, held []heldFile) {
	c.t.Helper()
	for _, h := range held {
		if h.Image != p.name.name && (p.temp == "" || h.Image != p.temp) {
			continue
		}
		data, err := os.ReadFile(h.File)
		if err != nil {
			c.t.Errorf("status names a file that cannot be read: %v", err)
		}
		if len(data) >= p.written && bytes.Equal(data, c.contents[p.content][:len(data)]) {
			return
		}
	}
	c.t.Errorf("%d of %d bytes of content %d, written to %s (%q), are neither on the remote, which has content %d, nor in status: %+v (%v)",
		p.written, len(c.contents[p.content]), p.content, p.name.name, p.temp, p.name.current, held, p.err)
	// What there is now tells whether they are lost or were not told of.
	staged, _, _ := d.try("cd %s/staging && ls -l && head -c 1000 *.json", c.m.stateDir())
	c.t.Logf("status now: %+v; the staging area:\n%s", d.status(), staged)
}

// checkDatabases opens both databases with another program's eyes.
func (c *crash) checkDatabases() {
	c.t.Helper()
	for _, db := range []string{".singularity/sregistry.db", ".singularity/sregfs/state.db"} {
		if _, err := os.Stat(filepath.Join(c.m.home, db)); errors.Is(err, os.ErrNotExist) && c.w != nil {
			continue // killed before it was made
		}
		out, err := exec.Command("python3", "-c", `import sqlite3, sys
print(*sqlite3.connect(sys.argv[1]).execute("pragma integrity_check").fetchone())`, filepath.Join(c.m.home, db)).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != "ok" {
			c.t.Errorf("%s: %v %s", db, err, out)
		}
	}
}
