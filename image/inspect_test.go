package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sylabs/sif/v2/pkg/sif"

	"github.com/sregfs/sregfs/image"
	"github.com/sregfs/sregfs/image/imagetest"
)

func inspect(t testing.TB, name string) image.Attributes {
	t.Helper()
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	info, err := f.Stat()
	must(t, err)
	a, err := image.Inspect(context.Background(), f, info.Size())
	if err != nil {
		t.Fatalf("Inspect: %v", err)
	}
	return a
}

// full has one of each attribute.
var full = imagetest.Opts{
	NoShell:     true,
	Runscript:   "#!/bin/sh\n\nexec \"sh\" \"$@\"\n",
	Startscript: "#!/bin/sh\nexec httpd\n",
	Test:        "#!/bin/sh\ntrue\n",
	Help:        "Run it.\n",
	Env:         "# Custom environment shell code should follow\n\n",
	Deffile:     "Bootstrap: docker\nFrom: ubuntu\n\n%runscript\n  exec \"sh\" \"$@\"\n",
	Labels:      map[string]string{"MAINTAINER": "Vanessasaur", "quote": "\"<é>\""},
}

const fullJSON = `{"deffile":"Bootstrap: docker\nFrom: ubuntu\n\n%runscript\n  exec \"sh\" \"$@\"\n",` +
	`"environment":"# Custom environment shell code should follow\n\n","help":"Run it.\n",` +
	`"labels":{"MAINTAINER":"Vanessasaur","quote":"\"<é>\""},"runscript":"#!/bin/sh\n\nexec \"sh\" \"$@\"\n",` +
	`"startscript":"#!/bin/sh\nexec httpd\n","test":"#!/bin/sh\ntrue\n"}`

// asJSON is a's JSON with HTML as it is.
func asJSON(t testing.TB, a image.Attributes) string {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	must(t, enc.Encode(a))
	return strings.TrimSpace(b.String())
}

func TestInspectReadsTheFileSystem(t *testing.T) {
	plain := full
	plain.NoMetadata = true
	for name, file := range map[string]string{
		"SIF": imagetest.SIF(t, plain), "simg": imagetest.Simg(t, plain), "squashfs": imagetest.Squashfs(t, plain),
	} {
		a := inspect(t, file)
		if got := asJSON(t, a); got != fullJSON || a.Notes != nil {
			t.Errorf("%s, notes %q:\ngot  %s\nwant %s", name, a.Notes, got, fullJSON)
		}
	}
	for _, comp := range []string{"xz", "zstd", "lz4", "lzo", "lzma"} {
		o := plain
		o.Compressor, o.Mksquashfs = comp, []string{"-b", "1M"}
		if got := asJSON(t, inspect(t, imagetest.SIF(t, o))); got != fullJSON {
			t.Errorf("%s:\ngot  %s\nwant %s", comp, got, fullJSON)
		}
	}
}

// TestInspectReadsTheObject has the inspect object say otherwise than the file
// system.
func TestInspectReadsTheObject(t *testing.T) {
	o := full
	o.Files = map[string]string{".singularity.d/runscript": "other", ".singularity.d/labels.json": "{}"}
	// Apptainer cuts the line feeds at the end of each attribute.
	want := strings.NewReplacer(`\n",`, `",`, `\n"}`, `"}`, `\n\n",`, `",`).Replace(fullJSON)
	if got := asJSON(t, inspect(t, imagetest.SIF(t, o))); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestInspectOfOddImages(t *testing.T) {
	const nothing = `{"deffile":null,"environment":null,"help":null,"labels":null,"runscript":null,"startscript":null,"test":null}`
	metadata := func(content string) []sif.DescriptorInput {
		return []sif.DescriptorInput{object(t, sif.DataGenericJSON, []byte(content), sif.OptObjectName("inspect-metadata.json"))}
	}
	withFiles := func(files map[string]string) imagetest.Opts {
		return imagetest.Opts{NoShell: true, NoRunscript: true, NoMetadata: true, Files: files}
	}
	for _, tc := range []struct {
		name  string
		file  string
		want  string // nothing, with these members
		notes string // in one of the notes
	}{
		{"encrypted", imagetest.SIF(t, imagetest.Opts{Encrypted: true, NoMetadata: true}), ``, "encrypted"},
		{"encrypted with an object", imagetest.SIF(t, imagetest.Opts{Encrypted: true, NoMetadata: true,
			Before: metadata(`{"data":{"attributes":{"runscript":"run"}},"type":"container"}`)}), `"runscript":"run"`, ""},
		{"definition file alone", imagetest.SIF(t, imagetest.Opts{Encrypted: true, NoMetadata: true,
			Before: []sif.DescriptorInput{object(t, sif.DataDeffile, []byte("Bootstrap: x\n"))}}), `"deffile":"Bootstrap: x\n"`, "encrypted"},
		{"environment of several files", imagetest.SIF(t, imagetest.Opts{NoMetadata: true, Encrypted: true, Before: metadata(
			`{"data":{"attributes":{"environment":{"/.singularity.d/env/91-environment.sh":"C=3","/.singularity.d/env/90-environment.sh":"B=2\n",` +
				`"/.singularity.d/env/10-docker2singularity.sh":"A=1"}}}}`)}), `"environment":"A=1\nB=2\nC=3"`, ""},
		{"environment of files of one name", imagetest.SIF(t, imagetest.Opts{NoMetadata: true, Encrypted: true, Before: metadata(
			`{"data":{"attributes":{"environment":{"/c/x.sh":"C=3","/b/x.sh":"B=2","/a/x.sh":"A=1"}}}}`)}), `"environment":"A=1\nB=2\nC=3"`, ""},
		{"labels that are no text", imagetest.SIF(t, imagetest.Opts{NoMetadata: true, Encrypted: true, Before: metadata(
			`{"data":{"attributes":{"labels":{"a":1,"b":null,"c":["x"],"d":"y"}}}}`)}), `"labels":{"a":"1","b":"","c":"[\"x\"]","d":"y"}`, ""},
		{"object that is no JSON", imagetest.SIF(t, imagetest.Opts{NoShell: true, NoRunscript: true, NoMetadata: true, Env: "B=2",
			Before: metadata(`{"data":{"attributes":`)}), `"environment":"B=2"`, "inspect-metadata.json"},
		{"object of something else", imagetest.SIF(t, imagetest.Opts{NoShell: true, NoRunscript: true, NoMetadata: true, Env: "B=2",
			Before: metadata(`{}`)}), `"environment":"B=2"`, "inspect-metadata.json"},
		{"bad labels.json", imagetest.Squashfs(t, withFiles(map[string]string{
			".singularity.d/labels.json": "{", ".singularity.d/env/90-environment.sh": "B=2"})), `"environment":"B=2"`, "labels.json"},
		{"runscript of 2 MiB", imagetest.Squashfs(t, withFiles(map[string]string{
			".singularity.d/runscript": strings.Repeat("x", 2<<20), ".singularity.d/env/90-environment.sh": "B=2"})), `"environment":"B=2"`, "/.singularity.d/runscript has 2097152 bytes"},
		{"Docker's environment", imagetest.Squashfs(t, withFiles(map[string]string{
			".singularity.d/env/10-docker.sh": "A=1", ".singularity.d/env/95-apps.sh": "no", ".singularity.d/env/01-base.sh": "no",
			".singularity.d/env/90-environment.sh": "B=2"})), `"environment":"A=1\nB=2"`, ""},
	} {
		a := inspect(t, tc.file)
		want := nothing
		if tc.want != "" {
			key, _, _ := strings.Cut(tc.want, ":")
			want = strings.Replace(nothing, key+":null", tc.want, 1)
		}
		if got := asJSON(t, a); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", tc.name, got, want)
		}
		if notes := strings.Join(a.Notes, "; "); !strings.Contains(notes, tc.notes) || tc.notes == "" && notes != "" {
			t.Errorf("%s: notes %q, want %q", tc.name, notes, tc.notes)
		}
	}
}

// TestInspectOfSingularity2 has the files of Singularity 2.2, and links such as
// later builders made.
func TestInspectOfSingularity2(t *testing.T) {
	tree := imagetest.Tree(t, imagetest.Opts{NoShell: true})
	must(t, os.RemoveAll(filepath.Join(tree, ".singularity.d")))
	must(t, os.WriteFile(filepath.Join(tree, "singularity"), []byte("#!/bin/sh\nold\n"), 0o755))
	must(t, os.WriteFile(filepath.Join(tree, "etc/profile.sh"), []byte("A=1\n"), 0o644))
	must(t, os.Symlink("/etc/profile.sh", filepath.Join(tree, "environment")))
	name := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("mksquashfs", tree, name, "-quiet", "-no-progress").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	a := inspect(t, name)
	if a.Runscript == nil || *a.Runscript != "#!/bin/sh\nold\n" || a.Environment == nil || *a.Environment != "A=1\n" {
		t.Errorf("got %s, want the runscript of /singularity and the environment of /environment", asJSON(t, a))
	}

	linked := imagetest.Squashfs(t, imagetest.Opts{NoShell: true, NoRunscript: true,
		Files: map[string]string{"usr/lib/run": "linked\n"},
		Links: map[string]string{".singularity.d/runscript": "../usr/lib/../lib/run", ".singularity.d/test": "/usr/lib/run",
			".singularity.d/runscript.help": "../../../../etc/hostname"}})
	a = inspect(t, linked)
	if a.Runscript == nil || *a.Runscript != "linked\n" || a.Test == nil || *a.Test != "linked\n" || a.Help != nil {
		t.Errorf("got %s, want links followed inside the image alone", asJSON(t, a))
	}
}

func TestLabels(t *testing.T) {
	a := image.Attributes{Labels: map[string]string{"a": "b"}}
	got := image.Labels(a)
	if !maps.Equal(got, a.Labels) {
		t.Errorf("Labels = %v, want %v", got, a.Labels)
	}
	got["c"] = "d"
	if len(a.Labels) != 1 {
		t.Errorf("changing what Labels returned changed %v", a.Labels)
	}
	if got := image.Labels(image.Attributes{}); got == nil || len(got) != 0 {
		t.Errorf("Labels of none = %v, want an empty map", got)
	}
}

// farAway is a file that is fetched in blocks of 128 KiB.
type farAway struct {
	r      io.ReaderAt
	size   int64
	reads  int
	blocks map[int64]bool
}

const fetched = 128 << 10

func (f *farAway) ReadAt(p []byte, off int64) (int, error) {
	f.reads++
	for b := off / fetched; b <= (off+int64(len(p))-1)/fetched; b++ {
		f.blocks[b] = true
	}
	return f.r.ReadAt(p, off)
}

func (f *farAway) bytes() int64 { return int64(len(f.blocks)) * fetched }

// TestInspectFetchesLittle looks at images with many files and much content.
// What is fetched does not depend on how much content: the 16 MB here could be
// any number.
func TestInspectFetchesLittle(t *testing.T) {
	files := map[string]string{}
	for i := range 1000 {
		files[fmt.Sprintf("opt/lib/package%d/file%d.py", i%97, i)] = strings.Repeat("x", i%3000)
	}
	for _, tc := range []struct {
		name   string
		change func(*imagetest.Opts)
		reads  int
		bytes  int64
	}{
		{"with the object", func(o *imagetest.Opts) { o.NoMetadata = false }, 2, fetched},
		{"gzip", func(*imagetest.Opts) {}, 8, 8 * fetched},
		{"zstd, blocks of 1 MiB", func(o *imagetest.Opts) { o.Compressor, o.Mksquashfs = "zstd", []string{"-b", "1M"} }, 8, 8 * fetched},
		// Without a stream, a block is fetched as a whole.
		{"lz4, blocks of 1 MiB", func(o *imagetest.Opts) { o.Compressor, o.Mksquashfs = "lz4", []string{"-b", "1M"} }, 16, 16 * fetched},
		{"not compressed", func(o *imagetest.Opts) { o.Mksquashfs = []string{"-noI", "-noD", "-noF"} }, 10, 10 * fetched},
	} {
		o := full
		o.NoMetadata, o.Files, o.ExtraBytes = true, files, 16<<20
		tc.change(&o)
		file, err := os.Open(imagetest.SIF(t, o))
		must(t, err)
		defer file.Close()
		info, err := file.Stat()
		must(t, err)
		far := &farAway{r: file, size: info.Size(), blocks: map[int64]bool{}}
		a, err := image.Inspect(context.Background(), far, info.Size())
		must(t, err)
		if a.Runscript == nil || a.Test == nil || a.Labels == nil {
			t.Errorf("%s: incomplete: %s", tc.name, asJSON(t, a))
		}
		t.Logf("%s: %d reads, %d KiB in blocks of 128", tc.name, far.reads, far.bytes()>>10)
		if far.reads > tc.reads || far.bytes() > tc.bytes {
			t.Errorf("%s: %d reads in %d bytes of an image of %d, want at most %d in %d",
				tc.name, far.reads, far.bytes(), info.Size(), tc.reads, tc.bytes)
		}

		// Everything that was read of the file system's tables was hinted at.
		l, err := image.Probe(context.Background(), file, info.Size())
		must(t, err)
		var hinted int64
		for _, r := range image.Hints(l, info.Size()) {
			hinted += r.Len
			for b := r.Off / fetched; b <= (r.End()-1)/fetched; b++ {
				delete(far.blocks, b)
			}
		}
		for b := range far.blocks {
			if l.Tables.Off < b*fetched {
				t.Errorf("%s: the tables' block at %d was read and is not hinted at", tc.name, b*fetched)
			}
		}
		if hinted > 2400<<10 {
			t.Errorf("%s: %d bytes of hints", tc.name, hinted)
		}
	}
}

// TestAgreesWithApptainer compares with what `apptainer inspect` says.
func TestAgreesWithApptainer(t *testing.T) {
	apptainer := findApptainer(t)
	runnable := full
	runnable.NoShell, runnable.Labels = false, map[string]string{"A": "1", "b": "<two>"}
	runnable.Files = map[string]string{".singularity.d/env/10-docker2singularity.sh": "#!/bin/sh\nexport X=1\n"}
	plain := runnable
	plain.NoMetadata = true
	files := map[string]string{"simg": imagetest.Simg(t, plain), "SIF": imagetest.SIF(t, plain)}
	withObject := runnable
	withObject.Files = nil
	files["SIF with its object"] = imagetest.SIF(t, withObject)
	for name, file := range files {
		args := []string{"inspect", "--json", "--labels", "--deffile", "--runscript", "--startscript", "--test", "--environment", "--helpfile", file}
		cmd := exec.CommandContext(t.Context(), apptainer, args...)
		// It runs a program in the image, as root with privileges that a
		// container that the test is in may lack.
		cmd.Env = append(os.Environ(), "APPTAINER_NO_PRIVS=1")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("%s: apptainer inspect: %v\n%s", name, err, stderr.Bytes())
			continue
		}
		var said struct {
			Data struct {
				Attributes struct {
					Deffile, Helpfile, Runscript, Startscript, Test string
					Environment, Labels                             map[string]string
				}
			}
		}
		must(t, json.Unmarshal(out, &said))
		want, got := said.Data.Attributes, inspect(t, file)
		for _, f := range []struct {
			name string
			got  *string
			want string
		}{
			{"deffile", got.Deffile, want.Deffile}, {"help", got.Help, want.Helpfile}, {"runscript", got.Runscript, want.Runscript},
			{"startscript", got.Startscript, want.Startscript}, {"test", got.Test, want.Test},
		} {
			// Apptainer cuts line feeds at the end.
			if f.got == nil || strings.TrimRight(*f.got, "\n") != strings.TrimRight(f.want, "\n") || f.want == "" {
				t.Errorf("%s: %s = %v, want %q", name, f.name, f.got, f.want)
			}
		}
		if !maps.Equal(got.Labels, want.Labels) {
			t.Errorf("%s: labels = %v, want %v", name, got.Labels, want.Labels)
		}
		for path, content := range got.EnvironmentFiles {
			if strings.TrimRight(content, "\n") != want.Environment[path] {
				t.Errorf("%s: environment %s = %q, want %q", name, path, content, want.Environment[path])
			}
		}
		if g, w := slices.Sorted(maps.Keys(got.EnvironmentFiles)), slices.Sorted(maps.Keys(want.Environment)); !slices.Equal(g, w) {
			t.Errorf("%s: environment files = %v, want %v", name, g, w)
		}
	}
}

// TestApptainerRunsTestImages runs what imagetest made.
func TestApptainerRunsTestImages(t *testing.T) {
	apptainer := findApptainer(t)
	o := imagetest.Opts{Runscript: "#!/bin/sh\necho \"$GREETING $(cat /data/name) $1\"\n", Env: "export GREETING=hello\n",
		Files: map[string]string{"data/name": "asaurus"}}
	for name, file := range map[string]string{
		"SIF": imagetest.SIF(t, o), "simg": imagetest.Simg(t, o), "squashfs": imagetest.Squashfs(t, o),
	} {
		args := []string{"run", "--no-home", "--contain"}
		if os.Getuid() == 0 {
			args = append(args, "--no-privs")
		}
		cmd := exec.CommandContext(t.Context(), apptainer, append(args, file, "red")...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if got, want := string(out), "hello asaurus red\n"; err != nil || got != want {
			t.Errorf("%s: apptainer run: %q, %v, want %q\n%s", name, got, err, want, stderr.Bytes())
		}
	}
}

// findApptainer looks where $APPTAINER says, in PATH, and where the project's
// set-up unpacks it.
func findApptainer(t *testing.T) string {
	t.Helper()
	unpacked, err := filepath.Abs("../.deps/apptainer/usr/bin/apptainer")
	must(t, err)
	for _, name := range []string{os.Getenv("APPTAINER"), "apptainer", unpacked} {
		if path, err := exec.LookPath(name); name != "" && err == nil {
			return path
		}
	}
	t.Skip("Apptainer is not on this machine: neither $APPTAINER, in PATH, nor in .deps")
	return ""
}
