//go:build integration

package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/bcrypt"
)

// registry is a running docker-registry.
type registry struct {
	t          *testing.T
	host       string // HOST:PORT
	scheme     string
	user, pass string // "" for none
	ca         string // file, "" for none
	data       string // its storage
}

// registryOptions are how a registry is set up.
type registryOptions struct {
	auth, tls, noDelete bool
	token               *tokenServer // gives the tokens that it wants
	page                int          // the longest page of its catalogue; 0 for its usual one
}

// startRegistry starts Debian's docker-registry and stops it with the test.
func startRegistry(t *testing.T, o registryOptions) *registry {
	t.Helper()
	dir := t.TempDir()
	r := &registry{t: t, host: freeAddress(t), scheme: "http", data: filepath.Join(dir, "data")}
	extra := ""
	if o.tls {
		r.scheme, r.ca = "https", filepath.Join(dir, "ca.pem")
		key := makeCertificate(t, dir)
		extra = fmt.Sprintf("  tls: {certificate: %s, key: %s}\n", r.ca, key)
	}
	if o.auth {
		r.user, r.pass = "vanessa", "s3cret pass:word"
		hash, err := bcrypt.GenerateFromPassword([]byte(r.pass), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		passwords := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(passwords, fmt.Appendf(nil, "%s:%s\n", r.user, hash), 0o600); err != nil {
			t.Fatal(err)
		}
		extra += fmt.Sprintf("auth: {htpasswd: {realm: tests, path: %s}}\n", passwords)
	}
	if o.token != nil {
		r.user, r.pass = o.token.user, o.token.pass
		extra += fmt.Sprintf("auth: {token: {realm: '%s/token', service: registry, issuer: tests, rootcertbundle: %s}}\n", o.token.url, o.token.bundle)
	}
	if o.page > 0 {
		extra += fmt.Sprintf("catalog: {maxentries: %d}\n", o.page)
	}
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: %v}}\nhttp:\n  addr: %s\n%s",
		r.data, !o.noDelete, r.host, extra)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", config)
	log := &logBuffer{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("start docker-registry: %v; apt install docker-registry", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("log of docker-registry:\n%s", log)
		}
	})
	for range 100 {
		if c, err := net.Dial("tcp", r.host); err == nil {
			c.Close()
			return r
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("docker-registry does not answer:\n%s", log)
	return nil
}

// portsTried counts the ports that freeAddress has tried.
var portsTried atomic.Int32

// freeAddress is a HOST:PORT for a server that cannot choose one itself. The port
// is none of those that Linux gives to who asks for any (ip(7),
// ip_local_port_range), or another might be given it before the server listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	const first, ports = 10_000, 20_000
	for range 1000 {
		port := first + (os.Getpid()*97+int(portsTried.Add(1)))%ports
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

// makeCertificate makes DIR/ca.pem, for 127.0.0.1, and returns its key's file.
func makeCertificate(t *testing.T, dir string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a registry of the tests"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, b := range map[string]*pem.Block{"ca.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "EC PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "key.pem")
}

// env lets a machine's programs in: sregfs, and Apptainer.
func (r *registry) env() []string {
	var env []string
	if r.user != "" {
		env = append(env, "SREGISTRY_LAB_USERNAME="+r.user, "SREGISTRY_LAB_PASSWORD="+r.pass,
			"APPTAINER_DOCKER_USERNAME="+r.user, "APPTAINER_DOCKER_PASSWORD="+r.pass)
	}
	if r.ca != "" {
		env = append(env, "SSL_CERT_FILE="+r.ca)
	}
	return env
}

// mount mounts the registry as the client "lab".
func (r *registry) mount(t *testing.T, env ...string) *mounted {
	t.Helper()
	return newMachine(t, append(r.env(), env...)...).mount("--client=lab", "--registry=lab="+r.scheme+"://"+r.host)
}

// apptainerFlags are for pull, push and the like.
func (r *registry) apptainerFlags() string {
	if r.scheme == "http" {
		return "--no-https"
	}
	return ""
}

func (r *registry) options() []remote.Option {
	opts := []remote.Option{remote.WithContext(r.t.Context())}
	if r.user != "" {
		opts = append(opts, remote.WithAuth(&authn.Basic{Username: r.user, Password: r.pass}))
	}
	if r.ca != "" {
		pool := x509.NewCertPool()
		if b, err := os.ReadFile(r.ca); err != nil || !pool.AppendCertsFromPEM(b) {
			r.t.Fatal("the certificate is of no use", err)
		}
		tr := http.DefaultTransport.(*http.Transport).Clone()
		tr.TLSClientConfig.RootCAs = pool
		opts = append(opts, remote.WithTransport(tr))
	}
	return opts
}

func (r *registry) reference(image string) name.Reference {
	r.t.Helper()
	ref, err := name.ParseReference(r.host+"/"+image, name.Insecure)
	if err != nil {
		r.t.Fatal(err)
	}
	return ref
}

// push stores a container image as REPOSITORY:TAG.
func (r *registry) push(image string, img v1.Image) {
	r.t.Helper()
	if err := remote.Write(r.reference(image), img, r.options()...); err != nil {
		r.t.Fatalf("push %s: %v", image, err)
	}
}

// account is the registry as somewhere to keep Singularity images, as apptainer
// push oras:// stores them.
func (r *registry) account(t *testing.T) account {
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "registry:\n  lab: %s://%s\n", r.scheme, r.host), 0o644); err != nil {
		t.Fatal(err)
	}
	return account{
		client: "lab",
		env:    append(r.env(), "SREGFS_CONFIG="+config, fmt.Sprintf("SREGISTRY_LAB_BASE=%s://%s", r.scheme, r.host)),
		put: func(t *testing.T, name, file string) {
			t.Helper()
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/vnd.sylabs.sif.config.v1+json")
			if img, err = mutate.AppendLayers(img, static.NewLayer(data, "application/vnd.sylabs.sif.layer.v1.sif")); err != nil {
				t.Fatal(err)
			}
			r.push(name, img)
		},
		get: func(name string) ([]byte, bool) {
			img, err := remote.Image(r.reference(name), r.options()...)
			if err != nil {
				return nil, false
			}
			layers, err := img.Layers()
			if err != nil || len(layers) != 1 {
				return nil, false
			}
			body, err := layers[0].Compressed()
			if err != nil {
				return nil, false
			}
			defer body.Close()
			data, err := io.ReadAll(body)
			return data, err == nil
		},
		names: func() []string {
			host, err := name.NewRegistry(r.host, name.Insecure)
			if err != nil {
				return nil
			}
			var names []string
			repositories, _ := remote.Catalog(r.t.Context(), host, r.options()...) // none is none
			for _, repository := range repositories {
				tags, _ := remote.List(host.Repo(repository), r.options()...)
				for _, tag := range tags {
					names = append(names, repository+":"+tag)
				}
			}
			return names
		},
	}
}

// pushIndex stores an index of images by architecture.
func (r *registry) pushIndex(image string, images map[string]v1.Image) {
	r.t.Helper()
	index := v1.ImageIndex(empty.Index)
	for arch, img := range images {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	if err := remote.WriteIndex(r.reference(image), index, r.options()...); err != nil {
		r.t.Fatalf("push %s: %v", image, err)
	}
}

// entry is one of a layer.
type entry struct {
	tar.Header
	body string
}

// layerOf makes a gzipped layer of entries.
func layerOf(t *testing.T, entries ...entry) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if e.Typeflag == 0 {
			e.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.Name, "/") {
				e.Typeflag = tar.TypeDir
			}
		}
		e.Size = int64(len(e.body))
		e.ModTime = time.Unix(1_600_000_000, 0)
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return rawLayer(t, buf.Bytes())
}

func rawLayer(t *testing.T, b []byte) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// regular, folder and link are the usual entries.
func regular(name string, mode int64, body string) entry {
	return entry{tar.Header{Name: name, Mode: mode}, body}
}
func folder(name string, mode int64) entry { return entry{tar.Header{Name: name, Mode: mode}, ""} }
func link(name, to string) entry { // of the mode that Bazel gives it
	return entry{tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink, Mode: 0o755}, ""}
}
func hard(name, to string) entry {
	return entry{tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink, Mode: 0o644}, ""}
}

// busybox is a layer that commands run in.
func busybox(t *testing.T) v1.Layer {
	t.Helper()
	return layerOf(t, busyboxEntries(t)...)
}

func busyboxEntries(t *testing.T) []entry {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("there is no busybox: %v", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	list := []entry{folder("bin/", 0o755), folder("etc/", 0o755), folder("tmp/", 0o1777), folder("proc/", 0o555), folder("dev/", 0o755),
		folder("sys/", 0o555), folder("root/", 0o700), folder("var/", 0o755), folder("var/tmp/", 0o1777), regular("bin/busybox", 0o755, string(b))}
	for _, name := range []string{"sh", "cat", "ls", "echo", "true", "env", "stat", "find", "sha256sum", "printf", "readlink", "sleep", "pwd"} {
		list = append(list, link("bin/"+name, "busybox"))
	}
	return list
}

// imageOf makes a container image.
func imageOf(t *testing.T, c v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err == nil {
		img, err = mutate.ConfigFile(img, configFile(t, img, c))
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func configFile(t *testing.T, img v1.Image, c v1.Config) *v1.ConfigFile {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.Config, cf.OS, cf.Architecture = c, "linux", "amd64"
	cf.Created = v1.Time{Time: time.Unix(1_600_000_000, 0)}
	return cf
}

// shell runs a program outside of any mount, and must succeed.
func shell(t *testing.T, env []string, format string, args ...any) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", fmt.Sprintf(format, args...))
	cmd.Env, cmd.Dir = append(os.Environ(), env...), t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("$ %s\n%s%v", fmt.Sprintf(format, args...), out, err)
	}
	return string(out)
}
