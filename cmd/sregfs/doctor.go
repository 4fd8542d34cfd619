package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/pacer"
)

type doctorCmd struct {
	Offline bool `help:"Ask no remote."`
}

// finding is one thing that was looked at.
type finding struct {
	name, state, advice string
	bad                 bool
}

// Run looks at everything that is known to stand in the way, says what to do
// about it, and fails if anything does.
func (c *doctorCmd) Run(ctx context.Context, e *environment) error {
	e.joinMount(ctx)
	list := []finding{
		checkDevice(), checkFusermount(), checkOthers(), checkPassthrough(e), checkRuntime(), checkCacheDisk(e), checkDatabase(ctx, e),
	}
	list = append(list, checkMounts()...)
	heard := talk{next: e.transport}
	e.transport = &heard
	clients, err := e.openEach(ctx)
	if err != nil {
		list = append(list, finding{"clients", err.Error(), "", true})
	}
	for _, o := range clients {
		f := c.checkClient(ctx, o, &heard)
		f.bad = f.bad || o.err != nil && len(e.Client) > 0 // it was asked for
		list = append(list, f)
	}
	list = append(list, heard.checkClock())
	bad := 0
	for _, f := range list {
		mark := "ok  "
		if f.bad {
			mark, bad = "FAIL", bad+1
		} else if f.advice != "" {
			mark = "note"
		}
		fmt.Fprintf(e.stdout, "%s  %-14s %s\n", mark, f.name, plain(f.state))
		if f.advice != "" {
			fmt.Fprintf(e.stdout, "%-20s → %s\n", "", plain(f.advice))
		}
	}
	if bad > 0 {
		return exitError(1)
	}
	return nil
}

func checkDevice() finding {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		f.Close()
		return finding{name: "/dev/fuse", state: "can be opened"}
	}
	advice := "as root: chmod 0666 /dev/fuse"
	if errors.Is(err, os.ErrNotExist) {
		advice = "as root: modprobe fuse; in a container, pass --device /dev/fuse"
	}
	return finding{"/dev/fuse", err.Error(), advice, true}
}

func checkFusermount() finding {
	path, err := exec.LookPath("fusermount3")
	if err != nil {
		return finding{"fusermount3", "is not installed", "install the package fuse3", true}
	}
	info, err := os.Stat(path)
	if err == nil && info.Mode()&os.ModeSetuid == 0 && os.Geteuid() != 0 {
		return finding{"fusermount3", path + " is not setuid root", "as root: chmod u+s " + path, true}
	}
	return finding{name: "fusermount3", state: path}
}

func checkOthers() finding {
	if mayAllowOther() {
		return finding{name: "other users", state: "--allow-other can be used"}
	}
	return finding{name: "other users", state: "cannot enter the mount, setuid runtimes neither",
		advice: "if they must: put the line user_allow_other into /etc/fuse.conf and mount with --allow-other"}
}

func checkPassthrough(e *environment) finding {
	f := finding{name: "passthrough"}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		f.state = err.Error()
		return f
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	_, _ = fmt.Sscanf(release, "%d.%d", &major, &minor)
	switch {
	case major < 6 || major == 6 && minor < 9:
		f.state, f.advice = "not in Linux "+release, "cached images are read through the daemon; Linux 6.9 reads them at the disk's speed"
	case os.Geteuid() != 0:
		f.state, f.advice = "needs a mount by root", "cached images are read through the daemon and the page cache"
	default:
		f.state = "Linux " + release + " has it"
	}
	return f
}

func checkRuntime() finding {
	for _, name := range []string{"apptainer", "singularity"} {
		if path, err := exec.LookPath(name); err == nil {
			f := finding{name: "runtime", state: path}
			if n, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil && strings.TrimSpace(string(n)) == "0" {
				f.advice = "user namespaces are switched off; ordinary users then need a setuid runtime and --allow-other"
			}
			return f
		}
	}
	return finding{name: "runtime", state: "neither apptainer nor singularity is installed",
		advice: "images can be copied and inspected, not run"}
}

func checkCacheDisk(e *environment) finding {
	dir := e.cacheDir()
	f := finding{name: "cache"}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return finding{"cache", err.Error(), "name another folder with --cache-dir", true}
	}
	probe, err := os.CreateTemp(dir, ".doctor-")
	if err != nil {
		return finding{"cache", err.Error(), "name another folder with --cache-dir", true}
	}
	probe.Close()
	os.Remove(probe.Name())
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return finding{"cache", err.Error(), "", true}
	}
	limit, err := cacheLimit(e.CacheSize, dir)
	if err != nil {
		return finding{"cache", err.Error(), "", true}
	}
	free := int64(st.Bavail) * st.Bsize
	f.state = fmt.Sprintf("%s, %s free, limit %s", dir, size(free), size(limit))
	if free < limit/2 {
		f.advice = "the disk has less room than half the limit; set --cache-size lower"
	}
	if slow := map[int64]string{0x6969: "NFS", 0x0bd00bd0: "Lustre", 0xff534d42: "CIFS"}[st.Type]; slow != "" {
		f.advice = "it is on " + slow + "; a local disk is faster and may be named with --cache-dir"
	}
	return f
}

func checkDatabase(ctx context.Context, e *environment) finding {
	path := database()
	if path == "" {
		return finding{name: "database", state: "switched off by SREGISTRY_DISABLE"}
	}
	x, err := e.openIndex(ctx)
	if err != nil {
		return finding{"database", err.Error(), "", true}
	}
	defer x.Close()
	records, err := x.Records(ctx, "")
	if err != nil {
		return finding{"database", err.Error(), "move " + filepath.Base(path) + " aside; a new one is made", true}
	}
	if err := mayWrite(path); err != nil {
		return finding{"database", err.Error(), "make the file and its folder writable, or set SREGISTRY_DATABASE to another place", true}
	}
	state := path + ", 1 record"
	if len(records) != 1 {
		state = fmt.Sprintf("%s, %d records", path, len(records))
	}
	return finding{name: "database", state: state}
}

// mayWrite says why a file cannot be written, or not be made. It makes nothing.
func mayWrite(path string) error {
	// SQLite keeps its journal beside the file, in a folder that is made if it
	// is absent.
	for _, p := range []string{path, filepath.Dir(path)} {
		for {
			_, err := os.Lstat(p)
			if err == nil {
				break
			}
			if !errors.Is(err, os.ErrNotExist) || p == filepath.Dir(p) {
				return err
			}
			p = filepath.Dir(p)
		}
		if err := unix.Access(p, unix.W_OK); err != nil {
			return fmt.Errorf("records cannot be kept in %s: %s: %w", path, p, err)
		}
	}
	return nil
}

// checkMounts finds the dead mounts of this user.
func checkMounts() (list []finding) {
	for _, m := range ownMounts() {
		if m.dead() {
			list = append(list, finding{"mount", m.dir + " is dead: its daemon is gone",
				"mount there again, or take it away with: sregfs unmount " + m.dir, true})
		}
	}
	return list
}

// clockSkew is how wrong a clock may be before signed requests and tokens
// fail.
const clockSkew = 5 * time.Minute

// talk is the clients' transport, and learns from what passes: what time the
// services think it is, and which hosts do not answer.
type talk struct {
	next  http.RoundTripper
	mu    sync.Mutex
	known bool
	ahead time.Duration    // of this machine's clock
	met   map[string]error // in place of an answer, by host
}

// RoundTrip passes a request on and notes the answer's Date (RFC 9110, section
// 6.6.1), or what was met in its place.
func (c *talk) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(req)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if req.Context().Err() == nil {
			if c.met == nil {
				c.met = map[string]error{}
			}
			c.met[req.URL.Host] = err
		}
		return nil, err
	}
	delete(c.met, req.URL.Host)
	if t, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		c.known, c.ahead = true, time.Since(t).Truncate(time.Second)
	}
	return resp, nil
}

// troubles are the hosts that do not answer and what was met in place of it.
func (c *talk) troubles() map[string]error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.met)
}

func (c *talk) checkClock() finding {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.known:
		return finding{name: "clock", state: "not compared: no service was asked"}
	case c.ahead.Abs() > clockSkew:
		return finding{"clock", fmt.Sprintf("%v off the services' clocks", c.ahead.Abs()),
			"set the clock, as by timedatectl set-ntp true; tokens are refused meanwhile", true}
	}
	return finding{name: "clock", state: "agrees with the services'"}
}

// patience is how long a service has for its answer.
const patience = 15 * time.Second

func (c *doctorCmd) checkClient(ctx context.Context, o opened, t *talk) finding {
	f := finding{name: o.client.Name}
	if o.err != nil {
		f.state = o.err.Error()
		if errors.Is(o.err, backends.ErrNotConfigured) {
			f.state, f.advice = "not set up", backends.Hint(o.err)
			return f
		}
		f.bad = true
		return f
	}
	a, ok := backends.As[backends.Accounter](o.store)
	switch _, local := backends.As[backends.Localer](o.store); {
	case local:
		f.state = "set up"
		return f
	case !ok || c.Offline:
		f.state = "set up; it was not asked"
		return f
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	others := t.troubles()
	name, err := a.Account(ctx)
	if ctx.Err() != nil && errors.Is(err, context.DeadlineExceeded) {
		// It does not know what the request met that it waited for, such as that
		// for a token.
		met := fmt.Errorf("no answer within %s", patience)
		for host, trouble := range t.troubles() {
			if _, other := others[host]; !other {
				met = trouble
			}
		}
		err = &pacer.Error{Kind: backends.ErrUnreachable, Err: met}
	}
	if err != nil {
		hint := backends.Hint(err)
		return finding{o.client.Name, strings.TrimSuffix(err.Error(), "; "+hint), hint, true}
	}
	f.state = "connected to " + name
	return f
}
