package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
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
	if err := checkMountPoint(c.Dir, e.log); err != nil {
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
	cat, aliases, done, err := e.openFreeCatalog(ctx, c.ReadOnly)
	if err != nil {
		return err
	}
	defer done.Close()
	cat.Start()
	tree, err := fs.Mount(c.Dir, cat, fs.Options{
		AllowOther: allowOther, ReadOnly: c.ReadOnly, Flags: c.Option, Aliases: aliases,
		StackedCache: onOverlay(e.cacheDir()), Debug: c.DebugFuse, Log: e.log,
	})
	if err != nil {
		return fmt.Errorf("mount %s: %w; \"sregfs doctor\" looks for what stands in the way", c.Dir, err)
	}
	cat.Resume()
	raiseReadAhead(c.Dir)
	srv := &control.Server{Catalog: cat, About: control.Status{
		Version: version, Mount: c.Dir, Since: time.Now(), ReadOnly: c.ReadOnly,
		Cache: &control.CacheStatus{Dir: e.cacheDir()}, Registries: map[string]string{},
	}, Opens: func() (o control.Opens) {
		o.Kernel, o.Daemon = tree.Opens()
		return o
	}}
	for name, address := range e.Registry {
		if cat.Client(name) != nil { // else its address is none, and may hold anything
			srv.About.Registries[name] = address
		}
	}
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	// Whoever sees that the mount is ready may ask it.
	socket, err := control.Listen(ctx, e.cacheDir())
	if err == nil {
		go func() {
			if err := srv.Serve(serving, socket); err != nil {
				e.log.Warn("commands cannot reach this mount any more", "error", err)
			}
		}()
	} else {
		e.log.Warn("commands cannot reach this mount", "error", err)
	}
	if metrics != nil {
		e.log.Info("answering Prometheus", "url", fmt.Sprintf("http://%s/metrics", metrics.Addr()))
		go func() {
			if err := srv.ServeMetrics(serving, metrics); err != nil {
				e.log.Warn("metrics cannot be had any more", "error", err)
			}
		}()
	}
	names := make([]string, 0, len(cat.Clients()))
	for _, cl := range cat.Clients() {
		names = append(names, cl.Name)
	}
	fmt.Fprintf(e.stderr, "sregfs: %s is ready with %s\n", c.Dir, strings.Join(names, ", "))
	ready(nil)
	go unmountOnSignal(tree, c.Dir, e)
	tree.Wait()
	return nil
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
func unmountOnSignal(tree *fs.Tree, dir string, e *environment) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
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
	cmd.Env = append(os.Environ(), readyEnv+"=1")
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

// daemonArgs are the arguments for the process in the background.
func daemonArgs(args []string) []string {
	if translated, ok, _ := fromMountHelper(args); ok { // main has seen its error
		return translated
	}
	return args[1:]
}
