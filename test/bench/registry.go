package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

var registryRows = []row{
	convertRow("registry-large", "30 files of 10 MB", largeFiles, 3),
	convertRow("registry-small", "20,000 files of 8 to 22 KB", smallFiles, 8),
	stargzRow,
}

// registry is a docker-registry in a process of its own, which serves what
// earlier runs have pushed, too.
type registry struct {
	*daemon
	addr string
	data string // its storage
	seen int    // lines of its log when the counters were reset
	wire int64  // bytes through the namespace's interface then
}

// registryFor starts a registry that has an image, pushing it where an earlier
// run has not.
func (l *lab) registryFor(ctx context.Context, images ...*content) (*registry, error) {
	dir, err := l.folder("registry")
	if err != nil {
		return nil, err
	}
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{addr: port.Addr().String(), data: filepath.Join(l.data, "registry")}
	port.Close()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", r.data, r.addr)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	if r.daemon, err = l.start([]string{"OTEL_TRACES_EXPORTER=none"}, "docker-registry", "serve", config); err != nil {
		return nil, err
	}
	l.later(r.stop)
	err = r.until(ctx, func() bool {
		res, err := http.Get("http://" + r.addr + "/v2/")
		if err == nil {
			res.Body.Close()
		}
		return err == nil
	})
	if err != nil {
		return nil, err
	}
	for _, c := range images {
		if err := r.provide(ctx, l, c); err != nil {
			return nil, fmt.Errorf("image %s: %w", c.name, err)
		}
	}
	return r, r.warm()
}

// warm reads all that the registry has into the page cache: a contestant must
// not pay for coming first.
func (r *registry) warm() error {
	return filepath.WalkDir(r.data, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		return readFile(path, sequential)
	})
}

func (r *registry) reference(c *content) (name.Reference, error) {
	return name.ParseReference(r.addr+"/bench/"+c.name+":v1", name.Insecure)
}

// provide pushes an image that is not there yet.
func (r *registry) provide(ctx context.Context, l *lab, c *content) error {
	ref, err := r.reference(c)
	if err != nil {
		return err
	}
	if _, err := remote.Head(ref, remote.WithContext(ctx)); err == nil {
		return nil
	}
	img, err := c.image(l)
	if err != nil {
		return err
	}
	return remote.Write(ref, img, remote.WithContext(ctx))
}

// reset sets the counters to zero.
func (r *registry) reset() (err error) {
	r.seen = r.requests()
	r.wire, err = wireBytes()
	return err
}

// count adds what has gone through since reset to a sample. On the way through
// a line, the line's bytes count.
func (r *registry) count(s *sample, through *line) error {
	s.Requests = int64(r.requests() - r.seen)
	if through != nil {
		s.Bytes = through.bytes.Load()
		return nil
	}
	now, err := wireBytes()
	s.Bytes = now - r.wire
	return err
}

// requests is how many the registry has answered: it logs each.
func (r *registry) requests() int {
	b, _ := os.ReadFile(r.said.Name())
	return bytes.Count(b, []byte(` /v2/`))
}

// wireBytes is what has gone through the namespace's one interface, on which
// nothing else talks.
func wireBytes() (int64, error) {
	b, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		return 0, err
	}
	return receivedOn("lo", string(b))
}

// receivedOn finds an interface's received bytes in the text of
// /proc/net/dev.
func receivedOn(name, table string) (int64, error) {
	for line := range strings.Lines(table) {
		if what, figures, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(what) == name {
			if received := strings.Fields(figures); len(received) > 0 {
				return strconv.ParseInt(received[0], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("no interface %s", name)
}

// content is a container image of two layers: a system that can run true, and
// files.
type content struct {
	name  string
	files func(w *tar.Writer) error
	lazy  bool // in eStargz's form
}

var (
	largeFiles = &content{name: "large", files: func(w *tar.Writer) error {
		return fillTar(w, 30, func(*rand.Rand) int { return 10_000_000 })
	}}
	smallFiles = &content{name: "small", files: func(w *tar.Writer) error {
		return fillTar(w, 20_000, func(r *rand.Rand) int { return 8<<10 + r.IntN(14<<10) })
	}}
	smallLazy = &content{name: "small-estargz", files: smallFiles.files, lazy: true}
)

// fillTar writes n files in a hundred folders, two thirds of whose bytes cannot
// be compressed, the same each time.
func fillTar(w *tar.Writer, n int, size func(*rand.Rand) int) error {
	r := rand.New(rand.NewPCG(5, uint64(n)))
	src := rand.NewChaCha8([32]byte{byte(n)})
	for i := range n {
		p := make([]byte, size(r))
		text := len(p) / 3
		for copied := 0; copied < text; {
			copied += copy(p[copied:text], "what a text in an image reads like; ")
		}
		src.Read(p[text:])
		h := &tar.Header{Name: fmt.Sprintf("data/%02d/%05d", i%100, i), Mode: 0o644, Size: int64(len(p)), ModTime: time.Unix(1_600_000_000, 0)}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

// image makes the image from its seed.
func (c *content) image(l *lab) (v1.Image, error) {
	system, err := archive(l, func(w *tar.Writer) error { return addSystem(w, l) })
	if err != nil {
		return nil, err
	}
	files, err := archive(l, c.files)
	if err != nil {
		return nil, err
	}
	img := v1.Image(empty.Image)
	for _, path := range []string{system, files} {
		add, err := c.layer(path)
		if err != nil {
			return nil, err
		}
		if img, err = mutate.Append(img, add); err != nil {
			return nil, err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config.OS, config.Architecture = "linux", "amd64"
	config.Config.Env = []string{"PATH=/bin:/usr/bin"}
	config.Config.Cmd = []string{"/bin/true"}
	return mutate.ConfigFile(img, config)
}

// archive writes a tar file. It stays until the lab is closed, for an image
// reads its layers when it is pushed.
func archive(l *lab, fill func(*tar.Writer) error) (string, error) {
	f, err := os.CreateTemp(l.tmp, "layer")
	if err != nil {
		return "", err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := fill(w); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	return f.Name(), f.Close()
}

// addSystem puts in what an image of the other rows begins with.
func addSystem(w *tar.Writer, l *lab) error {
	root, err := os.MkdirTemp(l.tmp, "system")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if err := busybox(root); err != nil {
		return err
	}
	// The same image each time, like the files.
	if err := command(context.Background(), nil, "find", root, "-exec", "touch", "-h", "-d", "@1600000000", "{}", "+"); err != nil {
		return err
	}
	return w.AddFS(os.DirFS(root))
}

// layer compresses a tar file, as builders do or into eStargz, whose chunks it
// leaves at the size that the builders choose.
func (c *content) layer(path string) (mutate.Addendum, error) {
	if !c.lazy {
		layer, err := tarball.LayerFromFile(path, tarball.WithCompressionLevel(gzip.DefaultCompression), tarball.WithMediaType(types.OCILayer))
		return mutate.Addendum{Layer: layer}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return mutate.Addendum{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return mutate.Addendum{}, err
	}
	blob, err := estargz.Build(io.NewSectionReader(f, 0, info.Size()))
	if err != nil {
		return mutate.Addendum{}, err
	}
	defer blob.Close()
	b, err := io.ReadAll(blob)
	if err != nil {
		return mutate.Addendum{}, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil },
		tarball.WithMediaType(types.OCILayer))
	return mutate.Addendum{Layer: layer, MediaType: types.OCILayer,
		Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: blob.TOCDigest().String()}}, err
}

// fromRegistry is a contestant that reads a registry's image through a mount
// whose cache is empty, through a line if there is one.
func (l *lab) fromRegistry(r *registry, c *content, ln *link, do func(ctx context.Context, path string) error) contestant {
	var m *mount
	var through *line
	path := func() string { return filepath.Join(m.dir, "lab/bench", c.name+":v1.simg") }
	return contestant{
		name: "sregfs",
		before: func(ctx context.Context) (err error) {
			if through, err = r.reach(l, ln); err != nil {
				return err
			}
			home, err := l.folder("home")
			if err != nil {
				return err
			}
			if m, err = l.sregfs(ctx, home, nil, "--client", "lab", "--registry", "lab=http://"+r.through(through)); err != nil {
				return err
			}
			return r.ready()
		},
		work: func(ctx context.Context, s *sample) error { return do(ctx, path()) },
		after: func(ctx context.Context, s *sample) error {
			s.Memory = m.peak()
			err := r.count(s, through)
			m.close()
			if through != nil {
				through.close()
			}
			return err
		},
	}
}

// reach makes a line to the registry for one repetition; nil needs none.
func (r *registry) reach(l *lab, ln *link) (*line, error) {
	if ln == nil {
		return nil, nil
	}
	return newLine(r.addr, *ln)
}

// through is the registry's address by way of a line.
func (r *registry) through(ln *line) string {
	if ln == nil {
		return r.addr
	}
	return ln.addr()
}

// ready lets what earlier work wrote reach the disk, and sets the counters to
// zero.
func (r *registry) ready() error {
	unix.Sync()
	return r.reset()
}

// apptainerOf is a contestant that has Apptainer fetch the image, with folders
// of its own that are empty. args are its arguments before the image's URI.
func (l *lab) apptainerOf(name string, r *registry, c *content, ln *link, args func(dir string) []string, more ...string) (contestant, error) {
	program, err := apptainer()
	if err != nil {
		return contestant{}, err
	}
	var dir string
	var through *line
	return contestant{
		name: name,
		before: func(ctx context.Context) (err error) {
			if dir, err = l.folder("apptainer"); err != nil {
				return err
			}
			for _, sub := range []string{"cache", "tmp"} {
				if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
					return err
				}
			}
			if through, err = r.reach(l, ln); err != nil {
				return err
			}
			return r.ready()
		},
		work: func(ctx context.Context, s *sample) error {
			run := append(args(dir), "docker://"+r.through(through)+"/bench/"+c.name+":v1")
			cmd := exec.CommandContext(ctx, program, append(run, more...)...)
			cmd.Env = append(os.Environ(), "APPTAINER_CACHEDIR="+dir+"/cache", "APPTAINER_TMPDIR="+dir+"/tmp", "HOME="+dir)
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w\n%s", err, tail(out))
			}
			if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
				s.Memory = u.Maxrss << 10
			}
			return nil
		},
		after: func(ctx context.Context, s *sample) error {
			err := r.count(s, through)
			if through != nil {
				through.close()
			}
			os.RemoveAll(dir)
			return err
		},
	}, nil
}

const pull = "apptainer pull"

// convertRow makes a Singularity image of a registry's container image.
func convertRow(name, files string, c *content, times float64) row {
	return row{
		name: name,
		what: fmt.Sprintf("a container image of 300 MB in %s, from a registry on this machine, until it runs", files),
		goal: fmt.Sprintf("%g times faster than apptainer pull; copied to a file, 3 times; under 300 MB of memory", times),
		met: func(r result) bool {
			copied := r.of("sregfs, copied").Median
			return r.atLeast(pull, times) && copied.Seconds*3 <= r.of(pull).Median.Seconds &&
				r.of("sregfs").Median.Memory < 300e6 && copied.Memory < 300e6
		},
		prepare: func(ctx context.Context, l *lab) ([]contestant, error) {
			r, err := l.registryFor(ctx, c)
			if err != nil {
				return nil, err
			}
			run, err := execute("/bin/true")
			if err != nil {
				return nil, err
			}
			to := filepath.Join(l.tmp, "copied.simg")
			copied := l.fromRegistry(r, c, nil, func(ctx context.Context, path string) error {
				return command(ctx, nil, "cp", path, to)
			})
			copied.name = "sregfs, copied"
			count := copied.after
			copied.after = func(ctx context.Context, s *sample) error {
				os.Remove(to)
				return count(ctx, s)
			}
			pulled, err := l.apptainerOf(pull, r, c, nil, func(dir string) []string {
				return []string{"pull", "--no-https", filepath.Join(dir, "pulled.sif")}
			})
			if err != nil {
				return nil, err
			}
			return []contestant{l.fromRegistry(r, c, nil, run), copied, pulled}, nil
		},
	}
}

var stargzRow = row{
	name: "registry-estargz",
	what: "apptainer exec IMAGE true, 300 MB in 20,000 files as eStargz that nobody has cached, 20 ms and 1 Gbit/s away",
	goal: "under 0.5 s and 2.5 MB",
	met: func(r result) bool {
		own := r.of("sregfs").Median
		return own.Seconds < 0.5 && own.Bytes <= 2_500_000
	},
	prepare: func(ctx context.Context, l *lab) ([]contestant, error) {
		r, err := l.registryFor(ctx, smallLazy)
		if err != nil {
			return nil, err
		}
		run, err := execute("/bin/true")
		if err != nil {
			return nil, err
		}
		whole, err := l.apptainerOf("apptainer exec docker://", r, smallLazy, &gigabit, func(string) []string {
			return []string{"exec", "--no-https", "--no-privs", "--no-home", "--pwd", "/"}
		}, "/bin/true")
		if err != nil {
			return nil, err
		}
		return []contestant{l.fromRegistry(r, smallLazy, &gigabit, run), whole}, nil
	},
}
