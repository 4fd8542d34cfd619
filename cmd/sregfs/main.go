// Command sregfs mounts the places where Singularity images are kept as one
// directory tree, and does the few things that have no verb in a filesystem.
//
// It is flags and wiring only: see fs/ for the tree and fs/catalog for what is
// done with images.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
	kongcompletion "github.com/jotaen/kong-completion"
	"github.com/posener/complete"
	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends/conn"
)

// version is set by the linker.
var version = "dev"

// cli is the command line.
type cli struct {
	Mount   mountCmd   `cmd:"" help:"Mount the tree at a directory."`
	Unmount unmountCmd `cmd:"" help:"Take a mount down."`
	Umount  unmountCmd `cmd:"" hidden:"" help:"Take a mount down, as umount(8) is spelt."`
	Share   shareCmd   `cmd:"" help:"Share an image by link, or with a person by e-mail."`
	Images  imagesCmd  `cmd:"" help:"List the images on record."`
	Get     getCmd     `cmd:"" help:"Print an image's path, and nothing else."`
	Rm      rmCmd      `cmd:"" help:"Forget the local record of an image. The remote keeps the image."`
	Rmi     rmiCmd     `cmd:"" help:"Forget the record and drop the local bytes. The remote keeps the image."`
	Status  statusCmd  `cmd:"" help:"Show what is mounted, cached, waiting and what went wrong."`
	Clients clientsCmd `cmd:"" help:"List the clients and what each one lacks."`
	Login   loginCmd   `cmd:"" help:"Get credentials for a client."`
	Doctor  doctorCmd  `cmd:"" help:"Look for what stands in the way on this machine."`

	Completion kongcompletion.Completion `cmd:"" help:"Print how to switch on tab completion for your shell."`

	settings `group:"common"`
	Version  kong.VersionFlag `help:"Print the version and exit." group:"common"`
}

// settings are shared by all commands.
type settings struct {
	Config    string            `help:"Configuration file." placeholder:"FILE" env:"SREGFS_CONFIG" type:"path"`
	Client    []string          `help:"Only these clients (repeatable)." placeholder:"NAME" predictor:"client"`
	Registry  map[string]string `help:"A further OCI registry (repeatable); an http:// URL means plain HTTP." placeholder:"NAME=URL" mapsep:"none"`
	CacheDir  string            `help:"Where fetched and staged bytes are kept (default: sregfs in SINGULARITY_CACHEDIR)." placeholder:"DIR" type:"path"`
	CacheSize string            `help:"Limit of the cache, such as 50G, or 20% of its disk." placeholder:"SIZE" default:"20%"`
	ImageData string            `help:"How the files of container images are kept in the cache: plain, or zstd for less room and slower reading." enum:"plain,zstd" default:"plain" env:"SREGFS_IMAGE_DATA"`
	LogLevel  string            `help:"How much to log: debug, info, warn or error." enum:"debug,info,warn,error" default:"info" env:"SREGFS_LOG_LEVEL"`
	LogFormat string            `help:"How to log: text or json." enum:"text,json" default:"text" env:"SREGFS_LOG_FORMAT"`
}

// exitError ends the program with a status and no message of its own.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	args := os.Args[1:]
	if mountArgs, ok, err := fromMountHelper(os.Args); ok {
		if err != nil {
			fmt.Fprintln(os.Stderr, "sregfs:", err)
			os.Exit(1) // "incorrect invocation" of mount(8)
		}
		if len(mountArgs) == 0 {
			return
		}
		args = mountArgs
	}
	keepMemory()
	setHome()
	tidyVariables()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, args, os.Stdout, os.Stderr)
	var code exitError
	switch {
	case err == nil:
	case errors.As(err, &code):
		os.Exit(int(code))
	case errors.Is(err, context.Canceled):
		os.Exit(130)
	default:
		lines := strings.Split(err.Error(), "\n") // of errors that are joined
		for i := range lines {
			lines[i] = plain(lines[i])
		}
		fmt.Fprintln(os.Stderr, "sregfs:", strings.Join(lines, "\n"))
		os.Exit(1)
	}
}

// keepMemory keeps tokens that are in the program's memory there: no core file is
// written of it, wherever the system has such files go, and no other process of
// the user may look into it (prctl(2), PR_SET_DUMPABLE). Root may.
func keepMemory() {
	// Nothing depends on it that would be worth an end.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

// setHome gives the user's own folder to programs that mount(8) and systemd
// start without HOME: what lies there must be the same for all of them.
func setHome() {
	if os.Getenv("HOME") != "" {
		return
	}
	if u, err := user.LookupId(strconv.Itoa(os.Getuid())); err == nil && u.HomeDir != "" {
		os.Setenv("HOME", u.HomeDir)
	}
}

// tidyVariables takes quotes and spaces off our own variables, as settings of clients
// are read, and drops those that are empty: an empty one is not set.
func tidyVariables() {
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "SREGFS_") {
			continue
		}
		switch tidy := getenv(name); tidy {
		case "":
			os.Unsetenv(name)
		case value:
		default:
			os.Setenv(name, tidy)
		}
	}
}

// output remembers that something could not be printed.
type output struct {
	io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if err != nil && o.err == nil {
		o.err = fmt.Errorf("print: %w", err)
	}
	return n, err
}

// run parses args and runs the command they name.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var c cli
	if len(args) > 0 && args[0] == "help" {
		args = append(slices.Clone(args[1:]), "--help")
	}
	file, err := loadConfig(configPath(args))
	if err != nil {
		return err
	}
	parser, err := kong.New(&c,
		kong.Name("sregfs"),
		kong.Description("Container images in Dropbox, Google Drive, registries and on disk as one directory tree.\n\n"+
			"Everything not listed here is done by ordinary programs on the mounted tree: cp pushes, ls lists, "+
			"getfattr and cat IMAGE.json inspect, mv renames, rm deletes."),
		kong.Vars{"version": "sregfs " + version},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.ExplicitGroups([]kong.Group{{Key: "common", Title: "Flags of every command:"}}),
		kong.Writers(stdout, stderr),
		kong.Resolvers(file),
		kong.BindTo(ctx, (*context.Context)(nil)),
	)
	if err != nil {
		return err
	}
	kongcompletion.Register(parser,
		kongcompletion.WithPredictor("client", complete.PredictFunc(func(a complete.Args) []string {
			return clientNames(registriesIn(a.Completed, file.registries()), false)
		})),
		kongcompletion.WithPredictor("login", complete.PredictFunc(func(complete.Args) []string { return clientNames(nil, true) })))
	parsed, err := parser.Parse(args)
	if err != nil {
		var pe *kong.ParseError
		if errors.As(err, &pe) {
			which := "sregfs"
			if c := pe.Context.Selected(); c != nil {
				which = c.FullPath()
			}
			fmt.Fprintf(stderr, "sregfs: %v; see %q\n", err, which+" --help")
			return exitError(2)
		}
		return err
	}
	connections := conn.New()
	defer connections.CloseIdleConnections()
	out := &output{Writer: stdout}
	env := &environment{settings: c.settings, stdout: out, stderr: stderr, log: newLogger(c.settings, stderr), transport: connections}
	slog.SetDefault(env.log) // for who has no other, libraries among them
	if err := parsed.Run(env); err != nil {
		return err
	}
	return out.err
}

func newLogger(s settings, w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(s.LogLevel)) // kong has checked it
	o := &slog.HandlerOptions{Level: level}
	if s.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
