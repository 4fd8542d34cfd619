package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Images are generated once and kept, from seeds, so that two runs measure the
// same bytes.

// image returns the path of a generated image, made by fill when it is not
// there yet.
func (l *lab) image(ctx context.Context, name string, fill func(root string) error) (string, error) {
	path := filepath.Join(l.data, name+".simg")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	root, err := os.MkdirTemp(l.tmp, name)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(root)
	if err := busybox(root); err != nil {
		return "", err
	}
	if err := fill(root); err != nil {
		return "", err
	}
	part := path + ".part"
	os.Remove(part)
	// The files keep their times: Python compares those of its sources with what
	// it has noted in its compiled modules.
	if err := command(ctx, nil, "mksquashfs", root, part,
		"-all-root", "-mkfs-time", "0", "-noappend", "-quiet", "-no-progress", "-comp", "gzip", "-Xcompression-level", "1"); err != nil {
		return "", err
	}
	return path, os.Rename(part, path)
}

// large is an image of a few large files, 500 MB in all.
func (l *lab) large(ctx context.Context) (string, error) {
	return l.image(ctx, "large", func(root string) error {
		for i := range 25 {
			if err := noise(filepath.Join(root, fmt.Sprintf("data/%02d", i)), uint64(i), 20e6); err != nil {
				return err
			}
		}
		return nil
	})
}

// medium is an image of 128 MB.
func (l *lab) medium(ctx context.Context) (string, error) {
	return l.image(ctx, "medium", func(root string) error {
		for i := range 8 {
			if err := noise(filepath.Join(root, fmt.Sprintf("data/%02d", i)), 100+uint64(i), 16e6); err != nil {
				return err
			}
		}
		return nil
	})
}

// python is an image of the machine's whole Python beside 200 MB of other
// things, with a program that imports all of the standard library it can.
func (l *lab) python(ctx context.Context) (string, error) {
	return l.image(ctx, "python-compiled", func(root string) error {
		interpreter, err := filepath.EvalSymlinks("/usr/bin/python3")
		if err != nil {
			return err
		}
		library := "/usr/lib/" + filepath.Base(interpreter)
		libraries, err := exec.CommandContext(ctx, "ldd", interpreter).Output()
		if err != nil {
			return err
		}
		// Its extension modules need more than the interpreter.
		more, err := exec.CommandContext(ctx, "sh", "-c", "ldd "+library+"/lib-dynload/*.so").Output()
		if err != nil {
			return err
		}
		files := []string{interpreter, library, "/usr/lib/python3"}
		for word := range strings.FieldsSeq(string(libraries) + string(more)) {
			if strings.HasPrefix(word, "/") && !strings.HasSuffix(word, ":") {
				files = append(files, word)
			}
		}
		args := append([]string{"-c", `for f; do case $f in */*) cp -aL --parents "$f" "$0";; esac; done`, root}, files...)
		if err := command(ctx, nil, "sh", args...); err != nil {
			return err
		}
		for i := range 10 {
			if err := noise(filepath.Join(root, fmt.Sprintf("data/%02d", i)), 200+uint64(i), 20e6); err != nil {
				return err
			}
		}
		if err := os.Symlink(interpreter, filepath.Join(root, "bin/python")); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(root, "import.py"), []byte(imports), 0o644)
	})
}

// imports is the Python program: a start-up like that of a large application,
// some 400 modules.
const imports = `import importlib, sys, warnings
warnings.simplefilter("ignore")
skip = {"antigravity", "this", "idlelib", "turtle", "turtledemo", "tkinter", "test", "lib2to3"}
for name in sorted(sys.stdlib_module_names):
    if len(sys.modules) >= 450:
        break
    if not name.startswith("_") and name not in skip:
        try:
            importlib.import_module(name)
        except ImportError:
            pass
assert len(sys.modules) >= 400, len(sys.modules)
`

// busybox makes root a system that can run sh and true.
func busybox(root string) error {
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "sys", "tmp", "var/tmp", "data", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, file := range []string{"etc/passwd", "etc/group", "etc/hosts", "etc/resolv.conf", "etc/localtime"} {
		if err := os.WriteFile(filepath.Join(root, file), nil, 0o644); err != nil {
			return err
		}
	}
	program, err := exec.LookPath("/bin/busybox")
	if err != nil {
		return err
	}
	if err := copyFile(program, filepath.Join(root, "bin/busybox")); err != nil {
		return err
	}
	for _, name := range []string{"sh", "true", "cat", "ls"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// noise writes n bytes that cannot be compressed, the same for each seed.
func noise(path string, seed uint64, n int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	if _, err := io.CopyN(f, rand.NewChaCha8(key), n); err != nil {
		return err
	}
	return f.Close()
}
