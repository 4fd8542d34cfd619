package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// rows are all that is measured, in the order of the report. Each lives with
// its kind below.
var rows = slices.Concat([]row{
	cachedRow("cached-sequential", "read a cached image of 500 MB, from the disk", sequential, true),
	cachedRow("cached-sequential-warm", "the same from the page cache", sequential, false),
	cachedRow("cached-random", "20,000 random reads of 4 KiB in it, from the disk", random(20_000), true),
	cachedRow("cached-random-warm", "200,000 of them from the page cache", random(200_000), false),
	firstReadRow("first-sequential", ordinary),
	firstReadRow("first-sequential-200", household),
	firstReadRow("first-sequential-1000", gigabit),
	piecemealRow,
	lazyExecRow,
	pythonRow,
	pushRow,
	listRow,
	readyRow,
	millionRow,
}, registryRows)

// The links that remote rows are measured on.
var (
	gigabit   = link{rtt: 20 * time.Millisecond, mbit: 1000}
	ordinary  = link{rtt: 20 * time.Millisecond, mbit: 400}
	household = link{rtt: 20 * time.Millisecond, mbit: 200}
	direct    = link{}
)

// reading is a way to read a file; it returns after having read what it wants.
type reading func(f *os.File) error

func sequential(f *os.File) error {
	buf := make([]byte, 1<<20)
	for {
		switch _, err := f.Read(buf); err {
		case nil:
		case io.EOF:
			return nil
		default:
			return err
		}
	}
}

// random reads n times 4 KiB, at the same places for every contestant.
func random(n int) reading {
	return func(f *os.File) error {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		r := rand.New(rand.NewPCG(1, 2))
		buf := make([]byte, 4096)
		for range n {
			if _, err := f.ReadAt(buf, r.Int64N(info.Size()/4096)*4096); err != nil && err != io.EOF {
				return err
			}
		}
		return nil
	}
}

// shuffled reads the whole file in pieces of 64 KiB, in no order.
func shuffled(f *os.File) error {
	const piece = 64 << 10
	info, err := f.Stat()
	if err != nil {
		return err
	}
	buf := make([]byte, piece)
	for _, i := range rand.New(rand.NewPCG(3, 4)).Perm(int((info.Size() + piece - 1) / piece)) {
		if _, err := f.ReadAt(buf, int64(i)*piece); err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

func readFile(path string, how reading) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return how(f)
}

// atLeast says whether the named contestant took at least ratio times as long
// as sregfs.
func (r result) atLeast(name string, ratio float64) bool { return r.of(name).Ratio >= ratio }

// noSlower is a ratio that counts as equal: repetitions of one contestant
// differ by as much.
const noSlower = 0.97

// cachedRow reads an image that both caches hold whole.
func cachedRow(name, what string, how reading, fromDisk bool) row {
	return row{
		name: name, what: what,
		goal: "0.95 of the local disk's speed, 10 times rclone's",
		met:  func(r result) bool { return r.atLeast("local file", 0.95) && r.atLeast("rclone mount", 10) },
		prepare: func(ctx context.Context, l *lab) ([]contestant, error) {
			e, image, err := l.store(ctx, direct, l.large)
			if err != nil {
				return nil, err
			}
			home, err := l.folder("home")
			if err != nil {
				return nil, err
			}
			m, err := l.sregfs(ctx, home, e.sregfsEnv(), "--client", "dropbox")
			if err != nil {
				return nil, err
			}
			cache, err := l.folder("rclone-cache")
			if err != nil {
				return nil, err
			}
			r, err := l.rcloneMount(ctx, e, cache)
			if err != nil {
				return nil, err
			}

			read := func(name, path string) (contestant, error) {
				// Once to fill the cache, and once more so that what happens when
				// a file becomes complete is over.
				for range 2 {
					if err := readFile(path, sequential); err != nil {
						return contestant{}, err
					}
				}
				return contestant{
					name: name,
					before: func(context.Context) error {
						if fromDisk {
							return dropCaches()
						}
						return readFile(path, sequential)
					},
					work: func(context.Context, *sample) error { return readFile(path, how) },
				}, nil
			}
			var all []contestant
			for _, c := range [][2]string{
				{"sregfs", filepath.Join(m.dir, "dropbox", remoteName)},
				{"local file", image},
				{"rclone mount", filepath.Join(r.dir, filepath.Base(remoteName))},
			} {
				one, err := read(c[0], c[1])
				if err != nil {
					return nil, fmt.Errorf("%s: %w", c[0], err)
				}
				all = append(all, one)
			}
			// What was just written lies in the page cache in smaller pieces than what
			// was read, and is copied more slowly: all begin from the disk.
			return all, dropCaches()
		},
	}
}

// cold is a contestant that reads through a mount whose cache is empty, with
// further settings in env.
func (l *lab) cold(e *emulator, do func(ctx context.Context, path string) error, env ...string) contestant {
	var m *mount
	return contestant{
		name: "sregfs",
		before: func(ctx context.Context) error {
			home, err := l.folder("home")
			if err != nil {
				return err
			}
			if m, err = l.sregfs(ctx, home, append(e.sregfsEnv(), env...), "--client", "dropbox"); err != nil {
				return err
			}
			// What is measured begins when the image is known.
			if _, err := os.Stat(filepath.Join(m.dir, "dropbox", remoteName)); err != nil {
				return err
			}
			return e.reset(ctx)
		},
		work: func(ctx context.Context, s *sample) error {
			return do(ctx, filepath.Join(m.dir, "dropbox", remoteName))
		},
		after: func(ctx context.Context, s *sample) error {
			s.Memory = m.peak()
			err := e.count(ctx, s)
			m.close()
			return err
		},
	}
}

// coldRclone is the same through rclone.
func (l *lab) coldRclone(e *emulator, do func(ctx context.Context, path string) error) contestant {
	var m *mount
	return contestant{
		name: "rclone mount",
		before: func(ctx context.Context) error {
			cache, err := l.folder("rclone-cache")
			if err != nil {
				return err
			}
			if m, err = l.rcloneMount(ctx, e, cache); err != nil {
				return err
			}
			if _, err := os.Stat(filepath.Join(m.dir, filepath.Base(remoteName))); err != nil {
				return err
			}
			return e.reset(ctx)
		},
		work: func(ctx context.Context, s *sample) error {
			return do(ctx, filepath.Join(m.dir, filepath.Base(remoteName)))
		},
		after: func(ctx context.Context, s *sample) error {
			s.Memory = m.peak()
			err := e.count(ctx, s)
			m.close()
			return err
		},
	}
}

// curl is one plain download of the image.
func (l *lab) curl(e *emulator) contestant {
	return contestant{
		name:   "curl",
		before: e.reset,
		work:   func(ctx context.Context, s *sample) error { return e.download(ctx, os.DevNull) },
		after:  func(ctx context.Context, s *sample) error { return e.count(ctx, s) },
	}
}

func reads(how reading) func(context.Context, string) error {
	return func(_ context.Context, path string) error { return readFile(path, how) }
}

func firstReadRow(name string, ln link) row {
	return row{
		name: name,
		what: fmt.Sprintf("first sequential read of a remote image of 128 MB, %v and %d Mbit/s away", ln.rtt, ln.mbit),
		goal: "0.95 of one plain download, never slower than rclone",
		met:  func(r result) bool { return r.atLeast("curl", 0.95) && r.atLeast("rclone mount", noSlower) },
		prepare: func(ctx context.Context, l *lab) ([]contestant, error) {
			e, _, err := l.store(ctx, ln, l.medium)
			if err != nil {
				return nil, err
			}
			return []contestant{l.cold(e, reads(sequential)), l.curl(e), l.coldRclone(e, reads(sequential))}, nil
		},
	}
}

var piecemealRow = row{
	name: "piecemeal",
	what: "all of it in pieces of 64 KiB in no order",
	goal: "1.05 times one plain download at most",
	met:  func(r result) bool { return r.atLeast("curl", 1/1.05) && r.atLeast("rclone mount", noSlower) },
	prepare: func(ctx context.Context, l *lab) ([]contestant, error) {
		e, _, err := l.store(ctx, ordinary, l.medium)
		if err != nil {
			return nil, err
		}
		return []contestant{l.cold(e, reads(shuffled)), l.curl(e), l.coldRclone(e, reads(shuffled))}, nil
	},
}

// execute runs a program of an image.
func execute(args ...string) (func(ctx context.Context, image string) error, error) {
	program, err := apptainer()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, image string) error {
		run := append([]string{"exec", "--no-privs", "--no-home", "--pwd", "/", image}, args...)
		return command(ctx, nil, program, run...)
	}, nil
}

// local does the same on a file of this disk that is in the page cache.
func local(image string, do func(context.Context, string) error) contestant {
	return contestant{
		name:   "local file",
		before: func(context.Context) error { return readFile(image, sequential) },
		work:   func(ctx context.Context, s *sample) error { return do(ctx, image) },
	}
}

var lazyExecRow = row{
	name: "lazy-exec",
	what: "apptainer exec IMAGE true, 500 MB that nobody has cached, 20 ms and 1 Gbit/s away",
	goal: "1 % of the image fetched, the local time plus six round trips",
	met: func(r result) bool {
		own := r.of("sregfs").Median
		return own.Bytes <= 5_000_000 &&
			own.Seconds <= r.of("local file").Median.Seconds+6*gigabit.rtt.Seconds() &&
			r.atLeast("rclone mount", noSlower)
	},
	prepare: func(ctx context.Context, l *lab) ([]contestant, error) {
		do, err := execute("/bin/true")
		if err != nil {
			return nil, err
		}
		e, image, err := l.store(ctx, gigabit, l.large)
		if err != nil {
			return nil, err
		}
		return []contestant{l.cold(e, do), local(image, do), l.coldRclone(e, do)}, nil
	},
}

var pythonRow = row{
	name: "python",
	what: "a Python that imports hundreds of modules, 20 ms and 200 Mbit/s away",
	goal: "3 s the first time, 1.5 s with the access profile, never slower than rclone",
	met: func(r result) bool {
		return r.of("sregfs").Median.Seconds <= 3 && r.of("sregfs, profile").Median.Seconds <= 1.5 && r.atLeast("rclone mount", noSlower)
	},
	prepare: func(ctx context.Context, l *lab) ([]contestant, error) {
		do, err := execute("/bin/python", "/import.py")
		if err != nil {
			return nil, err
		}
		e, image, err := l.store(ctx, household, l.python)
		if err != nil {
			return nil, err
		}
		// One start by a user who then loses the cache, but not the profile.
		state, err := l.folder("state")
		if err != nil {
			return nil, err
		}
		learn := l.cold(e, do, "XDG_STATE_HOME="+state)
		if _, err := once(ctx, learn); err != nil {
			return nil, fmt.Errorf("learn the profile: %w", err)
		}
		known := l.cold(e, do, "XDG_STATE_HOME="+state)
		known.name = "sregfs, profile"
		return []contestant{l.cold(e, do), known, local(image, do), l.coldRclone(e, do)}, nil
	},
}

var pushRow = row{
	name: "push",
	what: "push an image of 128 MB, 20 ms and 200 Mbit/s away",
	goal: "as fast as the store's own upload of a staged file",
	met:  func(r result) bool { return r.atLeast("rclone copyto", noSlower) },
	prepare: func(ctx context.Context, l *lab) ([]contestant, error) {
		e, image, err := l.store(ctx, household, l.medium)
		if err != nil {
			return nil, err
		}
		var m *mount
		cp := contestant{
			name: "sregfs",
			before: func(ctx context.Context) error {
				home, err := l.folder("home")
				if err != nil {
					return err
				}
				if m, err = l.sregfs(ctx, home, e.sregfsEnv(), "--client", "dropbox"); err != nil {
					return err
				}
				if _, err := os.Stat(filepath.Join(m.dir, "dropbox", remoteName)); err != nil {
					return err
				}
				return e.reset(ctx)
			},
			work: func(ctx context.Context, s *sample) error {
				return command(ctx, nil, "cp", image, filepath.Join(m.dir, "dropbox/bench/pushed:v1.simg"))
			},
			after: func(ctx context.Context, s *sample) error {
				s.Memory = m.peak()
				err := e.count(ctx, s)
				if rerr := os.Remove(filepath.Join(m.dir, "dropbox/bench/pushed:v1.simg")); err == nil {
					err = rerr
				}
				m.close()
				return err
			},
		}
		rclone := contestant{
			name:   "rclone copyto",
			before: e.reset,
			work:   func(ctx context.Context, s *sample) error { return e.upload(ctx, image, "bench/rclone:v1.simg") },
			after: func(ctx context.Context, s *sample) error {
				err := e.count(ctx, s)
				if rerr := e.rclone(ctx, "deletefile", "dropbox:bench/rclone:v1.simg"); err == nil {
					err = rerr
				}
				return err
			},
		}
		return []contestant{cp, rclone}, nil
	},
}

// many is how many images the rows about scale have.
const many = 100_000

// library makes a local storage of many images in a hundred collections.
func (l *lab) library() (home, storage string, err error) {
	if home, err = l.folder("home"); err != nil {
		return "", "", err
	}
	storage = filepath.Join(home, ".singularity/shub")
	for c := range 100 {
		dir := filepath.Join(storage, fmt.Sprintf("collection%02d", c))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", "", err
		}
		for i := range many / 100 {
			name := filepath.Join(dir, fmt.Sprintf("image%04d:v1.simg", i))
			if err := os.WriteFile(name, []byte("not much of an image"), 0o755); err != nil {
				return "", "", err
			}
		}
	}
	return home, storage, nil
}

// listAll lists dir as ls -lR does, and checks that it shows so many images.
func listAll(ctx context.Context, dir string, want int) error {
	return command(ctx, nil, "sh", "-c",
		`n=$(ls -lR "$0" | grep -c '^-.*\.simg$'); test "$n" = "$1" || { echo "ls shows $n images"; exit 1; }`, dir, fmt.Sprint(want))
}

var listRow = row{
	name: "list",
	what: "ls -lR of 100,000 known images",
	goal: "within 3 times of ext4, under 150 MB of memory",
	met: func(r result) bool {
		return r.atLeast("ext4", 1.0/3) && r.of("sregfs").Median.Memory < 150e6
	},
	prepare: func(ctx context.Context, l *lab) ([]contestant, error) {
		home, storage, err := l.library()
		if err != nil {
			return nil, err
		}
		m, err := l.sregfs(ctx, home, nil, "--client", "local")
		if err != nil {
			return nil, err
		}
		if err := listAll(ctx, filepath.Join(m.dir, "local"), many); err != nil {
			return nil, err // the first listing makes them known
		}
		return []contestant{{
			name: "sregfs",
			work: func(ctx context.Context, s *sample) error { return listAll(ctx, filepath.Join(m.dir, "local"), many) },
			after: func(_ context.Context, s *sample) error {
				s.Memory = m.peak()
				return nil
			},
		}, {
			name: "ext4",
			work: func(ctx context.Context, s *sample) error { return listAll(ctx, storage, many) },
		}}, nil
	},
}

var readyRow = row{
	name: "ready",
	what: "from the start to a mount that is ready, 100,000 known images",
	goal: "under 200 ms",
	met:  func(r result) bool { return r.of("sregfs").Median.Seconds < 0.2 },
	prepare: func(ctx context.Context, l *lab) ([]contestant, error) {
		home, _, err := l.library()
		if err != nil {
			return nil, err
		}
		m, err := l.sregfs(ctx, home, nil, "--client", "local")
		if err != nil {
			return nil, err
		}
		err = listAll(ctx, filepath.Join(m.dir, "local"), many)
		m.close()
		if err != nil {
			return nil, err
		}
		return []contestant{{
			name: "sregfs",
			work: func(ctx context.Context, s *sample) error {
				m, err = l.sregfs(ctx, home, nil, "--client", "local")
				return err
			},
			after: func(_ context.Context, s *sample) error {
				s.Memory = m.peak()
				m.close()
				return nil
			},
		}}, nil
	},
}

// elsewhere is how many images of the row about a million are in Dropbox; the
// others are local.
const elsewhere = 900_000

var millionRow = row{
	name:  "million",
	what:  "1,000,000 known images, 100,000 local and 900,000 in Dropbox",
	goal:  "mounted in 200 ms, a name looked up in 20 ms, 1,000 listed in 100 ms, under 300 MB of memory",
	parts: true,
	met: func(r result) bool {
		for _, e := range r.Entries {
			if e.Median.Memory >= 300e6 {
				return false
			}
		}
		return r.of(toMount).Median.Seconds < 0.2 && r.of(toLookUp).Median.Seconds < 0.02 && r.of(toList).Median.Seconds < 0.1
	},
	prepare: func(ctx context.Context, l *lab) ([]contestant, error) {
		home, _, err := l.library()
		if err != nil {
			return nil, err
		}
		e, err := l.emulate(ctx, elsewhere)
		if err != nil {
			return nil, err
		}
		var m *mount
		start := func(ctx context.Context) (err error) {
			m, err = l.sregfs(ctx, home, e.sregfsEnv(), "--client", "local", "--client", "dropbox")
			return err
		}
		// The first mount learns of all of them.
		if err := start(ctx); err != nil {
			return nil, err
		}
		learnt := time.Now()
		for dir, want := range map[string]int{"local/collection99": many / 100, "dropbox": elsewhere / 1000, "dropbox/collection899": 1000} {
			// Until a listing is complete it is an error, after a moment.
			err := listed(filepath.Join(m.dir, dir), want)
			for errors.Is(err, unix.ETIMEDOUT) && ctx.Err() == nil && time.Since(learnt) < 10*time.Minute {
				err = listed(filepath.Join(m.dir, dir), want)
			}
			if err != nil {
				return nil, err
			}
		}
		fmt.Fprintf(os.Stderr, "  listed for the first time in %s\n", seconds(time.Since(learnt).Seconds()))
		m.close()

		after := func(_ context.Context, s *sample) error {
			s.Memory = m.peak()
			m.close()
			s.Disk, err = databases(home)
			return err
		}
		return []contestant{
			{name: toMount, work: func(ctx context.Context, _ *sample) error { return start(ctx) }, after: after},
			{name: toLookUp, before: start, after: after, work: func(context.Context, *sample) error {
				_, err := os.Stat(filepath.Join(m.dir, "dropbox/collection500/image500:v1.simg"))
				return err
			}},
			{name: toList, before: start, after: after, work: func(context.Context, *sample) error {
				return listed(filepath.Join(m.dir, "dropbox/collection700"), 1000)
			}},
			{name: toFind, before: start, after: after, work: func(ctx context.Context, _ *sample) error {
				return command(ctx, nil, "sh", "-c", `n=$(find "$0" -name '*.simg' | wc -l); test "$n" = "$1" || { echo "find finds $n images"; exit 1; }`,
					m.dir, fmt.Sprint(many+elsewhere))
			}},
			{name: toListAll, before: start, after: after, work: func(ctx context.Context, _ *sample) error {
				return listAll(ctx, m.dir, many+elsewhere)
			}},
		}, nil
	},
}

// What is done with a million images.
const (
	toMount   = "sregfs, mount to ready"
	toLookUp  = "sregfs, look-up of one name"
	toList    = "sregfs, ls of 1,000"
	toFind    = "sregfs, find"
	toListAll = "sregfs, ls -lR"
)

// listed reads a directory's names, and checks how many there are.
func listed(dir string, want int) error {
	names, err := os.ReadDir(dir)
	if err == nil && len(names) < want {
		err = fmt.Errorf("%s: %d names, want %d", dir, len(names), want)
	}
	return err
}

// databases is how much the databases below home take.
func databases(home string) (n int64, err error) {
	err = filepath.WalkDir(home, func(path string, d iofs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.Contains(filepath.Base(path), ".db") {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	return n, err
}
