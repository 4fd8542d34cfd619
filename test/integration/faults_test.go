//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/oauth2"

	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
	"github.com/sregfs/sregfs/backends/gdrive/gdrivetest"
	"github.com/sregfs/sregfs/backends/login"
	"github.com/sregfs/sregfs/backends/secrets"
	"github.com/sregfs/sregfs/image/imagetest"
)

// trouble is what goes wrong with a request, in words that the emulators and
// the proxy understand.
type trouble struct {
	status int
	reason string // Drive's
	after  time.Duration
	drop   bool // cut before the answer
	lost   bool // done, and then cut before the answer
	cut    bool // cut in the middle of the answer's body
	stall  bool
	silent bool // the proxy's: there is no answer at all
	flip   bool
	at     int64
	header http.Header // not Drive's
	body   string
}

// What a service is asked for.
const (
	reading = "read" // content
	pushing = "push" // content, and its commit
	asking  = "ask"  // all else but waiting for changes
)

// service is an account whose requests can be made to fail.
type service struct {
	account
	// troubled asks f about each request; nil for none.
	troubled func(f func(what string) *trouble)
	requests func() int // without those that wait for changes
	// expire has the service refuse all tokens given out so far; nil where the
	// account has one that cannot be renewed.
	expire func()
	// full has a full account refuse pushes: SetSpace, or else an answer.
	setSpace func(int64)
	full     *trouble
	// forget has it take no cursor of before; nil where there is no change feed.
	forget func()
	rename func(from, to string) // nil where there is no such act
	remove func(name string)
}

func dropboxService(t *testing.T) service {
	s := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second})
	t.Cleanup(s.Close)
	a := dropboxAt(s)
	path := func(name string) string { return "/" + name + ".simg" }
	return service{
		account: a,
		troubled: func(f func(string) *trouble) {
			if f == nil {
				s.SetHook(nil)
				return
			}
			s.SetHook(func(r *http.Request) *dropboxtest.Fault {
				what := asking
				switch route := dropboxtest.Route(r); {
				case route == "files/download":
					what = reading
				case strings.HasPrefix(route, "files/upload"):
					what = pushing
				}
				x := f(what)
				if x == nil {
					return nil
				}
				y := &dropboxtest.Fault{Status: x.status, Header: x.header, Body: x.body, Drop: x.drop || x.lost, Act: x.lost, At: x.at}
				if x.after > 0 {
					y = dropboxtest.RateLimited("too_many_requests", x.after)
				}
				switch {
				case x.cut:
					y.Break = dropboxtest.Cut
				case x.stall:
					y.Break = dropboxtest.Stall
				case x.flip:
					y.Break = dropboxtest.Flip
				}
				return y
			})
		},
		requests: func() int {
			n := 0
			for route, c := range s.Counts() {
				if !strings.HasSuffix(route, "longpoll") {
					n += int(c.Requests)
				}
			}
			return n
		},
		setSpace: s.SetSpace,
		forget:   s.ResetCursors,
		rename:   func(from, to string) { s.Move(path(from), path(to)) },
		remove:   func(name string) { s.Delete(path(name)) },
	}
}

func driveService(t *testing.T) service {
	s := gdrivetest.NewServer(gdrivetest.Options{})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	find := func(name string) string {
		for _, f := range s.Files() {
			if p := f.Properties; p["collection"]+"/"+p["image"]+":"+p["tag"] == name && !f.Trashed {
				return f.ID
			}
		}
		return ""
	}
	return service{
		account: gdriveAt(t, s),
		troubled: func(f func(string) *trouble) {
			if f == nil {
				s.SetFaults(nil)
				return
			}
			s.SetFaults(func(r gdrivetest.Request) gdrivetest.Fault {
				what := asking
				switch {
				case strings.HasSuffix(r.Method, ".media"):
					what = reading
				case r.Method == "upload" || strings.HasPrefix(r.HTTP.URL.Path, "/upload/"):
					what = pushing
				}
				x := f(what)
				if x == nil {
					return gdrivetest.Fault{}
				}
				y := gdrivetest.Fault{Status: x.status, Reason: x.reason, RetryAfter: x.after, At: x.at}
				switch {
				case x.drop:
					y.Kind = gdrivetest.CutRequest
				case x.lost:
					y.Kind = gdrivetest.LoseResponse
				case x.cut:
					y.Kind = gdrivetest.CutResponse
				case x.stall:
					y.Kind = gdrivetest.StallResponse
				case x.flip:
					y.Kind = gdrivetest.FlipResponse
				}
				return y
			})
		},
		requests: func() int {
			n := 0
			for method, c := range s.Counts() {
				if method != "changes.list" {
					n += c.Requests
				}
			}
			return n
		},
		expire:   s.ExpireTokens,
		setSpace: func(int64) {},
		full:     &trouble{status: 403, reason: "storageQuotaExceeded"},
		forget:   s.ForgetChanges,
		rename: func(from, to string) {
			if err := s.Rename(find(from), to+".simg"); err != nil {
				t.Error(err)
			}
		},
		remove: func(name string) {
			if err := s.Trash(find(name)); err != nil {
				t.Error(err)
			}
		},
	}
}

// registryService is the real docker-registry behind a proxy.
func registryService(t *testing.T) service {
	r := startRegistry(t, registryOptions{})
	s := service{
		account: r.account(t), setSpace: func(int64) {}, full: &trouble{status: 507},
		remove: func(name string) {
			ref := r.reference(name)
			d, err := remote.Head(ref, r.options()...)
			if err == nil {
				err = remote.Delete(ref.Context().Digest(d.Digest.String()), r.options()...)
			}
			if err != nil {
				t.Error(err)
			}
		},
	}
	p := s.through(t, nil)
	s.requests = func() int { return int(p.requests.Load()) }
	s.troubled = func(f func(string) *trouble) {
		if f == nil {
			p.troubled(nil)
			return
		}
		p.troubled(func(r *http.Request) *trouble {
			what := asking
			switch read := r.Method == http.MethodGet; {
			case strings.Contains(r.URL.Path, "/blobs/uploads/"), r.Method == http.MethodPut:
				what = pushing
			case read && strings.Contains(r.URL.Path, "/blobs/"):
				what = reading
			}
			return f(what)
		})
	}
	return s
}

// bigImage is one that goes up in parts and comes in several requests.
func bigImage(t *testing.T, seed uint64) string {
	t.Helper()
	return imagetest.SIF(t, imagetest.Opts{Seed: seed, NoShell: true, ExtraBytes: 20 << 20})
}

func eachService(t *testing.T, f func(t *testing.T, s service)) {
	t.Helper()
	t.Run("dropbox", func(t *testing.T) { f(t, dropboxService(t)) })
	t.Run("gdrive", func(t *testing.T) { f(t, driveService(t)) })
	t.Run("registry", func(t *testing.T) { f(t, registryService(t)) })
}

// first has the first n requests of a kind fail; n < 0 for all of them.
func (s service) first(n int, what string, x trouble) {
	var seen atomic.Int64
	s.troubled(func(w string) *trouble {
		if w != what || n >= 0 && seen.Add(1) > int64(n) {
			return nil
		}
		return &x
	})
}

// TestReadFaults: what a program sees when reading an image goes wrong. All of
// it happens to one daemon, which must be as good as new after each.
func TestReadFaults(t *testing.T) {
	const all = -1
	html := http.Header{"Content-Type": {"text/html"}}
	for _, c := range []struct {
		name   string
		only   string // client, "" for both
		times  int
		x      trouble
		want   string // of cmp's message, "" when it is mended
		status string // what sregfs status says, "" for nothing new
		most   int    // requests
	}{
		{name: "cut before the answer", times: 1, x: trouble{drop: true}, most: 12},
		{name: "cut in the body", times: 1, x: trouble{cut: true, at: 40_000}, most: 12},
		{name: "cut at every try", times: 3, x: trouble{cut: true, at: 50_000}, most: 16},
		{name: "500", times: 1, x: trouble{status: 500}, most: 12},
		{name: "503 twice", times: 2, x: trouble{status: 503}, most: 12},
		{name: "502 with a page of a proxy", only: "dropbox", times: 1, x: trouble{status: 502, body: "<html>", header: html}, most: 12},
		{name: "429 for a second", times: 1, x: trouble{status: 429, reason: "rateLimitExceeded", after: time.Second}, most: 12},
		{name: "403 for a second", times: 1, x: trouble{status: 403, after: time.Second}, most: 12},
		{name: "403 for an hour", times: all, x: trouble{status: 403, after: time.Hour},
			want: "Resource temporarily unavailable", status: "left alone for", most: 8},
		{name: "403 for a rate", only: "gdrive", times: 1, x: trouble{status: 403, reason: "userRateLimitExceeded"}, most: 12},
		{name: "429 for an hour", times: all, x: trouble{status: 429, reason: "rateLimitExceeded", after: time.Hour},
			want: "Resource temporarily unavailable", status: "left alone for", most: 8},
		{name: "download quota", only: "gdrive", times: all, x: trouble{status: 403, reason: "downloadQuotaExceeded"},
			want: "Disk quota exceeded", status: "downloadQuotaExceeded", most: 8},
		{name: "403", only: "gdrive", times: all, x: trouble{status: 403, reason: "insufficientFilePermissions"},
			want: "Permission denied", status: "insufficientFilePermissions", most: 8},
		{name: "403", only: "lab", times: all, x: trouble{status: 403, body: `{"errors":[{"code":"DENIED"}]}`},
			want: "Permission denied", status: "DENIED", most: 8},
		{name: "401 for good", only: "lab", times: all, x: trouble{status: 401},
			want: "Permission denied", status: "docker login", most: 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachService(t, func(t *testing.T, s service) {
				if c.only != "" && c.only != s.client {
					t.Logf("a fault of %s alone", c.only)
					return
				}
				image, other := smallImage(t, 1), smallImage(t, 2)
				s.put(t, "pusheen/a:1", image)
				s.put(t, "pusheen/a:2", other)
				d := newMachine(t, s.env...).mount("--client=" + s.client)
				d.run("ls -l %s/pusheen", s.client)
				before := s.requests()
				s.first(c.times, reading, c.x)
				if c.want == "" {
					d.run("cmp %s %s/pusheen/a:1.simg", image, s.client)
				} else {
					d.fails(c.want, "cmp %s %s/pusheen/a:1.simg", image, s.client)
					if !strings.Contains(fmt.Sprint(d.status().Failures), c.status) {
						t.Errorf("status says %q, want %q in it", d.status().Failures, c.status)
					}
					if !strings.Contains(d.log.String(), c.status) {
						t.Errorf("the log lacks %q", c.status)
					}
				}
				if n := s.requests() - before; n > c.most {
					t.Errorf("took %d requests, want %d at most", n, c.most)
				}
				s.troubled(nil)
				if c.x.after <= time.Second {
					d.run("cmp %s %s/pusheen/a:1.simg && cmp %s %[2]s/pusheen/a:2.simg", image, s.client, other)
				}
			})
		})
	}
}

// TestWrongAnswers: an answer that is shorter than it should be, or is another
// part of the image than was asked for, is not taken for what was asked for.
func TestWrongAnswers(t *testing.T) {
	body := func(r *http.Response, alter func(data []byte) []byte) {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		_ = r.Body.Close()
		data = alter(data)
		r.Body = io.NopCloser(bytes.NewReader(data))
		r.ContentLength = int64(len(data))
		r.Header.Set("Content-Length", fmt.Sprint(len(data)))
	}
	half := func(data []byte) []byte { return data[:len(data)/2] }
	for name, alter := range map[string]func(r *http.Response){
		// It says so, and it does not.
		"short":   func(r *http.Response) { body(r, half) },
		"chunked": func(r *http.Response) { body(r, half); r.ContentLength = -1; r.Header.Del("Content-Length") },
		"long":    func(r *http.Response) { body(r, func(data []byte) []byte { return append(data, "more"...) }) },
		"empty":   func(r *http.Response) { body(r, func([]byte) []byte { return nil }) },
		// Another range, rightly labelled and not.
		"shifted": func(r *http.Response) {
			var from, to, size int64
			if n, _ := fmt.Sscanf(r.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &size); n == 3 {
				r.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from+1, to+1, size))
			}
		},
		"another size": func(r *http.Response) {
			if at, _, ok := strings.Cut(r.Header.Get("Content-Range"), "/"); ok {
				r.Header.Set("Content-Range", at+"/1000000")
			}
		},
		"no range": func(r *http.Response) { r.Header.Del("Content-Range") },
		"all of it": func(r *http.Response) {
			r.Header.Del("Content-Range")
			r.StatusCode, r.Status = http.StatusOK, "200 OK"
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachService(t, func(t *testing.T, s service) {
				image := bigImage(t, 1)
				data, err := os.ReadFile(image)
				if err != nil {
					t.Fatal(err)
				}
				s.put(t, "pusheen/a:1", image)
				p := s.through(t, nil)
				d := newMachine(t, s.env...).mount("--client=" + s.client)
				d.run("ls -l %s/pusheen", s.client)
				var altered atomic.Int64
				p.change(func(r *http.Response) {
					if r.Header.Get("Content-Range") != "" {
						altered.Add(1)
						alter(r)
					}
				})
				f, err := os.Open(filepath.Join(d.dir, s.client, "pusheen/a:1.simg"))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				before := p.requests.Load()
				for _, off := range []int64{12_345_678, 4096, int64(len(data)) - 1000} {
					got := make([]byte, 1000)
					if _, err := f.ReadAt(got, off); err == nil && !bytes.Equal(got, data[off:off+1000]) {
						t.Errorf("wrong bytes at %d", off)
					} else if err != nil && !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.ETIMEDOUT) && !errors.Is(err, syscall.ESTALE) {
						t.Errorf("at %d: %v", off, err)
					}
				}
				if n := p.requests.Load() - before; n > 60 {
					t.Errorf("%d requests for three reads", n)
				}
				if altered.Load() == 0 {
					t.Error("nothing was altered")
				}
				p.change(nil)
				d.run("cmp %s %s/pusheen/a:1.simg", image, s.client)
			})
		})
	}
}

// TestFlippedBits: bytes that came wrong are not kept. A whole image that does
// not match its hash is fetched again once, then it is EIO until the next mount.
func TestFlippedBits(t *testing.T) {
	eachService(t, func(t *testing.T, s service) {
		once, always := smallImage(t, 1), smallImage(t, 2)
		s.put(t, "pusheen/a:once", once)
		s.put(t, "pusheen/a:always", always)
		d := newMachine(t, s.env...).mount("--client=" + s.client)
		s.first(1, reading, trouble{flip: true, at: 12_345})
		// The first reader may come before the end of the object, where only
		// TLS vouches for what he gets.
		d.run("cat %s/pusheen/a:once.simg >/dev/null || true", s.client)
		d.eventually("the right bytes", func() error {
			_, errOut, err := d.try("cmp %s %s/pusheen/a:once.simg", once, s.client)
			if err != nil {
				return fmt.Errorf("%w: %s", err, errOut)
			}
			return nil
		})
		before := s.requests()
		s.first(-1, reading, trouble{flip: true, at: 12_345})
		d.eventually("EIO", func() error {
			_, errOut, err := d.try("cat %s/pusheen/a:always.simg >/dev/null", s.client)
			if err == nil {
				return fmt.Errorf("it could be read")
			}
			if !strings.Contains(errOut, "Input/output error") {
				t.Errorf("a wrong image failed with %s", errOut)
			}
			return nil
		})
		if n := s.requests() - before; n > 40 {
			t.Errorf("took %d requests", n)
		}
		if says := fmt.Sprint(d.status().Failures); !strings.Contains(says, "checksum") {
			t.Errorf("status says %q", says)
		}
		// This run does not trust it any more; the other image is not its
		// affair, and the next run asks anew.
		s.troubled(nil)
		d.run("cmp %s %s/pusheen/a:once.simg", once, s.client)
		d.unmount()
		newMount := d.machine.mount("--client=" + s.client)
		newMount.run("cmp %s %s/pusheen/a:always.simg", always, s.client)
	})
}

// TestPushFaults: what a program sees when a push goes wrong, small and in
// parts; whatever is not acknowledged does not show.
func TestPushFaults(t *testing.T) {
	small, large := smallImage(t, 1), bigImage(t, 2)
	for _, c := range []struct {
		name string
		skip int // requests that go well before
		x    trouble
		n    int
		want string
	}{
		{name: "cut before the answer", x: trouble{drop: true}, n: 1},
		{name: "the answer is lost", x: trouble{lost: true}, n: 1},
		{name: "the second answer is lost", skip: 1, x: trouble{lost: true}, n: 1},
		{name: "the third answer is lost", skip: 2, x: trouble{lost: true}, n: 1},
		{name: "503 twice", x: trouble{status: 503}, n: 2},
		{name: "429 for a second", skip: 1, x: trouble{status: 429, reason: "rateLimitExceeded", after: time.Second}, n: 1},
		{name: "refused", x: trouble{status: 400, reason: "badRequest", body: "no"}, n: -1, want: "Input/output error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachService(t, func(t *testing.T, s service) {
				d := newMachine(t, s.env...).mount("--client=" + s.client)
				d.run("mkdir %s/pusheen", s.client)
				for tag, image := range map[string]string{"small": small, "large": large} {
					var seen atomic.Int64
					s.troubled(func(what string) *trouble {
						if what != pushing {
							return nil
						}
						if n := int(seen.Add(1)); n <= c.skip || c.n >= 0 && n > c.skip+c.n {
							return nil
						}
						return &c.x
					})
					if c.want != "" {
						d.fails(c.want, "cp %s %s/pusheen/a:%s.simg", image, s.client, tag)
						s.mustLack(t, "pusheen/a:"+tag)
						if held := d.settled(); len(held) == 0 {
							t.Error("status does not tell of it")
						}
						s.troubled(nil)
					}
					d.run("cp %s %s/pusheen/a:%s.simg", image, s.client, tag)
					s.mustHold(t, "pusheen/a:"+tag, image)
					if n := seen.Load(); n > 30 {
						t.Errorf("%d requests for one push", n)
					}
				}
				if names := s.names(); len(names) != 2 {
					t.Errorf("the account has %q", names)
				}
			})
		})
	}
}

// TestQuotaDuringUpload: the account fills up while an image is sent.
func TestQuotaDuringUpload(t *testing.T) {
	eachService(t, func(t *testing.T, s service) {
		image := bigImage(t, 1)
		d := newMachine(t, s.env...).mount("--client=" + s.client)
		d.run("mkdir %s/pusheen", s.client)
		var seen atomic.Int64
		s.troubled(func(what string) *trouble {
			if what != pushing || seen.Add(1) < 2 {
				return nil
			}
			s.setSpace(1000)
			return s.full
		})
		d.fails("No space left", "cp %s %s/pusheen/a:1.simg", image, s.client)
		s.mustLack(t, "pusheen/a:1")
		if held := d.settled(); len(held) == 0 {
			t.Error("the bytes are not kept")
		}
		s.troubled(nil)
		s.setSpace(1 << 30)
		d.run("cp %s %s/pusheen/a:1.simg", image, s.client)
		s.mustHold(t, "pusheen/a:1", image)
	})
}

// TestNetworkGoneAndBack: while nothing can be reached the known stays in
// sight, and when it comes back everything goes on without a restart.
func TestNetworkGoneAndBack(t *testing.T) {
	eachService(t, func(t *testing.T, s service) {
		old, fresh := smallImage(t, 1), smallImage(t, 2)
		s.put(t, "pusheen/a:old", old)
		d := newMachine(t, s.env...).mount("--client=" + s.client)
		d.run("cmp %s %s/pusheen/a:old.simg", old, s.client)
		s.troubled(func(string) *trouble { return &trouble{drop: true} })
		s.put(t, "pusheen/a:fresh", fresh)
		before := s.requests()
		d.run("ls -l %s/pusheen && cmp %s %[1]s/pusheen/a:old.simg && df %[1]s", s.client, old)
		d.run("! timeout -s INT 2 cat %s/pusheen/a:unknown.simg", s.client)
		time.Sleep(2 * time.Second)
		if n := s.requests() - before; n > 60 {
			t.Errorf("%d requests in a few seconds without a network", n)
		}
		s.troubled(nil)
		d.eventually("the new image", func() error {
			ls := "ls %[1]s/pusheen | grep fresh && "
			if s.forget == nil {
				ls = "" // it is listed again when a minute has passed
			}
			_, errOut, err := d.try(ls+"cmp %[2]s %[1]s/pusheen/a:fresh.simg", s.client, fresh)
			if err != nil {
				return fmt.Errorf("%w %s", err, errOut)
			}
			return nil
		})
		d.run("cp %s %s/pusheen/a:pushed.simg", fresh, s.client)
		s.mustHold(t, "pusheen/a:pushed", fresh)
	})
}

// TestTokenExpires: a token that ends while an image is read or pushed is
// renewed, and nobody sees it.
func TestTokenExpires(t *testing.T) {
	s := driveService(t)
	image := bigImage(t, 1)
	s.put(t, "pusheen/a:1", image)
	d := newMachine(t, s.env...).mount("--client=gdrive")
	var seen atomic.Int64
	s.troubled(func(what string) *trouble {
		// Not at the very request that repeats one that was refused.
		if what != asking {
			if n := seen.Add(1); n == 2 || n == 6 {
				s.expire()
			}
		}
		return nil
	})
	d.run("cmp %s gdrive/pusheen/a:1.simg", image)
	d.run("cp %s gdrive/pusheen/a:2.simg", image)
	s.mustHold(t, "pusheen/a:2", image)
}

// TestCursorReset: a change feed that has forgotten where the listing was is
// asked for everything again, and nothing vanishes meanwhile.
func TestCursorReset(t *testing.T) {
	eachService(t, func(t *testing.T, s service) {
		if s.forget == nil {
			t.Log("has no change feed")
			return
		}
		s.put(t, "pusheen/a:1", smallImage(t, 1))
		d := newMachine(t, s.env...).mount("--client=" + s.client)
		d.want("a:1.simg", "ls %s/pusheen", s.client)
		s.put(t, "pusheen/a:2", smallImage(t, 2))
		s.forget()
		s.put(t, "pusheen/a:3", smallImage(t, 3))
		d.eventually("all three", func() error {
			got := strings.Fields(d.run("ls %s/pusheen", s.client))
			if len(got) == 0 || got[0] != "a:1.simg" {
				t.Fatalf("a:1 vanished: %q", got)
			}
			if len(got) != 3 {
				return fmt.Errorf("%q", got)
			}
			return nil
		})
	})
}

// TestTakenAwayWhileOpen: an image that is renamed or deleted on the remote
// goes on to be the same bytes for who has it open, or is ESTALE.
func TestTakenAwayWhileOpen(t *testing.T) {
	eachService(t, func(t *testing.T, s service) {
		image := bigImage(t, 1)
		for name, act := range map[string]func(name string){
			"renamed": func(name string) { s.rename(name, "pusheen/b:elsewhere") },
			"deleted": s.remove,
		} {
			if name == "renamed" && s.rename == nil {
				continue
			}
			tag := "pusheen/a:" + name
			s.put(t, tag, image)
			d := newMachine(t, s.env...).mount("--client=" + s.client)
			d.run("mkfifo %[1]s/go-%[2]s %[1]s/first-%[2]s", d.home, name)
			done := make(chan [2]string, 1)
			go func() {
				out, errOut, _ := d.try("exec 3<%s/%s.simg; head -c 4096 <&3 >%s/got; echo >%[3]s/first-%[4]s; read <%[3]s/go-%[4]s; cat <&3 >>%[3]s/got || echo failed",
					s.client, tag, d.home, name)
				done <- [2]string{out, errOut}
			}()
			d.run("read <%s/first-%s", d.home, name)
			act(tag)
			d.run("echo >%s/go-%s", d.home, name)
			if got := <-done; strings.Contains(got[0], "failed") {
				if !strings.Contains(got[1], "Stale file handle") {
					t.Errorf("%s: the reader got %s", name, got[1])
				}
				d.run("cmp -n $(stat -c %%s %s/got) %s %[1]s/got", d.home, image)
			} else {
				d.run("cmp %s %s/got", image, d.home)
			}
			d.unmount()
		}
	})
}

// TestLoginExpires: with a login whose tokens are good for two seconds, reads
// and pushes that take longer go through, and the refresh token stays where it
// was put.
func TestLoginExpires(t *testing.T) {
	s := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second, TokenTTL: 2 * time.Second})
	t.Cleanup(s.Close)
	a := dropboxAt(s)
	image := bigImage(t, 1)
	a.put(t, "pusheen/a:1", image)
	m := newMachine(t, "SREGISTRY_DROPBOX_BASE="+s.URL, "SREGISTRY_DROPBOX_APP_KEY="+s.AppKey())
	file, err := secrets.Open(filepath.Join(m.home, ".sregistry"))
	if err != nil {
		t.Fatal(err)
	}
	refresh := s.IssueRefreshToken()
	if err := login.Save(file, "dropbox", &oauth2.Token{AccessToken: "expired", RefreshToken: refresh, Expiry: time.Now().Add(-time.Hour)}); err != nil {
		t.Fatal(err)
	}
	d := m.mount("--client=dropbox")
	s.SetLink(0, 6<<20)
	d.run("cmp %s dropbox/pusheen/a:1.simg && cp %[1]s dropbox/pusheen/a:2.simg", image)
	a.mustHold(t, "pusheen/a:2", image)
	// The library renews a token ten seconds before its end: one that lives for
	// two is renewed for each request, and no oftener.
	all := int64(0)
	for _, c := range s.Counts() {
		all += c.Requests
	}
	if n := s.Count("oauth2/token").Requests; n < 2 || n > (all+1)/2 {
		t.Errorf("%d of %d requests were for tokens", n, all)
	}
	out := d.run("%s status --json; getfattr -d -m - dropbox/pusheen/a:1.simg; cat dropbox/pusheen/a:1.json", program)
	for what, text := range map[string]string{"the log": d.log.String(), "what commands print": out} {
		if strings.Contains(text, refresh) {
			t.Errorf("the refresh token is in %s", what)
		}
	}
}
