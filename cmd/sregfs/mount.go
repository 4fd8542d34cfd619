package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/cache/staging"
	"github.com/sregfs/sregfs/fs"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/fs/control"
)

type mountCmd struct {
	Dir        string   `arg:"" help:"An existing directory." type:"path"`
	Daemon     bool     `help:"Return once the tree is ready, and go on in the background."`
	ReadOnly   bool     `help:"Refuse every change."`
	AllowOther bool     `help:"Let other users read the mount; for setuid runtimes and shared nodes."`
	Option     []string `help:"An option of mount(8): noexec or noatime (repeatable). nosuid and nodev always hold." placeholder:"NAME" enum:"noexec,noatime"`
	Metrics    string   `help:"Answer Prometheus at this address; on the loopback interface if it is a port alone." placeholder:"[HOST:]PORT"`
	DebugFuse  bool     `help:"Log every FUSE message." hidden:""`
}

// readyFD is the descriptor on which a daemon tells its parent that it is
// ready, or why not.
const (
	readyEnv = "SREGFS_READY_FD"
	readyFD  = 3
)

// Run mounts, and serves until it is unmounted or told to stop.
func (c *mountCmd) Run(ctx context.Context, e *environment) error {
	if c.Daemon && os.Getenv(readyEnv) == "" {
		return c.daemonize(e)
	}
	ready := func(err error) {}
	if os.Getenv(readyEnv) != "" {
		if err := os.Chdir("/"); err != nil { // the folder that it was started in may be unmounted
			return err
		}
		pipe := os.NewFile(readyFD, "ready")
		ready = func(err error) {
			if err != nil {
				fmt.Fprintln(pipe, err)
			} else {
				fmt.Fprintln(pipe, "ready")
			}
			pipe.Close()
		}
	}
	err := c.serve(ctx, e, ready)
	if err != nil {
		ready(err)
	}
	return err
}

func (c *mountCmd) serve(ctx context.Context, e *environment, ready func(error)) error {
	spareMemory()
	// From here on no signal ends the program without the mount being taken down,
	// and one that comes before there is one is seen afterwards.
	signals := catchSignals()
	if err := c.check(e); err != nil {
		return err
	}
	allowOther := c.AllowOther
	if allowOther && !mayAllowOther() {
		e.log.Warn("--allow-other is left out: /etc/fuse.conf has no line user_allow_other; other users and setuid programs cannot enter the mount")
		allowOther = false
	}
	var metrics net.Listener
	if c.Metrics != "" {
		var err error
		if metrics, err = control.ListenMetrics(ctx, c.Metrics); err != nil {
			return err
		}
		defer metrics.Close()
	}
	// What is opened now lives for as long as the mount, which may be longer than
	// until the first signal.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	mounted := context.AfterFunc(ctx, end)
	cat, aliases, done, err := e.openFreeCatalog(life, c.ReadOnly)
	if err != nil {
		return cmp.Or(ctx.Err(), err)
	}
	defer done.Close()
	cat.Start()
	tree, err := fs.Mount(c.Dir, cat, fs.Options{
		AllowOther: allowOther, ReadOnly: c.ReadOnly, Flags: c.Option, Aliases: aliases,
		StackedCache: onOverlay(cmp.Or(e.temporary, e.cacheDir())), Debug: c.DebugFuse, Log: e.log,
	})
	if err != nil {
		return fmt.Errorf("mount %s: %w; \"sregfs doctor\" looks for what stands in the way", c.Dir, err)
	}
	if !mounted() {
		// The signal came while the clients were opened.
		if tree.Unmount() != nil {
			_ = detach(c.Dir)
		}
		return ctx.Err()
	}
	cat.Resume()
	raiseReadAhead(c.Dir)
	srv := &control.Server{Catalog: cat, About: control.Status{
		Version: version, Mount: c.Dir, Device: tree.Device(), Since: time.Now(), ReadOnly: c.ReadOnly,
		Cache: &control.CacheStatus{Dir: cmp.Or(e.temporary, e.cacheDir())}, Registries: map[string]string{},
	}, Opens: func() (o control.Opens) {
		o.Kernel, o.Daemon = tree.Opens()
		return o
	}}
	for name, address := range e.Registry {
		if cat.Client(name) != nil { // else its address is none, and may hold anything
			srv.About.Registries[name] = address
		}
	}
	// Whoever sees that the mount is ready may ask it.
	socket, err := control.Listen(life, e.cacheDir())
	if err == nil {
		go func() {
			if err := srv.Serve(life, socket); err != nil {
				e.log.Warn("commands cannot reach this mount any more", "error", err)
			}
		}()
	} else {
		e.log.Warn("commands cannot reach this mount", "error", err)
	}
	if metrics != nil {
		e.log.Info("answering Prometheus", "url", fmt.Sprintf("http://%s/metrics", metrics.Addr()))
		go func() {
			if err := srv.ServeMetrics(life, metrics); err != nil {
				e.log.Warn("metrics cannot be had any more", "error", err)
			}
		}()
	}
	names := make([]string, 0, len(cat.Clients()))
	for _, cl := range cat.Clients() {
		names = append(names, cl.Name)
	}
	if e.LogFormat == "json" {
		e.log.Info("is ready", "mount", c.Dir, "clients", names)
	} else {
		fmt.Fprintf(e.stderr, "sregfs: %s is ready with %s\n", c.Dir, strings.Join(names, ", "))
	}
	ready(nil)
	go unmountOnSignal(signals, tree, c.Dir, e)
	tree.Wait()
	return nil
}

// check says in one sentence what is wrong with where the mount is to be.
func (c *mountCmd) check(e *environment) error {
	c.Dir = realDir(c.Dir)
	if err := checkMountPoint(c.Dir, e.log); err != nil {
		return err
	}
	if cache := realDir(e.cacheDir()); cache == c.Dir || strings.HasPrefix(cache, strings.TrimSuffix(c.Dir, "/")+"/") {
		return fmt.Errorf("the cache folder %s would be hidden by the mount at %s; name another one with --cache-dir", cache, c.Dir)
	}
	return nil
}

// catchSignals sends what asks the program to stop to a channel: also the end of
// the terminal, unless the program was told to outlive that (nohup(1)). A log that
// nobody reads any more must not end it either.
func catchSignals() <-chan os.Signal {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	signal.Ignore(syscall.SIGPIPE)
	return signals
}

// openFreeCatalog is openCatalog with bytes. A cache that is held by a process
// that is just ending, an earlier mount or a command, is waited for.
func (e *environment) openFreeCatalog(ctx context.Context, readOnly bool) (*catalog.Catalog, map[string]string, closer, error) {
	const attempts, pause = 100, 50 * time.Millisecond
	for i := 1; ; i++ {
		cat, aliases, done, err := e.openCatalog(ctx, true, readOnly)
		if i == attempts || !errors.Is(err, cache.ErrLocked) && !errors.Is(err, staging.ErrLocked) {
			return cat, aliases, done, err
		}
		if _, down := control.Dial(ctx, e.cacheDir()); down == nil {
			return nil, nil, nil, err // it is there to stay
		}
		select {
		case <-ctx.Done():
			return nil, nil, nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// unmountOnSignal unmounts when the program is told to stop. A mount that is
// busy says so and stays; a second signal takes it out of the tree at once,
// while open files go on until they are closed.
func unmountOnSignal(signals <-chan os.Signal, tree *fs.Tree, dir string, e *environment) {
	for range signals {
		err := tree.Unmount()
		if err == nil {
			return
		}
		e.log.Warn("the mount is busy; stop what uses it, or signal again to detach it", "mount", dir, "error", err)
		<-signals
		if err := detach(dir); err != nil {
			e.log.Error("cannot detach the mount", "mount", dir, "error", err)
			continue
		}
		return
	}
}

// daemonize runs this very command in a session of its own and returns when
// that says that it is ready.
func (c *mountCmd) daemonize(e *environment) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := e.makeCacheDir(); err != nil {
		return err
	}
	logPath := filepath.Join(e.cacheDir(), "sregfs.log")
	logFile, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer logFile.Close()
	logged, err := logFile.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(self, daemonArgs(os.Args)...)
	if cmd.Env, err = absolutePaths(os.Environ()); err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, readyEnv+"=1")
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return fmt.Errorf("start in the background: %w", err)
	}
	w.Close()
	line, err := bufio.NewReader(r).ReadString('\n')
	switch line = strings.TrimSpace(line); {
	case line == "ready":
		// What a mount in the foreground would have said by now.
		if f, err := os.Open(logPath); err == nil {
			_, _ = io.Copy(e.stderr, io.NewSectionReader(f, logged, 1<<20))
			f.Close()
		}
		fmt.Fprintf(e.stderr, "sregfs: process %d, log in %s\n", cmd.Process.Pid, logPath)
		return cmd.Process.Release()
	case line != "":
		_ = cmd.Wait()
		return errors.New(line)
	}
	waitErr := cmd.Wait()
	return fmt.Errorf("the background process ended before it was ready (%w); see %s", errors.Join(err, waitErr), logPath)
}

// absolutePaths is the environment with relative paths made absolute, for a process
// that will not stay in this folder.
func absolutePaths(environ []string) ([]string, error) {
	paths := []string{"SINGULARITY_CACHEDIR", "APPTAINER_CACHEDIR", "SREGISTRY_STORAGE", "SREGISTRY_DATABASE", "SREGISTRY_CLIENT_SECRETS",
		"SREGISTRY_GOOGLE_DRIVE_CREDENTIALS", "SREGISTRY_THUMBNAIL", "SREGFS_CONFIG", "SSL_CERT_FILE", "SSL_CERT_DIR", "DOCKER_CONFIG",
		"REGISTRY_AUTH_FILE", "HOME", "TMPDIR"}
	list := make([]string, len(environ))
	for i, kv := range environ {
		list[i] = kv
		name, _, _ := strings.Cut(kv, "=")
		value := getenv(name)
		if value == "" || filepath.IsAbs(value) || strings.HasPrefix(value, "~") || !slices.Contains(paths, name) && !strings.HasSuffix(name, "_SECRETS") {
			continue
		}
		abs, err := filepath.Abs(value)
		if err != nil {
			return nil, err
		}
		list[i] = name + "=" + abs
	}
	return list, nil
}

// daemonArgs are the arguments for the process in the background.
func daemonArgs(args []string) []string {
	if translated, ok, _ := fromMountHelper(args); ok { // main has seen its error
		return translated
	}
	return args[1:]
}
