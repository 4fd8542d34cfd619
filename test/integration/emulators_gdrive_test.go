//go:build integration

package integration

import (
	"bytes"
	"crypto/md5"
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
	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
	"github.com/sregfs/sregfs/backends/gdrive"
	"github.com/sregfs/sregfs/backends/gdrive/gdrivetest"
)

const driveToken = "rclone-token"

// gdriveByRclone starts an emulator and points rclone at it.
func gdriveByRclone(t *testing.T) (*gdrivetest.Server, *rclone) {
	t.Helper()
	o := gdrivetest.Options{Addr: loopback(t), Certificate: dropboxtest.Certificate, Token: driveToken}
	s := gdrivetest.NewServer(o)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	token, err := json.Marshal(map[string]string{"access_token": driveToken, "token_type": "Bearer", "expiry": "2999-01-01T00:00:00Z"})
	if err != nil {
		t.Fatal(err)
	}
	r := newRclone(t, "gdrive", o.Addr, gdrivetest.Hosts, s.CA(), map[string]string{"type": "drive", "scope": "drive", "token": string(token)})
	// Its own pace is made for Google's limits.
	r.env = append(r.env, "RCLONE_DRIVE_PACER_MIN_SLEEP=1ms", "RCLONE_DRIVE_PACER_BURST=1000")
	return s, r
}

func seed(t *testing.T, s *gdrivetest.Server, f gdrivetest.Seed) string {
	t.Helper()
	id, err := s.Add(f)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func md5Hex(data []byte) string { return fmt.Sprintf("%x", md5.Sum(data)) }

// drivePaths are the paths of all files with bytes that are not in the bin.
func drivePaths(s *gdrivetest.Server) []string {
	byID := map[string]gdrivetest.File{}
	for _, f := range s.Files() {
		byID[f.ID] = f
	}
	paths := []string{}
	for _, f := range byID {
		if f.Trashed || f.MimeType == gdrivetest.FolderType {
			continue
		}
		path := f.Name
		for p, ok := byID[f.Parent]; ok; p, ok = byID[p.Parent] {
			path = p.Name + "/" + path
		}
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths
}

// TestDriveEmulatorLists: rclone sees what is there, over several pages, with
// sizes and hashes, and not what is in the bin.
func TestDriveEmulatorLists(t *testing.T) {
	s, r := gdriveByRclone(t)
	want := map[string]string{}
	folders := map[string]string{}
	for i := range 30 {
		dir, name := fmt.Sprintf("Col %d", i%3), fmt.Sprintf("it's Image:tag-%d.simg", i)
		if folders[dir] == "" {
			folders[dir] = seed(t, s, gdrivetest.Seed{Name: dir, MimeType: gdrivetest.FolderType})
		}
		data := bytes.Repeat([]byte{byte(i)}, i*1000)
		seed(t, s, gdrivetest.Seed{Name: name, Parent: folders[dir], Content: data})
		want[dir+"/"+name] = fmt.Sprintf("%d %s", len(data), md5Hex(data))
	}
	seed(t, s, gdrivetest.Seed{Name: "é#100%\U0001F419.simg", Parent: folders["Col 0"], Content: []byte("odd")})
	want["Col 0/é#100%\U0001F419.simg"] = "3 " + md5Hex([]byte("odd"))
	seed(t, s, gdrivetest.Seed{Name: "empty", MimeType: gdrivetest.FolderType})
	if err := s.Trash(seed(t, s, gdrivetest.Seed{Name: "binned.simg", Content: []byte("x")})); err != nil {
		t.Fatal(err)
	}
	var entries []struct {
		Path   string
		Size   int64
		IsDir  bool
		Hashes map[string]string
	}
	if err := json.Unmarshal([]byte(r.run("lsjson", "--recursive", "--hash", "--drive-list-chunk=100", r.at(""))), &entries); err != nil {
		t.Fatal(err)
	}
	got, dirs := map[string]string{}, []string{}
	for _, e := range entries {
		if e.IsDir {
			dirs = append(dirs, e.Path)
			continue
		}
		got[e.Path] = fmt.Sprintf("%d %s", e.Size, e.Hashes["md5"])
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
	if bin := r.run("lsf", "--drive-trashed-only", "--files-only", r.at("")); bin != "binned.simg\n" {
		t.Errorf("rclone finds in the bin %q", bin)
	}
	if about := r.run("about", "--json", r.at("")); !strings.Contains(about, fmt.Sprintf(`"total": %d`, int64(15<<30))) {
		t.Errorf("rclone about: %s", about)
	}
}

// TestDriveEmulatorPages: a folder of more files than a page has.
func TestDriveEmulatorPages(t *testing.T) {
	s, r := gdriveByRclone(t)
	for i := range 250 {
		seed(t, s, gdrivetest.Seed{Name: fmt.Sprintf("%04d", i)})
	}
	if got := strings.Count(r.run("lsf", "--drive-list-chunk=100", r.at("")), "\n"); got != 250 {
		t.Errorf("rclone lists %d of 250 files", got)
	}
	if got := s.Counts()["files.list"].Requests; got < 3 {
		t.Errorf("in %d requests", got)
	}
}

// TestDriveEmulatorTransfers: what rclone uploads in each of its ways and reads
// back is the same, as a whole and in ranges, by its own hashes.
func TestDriveEmulatorTransfers(t *testing.T) {
	for name, flags := range map[string][]string{
		"Default":     nil,                                                  // files of more than 8 MiB in sessions
		"Chunked":     {"--drive-upload-cutoff=1", "--drive-chunk-size=1M"}, // an empty one defeats rclone's own sessions,
		"Multipart":   {"--drive-upload-cutoff=100M"},
		"KeepForever": {"--drive-keep-revision-forever"},
	} {
		t.Run(name, func(t *testing.T) {
			s, r := gdriveByRclone(t)
			local := filepath.Join(t.TempDir(), "images")
			files := map[string][]byte{}
			for file, n := range map[string]int{
				"pusheen/asaurus:red.simg": 20<<20 + 12345, "pusheen/asaurus:blue.simg": 3, "pusheen/empty:x.simg": 0,
				"two words/it's 100% é.simg": 4 << 20, "top:level.simg": 8 << 20,
			} {
				files[file] = randomFile(t, filepath.Join(local, file), n)
			}
			r.run(append([]string{"copy", local, r.at("sub")}, flags...)...)
			r.run("check", local, r.at("sub"))
			r.run("check", "--download", local, r.at("sub"))
			sums := r.run("md5sum", r.at("sub"))
			for file, data := range files {
				if !strings.Contains(sums, md5Hex(data)+"  "+file+"\n") {
					t.Errorf("rclone md5sum lacks %s of %s:\n%s", md5Hex(data), file, sums)
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
			for range 2 {
				r.run(append([]string{"copy", local, r.at("sub")}, flags...)...)
				r.run("check", local, r.at("sub"))
			}
			if got := drivePaths(s); len(got) != len(files) {
				t.Errorf("the emulator has %q, want %d files", got, len(files))
			}
			if name == "Chunked" && s.Counts()["upload"].Requests < 30 {
				t.Errorf("%d parts were sent", s.Counts()["upload"].Requests)
			}
		})
	}
}

// TestDriveEmulatorChanges: rclone makes, copies, moves, links and deletes.
func TestDriveEmulatorChanges(t *testing.T) {
	s, r := gdriveByRclone(t)
	a := seed(t, s, gdrivetest.Seed{Name: "a", MimeType: gdrivetest.FolderType})
	seed(t, s, gdrivetest.Seed{Name: "one:x.simg", Parent: a, Content: []byte("one")})
	seed(t, s, gdrivetest.Seed{Name: "two:x.simg", Parent: a, Content: []byte("two")})
	for _, step := range []struct {
		args []string
		want string // the files then
	}{
		{[]string{"mkdir", r.at("made/below")}, "a/one:x.simg a/two:x.simg"},
		{[]string{"copyto", r.at("a/one:x.simg"), r.at("c/One:x.simg")}, "a/one:x.simg a/two:x.simg c/One:x.simg"},
		{[]string{"moveto", r.at("a/one:x.simg"), r.at("b/one:x.simg")}, "a/two:x.simg b/one:x.simg c/One:x.simg"},
		{[]string{"move", r.at("c"), r.at("d/e")}, "a/two:x.simg b/one:x.simg d/e/One:x.simg"},
		{[]string{"deletefile", r.at("a/two:x.simg")}, "b/one:x.simg d/e/One:x.simg"},
		{[]string{"rmdir", r.at("made/below")}, "b/one:x.simg d/e/One:x.simg"},
		{[]string{"purge", r.at("d")}, "b/one:x.simg"},
	} {
		r.run(step.args...)
		if got := strings.Join(drivePaths(s), " "); got != step.want {
			t.Errorf("after rclone %s: %s; want %s", strings.Join(step.args, " "), got, step.want)
		}
	}
	if out, err := r.try("rmdir", r.at("b")); err == nil {
		t.Errorf("rclone rmdir of a full folder: %s", out)
	}
	first := strings.TrimSpace(r.run("link", r.at("b/one:x.simg")))
	if second := strings.TrimSpace(r.run("link", r.at("b/one:x.simg"))); !strings.HasPrefix(first, "https://drive.google.com/") || first != second {
		t.Errorf("rclone link gave %q, then %q", first, second)
	}
	r.run("delete", "--drive-use-trash=false", r.at("b"))
	r.run("cleanup", r.at(""))
	for _, f := range s.Files() {
		if f.Trashed || f.MimeType != gdrivetest.FolderType {
			t.Errorf("after the bin was emptied there is %+v", f)
		}
	}
	// Two files of one name, which other services do not know.
	for range 2 {
		seed(t, s, gdrivetest.Seed{Name: "twice", Parent: a, Content: []byte("x")})
	}
	r.run("dedupe", "newest", r.at("a"))
	if got := drivePaths(s); !slices.Equal(got, []string{"a/twice"}) {
		t.Errorf("rclone dedupe left %q", got)
	}
}

// TestDriveEmulatorMount: rclone's mount reads through the emulator, and sees
// what changes there by its feed.
func TestDriveEmulatorMount(t *testing.T) {
	s, r := gdriveByRclone(t)
	data := randomFile(t, filepath.Join(t.TempDir(), "x"), 12<<20)
	folder := seed(t, s, gdrivetest.Seed{Name: "pusheen", MimeType: gdrivetest.FolderType})
	seed(t, s, gdrivetest.Seed{Name: "asaurus:red.simg", Parent: folder, Content: data})
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
	seed(t, s, gdrivetest.Seed{Name: "asaurus:new.simg", Parent: folder, Content: []byte("new")})
	eventuallyTrue(t, "the mount shows a new file", func() bool {
		got, err := os.ReadFile(filepath.Join(mnt, "pusheen/asaurus:new.simg"))
		return err == nil && string(got) == "new"
	})
}

// TestDriveStoreAndRcloneAgree: what the client pushes in parts, rclone finds
// whole, in the folder where the Python client looks for it; and what rclone
// has put there the client reads.
func TestDriveStoreAndRcloneAgree(t *testing.T) {
	s, r := gdriveByRclone(t)
	key, err := gdrivetest.ServiceAccountFile(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	credentials := filepath.Join(t.TempDir(), "key.json")
	if err := os.WriteFile(credentials, key, 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{gdrive.CredentialsSetting: credentials, gdrive.BaseSetting: s.URL, gdrive.UntypedSetting: "yes"}
	store, err := gdrive.Open(t.Context(), backends.Settings{Client: "gdrive", Transport: trusting(t, s.CA()),
		Getenv: func(k string) string { return env[k] }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	data := randomFile(t, filepath.Join(t.TempDir(), "image"), 21<<20+5)
	sum := md5Hex(data)
	ref := backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "red"}
	u, err := store.Begin(t.Context(), ref, "")
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off+u.PartSize() <= int64(len(data)); off += u.PartSize() {
		if err := u.Part(t.Context(), off, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := u.Commit(t.Context(), bytes.NewReader(data), int64(len(data)), backends.Content{MD5: sum}); err != nil {
		t.Fatal(err)
	}
	// rclone shows the slash in a name as U+FF0F.
	if got, want := r.run("md5sum", r.at("")), sum+"  sregistry/pusheen\uff0fasaurus:red@"+sum+".simg\n"; got != want {
		t.Errorf("rclone md5sum says %q, want %q", got, want)
	}
	if got := r.run("cat", r.at("sregistry/pusheen\uff0fasaurus:red@"+sum+".simg")); got != string(data) {
		t.Errorf("rclone reads %d other bytes", len(got))
	}

	other := filepath.Join(t.TempDir(), "other")
	blue := randomFile(t, filepath.Join(other, "pusheen/asaurus:blue.simg"), 9<<20)
	r.run("copy", other, r.at("sregistry"))
	img, err := store.Stat(t.Context(), backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "blue"})
	if err != nil || img.Version != md5Hex(blue) {
		t.Fatalf("Stat of what rclone has uploaded = %+v, %v", img, err)
	}
	body, err := store.OpenRange(t.Context(), img, 1000, 3000)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, blue[1000:4000]) {
		t.Errorf("a range of it: %d bytes, %v", len(got), err)
	}
}
