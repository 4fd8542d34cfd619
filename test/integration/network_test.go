//go:build integration

package integration

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
	"github.com/sregfs/sregfs/backends/gdrive/gdrivetest"
	"github.com/sregfs/sregfs/backends/login"
	"github.com/sregfs/sregfs/backends/secrets"
)

// says checks that status and the log have a text in what they tell.
func (d *mounted) says(text string) {
	d.t.Helper()
	out := d.run("%s status", program)
	for what, got := range map[string]string{"status": out, "the log": d.log.String()} {
		if !strings.Contains(got, text) {
			d.t.Errorf("%s does not say %q:\n%s", what, text, got)
		}
	}
}

// soon waits until a shell line succeeds.
func (d *mounted) soon(format string, args ...any) {
	d.t.Helper()
	line := fmt.Sprintf(format, args...)
	d.eventually(line, func() error {
		out, errOut, err := d.try("%s", line)
		if err != nil {
			return fmt.Errorf("%w: %s%s", err, out, errOut)
		}
		return nil
	})
}

// TestUntrusted: a service whose certificate is not to be trusted gets no
// request and no token. What is known and cached stays, and when the certificate
// is right again all goes on.
func TestUntrusted(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	good := ours.certificate(t, nil)
	bad := map[string]struct {
		cert tls.Certificate
		says string
	}{
		"unknown authority": {theirs.certificate(t, nil), "SSL_CERT_FILE"},
		"expired": {ours.certificate(t, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-3*time.Hour), time.Now().Add(-2*time.Hour)
		}), "this machine's clock"},
		"not yet valid": {ours.certificate(t, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(2*time.Hour), time.Now().Add(3*time.Hour)
		}), "this machine's clock"},
		"another name": {ours.certificate(t, func(c *x509.Certificate) {
			c.IPAddresses, c.DNSNames = nil, []string{"www.example.org"}
		}), "whether the address is right"},
	}
	eachService(t, func(t *testing.T, s service) {
		for name, c := range bad {
			t.Run(name, func(t *testing.T) {
				cached, fresh := smallImage(t, 1), smallImage(t, 2)
				s := s
				s.put(t, "pusheen/a:cached", cached)
				s.put(t, "pusheen/a:fresh", fresh)
				p := s.through(t, &c.cert)
				d := newMachine(t, append(s.env, "SSL_CERT_FILE="+ours.file, "SSL_CERT_DIR=/nonexistent")...).mount("--client=" + s.client)
				if out, errOut, err := d.try("ls %s", s.client); err == nil || out != "" {
					t.Errorf("listed as %q %q", out, errOut)
				}
				d.fails("Input/output error", "cat %s/pusheen/a:fresh.simg", s.client)
				d.says("certificate")
				d.says(c.says)
				if n := p.all.Load(); n > 0 {
					t.Errorf("%d requests went out", n)
				}
				p.present(good)
				d.soon("cmp %s %s/pusheen/a:cached.simg && ls %[2]s/pusheen/", cached, s.client)
				p.present(c.cert)
				before, hellos := p.all.Load(), p.hellos.Load()
				d.run("ls -l %s/pusheen; cmp %s %[1]s/pusheen/a:cached.simg", s.client, cached)
				d.fails("Input/output error", "cat %s/pusheen/a:fresh.simg", s.client)
				d.fails("Input/output error", "cp %s %s/pusheen/a:new.simg", fresh, s.client)
				if n := p.all.Load() - before; n > 0 {
					t.Errorf("%d requests went out", n)
				}
				if n := p.hellos.Load() - hellos; n > 40 {
					t.Errorf("%d connections were tried", n)
				}
				p.present(good)
				d.soon("cmp %s %s/pusheen/a:fresh.simg", fresh, s.client)
				d.run("cp %s %s/pusheen/a:new.simg", fresh, s.client)
				s.mustHold(t, "pusheen/a:new", fresh)
				s.remove("pusheen/a:new")
			})
		}
	})
}

// nameServer is a DNS server that answers every question alike.
type nameServer struct {
	mu     sync.Mutex
	rcode  byte // 0 with an address, 2 SERVFAIL, 3 NXDOMAIN
	silent bool
	asked  atomic.Int64
}

func (n *nameServer) set(rcode byte, silent bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rcode, n.silent = rcode, silent
}

// startNameServer has this machine ask a name server of the test's.
func startNameServer(t *testing.T) *nameServer {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a name server needs root")
	}
	conn, err := net.ListenPacket("udp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(file, "/etc/resolv.conf", "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount("/etc/resolv.conf", 0) })
	n := &nameServer{}
	go func() {
		buf := make([]byte, 1500)
		for {
			k, from, err := conn.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			n.asked.Add(1)
			if answer := n.answer(buf[:max(k, 0)]); answer != nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	return n
}

// answer is the answer to a question (RFC 1035 section 4.1), nil for none.
func (n *nameServer) answer(q []byte) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.silent || len(q) < 12 {
		return nil
	}
	end := 12
	for end < len(q) && q[end] != 0 {
		end += 1 + int(q[end])
	}
	if end += 5; end > len(q) {
		return nil
	}
	kind := binary.BigEndian.Uint16(q[end-4:])
	a := append([]byte{q[0], q[1], 0x81, 0x80 | n.rcode, 0, 1, 0, 0, 0, 0, 0, 0}, q[12:end]...)
	if n.rcode == 0 && kind == 1 {
		a[7] = 1
		a = append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1)
	}
	return a
}

// TestNameServer: a service whose name leads nowhere is unknown, not empty; when the
// name server is itself again all goes on, and it is not asked without end.
func TestNameServer(t *testing.T) {
	n := startNameServer(t)
	short := map[string]string{"dropbox": "no such name", "gdrive": "silence", "lab": "server failure"}
	eachService(t, func(t *testing.T, s service) {
		for name, fault := range map[string]struct {
			rcode  byte
			silent bool
		}{"no such name": {3, false}, "server failure": {2, false}, "silence": {0, true}} {
			if !long() && name != short[s.client] {
				continue
			}
			t.Run(name, func(t *testing.T) {
				s := s
				image := smallImage(t, 1)
				s.put(t, "pusheen/a:1", image)
				p := s.through(t, nil)
				at, err := url.Parse(p.URL)
				if err != nil {
					t.Fatal(err)
				}
				s.leadTo("http://service.sregfs.test:" + at.Port())
				n.set(fault.rcode, fault.silent)
				before := n.asked.Load()
				d := newMachine(t, s.env...).mount("--client=" + s.client)
				if out, errOut, err := d.try("timeout -s INT 3 ls %s", s.client); err == nil || out != "" || strings.Contains(errOut, "No such file") {
					t.Errorf("listed as %q %q", out, errOut)
				}
				if _, errOut, err := d.try("timeout -s INT 2 cat %s/pusheen/a:1.simg", s.client); err == nil || strings.Contains(errOut, "No such file") {
					t.Errorf("an image that nobody was asked for: %v %s", err, errOut)
				}
				if asked := n.asked.Load() - before; asked > 100 || asked == 0 {
					t.Errorf("the name server was asked %d times", asked)
				}
				n.set(0, false)
				d.soon("cmp %s %s/pusheen/a:1.simg && ls %[2]s/pusheen/", image, s.client)
				d.run("cp %s %s/pusheen/a:2.simg", image, s.client)
				s.mustHold(t, "pusheen/a:2", image)
				s.remove("pusheen/a:2")
			})
		}
	})
}

// TestClocks: a service whose clock, or a machine whose clock, is hours off.
func TestClocks(t *testing.T) {
	for name, skew := range map[string]time.Duration{"ahead": 7 * time.Hour, "behind": -7 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			red, green := smallImage(t, 1), bigImage(t, 2)
			work := func(t *testing.T, a account, m *machine) *mounted {
				t.Helper()
				a.put(t, "pusheen/a:red", red)
				d := m.mount("--client=" + a.client)
				d.run("cmp %s %s/pusheen/a:red.simg && cp %s %[2]s/pusheen/a:green.simg && cmp %[3]s %[2]s/pusheen/a:green.simg", red, a.client, green)
				d.run("ls -l %s/pusheen; cat %[1]s/pusheen/a:red.json; getfattr -d -m - %[1]s/pusheen/*.simg", a.client)
				a.mustHold(t, "pusheen/a:green", green)
				// What the service has is newer, whatever the clocks say.
				a.put(t, "pusheen/a:red", green)
				d.soon("cmp %s %s/pusheen/a:red.simg", green, a.client)
				a.put(t, "pusheen/a:blue", red)
				d.soon("ls %s/pusheen/a:blue.simg", a.client)
				d.run("rm %s/pusheen/a:blue.simg", a.client)
				a.mustLack(t, "pusheen/a:blue")
				return d
			}
			doctor := func(t *testing.T, d *mounted) {
				t.Helper()
				if out, _, err := d.try("%s doctor --client=%s", program, d.client()); err == nil || !strings.Contains(out, "off the services' clocks") {
					t.Errorf("doctor says nothing of it: %v\n%s", err, out)
				}
			}
			t.Run("dropbox", func(t *testing.T) {
				s := dropboxtest.New(dropboxtest.Options{LongpollMax: time.Second, Skew: skew, TokenTTL: time.Hour})
				t.Cleanup(s.Close)
				m := newMachine(t, "SREGISTRY_DROPBOX_BASE="+s.URL, "SREGISTRY_DROPBOX_APP_KEY="+s.AppKey())
				file, err := secrets.Open(filepath.Join(m.home, ".sregistry"))
				if err != nil {
					t.Fatal(err)
				}
				// A token of another machine, whose end a clock like the service's
				// has noted.
				tok := &oauth2.Token{AccessToken: "of-yesterday", RefreshToken: s.IssueRefreshToken(), Expiry: time.Now().Add(skew + time.Hour)}
				if err := login.Save(file, "dropbox", tok); err != nil {
					t.Fatal(err)
				}
				d := work(t, dropboxAt(s), m)
				if n := s.Count("oauth2/token").Requests; n > 3 {
					t.Errorf("%d tokens were asked for", n)
				}
				doctor(t, d)
			})
			t.Run("gdrive", func(t *testing.T) {
				s := gdrivetest.NewServer(gdrivetest.Options{Skew: skew})
				t.Cleanup(func() { _ = s.Close() })
				a := gdriveAt(t, s)
				d := work(t, a, newMachine(t, a.env...))
				if n := s.Counts()["oauth.token"].Requests; n > 4 {
					t.Errorf("%d tokens were asked for", n)
				}
				doctor(t, d)
			})
			t.Run("registry", func(t *testing.T) {
				r := startRegistry(t, registryOptions{auth: true})
				s := service{account: r.account(t)}
				p := s.through(t, nil)
				p.change(func(r *http.Response) {
					r.Header.Set("Date", time.Now().Add(skew).UTC().Format(http.TimeFormat))
				})
				s.put(t, "pusheen/a:red", red)
				d := newMachine(t, s.env...).mount("--client=lab")
				d.run("cmp %s lab/pusheen/a:red.simg && cp %s lab/pusheen/a:green.simg && cmp %[2]s lab/pusheen/a:green.simg", red, green)
				s.mustHold(t, "pusheen/a:green", green)
			})
		})
	}
}

// client is the one that the daemon was started with.
func (d *mounted) client() string {
	for _, arg := range d.cmd.Args {
		if name, ok := strings.CutPrefix(arg, "--client="); ok {
			return name
		}
	}
	return ""
}

// TestNetworkGone: for minutes nothing gets through, in one of two ways. Who
// waits can be stopped and is told; what is known stays; hardly anybody knocks
// at the service's door; and then all goes on by itself.
func TestNetworkGone(t *testing.T) {
	away, most := 4*time.Second, int64(60)
	if long() {
		away, most = 5*time.Minute, 250
	}
	for name, x := range map[string]trouble{"refused": {drop: true}, "black hole": {silent: true}} {
		t.Run(name, func(t *testing.T) {
			eachService(t, func(t *testing.T, s service) {
				if !long() && (name == "refused") != (s.client == "dropbox") {
					t.Log("left to the long run")
					return
				}
				old, fresh := smallImage(t, 1), smallImage(t, 2)
				s.put(t, "pusheen/a:old", old)
				s.put(t, "pusheen/a:fresh", fresh)
				p := s.through(t, nil)
				m := newMachine(t, s.env...)
				d := m.mount("--client=" + s.client)
				d.run("cmp %s %s/pusheen/a:old.simg; ls -l %[2]s/pusheen", old, s.client)
				p.troubled(func(*http.Request) *trouble { return &x })
				p.CloseClientConnections()
				before := p.all.Load()
				begun := time.Now()
				reading, copying := make(chan error, 1), make(chan error, 1)
				go func() { _, _, err := d.try("cat %s/pusheen/a:fresh.simg >/dev/null", s.client); reading <- err }()
				go func() { _, _, err := d.try("cp %s %s/pusheen/a:pushed.simg", fresh, s.client); copying <- err }()
				for time.Since(begun) < away {
					d.run("ls -l %s/pusheen && cmp %s %[1]s/pusheen/a:old.simg && df %[1]s", s.client, old)
					d.run("! timeout -s INT 2 cat %s/pusheen/a:unknown.simg 2>/dev/null", s.client)
					out := d.run("%s status", program)
					if !strings.Contains(out, s.client) {
						t.Errorf("status:\n%s", out)
					}
					time.Sleep(time.Second)
				}
				if n := p.all.Load() - before; n > most {
					t.Errorf("%d requests in %v without a network, want %d at most", n, away, most)
				}
				p.troubled(nil)
				p.CloseClientConnections()
				// They go through now, or were told that they did not.
				if err := <-reading; err == nil && long() {
					t.Error("five minutes were waited for")
				}
				if err := <-copying; err == nil {
					s.mustHold(t, "pusheen/a:pushed", fresh)
				} else if held := d.settled(); len(held) == 0 && !strings.Contains(d.log.String(), `"look up failed" path=/`+s.client+"/pusheen/a:pushed.simg") {
					// Nor was it told before it had written any, as where each
					// name is asked for.
					t.Error("the bytes of a push that failed are not told of")
				}
				d.soon("cmp %s %s/pusheen/a:fresh.simg", fresh, s.client)
				d.run("cp %s %s/pusheen/a:pushed.simg", fresh, s.client)
				s.mustHold(t, "pusheen/a:pushed", fresh)
			})
		})
	}
}
