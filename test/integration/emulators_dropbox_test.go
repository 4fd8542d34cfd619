//go:build integration

package integration

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/dropbox"
	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

// dropboxByRclone starts an emulator and points rclone at it.
func dropboxByRclone(t *testing.T, o dropboxtest.Options) (*dropboxtest.Server, *rclone) {
	t.Helper()
	o.Addr, o.TLS = loopback(t), true
	s := dropboxtest.New(o)
	t.Cleanup(s.Close)
	token, err := json.Marshal(map[string]string{"access_token": s.Token(), "token_type": "bearer", "expiry": "2999-01-01T00:00:00Z"})
	if err != nil {
		t.Fatal(err)
	}
	return s, newRclone(t, "dropbox", o.Addr, dropboxtest.Hosts, s.CA(), map[string]string{"type": "dropbox", "token": string(token)})
}

// randomFile writes n random bytes to a file.
func randomFile(t *testing.T, file string, n int) []byte {
	t.Helper()
	data := make([]byte, n)
	rand.Read(data)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return data
}

func dropboxHash(data []byte) string {
	h := backends.NewHash(backends.DropboxHash)
	h.Write(data)
	return backends.SumOf(backends.DropboxHash, h).Hex
}

// TestDropboxEmulatorLists: rclone sees what is there, over several pages,
// with sizes and hashes.
func TestDropboxEmulatorLists(t *testing.T) {
	s, r := dropboxByRclone(t, dropboxtest.Options{PageMax: 7})
	want := map[string]string{}
	for i := range 30 {
		name := fmt.Sprintf("Col %d/Image:tag-%d.simg", i%3, i)
		data := bytes.Repeat([]byte{byte(i)}, i*1000)
		s.Put("/"+name, data)
		want[name] = fmt.Sprintf("%d %s", len(data), dropboxHash(data))
	}
	s.Put("/Col 0/é#100%\U0001F419.simg", []byte("odd"))
	want["Col 0/é#100%\U0001F419.simg"] = "3 " + dropboxHash([]byte("odd"))
	s.Mkdir("/empty")
	var entries []struct {
		Path   string
		Size   int64
		IsDir  bool
		Hashes map[string]string
	}
	if err := json.Unmarshal([]byte(r.run("lsjson", "--recursive", "--hash", r.at(""))), &entries); err != nil {
		t.Fatal(err)
	}
	got, dirs := map[string]string{}, []string{}
	for _, e := range entries {
		if e.IsDir {
			dirs = append(dirs, e.Path)
			continue
		}
		got[e.Path] = fmt.Sprintf("%d %s", e.Size, e.Hashes["dropbox"])
	}
	for name, w := range want {
		if got[name] != w {
			t.Errorf("rclone lists %q with %q, want %q", name, got[name], w)
		}
	}
	slices.Sort(dirs)
	if len(got) != len(want) || !slices.Equal(dirs, []string{"Col 0", "Col 1", "Col 2", "empty"}) {
		t.Errorf("rclone lists %d files, want %d; directories %q", len(got), len(want), dirs)
	}
	about := r.run("about", "--json", r.at(""))
	if !strings.Contains(about, fmt.Sprintf(`"used": %d`, s.Used())) {
		t.Errorf("rclone about: %s; %d bytes are used", about, s.Used())
	}
}

// TestDropboxEmulatorTransfers: what rclone uploads in each of its ways and
// reads back is the same, as a whole and in ranges, by its own hashes.
func TestDropboxEmulatorTransfers(t *testing.T) {
	for name, flags := range map[string][]string{
		"Single":         {"--dropbox-batch-mode=off"},
		"Chunked":        {"--dropbox-batch-mode=off", "--dropbox-chunk-size=4M"},
		"Batched":        {"--dropbox-batch-mode=sync"},
		"BatchedChunked": {"--dropbox-batch-mode=sync", "--dropbox-chunk-size=4M"},
	} {
		t.Run(name, func(t *testing.T) {
			s, r := dropboxByRclone(t, dropboxtest.Options{})
			local := filepath.Join(t.TempDir(), "images")
			files := map[string][]byte{}
			for file, n := range map[string]int{
				"pusheen/asaurus:red.simg": 20<<20 + 12345, "pusheen/asaurus:blue.simg": 3, "pusheen/empty:x.simg": 0,
				"two words/100% é.simg": 4 << 20, "top:level.simg": 8 << 20,
			} {
				files[file] = randomFile(t, filepath.Join(local, file), n)
			}
			r.run(append([]string{"copy", local, r.at("sub")}, flags...)...)
			for file, data := range files {
				if got, ok := s.Get("/sub/" + file); !ok || !bytes.Equal(got, data) {
					t.Errorf("%s: the emulator has %d bytes (%v), want %d", file, len(got), ok, len(data))
				}
			}
			if n := s.OpenSessions(); n != 0 {
				t.Errorf("%d upload sessions were left open", n)
			}
			r.run("check", local, r.at("sub"))
			r.run("check", "--download", local, r.at("sub"))
			sums := r.run("hashsum", "DropboxHash", r.at("sub"))
			for file, data := range files {
				if !strings.Contains(sums, dropboxHash(data)+"  "+file+"\n") {
					t.Errorf("rclone hashsum lacks %s of %s:\n%s", dropboxHash(data), file, sums)
				}
			}
			red := files["pusheen/asaurus:red.simg"]
			for _, g := range []struct{ off, n int }{{0, 1}, {5 << 20, 100_000}, {len(red) - 10, 10}, {len(red) - 10, 100}} {
				got := r.run("cat", fmt.Sprint("--offset=", g.off), fmt.Sprint("--count=", g.n), r.at("sub/pusheen/asaurus:red.simg"))
				if want := red[g.off:min(g.off+g.n, len(red))]; got != string(want) {
					t.Errorf("rclone cat of [%d,+%d): %d bytes, want %d", g.off, g.n, len(got), len(want))
				}
			}
			// Over what is there, and the same once more.
			files["pusheen/asaurus:red.simg"] = randomFile(t, filepath.Join(local, "pusheen/asaurus:red.simg"), 9<<20)
			r.run(append([]string{"copy", local, r.at("sub")}, flags...)...)
			r.run("check", local, r.at("sub"))
			if n := len(s.Paths()); n != len(files) {
				t.Errorf("the emulator has %d files, want %d: %q", n, len(files), s.Paths())
			}
		})
	}
}

// TestDropboxEmulatorChanges: rclone makes, copies, moves, links and deletes.
func TestDropboxEmulatorChanges(t *testing.T) {
	s, r := dropboxByRclone(t, dropboxtest.Options{})
	s.Put("/a/one:x.simg", []byte("one"))
	s.Put("/a/two:x.simg", []byte("two"))
	for _, step := range []struct {
		args []string
		want string // the files then
	}{
		{[]string{"mkdir", r.at("made/below")}, "/a/one:x.simg /a/two:x.simg"},
		{[]string{"copyto", r.at("a/one:x.simg"), r.at("c/One:x.simg")}, "/a/one:x.simg /a/two:x.simg /c/One:x.simg"},
		{[]string{"moveto", r.at("a/one:x.simg"), r.at("b/one:x.simg")}, "/a/two:x.simg /b/one:x.simg /c/One:x.simg"},
		{[]string{"move", r.at("c"), r.at("d/e")}, "/a/two:x.simg /b/one:x.simg /d/e/One:x.simg"},
		{[]string{"deletefile", r.at("a/two:x.simg")}, "/b/one:x.simg /d/e/One:x.simg"},
		{[]string{"rmdir", r.at("made/below")}, "/b/one:x.simg /d/e/One:x.simg"},
		{[]string{"purge", r.at("d")}, "/b/one:x.simg"},
	} {
		r.run(step.args...)
		if got := strings.Join(s.Paths(), " "); got != step.want {
			t.Errorf("after rclone %s: %s; want %s", strings.Join(step.args, " "), got, step.want)
		}
	}
	if out, err := r.try("rmdir", r.at("b")); err == nil {
		t.Errorf("rclone rmdir of a full folder: %s", out)
	}
	if out, err := r.try("cat", r.at("a/one:x.simg")); err == nil && out != "" {
		t.Errorf("rclone cat of what is gone: %q", out)
	}
	first := strings.TrimSpace(r.run("link", r.at("b/one:x.simg")))
	if second := strings.TrimSpace(r.run("link", r.at("b/one:x.simg"))); !strings.HasPrefix(first, "https://www.dropbox.com/s/") || first != second {
		t.Errorf("rclone link gave %q, then %q", first, second)
	}
}

// TestDropboxEmulatorMount: rclone's mount reads through the emulator, and sees
// what changes there by longpoll.
func TestDropboxEmulatorMount(t *testing.T) {
	s, r := dropboxByRclone(t, dropboxtest.Options{})
	data := randomFile(t, filepath.Join(t.TempDir(), "x"), 12<<20)
	s.Put("/pusheen/asaurus:red.simg", data)
	mnt := r.mount("--read-only", "--poll-interval=1s", "--dir-cache-time=1h")
	file := filepath.Join(mnt, "pusheen/asaurus:red.simg")
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the whole file: %d bytes, %v", len(got), err)
	}
	for _, off := range []int{0, 7 << 20, 1, len(data) - 4096} {
		if got := readAt(t, file, int64(off), 4096); !bytes.Equal(got, data[off:off+4096]) {
			t.Errorf("4096 bytes at %d differ", off)
		}
	}
	s.Put("/pusheen/asaurus:new.simg", []byte("new"))
	eventuallyTrue(t, "the mount shows a new file", func() bool {
		got, err := os.ReadFile(filepath.Join(mnt, "pusheen/asaurus:new.simg"))
		return err == nil && string(got) == "new"
	})
}

// TestDropboxStoreAndRcloneAgree: what the client pushes in parallel parts,
// rclone finds whole, and the other way round.
func TestDropboxStoreAndRcloneAgree(t *testing.T) {
	s, r := dropboxByRclone(t, dropboxtest.Options{})
	env := map[string]string{dropbox.TokenSetting: s.Token(), dropbox.BaseSetting: s.URL}
	store, err := dropbox.Open(t.Context(), backends.Settings{Client: "dropbox", Transport: trusting(t, s.CA()),
		Getenv: func(k string) string { return env[k] }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	local := t.TempDir()
	data := randomFile(t, filepath.Join(local, "pusheen/asaurus:red.simg"), 21<<20+5)
	ref := backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "red"}
	u, err := store.Begin(t.Context(), ref, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(t.Context(), bytes.NewReader(data), int64(len(data)), backends.Content{}); err != nil {
		t.Fatal(err)
	}
	r.run("check", local, r.at(""))

	other := randomFile(t, filepath.Join(local, "pusheen/asaurus:blue.simg"), 5<<20)
	r.run("copy", local, r.at(""))
	img, err := store.Stat(t.Context(), backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "blue"})
	if err != nil || img.Sum.Hex != dropboxHash(other) {
		t.Fatalf("Stat of what rclone has uploaded = %+v, %v", img, err)
	}
	body, err := store.OpenRange(t.Context(), img, 1000, 3000)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, other[1000:4000]) {
		t.Errorf("a range of it: %d bytes, %v", len(got), err)
	}
}
