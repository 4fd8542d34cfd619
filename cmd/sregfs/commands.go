package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/all"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/fs/control"
	"github.com/sregfs/sregfs/index"
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
	e.Registry = withRegistries(st.Registries, e.Registry)
	return st
}

// withRegistries are a mount's registries and those that a command was given, which
// go before.
func withRegistries(mount, given map[string]string) map[string]string {
	known := map[string]string{}
	maps.Copy(known, mount)
	maps.Copy(known, given)
	return known
}

// target is the image that a user named.
type target struct {
	client string // "" where that is left open
	ref    backends.Ref
	path   string // in the tree, "" for what was named by a URI
	mount  string // that path lies in
}

// target reads what a user named an image by, a path in a mount or a URI. The
// client of a URI that names none is SREGISTRY_CLIENT or "".
func (e *environment) target(arg string) (t target, err error) {
	if t.path, t.mount, err = mountPath(arg); err != nil {
		return t, err
	}
	if t.mount != "" {
		var ok bool
		if t.client, t.ref, ok = inTree(strings.TrimPrefix(t.path, t.mount+"/")); !ok {
			return t, fmt.Errorf("%s is not an image of the tree; name it as MOUNT/CLIENT/COLLECTION/IMAGE:TAG.simg", arg)
		}
		return t, nil
	}
	t.path = ""
	if t.client, t.ref, err = backends.ParseURI(arg); err != nil {
		return t, err
	}
	if t.client == "" {
		t.client = getenv("SREGISTRY_CLIENT")
	}
	known, err := all.Clients(e.Registry)
	if err != nil {
		return t, err
	}
	if c, ok := all.Lookup(known, t.client); ok {
		t.client = c.Name
	}
	return t, nil
}

// ofWanted returns a function that tells whether a client, named as it is shown or
// as records have it, is one that --client names.
func (e *environment) ofWanted() (func(client string) bool, error) {
	known, err := all.Clients(e.Registry)
	if err != nil {
		return nil, err
	}
	wanted, err := e.wanted(known)
	if err != nil {
		return nil, err
	}
	return func(client string) bool {
		return slices.ContainsFunc(wanted, func(c backends.Client) bool { return client == c.Name || client == c.RecordName })
	}, nil
}

// daemon is whoever has to do what is done with t: for a path the daemon of its
// mount, which alone knows what is shown there; it may have other settings than
// this command, and its mount another cache: then that is an error. For a URI it is
// the daemon of this command's own cache, nil without one.
func (e *environment) daemon(ctx context.Context, t target) (*control.Client, error) {
	d, err := control.Dial(ctx, e.cacheDir())
	if t.mount == "" {
		if err != nil {
			return nil, nil
		}
		return d, nil
	}
	if err == nil {
		st, err := d.Status(ctx)
		if err != nil {
			return nil, err
		}
		var root unix.Stat_t
		if err := unix.Stat(t.mount, &root); err == nil && root.Dev == st.Device || st.Device == 0 && st.Mount == t.mount {
			return d, nil
		}
	}
	return nil, fmt.Errorf("%s is not the mount that has its cache in %s; name the right cache with --cache-dir, or have the mount's owner run this", t.mount, e.cacheDir())
}

// openFor opens the clients that t may be an image of, without its bytes. How
// others are set up must not matter.
func (e *environment) openFor(ctx context.Context, t target) (*catalog.Catalog, closer, error) {
	only := *e
	if t.client != "" && len(e.Client) == 0 {
		only.Client = []string{t.client}
	}
	cat, _, done, err := only.openCatalog(ctx, false, false)
	return cat, done, err
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
	e.joinMount(ctx)
	t, err := e.target(c.Image)
	if err != nil {
		return err
	}
	shared, err := e.share(ctx, t, email)
	if err != nil {
		return err
	}
	if !c.Quiet {
		fmt.Fprintln(e.stdout, plain(shared.Ref.Latest().String()))
	}
	switch {
	case email != "" && !c.Quiet:
		fmt.Fprintf(e.stdout, "Share to %s complete: %s!\n", email, plain(shared.Share.ID))
	case shared.Share.URL != "":
		fmt.Fprintln(e.stdout, shared.Share.URL)
	default:
		fmt.Fprintln(e.stdout, shared.Share.ID)
	}
	return nil
}

// share shares what a path shows with the account of its mount, and what a URI
// names with the one that this command is set to.
func (e *environment) share(ctx context.Context, t target, email string) (control.Shared, error) {
	request := control.ShareRequest{Client: t.client, Ref: t.ref, Email: email}
	if t.mount != "" {
		d, err := e.daemon(ctx, t)
		if err != nil {
			return control.Shared{}, err
		}
		return d.Share(ctx, request)
	}
	cat, done, err := e.openFor(ctx, t)
	if err != nil {
		return control.Shared{}, err
	}
	defer done.Close()
	return control.Share(ctx, cat, request)
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
	if len(e.Client) > 0 {
		e.joinMount(ctx)
		of, err := e.ofWanted()
		if err != nil {
			return err
		}
		records = slices.DeleteFunc(records, func(r index.Record) bool { return !of(r.Client) })
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
	running := e.joinMount(ctx)
	t, err := e.target(c.Image)
	if err != nil {
		return err
	}
	if t.mount != "" {
		if _, err := os.Stat(t.path); err != nil {
			return err
		}
		fmt.Fprintln(e.stdout, t.path)
		return nil
	}
	cat, done, err := e.openFor(ctx, t)
	if err != nil {
		return err
	}
	defer done.Close()
	cl, img, err := cat.Resolve(ctx, t.client, t.ref)
	if err != nil {
		return err
	}
	line := img.URL
	if path := cl.LocalPath(ctx, img); path != "" {
		line = path
	}
	if slices.ContainsFunc(running.Clients, func(c control.ClientStatus) bool { return c.Name == cl.Name }) {
		line = filepath.Join(running.Mount, cl.Name, img.Ref.Dir(), img.Ref.File())
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
	t, err := e.target(arg)
	if err != nil {
		return err
	}
	d, err := e.daemon(ctx, t)
	if err != nil {
		return err
	}
	if d != nil {
		return d.Forget(ctx, control.ForgetRequest{Client: t.client, Ref: t.ref, Bytes: bytes})
	}
	cat, _, done, err := e.openCatalog(ctx, bytes, false)
	if err != nil {
		return err
	}
	defer done.Close()
	return cat.Forget(ctx, t.client, t.ref, bytes)
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
	client, err := lookup(known, c.Name)
	if err != nil {
		return err
	}
	if client.Login == nil {
		return fmt.Errorf("the client %s needs no login; \"sregfs clients\" says what it needs", client.Name)
	}
	term := backends.Terminal{In: os.Stdin, Out: e.stderr}
	if !c.NoBrowser {
		term.OpenURL = func(url string) error { return browse(ctx, url) }
	}
	if err := client.Login(ctx, e.clientSettings(client.Name, s), term); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "Logged in to %s; the credentials are in %s.\n", client.Name, s.Path())
	return nil
}

// browse opens the user's browser, which may well go on for as long as the program.
// One that cannot be started says so within moments.
func browse(ctx context.Context, url string) error {
	const moments = 3 * time.Second
	cmd := exec.CommandContext(ctx, "xdg-open", url)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("xdg-open: %w", err)
		}
	case <-time.After(moments):
	case <-ctx.Done():
	}
	return nil
}

// registriesIn adds to known what --registry names among the words of a command line
// that is being typed.
func registriesIn(words []string, known map[string]string) map[string]string {
	for i, word := range words {
		pair, ok := strings.CutPrefix(word, "--registry=")
		if !ok && i > 0 && words[i-1] == "--registry" {
			pair, ok = word, true
		}
		if name, address, has := strings.Cut(pair, "="); ok && has {
			known[name] = address
		}
	}
	return known
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
