package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

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
		if st.Held, err = e.heldOnDisk(); err != nil {
			return err
		}
	default:
		return err
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
		fmt.Fprintf(w, "Nothing is mounted with the cache in %s.\n", e.cacheDir())
	} else {
		fmt.Fprintf(w, "mount\t%s\n", st.Mount)
		fmt.Fprintf(w, "process\t%d, since %s\n", st.PID, st.Since.Format(time.DateTime))
	}
	if x := st.Cache; x != nil {
		fmt.Fprintf(w, "cache\t%s of %s in %d objects, %s fetched (%s)\n",
			size(x.Used), size(x.Limit), x.Objects, size(x.Fetched), x.Dir)
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
		fmt.Fprintf(w, "client\t%s: %d images in %d collections, %s\n", cl.Name, cl.Images, cl.Collections, how)
	}
	for _, h := range st.Held {
		fmt.Fprintf(w, "held\t%s://%s: %s, %s (%s)\n", h.Client, h.Image, size(h.Bytes), h.State, h.File)
		if h.Error != "" {
			fmt.Fprintf(w, "\t%s\n", h.Error)
		}
	}
	if len(st.Held) == 0 {
		fmt.Fprintf(w, "held\tnothing waits to be pushed\n")
	}
	for _, f := range st.Failures {
		times := ""
		if f.Times > 1 {
			times = fmt.Sprintf(" (%d times)", f.Times)
		}
		fmt.Fprintf(w, "failed\t%s  %s%s\n", f.At.Format(time.DateTime), f.What, times)
	}
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
