//go:build integration

package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// rclone is a client that nobody of this project wrote; what it makes of an
// emulator shows whether the emulator is right. It finds the emulator under the
// service's own host names: each run of it gets a mount namespace with a hosts
// file of its own, and the emulator's certificate authority.
type rclone struct {
	t    *testing.T
	dir  string
	name string // of the remote
	env  []string
}

// loopback returns an address of this machine whose port 443 is free, where an
// emulator can stand in for a service.
func loopback(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("listening on port 443 and mapping host names take root")
	}
	for i := 1; i < 250; i++ {
		addr := fmt.Sprintf("127.0.53.%d:443", i)
		if ln, err := net.Listen("tcp", addr); err == nil {
			ln.Close()
			return addr
		}
	}
	t.Fatal("no loopback address has its port 443 free")
	return ""
}

// newRclone prepares a remote: hosts are the names that lead to the emulator at
// addr, ca is its authority's certificate, and config the remote's settings
// ("type", "token").
func newRclone(t *testing.T, name, addr string, hosts []string, ca []byte, config map[string]string) *rclone {
	t.Helper()
	if _, err := exec.LookPath("rclone"); err != nil {
		t.Fatal("rclone is not installed; test/setup/packages.sh does it")
	}
	r := &rclone{t: t, dir: t.TempDir(), name: name}
	ip, _, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	lines := "127.0.0.1 localhost\n" + ip + " " + strings.Join(hosts, " ") + "\n"
	conf := "[" + name + "]\n"
	for k, v := range config {
		conf += k + " = " + v + "\n"
	}
	for file, content := range map[string]string{"hosts": lines, "ca.pem": string(ca), "rclone.conf": conf} {
		if err := os.WriteFile(filepath.Join(r.dir, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.env = append(os.Environ(), "SSL_CERT_FILE="+filepath.Join(r.dir, "ca.pem"), "SSL_CERT_DIR=/nonexistent",
		"RCLONE_CONFIG="+filepath.Join(r.dir, "rclone.conf"), "RCLONE_CACHE_DIR="+filepath.Join(r.dir, "cache"),
		"RCLONE_LOW_LEVEL_RETRIES=2", "RCLONE_RETRIES=1", "LC_ALL=C.UTF-8", "HOME="+r.dir)
	return r
}

// command runs rclone in a mount namespace where the hosts file is the
// remote's.
func (r *rclone) command(ctx context.Context, args ...string) *exec.Cmd {
	const inside = `mount --bind "$0" /etc/hosts && exec rclone "$@"`
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "--propagation", "private", "--",
		"sh", "-c", inside, filepath.Join(r.dir, "hosts")}, args...)...)
	cmd.Env, cmd.Dir = r.env, r.dir
	return cmd
}

// at is a path of the remote.
func (r *rclone) at(path string) string { return r.name + ":" + path }

// try runs rclone and returns its standard output, and what went wrong.
func (r *rclone) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := r.command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("rclone %s: %w\n%s", strings.Join(args, " "), err, &stderr)
	}
	return string(out), err
}

// run is try for what must succeed.
func (r *rclone) run(args ...string) string {
	r.t.Helper()
	out, err := r.try(args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// mount mounts the remote and returns the directory, as the test process can
// see it. The test's end unmounts it.
func (r *rclone) mount(args ...string) string {
	r.t.Helper()
	dir := filepath.Join(r.dir, "mnt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	cmd := r.command(context.Background(), append([]string{"mount", r.at(""), dir}, args...)...)
	var stderr logBuffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	r.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM) // rclone unmounts
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			cmd.Process.Kill()
			<-done
			r.t.Error("rclone mount did not end")
		}
	})
	// unshare, sh and rclone are one process after the other; the mount is in
	// its namespace alone.
	seen := fmt.Sprintf("/proc/%d/root%s", cmd.Process.Pid, dir)
	table := fmt.Sprintf("/proc/%d/mountinfo", cmd.Process.Pid)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if mounts, err := os.ReadFile(table); err == nil && bytes.Contains(mounts, []byte(" "+dir+" ")) {
			return seen
		}
		select {
		case err := <-done:
			done <- err
			r.t.Fatalf("rclone mount ended: %v\n%s", err, stderr.String())
		default:
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("rclone mount is not ready\n%s", stderr.String())
		}
	}
}

// trusting is a transport that trusts an emulator's authority.
func trusting(t *testing.T, ca []byte) *http.Transport {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		t.Fatal("the emulator's authority is no certificate")
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// eventuallyTrue waits for what another process sees in its own time.
func eventuallyTrue(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within half a minute: %s", what)
		}
	}
}

// readAt reads a range of a file.
func readAt(t *testing.T, file string, off int64, n int) []byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, n)
	if _, err := f.ReadAt(buf, off); err != nil && err != io.EOF {
		t.Fatalf("read %d bytes at %d of %s: %v", n, off, file, err)
	}
	return buf
}
