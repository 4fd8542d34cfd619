package oci

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	iofs "io/fs"
	"maps"
	"path"
	"strings"

	"github.com/sregfs/sregfs/image/squash"
)

// skeleton is what every image has in /.singularity.d.
//
//go:embed singularity.d
var skeleton embed.FS

const metaDir = ".singularity.d"

// links are the names outside /.singularity.d by which Singularity 2 and users
// find what is in it.
var links = [...][2]string{
	{".exec", ".singularity.d/actions/exec"},
	{".run", ".singularity.d/actions/run"},
	{".shell", ".singularity.d/actions/shell"},
	{".test", ".singularity.d/actions/test"},
	{"environment", ".singularity.d/env/90-environment.sh"},
	{"singularity", ".singularity.d/runscript"},
}

// mountPoints are the directories that runtimes put something over. Apptainer
// makes those that an image lacks.
var mountPoints = [...]string{"dev", "etc", "home", "proc", "root", "sys", "tmp", "var/tmp"}

// hostFiles are the files that runtimes put the host's over.
var hostFiles = [...]string{"etc/resolv.conf", "etc/hosts"}

// paperwork is the text that is made of the configuration and the options.
type paperwork struct {
	definition  string
	environment string
	runscript   string
	startscript string
	custom      string // env/90-environment.sh
	labels      map[string]string
}

// newPaperwork writes it.
func newPaperwork(c *Config, opts Options) (*paperwork, error) {
	p := &paperwork{
		definition:  "bootstrap: docker\nfrom: " + oneLine(opts.Source) + "\n\n",
		environment: c.environment(),
		runscript:   c.runscript(opts.DockerCmd),
		labels:      maps.Clone(c.Labels),
	}
	for name, to := range map[string]*string{"startscript": &p.startscript, "env/90-environment.sh": &p.custom} {
		b, err := skeleton.ReadFile(path.Join("singularity.d", name))
		if err != nil {
			return nil, err
		}
		*to = string(b)
	}
	if p.labels == nil {
		p.labels = map[string]string{}
	}
	p.labels["org.label-schema.schema-version"] = "1.0"
	p.labels["org.label-schema.build-arch"] = opts.Arch
	p.labels["org.label-schema.usage.singularity.deffile.bootstrap"] = "docker"
	p.labels["org.label-schema.usage.singularity.deffile.from"] = oneLine(opts.Source)
	// Apptainer writes when it converted; the same image must be the same
	// bytes everywhere, so that this is when it was made.
	delete(p.labels, "org.label-schema.build-date")
	if !c.Created.IsZero() {
		at := c.Created.UTC()
		p.labels["org.label-schema.build-date"] = fmt.Sprintf("%s_%d_%s_%d_%d:%d:%d_UTC",
			at.Weekday(), at.Day(), at.Month(), at.Year(), at.Hour(), at.Minute(), at.Second())
	}
	return p, nil
}

// oneLine keeps a name from being more lines of a definition.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' {
			return -1
		}
		return r
	}, s)
}

// labelsJSON is labels.json. HTML characters are escaped, as Apptainer does.
func (p *paperwork) labelsJSON() ([]byte, error) { return json.MarshalIndent(p.labels, "", "\t") }

// inspectJSON is what `apptainer inspect` shows, so that it need not look into
// the file system.
func (p *paperwork) inspectJSON() ([]byte, error) {
	type attributes struct {
		Environment map[string]string `json:"environment"`
		Labels      map[string]string `json:"labels"`
		Runscript   string            `json:"runscript"`
		Deffile     string            `json:"deffile"`
		Startscript string            `json:"startscript"`
	}
	var doc struct {
		Data struct {
			Attributes attributes `json:"attributes"`
		} `json:"data"`
		Type string `json:"type"`
	}
	trim := strings.TrimSpace
	doc.Type = "container"
	doc.Data.Attributes = attributes{
		Environment: map[string]string{
			"/.singularity.d/env/10-docker2singularity.sh": trim(p.environment),
			"/.singularity.d/env/90-environment.sh":        trim(p.custom),
		},
		Labels: p.labels, Runscript: trim(p.runscript), Deffile: trim(p.definition), Startscript: trim(p.startscript),
	}
	return json.Marshal(doc)
}

// builder adds to a tree what makes it a Singularity image. The contents of its
// files are one more source of the layout.
type builder struct {
	*tree
	source int
	data   bytes.Buffer
}

// add does all of it.
func (b *builder) add(p *paperwork) error {
	if err := b.addMeta(p); err != nil {
		return err
	}
	for _, l := range links {
		// What an image has under one of these names is its own affair.
		if b.root.children[l[0]] == nil {
			link := b.newFile(squash.ModeSymlink|0o777, nil)
			link.Target = l[1]
			if _, err := b.put(b.root, l[0], link); err != nil {
				return err
			}
		}
	}
	for _, name := range mountPoints {
		if err := b.mountPoint(name); err != nil {
			return err
		}
	}
	for _, name := range hostFiles {
		if err := b.hostFile(name); err != nil {
			return err
		}
	}
	return nil
}

// addMeta fills /.singularity.d. One that the layers brought is written into,
// also through links, as far as those stay in the image; files are replaced,
// never written through.
func (b *builder) addMeta(p *paperwork) error {
	meta, err := b.directory(b.root, metaDir)
	if err != nil {
		return err
	}
	if err := b.keepHistory(meta); err != nil {
		return err
	}
	labels, err := p.labelsJSON()
	if err != nil {
		return err
	}
	labelsMode := uint32(0o644)
	if old := meta.children["labels.json"]; old != nil && old.inode.Mode&squash.ModeType == squash.ModeRegular {
		labelsMode = old.inode.Mode &^ squash.ModeType
	}
	if _, err := b.directory(meta, "libs"); err != nil {
		return err
	}
	err = iofs.WalkDir(skeleton, "singularity.d", func(name string, d iofs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := skeleton.ReadFile(name)
		if err != nil {
			return err
		}
		return b.file(meta, strings.TrimPrefix(name, "singularity.d/"), 0o755, content)
	})
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name    string
		mode    uint32
		content string
	}{
		{"Singularity", 0o644, p.definition},
		{"runscript", 0o755, p.runscript},
		{"labels.json", labelsMode, string(labels)},
		{"env/10-docker2singularity.sh", 0o755, p.environment},
	} {
		if err := b.file(meta, f.name, f.mode, []byte(f.content)); err != nil {
			return err
		}
	}
	return nil
}

// keepHistory puts the definition of an image that was a Singularity image
// before where the next one does not overwrite it.
func (b *builder) keepHistory(meta *node) error {
	old := meta.children["Singularity"]
	if old == nil || old.isDir() {
		return nil
	}
	history, err := b.directory(meta, "bootstrap_history")
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		name := fmt.Sprint("Apptainer", i)
		if history.children[name] == nil {
			_, err := b.put(history, name, old.inode)
			return err
		}
	}
}

// directory returns the directory name in dir, through links; what is none, or
// a link to none, gives way to a new one.
func (b *builder) directory(dir *node, name string) (*node, error) {
	w := walk{tree: b.tree}
	// A path of links that leads nowhere is no directory either.
	if n, err := w.dir(dir, name); err == nil && n != nil {
		return n, nil
	}
	return b.put(dir, name, b.newDir())
}

// file puts a file into meta, which may name one folder below it.
func (b *builder) file(meta *node, name string, mode uint32, content []byte) error {
	dir, base := split(name)
	at := meta
	if dir != "" {
		var err error
		if at, err = b.directory(meta, dir); err != nil {
			return err
		}
	}
	if old := at.children[base]; old != nil {
		old.remove()
	}
	_, err := b.put(at, base, b.newFile(squash.ModeRegular|mode, content))
	return err
}

// newFile makes an inode with the time that all that is made has.
func (b *builder) newFile(mode uint32, content []byte) *squash.Inode {
	i := b.newDir()
	i.Mode, i.Source, i.Offset, i.Size = mode, b.source, int64(b.data.Len()), int64(len(content))
	b.data.Write(content)
	return i
}

// mountPoint makes a directory unless something has its name.
func (b *builder) mountPoint(name string) error {
	at := b.root
	for part := range strings.SplitSeq(name, "/") {
		if at.children[part] == nil {
			if _, err := b.put(at, part, b.newDir()); err != nil {
				return err
			}
		}
		w := walk{tree: b.tree}
		next, err := w.dir(at, part)
		if err != nil || next == nil {
			return nil // a link to nowhere, or a file: the image wants it so
		}
		at = next
	}
	return nil
}

// hostFile makes an empty file unless there is one. A link to nowhere gets its
// target, in the image, since runtimes mount over what the name leads to.
func (b *builder) hostFile(name string) error {
	for range maxLinks {
		dir, base := split(name)
		w := walk{tree: b.tree}
		at, err := w.dir(b.root, dir)
		if err == nil && at == nil {
			w = walk{tree: b.tree, mkdir: b.free(dir)}
			at, err = w.dir(b.root, dir)
		}
		if err != nil || at == nil || base == "" || base == "." || base == ".." || len(base) > squash.MaxName {
			return nil
		}
		old := at.children[base]
		if old == nil {
			_, err := b.put(at, base, b.newFile(squash.ModeRegular|0o644, nil))
			return err
		}
		if old.isDir() && len(old.children) == 0 {
			// Left behind by the builder's own mounts. Nothing could be
			// mounted over it, and no runtime would start.
			old.remove()
			continue
		}
		if old.inode.Mode&squash.ModeType != squash.ModeSymlink {
			return nil
		}
		if name = old.inode.Target; !strings.HasPrefix(name, "/") {
			name = at.path() + "/" + name
		}
		name = strings.TrimRight(name, "/")
	}
	return nil
}

// free reports whether the directories of path that are missing can be made
// without anything else giving way.
func (b *builder) free(path string) bool {
	at := b.root
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." {
			continue
		}
		if part != ".." && at.children[part] == nil {
			return true
		}
		w := walk{tree: b.tree}
		next, err := w.dir(at, part)
		if err != nil || next == nil {
			return false
		}
		at = next
	}
	return true
}

// path is the node's path from the root.
func (n *node) path() string {
	if n.parent == n {
		return ""
	}
	return n.parent.path() + "/" + n.name
}
