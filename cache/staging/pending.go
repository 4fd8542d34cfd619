package staging

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Pending opens and returns, oldest first, every staged file that nobody
// holds: after Open, all that earlier runs left. The caller ends each with
// Release or Discard. A file whose journal is lost or unreadable has the state
// Orphan; one whose data are lost, or whose writer was cut off, has the state
// Failed; Error says so.
func (d *Dir) Pending() ([]*File, error) {
	ms, err := d.scan(false)
	if err != nil {
		return nil, err
	}
	var fs []*File
	for _, m := range ms {
		f := &File{d: d, meta: m, id: m.ID, room: &room{reserve: d.opts.Reserve}}
		if err := d.hold(f); err != nil {
			if errors.Is(err, os.ErrExist) {
				continue
			}
			return fs, err
		}
		data, err := openNoFollow(f.Path(), os.O_RDWR|os.O_CREATE)
		if err != nil {
			d.drop(f, true)
			return fs, fmt.Errorf("open the staged file %s: %w", m.ID, err)
		}
		f.data = data
		// It takes its room whether there is any or not.
		if err := f.Account(); err != nil {
			d.opts.Log.Warn("a staged file of an earlier run does not fit into the cache's limit", "id", m.ID, "error", err)
		}
		fs = append(fs, f)
	}
	return fs, nil
}

// List says, oldest first, what is staged now, whoever holds it.
func (d *Dir) List() ([]Meta, error) { return d.scan(true) }

// scan reads what is on disk, of held files from memory if held is true and
// not at all otherwise.
func (d *Dir) scan(held bool) ([]Meta, error) {
	names, err := func() ([]string, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.closed {
			return nil, ErrClosed
		}
		return d.names()
	}()
	if err != nil {
		return nil, fmt.Errorf("read the staging directory: %w", err)
	}
	kinds := map[string][2]bool{} // by ID: has a journal, has data
	for _, name := range names {
		for i, suffix := range []string{journalSuffix, dataSuffix} {
			if id, ok := strings.CutSuffix(name, suffix); ok && validID(id) {
				k := kinds[id]
				k[i] = true
				kinds[id] = k
			}
		}
	}
	var ms []Meta
	for id, k := range kinds {
		d.mu.Lock()
		f := d.held[id]
		d.mu.Unlock()
		switch {
		case f == nil:
			m := d.describe(id, k[0], k[1])
			if m.State != discarded {
				ms = append(ms, m)
			}
		case held:
			ms = append(ms, f.Meta())
		}
	}
	slices.SortFunc(ms, func(a, b Meta) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return ms, nil
}

// describe says what is known of a file that nobody holds.
func (d *Dir) describe(id string, hasJournal, hasData bool) Meta {
	var fi os.FileInfo
	if hasData {
		fi, _ = os.Lstat(d.join(id + dataSuffix))
	}
	m, err := Meta{}, fmt.Errorf("missing")
	if hasJournal {
		m, err = d.readJournal(id)
	}
	switch {
	case err != nil:
		m = Meta{ID: id, State: Orphan, Error: "the journal of these bytes is " + err.Error()}
		if fi != nil {
			m.Size, m.Created, m.Updated = fi.Size(), fi.ModTime(), fi.ModTime()
		}
	case fi == nil && m.State != discarded && m.State != Acknowledged:
		m.State, m.Error = Failed, "the staged bytes are gone from the staging directory"
	case m.State == Writing:
		m.State, m.Error = Failed, "its writer was cut off"
	}
	return m
}

func (d *Dir) readJournal(id string) (Meta, error) {
	b, err := d.read(id + journalSuffix)
	if err != nil {
		return Meta{}, err
	}
	return parseJournal(id, b)
}

// parseJournal reads a journal, which must be the one of that ID.
func parseJournal(id string, b []byte) (Meta, error) {
	var j journal
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&j); err != nil {
		return Meta{}, fmt.Errorf("unreadable: %w", err)
	}
	if j.Version < 1 || j.Version > formatVersion || j.ID != id || j.Size < 0 {
		return Meta{}, errors.New("not this file's journal")
	}
	switch j.State {
	case Writing, Ready, Uploading, Failed, Acknowledged, discarded:
		return j.Meta, nil
	}
	return Meta{}, fmt.Errorf("unknown state %q", j.State)
}
