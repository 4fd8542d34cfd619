//go:build integration

package oci

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// These tests run images by the real Apptainer, as root. APPTAINER names the
// program; else that of the repository's .deps is taken, or the PATH's.

func apptainer(t *testing.T) string {
	t.Helper()
	for _, path := range []string{os.Getenv("APPTAINER"), "../../.deps/apptainer/usr/bin/apptainer"} {
		if path == "" {
			continue
		}
		if abs, err := filepath.Abs(path); err == nil {
			if _, err := os.Stat(abs); err == nil {
				return abs
			}
		}
	}
	path, err := exec.LookPath("apptainer")
	if err != nil {
		t.Fatal("no apptainer: set APPTAINER to the program")
	}
	return path
}

// busybox is a layer with a shell.
func busybox(t *testing.T) []member {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox (static) is needed")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := []member{folder("bin"), file("bin/busybox", string(b))}
	out[1].Mode = 0o755
	for _, n := range []string{"sh", "cat", "ls", "env", "id", "echo", "printf", "pwd", "true", "stat", "find", "readlink"} {
		out = append(out, symlink("bin/"+n, "busybox"))
	}
	return out
}

// build writes the image to a file.
func build(t *testing.T, config map[string]any, opts Options, layers ...Layer) string {
	t.Helper()
	s := scanLayers(t, layers...)
	im, err := Assemble(t.Context(), configFor(t, config, layers...), s.contents, opts)
	if err != nil {
		t.Fatalf("Assemble: %v", err)
	}
	path := filepath.Join(t.TempDir(), "image.sif")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var files []*os.File
	for _, d := range s.data {
		g, err := os.Create(filepath.Join(t.TempDir(), "data"))
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		if _, err := g.Write(d.Bytes()); err != nil {
			t.Fatal(err)
		}
		files = append(files, g)
	}
	if err := im.WriteFile(t.Context(), f, files); err != nil {
		t.Fatalf("WriteFile: %v", err)
	}
	var whole bytes.Buffer
	if err := im.Write(t.Context(), &whole, s); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40)); err != nil || !bytes.Equal(got, whole.Bytes()) {
		t.Fatalf("WriteFile and Write differ (%v)", err)
	}
	return path
}

type result struct {
	out, err string
	code     int
}

// run runs Apptainer. env are variables of the host's.
func run(t *testing.T, env []string, args ...string) result {
	t.Helper()
	cmd := exec.Command(apptainer(t), args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir = "/"
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatal(err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

var hard = []string{"plain", "two words", `dou"ble`, `sin'gle`, `$HOME $(id) ${x}`, "back`tick`", `back\slash\n`, "*", "new\nline", "tab\tx", "", "-n", "!x", "é", `\`, `'`, `"`, "a;b|c&d>e<f", "~"}

func printfCmd(args ...string) []string { return append([]string{"/bin/printf", "[%s]"}, args...) }

func printfHere(args ...string) []string {
	return append([]string{"/opt/busybox", "printf", "[%s]"}, args...)
}

func bracketed(args ...string) string {
	var b strings.Builder
	for _, a := range args {
		b.WriteString("[" + a + "]")
	}
	return b.String()
}

func TestRun(t *testing.T) {
	base := layer(t, busybox(t)...)
	cases := []struct {
		name       string
		config     map[string]any
		opts       Options
		args       []string
		want, errs string
		code       int
	}{
		{"entrypoint, hard arguments of its own", map[string]any{"Entrypoint": printfCmd(hard...)}, Options{}, nil, bracketed(hard...), "", 0},
		{"entrypoint and user's hard arguments", map[string]any{"Entrypoint": printfCmd("e"), "Cmd": []string{"c"}}, Options{}, hard, bracketed(append([]string{"e"}, hard...)...), "", 0},
		{"entrypoint and cmd", map[string]any{"Entrypoint": printfCmd("e"), "Cmd": hard}, Options{}, nil, bracketed(append([]string{"e"}, hard...)...), "", 0},
		{"cmd", map[string]any{"Cmd": printfCmd("c")}, Options{}, nil, "[c]", "", 0},
		{"arguments replace cmd", map[string]any{"Cmd": printfCmd("c")}, Options{}, printfCmd("x y"), "[x y]", "", 0},
		{"neither, with arguments", map[string]any{}, Options{}, printfCmd("x y"), "[x y]", "", 0},
		{"neither, without", map[string]any{}, Options{}, nil, "", "say what to run", 1},
		{"no config at all", nil, Options{}, printfCmd("x"), "[x]", "", 0},
		{"SREGISTRY_DOCKER_CMD", map[string]any{"Entrypoint": []string{"/bin/echo", "no"}, "Cmd": printfCmd("c")}, Options{DockerCmd: true}, []string{"a b"}, "[c][a b]", "", 0},
		{"exit status", map[string]any{"Entrypoint": []string{"/bin/sh", "-c", "exit 42"}}, Options{}, nil, "", "", 42},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			sif := build(t, c.config, c.opts, base)
			got := run(t, nil, append([]string{"run", "--no-privs", sif}, c.args...)...)
			if got.out != c.want || got.code != c.code || !strings.Contains(got.err, c.errs) {
				t.Errorf("run %q:\n got %q, status %d, %s\nwant %q, status %d", c.args, got.out, got.code, got.err, c.want, c.code)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	var env []string
	var want []string
	for i, v := range hard {
		env = append(env, "V"+string(rune('A'+i))+"="+v)
		want = append(want, v)
	}
	env = append(env, "PATH=/opt/x:/bin", "BARE", "bad-name=1", "DUP=first", "DUP=second", "OVER=image", "1X=no", "UID=5", "GID=6", "EUID=7", "IFS=x", "OPTIND=9", "PWD=/no", "LAST=z")
	sif := build(t, map[string]any{"Env": env}, Options{}, layer(t, busybox(t)...))
	for i := range hard {
		name := "V" + string(rune('A'+i))
		got := run(t, nil, "exec", "--no-privs", sif, "/bin/sh", "-c", `printf '[%s]' "$`+name+`"`)
		if got.out != bracketed(want[i]) {
			t.Errorf("%s = %q, want %q; %s", name, got.out, bracketed(want[i]), got.err)
		}
	}
	got := run(t, []string{"APPTAINERENV_OVER=user", "DUP=host"}, "exec", "--no-privs", sif, "/bin/sh", "-c", `echo "$PATH|$DUP|$OVER|$LAST|$LD_LIBRARY_PATH"; env`)
	if first, rest, _ := strings.Cut(got.out, "\n"); !strings.HasPrefix(first, "/opt/x:/bin:") ||
		!strings.HasSuffix(first, "|first|user|z|/.singularity.d/libs") || strings.Contains(rest, "bad-name") {
		t.Errorf("environment is %s%s", got.out, got.err)
	}
}

func TestInspect(t *testing.T) {
	sif := build(t, map[string]any{"Entrypoint": []string{"/bin/echo", "hi"}, "Labels": map[string]string{"maintainer": "<me>", "org.label-schema.schema-version": "9"}, "Env": []string{"A=b"}},
		Options{Source: "docker.io/library/x:1"}, layer(t, busybox(t)...))
	for args, want := range map[string]string{
		"inspect":                  "maintainer: <me>",
		"inspect --labels":         "org.label-schema.usage.singularity.deffile.from: docker.io/library/x:1",
		"inspect --runscript":      `exec '/bin/echo' 'hi' "$@"`,
		"inspect --deffile":        "bootstrap: docker\nfrom: docker.io/library/x:1",
		"inspect --environment":    "A='b'",
		"inspect --startscript":    "#!/bin/sh",
		"sif list":                 "FS (Squashfs/*System/amd64)",
		"sif header":               "Descriptors Total:    48",
		"sif dump 3":               `"Entrypoint":["/bin/echo","hi"]`,
		"verify --legacy-insecure": "",
	} {
		if strings.HasPrefix(args, "verify") {
			continue
		}
		got := run(t, nil, append(strings.Fields(args), sif)...)
		if got.code != 0 || !strings.Contains(got.out, want) {
			t.Errorf("%s: status %d\n%s%s\nwant %q", args, got.code, got.out, got.err, want)
		}
	}
}

// TestHostileRoots are the images that lead Apptainer's own conversion out of
// its root, or that it refuses.
func TestHostileRoots(t *testing.T) {
	base := layer(t, busybox(t)...)
	outside := t.TempDir()
	cases := map[string][]member{
		"meta links out":           {symlink(".singularity.d", outside)},
		"meta links up":            {symlink(".singularity.d", "../../../.."+outside)},
		"meta links inside":        {folder("opt/meta"), symlink(".singularity.d", "/opt/meta")},
		"meta links to itself":     {symlink(".singularity.d", ".singularity.d")},
		"meta is a file":           {file(".singularity.d", "x")},
		"runscript links out":      {folder(".singularity.d"), symlink(".singularity.d/runscript", outside+"/runscript")},
		"env links out":            {folder(".singularity.d"), symlink(".singularity.d/env", outside)},
		"etc links out":            {symlink("etc", outside)},
		"etc is a file":            {file("etc", "x")},
		"resolv.conf links out":    {folder("etc"), symlink("etc/resolv.conf", outside+"/resolv.conf"), symlink("etc/hosts", "../"+outside+"/hosts")},
		"resolv.conf is a folder":  {folder("etc/resolv.conf"), folder("etc/hosts")},
		"links are there":          {file(".run", "x"), folder("singularity"), symlink("environment", "bin"), fifo(".exec")},
		"mount points are no dirs": {file("tmp", "x"), symlink("home", "nowhere"), symlink("proc", "loop"), symlink("loop", "proc")},
	}
	for name, members := range cases {
		t.Run(name, func(t *testing.T) {
			sif := build(t, map[string]any{"Cmd": printfCmd("ran"), "Env": []string{"A=b"}}, Options{}, base, layer(t, members...))
			noTmp := []string{"run", "--no-privs", "--no-mount", "tmp,home,cwd", sif}
			if name == "mount points are no dirs" {
				noTmp = []string{"run", "--no-privs", "--no-mount", "tmp,home,cwd,proc", sif}
			}
			if got := run(t, nil, noTmp...); got.out != "[ran]" || got.code != 0 {
				t.Errorf("run: %q, status %d\n%s", got.out, got.code, got.err)
			}
			if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
				t.Errorf("written outside: %v, %v", left, err)
			}
		})
	}
}

// TestWithoutShell runs an image that holds one program and nothing else.
func TestWithoutShell(t *testing.T) {
	b := busybox(t)[1]
	b.Name = "opt/busybox"
	sif := build(t, map[string]any{"Entrypoint": printfHere("e"), "Cmd": hard}, Options{}, layer(t, b))
	for _, args := range [][]string{nil, {"one"}, hard} {
		want := bracketed(append([]string{"e"}, args...)...)
		if args == nil {
			want = bracketed(append([]string{"e"}, hard...)...)
		}
		if got := run(t, nil, append([]string{"run", "--no-privs", sif}, args...)...); got.out != want {
			t.Errorf("run %q: %q, status %d, want %q\n%s", args, got.out, got.code, want, got.err)
		}
	}
	none := build(t, nil, Options{}, layer(t, b))
	if got := run(t, nil, "run", "--no-privs", none); got.code != 1 || !strings.Contains(got.err, "say what to run") {
		t.Errorf("run without a command: status %d\n%s", got.code, got.err)
	}
	if got := run(t, nil, append([]string{"run", "--no-privs", none}, printfHere("x")...)...); got.out != "[x]" {
		t.Errorf("run with a command: %q\n%s", got.out, got.err)
	}
}
