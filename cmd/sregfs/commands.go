package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/all"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/fs/control"
)

// mountPath finds the path in a mount that a user named an image by, with links
// followed, since .search and .by-id are links. mount is "" when arg is to be
// taken for a URI: pusheen/asaurus:red is one as long as no such file is there.
func mountPath(arg string) (abs, mount string, err error) {
	if strings.Contains(arg, "://") {
		return "", "", nil
	}
	if abs, err = filepath.Abs(arg); err != nil {
		return "", "", err
	}
	explicit := filepath.IsAbs(arg) || strings.HasPrefix(arg, "./") || strings.HasPrefix(arg, "../")
	if _, err := os.Lstat(abs); err != nil && !explicit {
		return "", "", nil
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(dir, filepath.Base(abs))
		if target, err := filepath.EvalSymlinks(abs); err == nil {
			abs = target
		}
	}
	mount = ourMount(abs)
	if mount == "" && explicit {
		return "", "", fmt.Errorf("%s lies in no mount of sregfs; name an image as CLIENT://COLLECTION/IMAGE:TAG, or by its path in a mount", arg)
	}
	return abs, mount, nil
}

// inTree is the image that a path below a mount names; ok is false for one that
// names none.
func inTree(rel string) (client string, ref backends.Ref, ok bool) {
	client, rest, below := strings.Cut(rel, "/")
	dir, file := filepath.Split(rest)
	ref, _, isImage := backends.ParseFile(file)
	ref.Collection = backends.ParseCollection(strings.TrimSuffix(dir, "/"))
	return client, ref, below && isImage
}

// joinMount takes in the registries that the running mount was given, so that
// commands know its clients. What the command itself was given goes before. It
// returns how the mount stands, the zero value when there is none.
func (e *environment) joinMount(ctx context.Context) (st control.Status) {
	d, err := control.Dial(ctx, e.cacheDir())
	if err != nil {
		return st
	}
	if st, err = d.Status(ctx); err != nil {
		return control.Status{}
	}
	known := map[string]string{}
	maps.Copy(known, st.Registries)
	maps.Copy(known, e.Registry)
	e.Registry = known
	return st
}

// target is what a user named an image by, a path in a mount or a URI. The client
// of a URI that names none is SREGISTRY_CLIENT or "".
func (e *environment) target(arg string) (client string, ref backends.Ref, err error) {
	abs, mount, err := mountPath(arg)
	if err != nil {
		return "", ref, err
	}
	if mount != "" {
		var ok bool
		if client, ref, ok = inTree(strings.TrimPrefix(abs, mount+"/")); !ok {
			return "", ref, fmt.Errorf("%s is not an image of the tree; name it as MOUNT/CLIENT/COLLECTION/IMAGE:TAG.simg", arg)
		}
		return client, ref, nil
	}
	if client, ref, err = backends.ParseURI(arg); err != nil {
		return "", ref, err
	}
	if client == "" {
		client = getenv("SREGISTRY_CLIENT")
	}
	known, err := all.Clients(e.Registry)
	if err != nil {
		return "", ref, err
	}
	if c, ok := all.Lookup(known, client); ok {
		client = c.Name
	}
	return client, ref, nil
}

// resolve finds the image that a user named, without a daemon.
func (e *environment) resolve(ctx context.Context, arg string) (*catalog.Client, backends.Image, closer, error) {
	e.joinMount(ctx)
	client, ref, err := e.target(arg)
	if err != nil {
		return nil, backends.Image{}, nil, err
	}
	cat, _, done, err := e.openCatalog(ctx, false, false)
	if err != nil {
		return nil, backends.Image{}, nil, err
	}
	cl, img, err := cat.Resolve(ctx, client, ref)
	if err != nil {
		done.Close()
		return nil, img, nil, err
	}
	return cl, img, done, nil
}

type shareCmd struct {
	Image string  `arg:"" help:"A URI, or a path in the mount."`
	Email *string `help:"Give this person access, where the client can." placeholder:"ADDRESS"`
	Quiet bool    `short:"q" help:"Print the link alone."`
}

// Run shares an image and prints where.
func (c *shareCmd) Run(ctx context.Context, e *environment) error {
	email := ""
	if c.Email != nil {
		// A variable that is not set must not turn into a link for everybody.
		if email = strings.TrimSpace(*c.Email); email == "" {
			return errors.New("the address after --email is empty; to share by link leave --email out")
		}
	}
	cl, img, done, err := e.resolve(ctx, c.Image)
	if err != nil {
		return err
	}
	defer done.Close()
	share, err := cl.Share(ctx, img, email)
	if err != nil {
		return err
	}
	if !c.Quiet {
		fmt.Fprintln(e.stdout, plain(img.Ref.Latest().String()))
	}
	switch {
	case email != "" && !c.Quiet:
		fmt.Fprintf(e.stdout, "Share to %s complete: %s!\n", email, plain(share.ID))
	case share.URL != "":
		fmt.Fprintln(e.stdout, share.URL)
	default:
		fmt.Fprintln(e.stdout, share.ID)
	}
	return nil
}

type imagesCmd struct {
	Query string `arg:"" optional:"" help:"Only images whose name, tag or URI contains this."`
	Quiet bool   `short:"q" help:"Print the rows without a header."`
}

// Run prints the records as the seeds' client does.
func (c *imagesCmd) Run(ctx context.Context, e *environment) error {
	x, err := e.openIndex(ctx)
	if err != nil {
		return err
	}
	defer x.Close()
	records, err := x.Records(ctx, c.Query)
	if err != nil {
		return err
	}
	if !c.Quiet {
		fmt.Fprintln(e.stdout, "Containers:   [date]   [location]  [client]\t[uri]")
	}
	for i, r := range records {
		location := "remote"
		if r.Image != nil {
			location = "local"
		}
		uri := r.URI
		if r.Version != "" && !strings.Contains(uri, "@") {
			uri += "@" + r.Version
		}
		fmt.Fprintf(e.stdout, "%d  %s\t%s\t   [%s]\t%s\n", i+1, r.Created.Format("January 02, 2006"), location, plain(r.Client), plain(uri))
	}
	return nil
}

type getCmd struct {
	Image string `arg:"" help:"A URI, with its client or without, or a path in a mount."`
}

// Run prints one line: the path in the mount, or the local file, or else where
// the image is. A path in a mount, which may be another user's, is printed
// whole when there is an image.
func (c *getCmd) Run(ctx context.Context, e *environment) error {
	abs, mount, err := mountPath(c.Image)
	if err != nil {
		return err
	}
	if mount != "" {
		if _, _, err := e.target(c.Image); err != nil {
			return err
		}
		if _, err := os.Stat(abs); err != nil {
			return err
		}
		fmt.Fprintln(e.stdout, abs)
		return nil
	}
	cl, img, done, err := e.resolve(ctx, c.Image)
	if err != nil {
		return err
	}
	defer done.Close()
	line := img.URL
	if path := cl.LocalPath(ctx, img); path != "" {
		line = path
	}
	if d, err := control.Dial(ctx, e.cacheDir()); err == nil {
		if st, err := d.Status(ctx); err == nil {
			line = filepath.Join(st.Mount, cl.Name, img.Ref.Dir(), img.Ref.File())
		}
	}
	if line == "" {
		return fmt.Errorf("%s has no path while nothing is mounted; mount it with: sregfs mount DIR", c.Image)
	}
	fmt.Fprintln(e.stdout, line)
	return nil
}

type rmCmd struct {
	Image string `arg:"" help:"A URI, or a path in the mount."`
}

// Run forgets a record.
func (c *rmCmd) Run(ctx context.Context, e *environment) error { return e.forget(ctx, c.Image, false) }

type rmiCmd struct {
	Image string `arg:"" help:"A URI, or a path in the mount."`
}

// Run forgets a record and the bytes.
func (c *rmiCmd) Run(ctx context.Context, e *environment) error { return e.forget(ctx, c.Image, true) }

// forget asks the daemon, which holds the cache, or does it itself where none
// runs.
func (e *environment) forget(ctx context.Context, arg string, bytes bool) error {
	e.joinMount(ctx)
	client, ref, err := e.target(arg)
	if err != nil {
		return err
	}
	d, err := control.Dial(ctx, e.cacheDir())
	if err == nil {
		return d.Forget(ctx, control.ForgetRequest{Client: client, Ref: ref, Bytes: bytes})
	}
	cat, _, done, err := e.openCatalog(ctx, bytes, false)
	if err != nil {
		return err
	}
	defer done.Close()
	return cat.Forget(ctx, client, ref, bytes)
}

type clientsCmd struct{}

// Run lists the clients: those that are set up, with what the running mount has
// met of trouble with them, and what the others lack.
func (c *clientsCmd) Run(ctx context.Context, e *environment) error {
	trouble := map[string]string{}
	for _, cl := range e.joinMount(ctx).Clients {
		trouble[cl.Name] = cl.Error
	}
	list, err := e.openEach(ctx)
	if err != nil {
		return err
	}
	for _, o := range list {
		state := "ready"
		var be *backends.Error
		switch {
		case o.err != nil && errors.As(o.err, &be) && be.Hint != "":
			state = be.Err.Error() + "; " + be.Hint
		case o.err != nil:
			state = "fails: " + o.err.Error()
		case trouble[o.client.Name] != "":
			state = "set up, but " + trouble[o.client.Name]
		}
		name := o.client.Name
		if len(o.client.Aliases) > 0 {
			name += " (" + strings.Join(o.client.Aliases, ", ") + ")"
		}
		fmt.Fprintf(e.stdout, "%-28s %s\n%-28s %s\n", name, o.client.About, "", plain(state))
	}
	return nil
}

type loginCmd struct {
	Name      string `arg:"" name:"client" help:"dropbox or gdrive." predictor:"login"`
	NoBrowser bool   `help:"Print the page's address and read the code from the terminal."`
}

// Run gets credentials from the user and stores them.
func (c *loginCmd) Run(ctx context.Context, e *environment) error {
	s, err := e.openSecrets()
	if err != nil {
		return err
	}
	known, err := all.Clients(e.Registry)
	if err != nil {
		return err
	}
	client, ok := all.Lookup(known, c.Name)
	if !ok {
		return fmt.Errorf("there is no client %q; \"sregfs clients\" lists them", c.Name)
	}
	if client.Login == nil {
		return fmt.Errorf("the client %s needs no login; \"sregfs clients\" says what it needs", client.Name)
	}
	term := backends.Terminal{In: os.Stdin, Out: e.stderr}
	if !c.NoBrowser {
		term.OpenURL = func(url string) error { return exec.CommandContext(ctx, "xdg-open", url).Start() }
	}
	if err := client.Login(ctx, e.clientSettings(client.Name, s), term); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "Logged in to %s; the credentials are in %s.\n", client.Name, s.Path())
	return nil
}

// clientNames are the clients' names for the shell to complete, those alone
// that have a login if so asked.
func clientNames(registries map[string]string, login bool) []string {
	known, err := all.Clients(registries)
	if err != nil {
		return nil
	}
	var names []string
	for _, c := range known {
		if c.Login != nil || !login {
			names = append(names, c.Name)
		}
	}
	return names
}
