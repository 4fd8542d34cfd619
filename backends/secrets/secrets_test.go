package secrets

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sregfs/sregfs/backends"
)

func open(t *testing.T, path string) *File {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatalf("Open(%q) = %v", path, err)
	}
	return f
}

func TestAbsentFileIsMadeByTheFirstWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", ".sregistry")
	f := open(t, path)
	if got := f.Secret("dropbox", "T"); got != "" {
		t.Errorf("Secret in an absent file = %q, want none", got)
	}
	if _, err := os.Stat(filepath.Dir(path)); err == nil {
		t.Error("reading made the folder")
	}
	if err := f.SetSecrets("dropbox", map[string]string{"T": `a"b<c`}); err != nil {
		t.Fatal(err)
	}
	if got := open(t, path).Secret("dropbox", "T"); got != `a"b<c` {
		t.Errorf("Secret = %q", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, %v; want 0600", info.Mode(), err)
	}
}

// TestOthersStay writes beside what the Python client and others keep.
func TestOthersStay(t *testing.T) {
	const before = `{"SREGISTRY_CLIENT": "hub", "registry": {"base": "http://x?a=1&b=<2>", "n": 12345678901234567890,
		"deep": {"a": [1.0, null, true]}}, "dropbox": {"OLD": "1", "GONE": "2", "num": 1e2}, "list": [1]}`
	path := filepath.Join(t.TempDir(), "s")
	os.WriteFile(path, []byte(before), 0o600)
	f := open(t, path)
	if err := f.SetSecrets("dropbox", map[string]string{"NEW": "3", "GONE": "", "NEVER": ""}); err != nil {
		t.Fatal(err)
	}
	data, _ := os.ReadFile(path)
	for _, keep := range []string{"12345678901234567890", "1.0", "1e2", "http://x?a=1&b=<2>"} {
		if !strings.Contains(string(data), keep) {
			t.Errorf("%s is gone from %s", keep, data)
		}
	}
	var got, want any
	json.Unmarshal(data, &got)
	json.Unmarshal([]byte(strings.Replace(before, `"GONE": "2"`, `"NEW": "3"`, 1)), &want)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("after writing:\n%v\nwant\n%v", got, want)
	}
	for name, want := range map[string]string{"num": "1e2", "OLD": "1", "GONE": ""} {
		if got := f.Secret("dropbox", name); got != want {
			t.Errorf("Secret(%q) = %q, want %q", name, got, want)
		}
	}
	if got := f.Secret("registry", "deep"); got != "" {
		t.Errorf("an object is no setting, got %q", got)
	}
	if err := f.SetSecrets("SREGISTRY_CLIENT", map[string]string{"x": "y"}); !errors.Is(err, backends.ErrCorrupt) {
		t.Errorf("storing below a string = %v, want ErrCorrupt", err)
	}
	if now, _ := os.ReadFile(path); string(now) != string(data) {
		t.Error("a refused write changed the file")
	}
}

func TestDeletingTheLastSettingDeletesTheClient(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	f := open(t, path)
	f.SetSecrets("a", map[string]string{"X": "1"})
	f.SetSecrets("b", map[string]string{"X": "1"})
	if err := f.SetSecrets("a", map[string]string{"X": ""}); err != nil {
		t.Fatal(err)
	}
	data, _ := os.ReadFile(path)
	if strings.Contains(string(data), `"a"`) || f.Secret("b", "X") != "1" {
		t.Errorf("file = %s", data)
	}
}

func TestCorruptFileIsNeverOverwritten(t *testing.T) {
	for name, content := range map[string]string{
		"truncated": `{"dropbox": {"T": "sekret`,
		"list":      `["sekret"]`,
		"trailing":  `{} sekret`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			f := open(t, path)
			f.SetSecrets("dropbox", map[string]string{"T": "known"})
			os.WriteFile(path, []byte(content), 0o600)

			_, err := Open(path)
			if !errors.Is(err, backends.ErrCorrupt) || backends.Hint(err) == "" {
				t.Errorf("Open = %v, want ErrCorrupt with a hint", err)
			}
			if strings.Contains(err.Error(), "sekret") {
				t.Errorf("the error tells a secret: %v", err)
			}
			if err := f.SetSecrets("dropbox", map[string]string{"T": "new"}); !errors.Is(err, backends.ErrCorrupt) {
				t.Errorf("SetSecrets = %v, want ErrCorrupt", err)
			}
			if got := f.Secret("dropbox", "T"); got != "known" {
				t.Errorf("Secret = %q, want the last good one", got)
			}
			if data, _ := os.ReadFile(path); string(data) != content {
				t.Errorf("the file was changed to %s", data)
			}
		})
	}
}

func TestTooOpenFileIsTightened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	os.WriteFile(path, []byte(`{}`), 0o600)
	os.Chmod(path, 0o644)
	open(t, path)
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, want 0600", info.Mode())
	}
}

func TestLinkStaysALink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "dotfiles"), filepath.Join(dir, "s")
	if err := os.Symlink("dotfiles", link); err != nil {
		t.Fatal(err)
	}
	f := open(t, link) // dangling at first
	for _, v := range []string{"1", "2"} {
		if err := f.SetSecrets("c", map[string]string{"K": v}); err != nil {
			t.Fatal(err)
		}
		if got := open(t, target).Secret("c", "K"); got != v {
			t.Errorf("target holds %q, want %q", got, v)
		}
	}
	if _, err := os.Readlink(link); err != nil {
		t.Errorf("the link was replaced: %v", err)
	}
}

func TestAnotherProcessIsSeen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	mounted, login := open(t, path), open(t, path)
	for _, v := range []string{"1", "2", ""} {
		if err := login.SetSecrets("c", map[string]string{"K": v}); err != nil {
			t.Fatal(err)
		}
		if got := mounted.Secret("c", "K"); got != v {
			t.Errorf("Secret = %q, want %q", got, v)
		}
	}
}

// TestConcurrentProcesses lets processes write their own keys at once.
func TestConcurrentProcesses(t *testing.T) {
	const writes = 20
	if path := os.Getenv("SECRETS_TEST_FILE"); path != "" {
		f := open(t, path)
		for i := range writes {
			if err := f.SetSecrets("shared", map[string]string{fmt.Sprintf("%s-%d", os.Getenv("SECRETS_TEST_ID"), i): "x"}); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	path := filepath.Join(t.TempDir(), "s")
	var wg sync.WaitGroup
	for _, id := range []string{"a", "b", "c"} {
		wg.Go(func() {
			cmd := exec.Command(os.Args[0], "-test.run=^TestConcurrentProcesses$")
			cmd.Env = append(os.Environ(), "SECRETS_TEST_FILE="+path, "SECRETS_TEST_ID="+id)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("writer %s: %v\n%s", id, err, out)
			}
		})
	}
	wg.Wait()
	f := open(t, path)
	for _, id := range []string{"a", "b", "c"} {
		for i := range writes {
			if k := fmt.Sprintf("%s-%d", id, i); f.Secret("shared", k) != "x" {
				t.Errorf("%s was lost", k)
			}
		}
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".s.tmp*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{`{"a":{"b":"c"}}`, `null`, ``, `[]`, "\xef\xbb\xbf{}", `{"a":1`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := parse(data)
		if err != nil {
			return
		}
		for c := range all {
			all.client(c)
		}
		out, err := encode(all, "    ")
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if _, err := parse(out); err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, out)
		}
	})
}
