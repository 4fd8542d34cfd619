package catalog

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache/staging"
)

// Resume takes up what an earlier run left: uploads that were under way are
// finished in the background, the rest is told by Held.
func (c *Catalog) Resume() {
	if c.opts.Staging == nil || c.opts.ReadOnly {
		return
	}
	left, err := c.opts.Staging.Pending()
	if err != nil {
		c.log.Error("cannot take up what an earlier run left", "error", err)
	}
	for _, f := range left {
		m := f.Meta()
		cl := c.Client(m.Client)
		to := backends.Ref{Collection: m.Collection, Name: m.Name, Tag: m.Tag}
		switch {
		case m.State == staging.Acknowledged:
			// Acknowledged by the remote; only the clean-up was missing.
			_ = f.Discard()
			continue
		case cl == nil || to.Name == "" || m.State != staging.Uploading:
			// A copy that was cut off, or a push whose failure its writer was
			// told: the user decides.
			c.log.Warn("an earlier run left bytes that are not on the remote; sregfs status shows them",
				"client", m.Client, "image", to.String(), "file", f.Path(), "state", string(m.State))
			_ = f.Release()
			continue
		}
		s := &Staged{cl: cl, file: f, to: to, dirty: true, sums: newPrefixSums(), resumable: true, leftover: true}
		s.sums.broken = true
		c.log.Info("resuming an upload that an earlier run left", "client", m.Client, "image", to.String())
		c.work.Go(func() { c.resume(s) })
	}
}

// resume pushes what an earlier run left, and tries again while the remote
// cannot be asked. Anything else that stands in the way, such as a newer image
// under the name, is told and left to the user.
func (c *Catalog) resume(s *Staged) {
	defer s.Finish(true)
	for wait := retryMin; ; wait = min(wait*2, retryMax) {
		_, err := s.Commit(c.ctx)
		if err == nil || c.ctx.Err() != nil {
			return
		}
		c.Fail(err.Error())
		if !passing(err) {
			return
		}
		select {
		case <-c.ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// passing reports whether a push that failed so may succeed later, without
// anybody's doing but to restore the network or the log-in.
func passing(err error) bool {
	return errors.Is(err, backends.ErrUnreachable) || errors.Is(err, backends.ErrBusy) ||
		errors.Is(err, backends.ErrAuth) || errors.Is(err, context.DeadlineExceeded)
}

// supersede does away with what is left of earlier copies of the image that s has
// just been pushed as, where s begins with all of it.
func (c *Catalog) supersede(s *Staged) {
	m := s.file.Meta()
	left := func(old staging.Meta) bool {
		return old.State == staging.Failed && old.ID != m.ID && old.Name != "" &&
			old.Client == m.Client && old.Collection == m.Collection && old.Name == m.Name && old.Tag == m.Tag
	}
	metas, err := c.opts.Staging.List()
	if err != nil || !slices.ContainsFunc(metas, left) {
		return
	}
	files, _ := c.opts.Staging.Pending() // what is told of, status shows as well
	for _, f := range files {
		end := f.Release
		if left(f.Meta()) && beginsWith(s.file, f) {
			end = f.Discard
		}
		if err := end(); err != nil {
			c.log.Warn("cannot put back or remove what an earlier run left", "file", f.Path(), "error", err)
		}
	}
}

// beginsWith reports whether all of part is at the beginning of whole.
func beginsWith(whole, part io.ReaderAt) bool {
	want, got := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(want)) {
		n, err := part.ReadAt(want, off)
		if err != nil && err != io.EOF {
			return false
		}
		if k, _ := whole.ReadAt(got[:n], off); k < n || !bytes.Equal(got[:n], want[:n]) {
			return false
		}
		if err == io.EOF {
			return true
		}
	}
}

// Held is what waits on this disk and is not on the remote.
type Held struct {
	Client  string    `json:"client"`
	Image   string    `json:"image"`
	File    string    `json:"file"`
	Bytes   int64     `json:"bytes"`
	State   string    `json:"state"`
	Error   string    `json:"error,omitempty"`
	Updated time.Time `json:"updated"`
}

// Held lists what is staged: being written, being uploaded, or left over.
func (c *Catalog) Held() []Held {
	if c.opts.Staging == nil {
		return nil
	}
	held, err := HeldIn(c.opts.Staging)
	if err != nil {
		c.log.Warn("cannot list what is staged", "error", err)
	}
	return held
}

// HeldIn lists what is staged in a directory, for when no catalog is open.
func HeldIn(d *staging.Dir) ([]Held, error) {
	metas, err := d.List()
	if err != nil {
		return nil, err
	}
	held := make([]Held, 0, len(metas))
	for _, m := range metas {
		if m.State == staging.Acknowledged {
			continue
		}
		name := backends.Ref{Collection: m.Collection, Name: m.Name, Tag: m.Tag}.String()
		if m.Name == "" {
			name = m.TempName
		}
		file := d.Path(m.ID)
		if info, err := os.Stat(file); err == nil {
			m.Size = info.Size()
		}
		held = append(held, Held{m.Client, name, file, m.Size, string(m.State), m.Error, m.Updated})
	}
	return held, nil
}
