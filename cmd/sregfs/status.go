package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sregfs/sregfs/cache/staging"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/fs/control"
)

type statusCmd struct {
	JSON bool `help:"Print JSON."`
}

// Run shows the running daemon's state or, without one, what lies on disk.
func (c *statusCmd) Run(ctx context.Context, e *environment) error {
	var st control.Status
	d, err := control.Dial(ctx, e.cacheDir())
	switch {
	case err == nil:
		if st, err = d.Status(ctx); err != nil {
			return err
		}
	case errors.Is(err, control.ErrNoDaemon):
		st.Held, err = e.heldOnDisk()
		switch {
		case errors.Is(err, staging.ErrLocked):
			return fmt.Errorf("a sregfs with the cache in %s is just starting or ending; ask again", e.cacheDir())
		case err != nil:
			return err
		}
		// As a running one answers, for the scripts that read JSON.
		st.Held, st.Clients, st.Failures = append([]catalog.Held{}, st.Held...), []control.ClientStatus{}, []catalog.Failure{}
	default:
		return err
	}
	if len(e.Client) > 0 {
		e.Registry = withRegistries(st.Registries, e.Registry)
		of, err := e.ofWanted()
		if err != nil {
			return err
		}
		st.Clients = slices.DeleteFunc(st.Clients, func(c control.ClientStatus) bool { return !of(c.Name) })
		st.Held = slices.DeleteFunc(st.Held, func(h catalog.Held) bool { return !of(h.Client) })
	}
	if c.JSON {
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(st)
	}
	c.print(e, st)
	return nil
}

// heldOnDisk lists what an earlier run left in the staging folder.
func (e *environment) heldOnDisk() ([]catalog.Held, error) {
	dir := filepath.Join(e.cacheDir(), "staging")
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	d, err := staging.Open(dir, staging.Options{Log: e.log})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return catalog.HeldIn(d)
}

func (c *statusCmd) print(e *environment, st control.Status) {
	w := tabwriter.NewWriter(e.stdout, 0, 8, 2, ' ', 0)
	defer w.Flush()
	if st.Mount == "" {
		fmt.Fprintf(w, "Nothing is mounted with the cache in %s.\n", plain(e.cacheDir()))
		for _, m := range ownMounts() {
			if m.dead() {
				fmt.Fprintf(w, "The mount at %s is dead: its daemon is gone. Mount there again, or take it away with: sregfs unmount %s\n", plain(m.dir), plain(m.dir))
			} else {
				fmt.Fprintf(w, "%s is mounted with another cache; name that with --cache-dir.\n", plain(m.dir))
			}
		}
	} else {
		how := ""
		if st.ReadOnly {
			how = ", read-only"
		}
		fmt.Fprintf(w, "mount\t%s%s\n", plain(st.Mount), how)
		fmt.Fprintf(w, "process\t%d, since %s\n", st.PID, st.Since.Format(time.DateTime))
	}
	if x := st.Cache; x != nil {
		fmt.Fprintf(w, "cache\t%s of %s in %s, %s fetched (%s)\n",
			size(x.Used), size(x.Limit), count(int64(x.Objects), "object"), size(x.Fetched), plain(x.Dir))
	}
	for _, cl := range st.Clients {
		how := "not listed yet"
		switch {
		case cl.Error != "":
			how = "trouble: " + cl.Error
		case cl.Live:
			how = "followed live"
		case cl.Listed:
			how = "listed " + cl.At.Format(time.DateTime)
		}
		fmt.Fprintf(w, "client\t%s: %s in %s, %s\n", cl.Name, count(cl.Images, "image"), count(cl.Collections, "collection"), plain(how))
	}
	alone := false
	for _, h := range st.Held {
		alone = alone || h.State == string(staging.Failed) || h.State == string(staging.Orphan)
		fmt.Fprintf(w, "held\t%s://%s: %s, %s (%s)\n", plain(h.Client), plain(h.Image), size(h.Bytes), h.State, plain(h.File))
		if h.Error != "" {
			fmt.Fprintf(w, "\t%s\n", plain(h.Error))
		}
	}
	if alone {
		fmt.Fprintf(w, "\tWhat failed is on this disk alone: copy the file to its place in the mount again, or delete it and the .json beside it.\n")
	}
	if len(st.Held) == 0 {
		fmt.Fprintf(w, "held\tnothing waits to be pushed\n")
	}
	for _, f := range st.Failures {
		times := ""
		if f.Times > 1 {
			times = fmt.Sprintf(" (%d times)", f.Times)
		}
		fmt.Fprintf(w, "failed\t%s  %s%s\n", f.At.Format(time.DateTime), plain(f.What), times)
	}
}

// count prints a number of things.
func count(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// plain is s with what a terminal would act upon, and what is no text, written
// as \x1b or \u009b: names and errors come from others.
func plain(s string) string {
	var b strings.Builder
	for i, width := 0, 0; i < len(s); i += width {
		var r rune
		switch r, width = utf8.DecodeRuneInString(s[i:]); {
		case r == utf8.RuneError && width == 1, r < 0x80 && unicode.IsControl(r):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsControl(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteString(s[i : i+width])
		}
	}
	return b.String()
}

// size prints bytes for people.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
