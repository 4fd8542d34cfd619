package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/sregfs/sregfs/image/squashfs"
)

// Attributes are what an image's maker wrote into it, nil where absent. Its
// JSON is the `attributes` object of a record, with null for nil. Text is as
// it stands in the image.
type Attributes struct {
	Deffile *string `json:"deffile"`
	// Environment is shell code that sets what the image's environment holds.
	// Of an image with several files of it, it is their text one after another
	// in the order in which they are sourced.
	Environment *string `json:"environment"`
	Help        *string `json:"help"`
	// Labels are nil where there is no list of them. See Labels.
	Labels      map[string]string `json:"labels"`
	Runscript   *string           `json:"runscript"`
	Startscript *string           `json:"startscript"`
	Test        *string           `json:"test"`
	// EnvironmentFiles are the environment's files by their path in the image,
	// as `apptainer inspect --json` shows them.
	EnvironmentFiles map[string]string `json:"-"`
	// Notes are sentences on what could not be read, and why.
	Notes []string `json:"-"`
}

// Labels returns an image's labels, empty when it has none. The map is the
// caller's.
func Labels(a Attributes) map[string]string {
	m := make(map[string]string, len(a.Labels))
	maps.Copy(m, a.Labels)
	return m
}

const (
	// metadataObject is the JSON object that Apptainer, and Singularity since
	// 3.6, keep in a SIF for inspect.
	metadataObject = "inspect-metadata.json"
	// maxMetadata and maxText bound that object and each file.
	maxMetadata = 4 << 20
	maxText     = 1 << 20
	// maxEnvironment bounds the number of files of the environment.
	maxEnvironment = 64
)

// Inspect reads an image's attributes: from a SIF's inspect object where it has
// one, else from the file system. A part that cannot be read (an encrypted file
// system, an ext3, a file above 1 MiB) is left out with a note and no error.
// Errors are those of Probe, or r's own: then nothing is known.
//
// It reads the same few places however large the image is, some 500 KB in most
// and less than 2 MB where reads are rounded out to 128 KiB.
func Inspect(ctx context.Context, r io.ReaderAt, size int64) (Attributes, error) {
	a, err := inspect(newWindow(ctx, r, size))
	if err != nil {
		return Attributes{}, fmt.Errorf("inspect image: %w", err)
	}
	return a, nil
}

func inspect(w *window) (Attributes, error) {
	l, err := probe(w)
	if err != nil {
		return Attributes{}, err
	}
	var a Attributes
	var s sifImage
	if l.Kind == SIF {
		// A second time from the windows that are kept.
		if s, err = openSIF(w); err != nil {
			return a, err
		}
		if done, err := a.fromObject(w, s.metadata); done || err != nil {
			return a, err
		}
	}
	switch {
	case l.Encrypted:
		a.note("the file system is encrypted")
	case l.FSType == "squashfs":
		if err := a.fromFS(w, l); err != nil {
			return a, err
		}
	case l.FSType == "":
		a.note("there is no primary file system")
	default:
		a.note("the file system is %s, which is not read", l.FSType)
	}
	if a.Deffile == nil && s.deffile.Len > 0 {
		b, err := a.object(w, s.deffile, "definition file", maxText)
		if err != nil {
			return a, err
		}
		a.Deffile = text(b)
	}
	return a, nil
}

func (a *Attributes) note(format string, args ...any) {
	a.Notes = append(a.Notes, fmt.Sprintf(format, args...))
}

// object reads a SIF's object of at most limit bytes; nil, with a note, when it
// is larger.
func (a *Attributes) object(w *window, at Range, what string, limit int64) ([]byte, error) {
	if at.Len > limit {
		a.note("the %s has %d bytes", what, at.Len)
		return nil, nil
	}
	b := make([]byte, at.Len)
	if err := w.readFull(b, at.Off); err != nil {
		return nil, fmt.Errorf("read the %s: %w", what, err)
	}
	return b, nil
}

// fromObject takes everything from the inspect object at at and reports whether
// it could: an object that is not there or cannot be parsed leaves the file
// system to ask.
func (a *Attributes) fromObject(w *window, at Range) (bool, error) {
	if at.Len == 0 {
		return false, nil
	}
	b, err := a.object(w, at, metadataObject, maxMetadata)
	if b == nil || err != nil {
		return false, err
	}
	var m struct {
		Data struct {
			Attributes *struct {
				Deffile     *string                    `json:"deffile"`
				Environment map[string]string          `json:"environment"`
				Helpfile    *string                    `json:"helpfile"`
				Labels      map[string]json.RawMessage `json:"labels"`
				Runscript   *string                    `json:"runscript"`
				Startscript *string                    `json:"startscript"`
				Test        *string                    `json:"test"`
			} `json:"attributes"`
		} `json:"data"`
	}
	if err := json.Unmarshal(b, &m); err != nil || m.Data.Attributes == nil {
		a.note("the object %s cannot be parsed", metadataObject)
		return false, nil
	}
	from := m.Data.Attributes
	a.Deffile, a.Help, a.Runscript, a.Startscript, a.Test =
		from.Deffile, from.Helpfile, from.Runscript, from.Startscript, from.Test
	a.Labels = labelText(from.Labels)
	a.setEnvironment(from.Environment)
	return true, nil
}

// setEnvironment sets both forms of the environment from its files by path.
func (a *Attributes) setEnvironment(files map[string]string) {
	if len(files) == 0 {
		return
	}
	a.EnvironmentFiles = files
	order := slices.SortedFunc(maps.Keys(files), func(p, q string) int {
		return cmp.Or(strings.Compare(path.Base(p), path.Base(q)), strings.Compare(p, q))
	})
	var all strings.Builder
	for i, p := range order {
		if i > 0 && !strings.HasSuffix(all.String(), "\n") {
			all.WriteByte('\n')
		}
		all.WriteString(files[p])
	}
	s := all.String()
	a.Environment = &s
}

// labelText turns labels into text: strings as they are, other values as JSON.
func labelText(raw map[string]json.RawMessage) map[string]string {
	if raw == nil {
		return nil
	}
	m := make(map[string]string, len(raw))
	for k, v := range raw {
		var s string
		if json.Unmarshal(v, &s) != nil {
			s = string(v)
		}
		m[k] = s
	}
	return m
}

// text is b as an attribute.
func text(b []byte) *string {
	if b == nil {
		return nil
	}
	s := string(b)
	return &s
}

// Where the attributes are kept: since Singularity 2.3 in one folder, of which
// the first two had other names before.
const (
	runscriptPath      = ".singularity.d/runscript"
	oldRunscriptPath   = "singularity"
	environmentDir     = ".singularity.d/env"
	oldEnvironmentPath = "environment"
	startscriptPath    = ".singularity.d/startscript"
	testPath           = ".singularity.d/test"
	helpPath           = ".singularity.d/runscript.help"
	labelsPath         = ".singularity.d/labels.json"
	deffilePath        = ".singularity.d/Singularity"
)

// fromFS takes everything from the squashfs.
func (a *Attributes) fromFS(w *window, l Layout) error {
	fsys, err := squashfs.Open(io.NewSectionReader(w, l.FSOffset, l.FSSize), l.FSSize)
	if errors.Is(err, errors.ErrUnsupported) {
		a.note("%v cannot be read", err)
		return nil
	} else if err != nil {
		return err
	}
	t := tree{fsys: fsys, a: a}
	a.Labels = t.labels()
	a.setEnvironment(t.environment())
	if a.Runscript = text(t.file(runscriptPath)); a.Runscript == nil {
		a.Runscript = text(t.file(oldRunscriptPath))
	}
	a.Startscript = text(t.file(startscriptPath))
	a.Test = text(t.file(testPath))
	a.Help = text(t.file(helpPath))
	a.Deffile = text(t.file(deffilePath))
	return t.err
}

// tree reads attributes from a file system. Its err ends all: what concerns one
// file alone becomes a note.
type tree struct {
	fsys *squashfs.FS
	a    *Attributes
	err  error
}

// file returns the content of the regular file that name leads to, nil when
// there is none.
func (t *tree) file(name string) []byte {
	if t.err != nil {
		return nil
	}
	f, err := t.fsys.Open(name)
	if err != nil {
		t.failed(name, err)
		return nil
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		t.failed(name, err)
		return nil
	case !info.Mode().IsRegular():
		return nil
	case info.Size() > maxText:
		t.a.note("/%s has %d bytes", name, info.Size())
		return nil
	}
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		t.failed(name, err)
		return nil
	}
	return b
}

// failed sorts an error: absence is nothing, contradictions in the image are a
// note, a failure to read it ends all.
func (t *tree) failed(name string, err error) {
	switch {
	case errors.Is(err, iofs.ErrNotExist):
	case errors.Is(err, squashfs.ErrCorrupt), errors.Is(err, squashfs.ErrTooLarge), errors.Is(err, iofs.ErrInvalid):
		t.a.note("/%s cannot be read: %v", name, err)
	default:
		t.err = err
	}
}

func (t *tree) labels() map[string]string {
	b := t.file(labelsPath)
	if b == nil {
		return nil
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		t.a.note("/%s cannot be parsed", labelsPath)
		return nil
	}
	return labelText(raw)
}

// environment returns the files that inspect shows: those that the builder made
// from a Docker image's configuration and from the definition's %environment.
func (t *tree) environment() map[string]string {
	files := map[string]string{}
	if t.err != nil {
		return nil
	}
	list, err := t.fsys.ReadDir(environmentDir)
	if err != nil {
		t.failed(environmentDir, err)
	}
	for _, e := range list {
		docker, _ := path.Match("10-docker*.sh", e.Name())
		own, _ := path.Match("9*-environment.sh", e.Name())
		if !docker && !own {
			continue
		}
		if len(files) == maxEnvironment {
			t.a.note("/%s has more than %d files", environmentDir, maxEnvironment)
			break
		}
		if b := t.file(environmentDir + "/" + e.Name()); b != nil {
			files["/"+environmentDir+"/"+e.Name()] = string(b)
		}
	}
	if len(files) == 0 {
		if b := t.file(oldEnvironmentPath); b != nil {
			files["/"+oldEnvironmentPath] = string(b)
		}
	}
	return files
}
