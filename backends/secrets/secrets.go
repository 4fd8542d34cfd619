// Package secrets keeps what clients need between runs, tokens above all, in
// the JSON file that SREGISTRY_CLIENT_SECRETS names: {client: {SETTING:
// value}}, the Python client's own format and file.
//
// The file is shared with other programs: whatever they keep in it stays, and
// two processes that write at once lose nothing of each other's. It knows
// nothing of what the settings mean. Start at Open.
package secrets

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/sregfs/sregfs/backends"
)

// File is the secrets file. It is safe for concurrent use.
type File struct {
	path string

	mu     sync.Mutex // guards what follows
	stamp  stamp      // of the file that all was read from
	all    document
	warned bool // the present trouble with the file has been logged
}

var _ backends.Secrets = (*File)(nil)

// document is the file's content. Values stay as they were written, so that
// what other programs keep there (numbers, lists) comes through unchanged.
type document map[string]json.RawMessage

// stamp tells one state of the file from another.
type stamp struct {
	size, mtime int64
	inode       uint64
}

// Open reads the secrets file at path. An absent file is an empty one, made by
// the first SetSecrets. A file that others may read is closed to them, with a
// warning. A file that is not what it should be is an error that wraps
// backends.ErrCorrupt; it is never overwritten.
func Open(path string) (*File, error) {
	f := &File{path: path}
	if err := f.reload(); err != nil {
		return nil, fmt.Errorf("open secrets: %w", err)
	}
	return f, nil
}

// Path is the file's name, for messages.
func (f *File) Path() string { return f.path }

// Secret returns a client's stored setting, "" when there is none. What
// another process has stored since is seen; when the file has become
// unreadable, the last good content goes on being used. Numbers and truth
// values, which the Python client may store, are given as JSON writes them.
func (f *File) Secret(client, name string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.reload(); err != nil {
		if !f.warned {
			slog.Warn("secrets cannot be read again, using what was known", "file", f.path, "err", err)
		}
		f.warned = true
	} else {
		f.warned = false
	}
	settings, err := f.all.client(client)
	if err != nil {
		return ""
	}
	raw := bytes.TrimSpace(settings[name])
	if len(raw) == 0 {
		return ""
	}
	switch raw[0] {
	case '"':
		var s string
		if json.Unmarshal(raw, &s) != nil {
			return ""
		}
		return s
	case '{', '[', 'n': // objects, lists and null are no setting
		return ""
	}
	return string(raw)
}

// SetSecrets stores settings of a client, all or none of them, and leaves
// everything else in the file as it is; an empty value deletes. When it
// returns nil they are on disk, readable by their owner alone.
func (f *File) SetSecrets(client string, values map[string]string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.update(client, values); err != nil {
		return fmt.Errorf("store secrets of %s: %w", client, err)
	}
	return nil
}

func (f *File) update(client string, values map[string]string) error {
	// A link, as dotfile managers make it, stays one: its target is replaced.
	path, err := resolve(f.path)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	unlock, err := lock(path + ".lock")
	if err != nil {
		return err
	}
	defer unlock()

	all, _, err := read(path)
	if err != nil {
		return err
	}
	settings, err := all.client(client)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	for name, v := range values {
		if v == "" {
			delete(settings, name)
			continue
		}
		if settings[name], err = encode(v, ""); err != nil {
			return err
		}
	}
	if all[client], err = encode(settings, ""); err != nil {
		return err
	}
	if len(settings) == 0 {
		delete(all, client)
	}
	data, err := encode(all, "    ")
	if err != nil {
		return err
	}
	if err := replace(path, data); err != nil {
		return err
	}
	f.all, f.stamp, err = read(path)
	return err
}

// reload reads the file again when it is not the one that was read last.
func (f *File) reload() error {
	now := stampOf(f.path)
	if f.all != nil && now == f.stamp {
		return nil
	}
	tighten(f.path)
	all, st, err := read(f.path)
	if err != nil {
		return err
	}
	f.all, f.stamp = all, st
	return nil
}

// client returns a client's settings, empty for a client that has none.
func (d document) client(name string) (map[string]json.RawMessage, error) {
	raw := d[name]
	settings := map[string]json.RawMessage{}
	if len(raw) == 0 || string(raw) == "null" {
		return settings, nil
	}
	if err := json.Unmarshal(raw, &settings); err != nil {
		return nil, &backends.Error{Op: "read the settings of", Client: name,
			Err:  fmt.Errorf("%w: not a JSON object", backends.ErrCorrupt),
			Hint: fmt.Sprintf("correct or remove %q in the secrets file", name)}
	}
	return settings, nil
}

// read returns the content of the file at path, empty when there is none.
func read(path string) (document, stamp, error) {
	file, err := os.Open(path)
	if errors.Is(err, iofs.ErrNotExist) {
		return document{}, stamp{}, nil
	}
	if err != nil {
		return nil, stamp{}, err
	}
	defer file.Close()
	// The stamp is of the descriptor: a file that is replaced meanwhile has
	// another one, and is read at the next look.
	info, err := file.Stat()
	if err != nil {
		return nil, stamp{}, err
	}
	data, err := io.ReadAll(file)
	if err != nil {
		return nil, stamp{}, err
	}
	all, err := parse(data)
	if err != nil {
		return nil, stamp{}, &backends.Error{Op: "read " + path, Err: err,
			Hint: "correct it by hand, or move it away and log in again; it was left as it is"}
	}
	return all, stampOfInfo(info), nil
}

// parse decodes the file's content. Its errors hold nothing of the content.
func parse(data []byte) (document, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if len(bytes.TrimSpace(data)) == 0 {
		return document{}, nil
	}
	all := document{}
	if err := json.Unmarshal(data, &all); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, fmt.Errorf("%w: broken JSON at byte %d", backends.ErrCorrupt, syntax.Offset)
		}
		return nil, fmt.Errorf("%w: not a JSON object", backends.ErrCorrupt)
	}
	if all == nil { // "null"
		all = document{}
	}
	return all, nil
}

// encode is json.Marshal without the escaping of <, > and &, which would
// rewrite other programs' values for nothing.
func encode(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
