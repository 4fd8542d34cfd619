package imagetest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestSameOptsSameBytes(t *testing.T) {
	o := Opts{
		Runscript: "#!/bin/sh\ntrue\n", Labels: map[string]string{"a": "1", "b": "2"}, Deffile: "Bootstrap: scratch\n",
		Files: map[string]string{"x/y": "z", "x/a": "b"}, ExtraBytes: 1 << 20,
	}
	for name, build := range map[string]func(testing.TB, Opts) string{"SIF": SIF, "Simg": Simg, "Squashfs": Squashfs} {
		read := func(o Opts) []byte {
			b, err := os.ReadFile(build(t, o))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		one := read(o)
		if !bytes.Equal(one, read(o)) {
			t.Errorf("%s: two images of the same Opts differ", name)
		}
		if len(one) < 1<<20 {
			t.Errorf("%s: %d bytes with a MiB of padding", name, len(one))
		}
		other := o
		other.Seed = 1
		if bytes.Equal(one, read(other)) {
			t.Errorf("%s: another Seed gives the same image", name)
		}
	}
}

func TestTree(t *testing.T) {
	root := Tree(t, Opts{Files: map[string]string{"opt/run": "#!/bin/sh\n", "opt/data": "x"}, Links: map[string]string{"opt/link": "data"}})
	for name, want := range map[string]os.FileMode{
		"opt/run": 0o755, "opt/data": 0o644, "opt/link": 0o644, "bin/sh": 0o755, "bin/cat": 0o755, ".singularity.d/runscript": 0o755,
	} {
		info, err := os.Stat(filepath.Join(root, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want mode %v", name, info, err, want)
		}
	}
}
