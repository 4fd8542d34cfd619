//go:build integration

package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sregfs/sregfs/image/imagetest"
)

// tokenServer gives out tokens for a registry
// (https://distribution.github.io/distribution/spec/auth/token/ and jwt/): to
// everybody for pulling what begins with "public/", to its user for all. It is
// reached by name, as such servers are: clients take no sign-in at an address
// of a private network.
type tokenServer struct {
	user, pass string
	identity   string // a refresh token that stands for the user
	url        string
	bundle     string // file with its certificate

	key  *ecdsa.PrivateKey
	cert []byte

	mu     sync.Mutex
	life   time.Duration  // of tokens
	broken int            // an HTTP status that it answers with, 0 for none
	given  map[string]int // how many for each scope
}

func startTokenServer(t *testing.T) *tokenServer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a token server of the tests"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	s := &tokenServer{user: "vanessa", pass: "s3cret pass:word", identity: rand.Text(), key: key, cert: cert,
		life: time.Hour, given: map[string]int{}, bundle: filepath.Join(t.TempDir(), "bundle.pem")}
	if err := os.WriteFile(s.bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	s.url = strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)
	return s
}

// lives sets how long further tokens live.
func (s *tokenServer) lives(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life = d
}

// breaks has it answer with a status, or work again with 0.
func (s *tokenServer) breaks(status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = status
}

// tokens is how many were given for scopes that hold a text.
func (s *tokenServer) tokens(scope string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for k, v := range s.given {
		if strings.Contains(k, scope) {
			n += v
		}
	}
	return n
}

// ServeHTTP answers both forms of asking for a token.
func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, "no form", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	life, broken := s.life, s.broken
	s.mu.Unlock()
	if broken != 0 {
		http.Error(w, "out of order", broken)
		return
	}
	subject, pass, basic := r.BasicAuth()
	known := basic && subject == s.user && pass == s.pass
	if r.Method == http.MethodPost { // OAuth2
		known = r.Form.Get("refresh_token") == s.identity
		if subject = s.user; !known {
			http.Error(w, `{"error":"invalid_grant"}`, http.StatusUnauthorized)
			return
		}
	} else if basic && !known {
		http.Error(w, `{"details":"incorrect username or password"}`, http.StatusUnauthorized)
		return
	}
	type access struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	}
	granted := []access{}
	for _, scopes := range r.Form["scope"] {
		for scope := range strings.FieldsSeq(scopes) {
			s.mu.Lock()
			s.given[scope]++
			s.mu.Unlock()
			kind, rest, _ := strings.Cut(scope, ":")
			at := strings.LastIndex(rest, ":")
			if at < 0 {
				continue
			}
			a := access{Type: kind, Name: rest[:at]}
			for action := range strings.SplitSeq(rest[at+1:], ",") {
				if known || kind == "repository" && strings.HasPrefix(a.Name, "public/") && action == "pull" {
					a.Actions = append(a.Actions, action)
				}
			}
			granted = append(granted, a)
		}
	}
	now := time.Now()
	// The registry takes a token for a minute after it has expired.
	const leeway = 60 * time.Second
	text := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := text(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(s.cert)}}) + "." +
		text(map[string]any{"iss": "tests", "sub": subject, "aud": "registry", "jti": rand.Text(), "iat": now.Unix(),
			"nbf": now.Add(-2 * leeway).Unix(), "exp": now.Add(life - leeway).Unix(), "access": granted})
	sum := sha256.Sum256([]byte(signed))
	a, b, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		http.Error(w, "cannot sign", http.StatusInternalServerError)
		return
	}
	signature := make([]byte, 64)
	a.FillBytes(signature[:32])
	b.FillBytes(signature[32:])
	token := signed + "." + base64.RawURLEncoding.EncodeToString(signature)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token,
		"expires_in": int(life.Seconds()), "issued_at": now.UTC().Format(time.RFC3339)})
}

// TestTokens: a registry that wants tokens, as Docker Hub does. They are given
// for a repository and an act, to nobody in particular, to a user, and to who
// has an identity token.
func TestTokens(t *testing.T) {
	run := apptainer(t)
	s := startTokenServer(t)
	r := startRegistry(t, registryOptions{token: s})
	r.push("public/tool:1", imageOf(t, v1.Config{Cmd: []string{"/bin/echo", "hello"}}, busybox(t)))
	r.push("private/tool:1", imageOf(t, v1.Config{Cmd: []string{"/bin/echo", "secret"}}, busybox(t)))
	mount := func(t *testing.T, m *machine) *mounted {
		return m.mount("--client=lab", "--registry=lab="+r.scheme+"://"+r.host)
	}

	t.Run("anonymous", func(t *testing.T) {
		d := mount(t, newMachine(t))
		d.want("hello", "%s run --no-privs lab/public/tool:1.simg", run)
		d.want("1", "ls lab/public/tool/")
		d.fails("Permission denied", "cat lab/private/tool:1.simg > /dev/null")
		if out := d.run("%s status", program); !strings.Contains(out, "private/tool:1") || !strings.Contains(out, "docker login") {
			t.Errorf("status does not say what to do:\n%s", out)
		}
		d.fails("No such file", "stat lab/public/nothing:1.simg")
		d.fails("Permission denied", "cp %s lab/public/tool:2.simg", smallImage(t, 1))
		d.want("hello", "%s run --no-privs lab/public/tool:1.simg", run)
	})
	t.Run("user", func(t *testing.T) {
		d := r.mount(t)
		d.want("secret", "%s run --no-privs lab/private/tool:1.simg", run)
		d.want("private public", "echo $(ls lab)")
		d.run("mkdir -p lab/private && cp %s lab/private/mine:1.simg", smallImage(t, 1))
		d.run("%s pull --no-https %s/mine.sif oras://%s/private/mine:1 && cmp %s %s/mine.sif", run, d.home, r.host, smallImage(t, 1), d.home)
		d.run("mv lab/private/mine:1.simg lab/private/mine:2.simg && rm lab/private/mine:2.simg")
		d.fails("No such file", "stat lab/private/mine:2.simg")
		if log := d.log.String(); strings.Contains(log, s.pass) || strings.Contains(log, "eyJ") {
			t.Error("the log holds the password or a token")
		}
	})
	t.Run("wrong password", func(t *testing.T) {
		d := mount(t, newMachine(t, "SREGISTRY_LAB_USERNAME="+s.user, "SREGISTRY_LAB_PASSWORD=not-the-password"))
		d.fails("Permission denied", "cat lab/public/tool:1.simg > /dev/null")
		if out := d.run("%s status", program); !strings.Contains(out, "credentials") {
			t.Errorf("status does not speak of the credentials:\n%s", out)
		}
	})
	t.Run("identity token", func(t *testing.T) {
		m := newMachine(t)
		if err := os.MkdirAll(filepath.Join(m.home, ".docker"), 0o700); err != nil {
			t.Fatal(err)
		}
		auth := base64.StdEncoding.EncodeToString([]byte("<token>:"))
		if err := os.WriteFile(filepath.Join(m.home, ".docker/config.json"),
			fmt.Appendf(nil, `{"auths":{%q:{"auth":%q,"identitytoken":%q}}}`, r.host, auth, s.identity), 0o600); err != nil {
			t.Fatal(err)
		}
		mount(t, m).want("secret", "%s run --no-privs lab/private/tool:1.simg", run)
	})
	t.Run("token server out of order", func(t *testing.T) {
		s.breaks(http.StatusTeapot)
		d := r.mount(t)
		d.fails("timed out", "cat lab/private/tool:1.simg > /dev/null")
		if out := d.run("%s status", program); !strings.Contains(out, "sign-in answers HTTP 418") {
			t.Errorf("status does not say that signing in fails:\n%s", out)
		}
		s.breaks(0)
		d.run("cat lab/private/tool:1.simg > /dev/null")
	})
}

// TestTokensExpire: tokens that live a moment end no listing, no pull and no
// push of several parts.
func TestTokensExpire(t *testing.T) {
	s := startTokenServer(t)
	r := startRegistry(t, registryOptions{token: s})
	layers := []v1.Layer{busybox(t)}
	for i := range 4 {
		layers = append(layers, layerOf(t, regular(fmt.Sprint("data", i), 0o644, strings.Repeat(fmt.Sprintf("%08d\n", i), 500_000))))
	}
	for i := range 6 {
		r.push(fmt.Sprintf("private/tool%d:1", i), imageOf(t, v1.Config{Cmd: []string{"/bin/echo", fmt.Sprint(i)}}, layers...))
	}
	image := imagetest.SIF(t, imagetest.Opts{Seed: 3, ExtraBytes: 50 << 20})
	s.lives(time.Second)
	d := r.mount(t)
	d.want("6", "ls -d lab/private/*:1.simg | wc -l")
	d.run("tail -c 100 lab/private/tool0:1.simg > /dev/null")
	d.run("cat lab/private/tool1:1.simg > /dev/null; sleep 2; cat lab/private/tool2:1.simg > /dev/null")
	// Slowly, so that the token of the first part is none any more for the last.
	before := s.tokens("private/large:push,pull")
	d.run(`python3 - %s lab/private/large:1.simg <<'PY'
import sys, time
with open(sys.argv[1], 'rb') as src, open(sys.argv[2], 'wb') as dst:
    while b := src.read(17 << 20):
        dst.write(b)
        dst.flush()
        time.sleep(2)
PY`, image)
	if n := s.tokens("private/large:push,pull") - before; n < 3 {
		t.Errorf("the push took %d tokens; none expired on the way", n)
	}
	if strings.Contains(d.log.String(), "sending everything") {
		t.Error("what had been sent was sent once more")
	}
	r.mount(t).run("cmp %s lab/private/large:1.simg", image)
}
