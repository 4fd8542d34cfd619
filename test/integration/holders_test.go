//go:build integration

package integration

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// holder is a shell that does a line at a time, as a program that keeps a file open
// for long.
type holder struct {
	w   *written
	in  io.WriteCloser
	out *bufio.Reader
}

// holder starts one, below the command before it if there is one.
func (w *written) holder(before ...string) *holder {
	w.Helper()
	argv := append(before, "bash")
	cmd := exec.Command(argv[0], argv[1:]...)
	in, err := cmd.StdinPipe()
	w.must(err)
	out, err := cmd.StdoutPipe()
	w.must(err)
	cmd.Stderr = testWriter{w.T}
	w.must(cmd.Start())
	w.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return &holder{w, in, bufio.NewReader(out)}
}

// try does a line and returns its status.
func (s *holder) try(line string, args ...any) string {
	s.w.Helper()
	_, err := fmt.Fprintf(s.in, line+"; echo $?\n", args...)
	s.w.must(err)
	status, err := s.out.ReadString('\n')
	s.w.must(err)
	return strings.TrimSpace(status)
}

func (s *holder) run(line string, args ...any) {
	s.w.Helper()
	if status := s.try(line, args...); status != "0" {
		s.w.Fatalf("%s: %s", fmt.Sprintf(line, args...), status)
	}
}

// source makes a file of this machine.
func (w *written) source(name string, data []byte) string {
	w.Helper()
	file := filepath.Join(w.TempDir(), name)
	w.must(os.MkdirAll(filepath.Dir(file), 0o755))
	w.must(os.WriteFile(file, data, 0o644))
	return file
}

// unfinished are contents that close cannot take for a whole image.
func unfinished(t *testing.T) map[string][]byte {
	whole, err := os.ReadFile(smallImage(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"unknown": noise(2, 60_000), "truncated": whole[:len(whole)/2]}
}

// TestCopyOverReader: who only reads the old image, or has the source or another
// file of that name open, keeps no copy from being pushed, or refused.
func TestCopyOverReader(t *testing.T) {
	for kind, data := range unfinished(t) {
		for name, hold := range map[string]string{
			"a reader":             "exec 3<%[2]s",
			"a writer of the name": "exec 3>>%[1]s",
			"a writer elsewhere":   "mkdir -p %[3]s/mem && exec 3>%[3]s/mem/a:1.simg && echo >&3",
		} {
			t.Run(kind+", "+name, func(t *testing.T) {
				w := newWritten(t)
				old := noise(1, 50_000)
				w.must(w.write("a:1.simg", old).Close())
				w.nothingHeld()
				// Its path is the image's, but for what comes before the client.
				src := w.source("mem/c/a:1.simg", data)
				s := w.holder()
				s.run(hold, src, w.path("a:1.simg"), w.dir)
				out, err := exec.Command("cp", src, w.path("a:1.simg")).CombinedOutput()
				switch {
				case kind == "unknown":
					if err != nil {
						t.Errorf("cp: %v: %s", err, out)
					}
					w.remote("a:1.simg", data)
				case err == nil || !strings.Contains(string(out), "Invalid argument"):
					t.Errorf("cp of half an image: %v: %s", err, out)
					fallthrough
				default:
					w.remote("a:1.simg", old)
				}
			})
		}
	}
}

// TestPiecesBySeveral: what several processes write one after another is pushed
// when the last one of them closes it, wherever they see it, and by whatever
// name it was found first.
func TestPiecesBySeveral(t *testing.T) {
	whole, err := os.ReadFile(smallImage(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	for kind, data := range map[string][]byte{"unknown": noise(2, 60_000), "image": whole} {
		for name, c := range map[string]struct {
			before []string
			first  string
		}{
			"new":          {first: "exec 3>%[1]s"},
			"in its place": {first: "exec 3<>%[1]s"},
			"renamed":      {first: "mv %[1]s %[3]s/b:1.simg && mv %[3]s/b:1.simg %[1]s && exec 3<>%[1]s"},
			"own mounts":   {before: []string{"unshare", "-m"}, first: "exec 3>%[1]s"},
			"bound": {before: []string{"unshare", "-m"},
				first: "mkdir %[2]s/bound && mount --bind %[3]s %[2]s/bound && exec 3>%[2]s/bound/a:1.simg"},
			"a child in its own mounts": {first: "exec 3>%[1]s; cat() { unshare -m /bin/cat $1; }"},
		} {
			t.Run(kind+", "+name, func(t *testing.T) {
				if os.Geteuid() != 0 && (c.before != nil || strings.Contains(c.first, "unshare")) {
					t.Skip("only root has mounts of its own")
				}
				w := newWritten(t)
				file := w.path("a:1.simg")
				var old []byte
				if name == "in its place" || name == "renamed" {
					old = noise(1, 10_000)
					w.must(w.write("a:1.simg", old).Close())
					w.nothingHeld()
				}
				one, two := w.source("one", data[:40_000]), w.source("two", data[40_000:])
				s := w.holder(c.before...)
				s.run(c.first, file, w.TempDir(), w.dir)
				s.run("cat %s >&3", one)
				w.remote("a:1.simg", old)
				s.run("cat %s >&3", two)
				if kind == "unknown" {
					w.remote("a:1.simg", old)
				}
				s.run("exec 3>&-")
				w.remote("a:1.simg", data)
				w.nothingHeld()
				if failures := w.cat.Failures(); len(failures) > 0 {
					t.Errorf("failures: %+v", failures)
				}
			})
		}
	}
}

// TestCopyBesideWriter: a copy that another program kept from being pushed is
// pushed, or refused, when that one closes the file. If it is killed, status
// tells, and the bytes are kept.
func TestCopyBesideWriter(t *testing.T) {
	for kind, data := range unfinished(t) {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprint(kind, ", killed ", killed), func(t *testing.T) {
				w := newWritten(t)
				src := w.source("src", data)
				s := w.holder()
				s.run("exec 3>%s", w.path("a:1.simg"))
				if out, err := exec.Command("cp", src, w.path("a:1.simg")).CombinedOutput(); err != nil {
					t.Errorf("cp: %v: %s", err, out)
				}
				w.remote("a:1.simg", nil)
				if killed {
					fmt.Fprintln(s.in, "kill -9 $$")
				} else {
					s.try("exec 3>&-")
				}
				told := killed || kind == "truncated"
				w.soon(func() error {
					if failures := w.cat.Failures(); len(failures) > 0 != told {
						return fmt.Errorf("failures are %+v, want some: %v", failures, told)
					}
					return nil
				})
				if !killed {
					w.nothingHeld()
				} else if held := w.cat.Held(); len(held) != 1 || held[0].Bytes != int64(len(data)) {
					t.Errorf("held is %+v, want the %d bytes", held, len(data))
				}
				want := data
				if told {
					want = nil
				}
				w.remote("a:1.simg", want)
			})
		}
	}
}
