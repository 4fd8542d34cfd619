package index

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/sregfs/sregfs/backends"
)

// madeState is a state file with something in it, closed.
func madeState(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "state.db")
	x, err := Open(t.Context(), Options{State: file})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.ReplaceListing(t.Context(), "dropbox", synthetic(200, 0), "cursor"); err != nil {
		t.Fatal(err)
	}
	drain(t, x)
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestDamagedStateIsPutAside opens state files that are no good.
func TestDamagedStateIsPutAside(t *testing.T) {
	for name, damage := range map[string]func(data []byte) []byte{
		"not a database":        func([]byte) []byte { return []byte(strings.Repeat("this is a shopping list\n", 500)) },
		"header":                func(data []byte) []byte { copy(data[:100], make([]byte, 100)); return data },
		"schema page":           func(data []byte) []byte { copy(data[100:4000], bytes.Repeat([]byte{0xa5}, 3900)); return data },
		"cut in its first page": func(data []byte) []byte { return data[:3000] },
	} {
		t.Run(name, func(t *testing.T) {
			file := madeState(t)
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			data = damage(data)
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			x, err := Open(t.Context(), Options{State: file, Log: slog.New(slog.NewTextHandler(&log, nil))})
			if err != nil {
				t.Fatalf("Open: %v", err)
			}
			defer x.Close()
			if l, err := x.Listing(t.Context(), "dropbox"); err != nil || l.Known {
				t.Errorf("Listing = %+v, %v", l, err)
			}
			if _, err := x.PutImage(t.Context(), "dropbox", image("a/b:1", "1", "r")); err != nil {
				t.Error(err)
			}
			if !strings.Contains(log.String(), "begun anew") {
				t.Errorf("log says %q", log.String())
			}
			aside, err := filepath.Glob(file + ".aside-*")
			if err != nil || len(aside) != 1 {
				t.Fatalf("put aside: %q, %v", aside, err)
			}
			if kept, err := os.ReadFile(aside[0]); err != nil || !bytes.Equal(kept, data) {
				t.Errorf("what was put aside is not what was there, or %v", err)
			}
		})
	}
}

// TestDamageFoundLater damages a file where only use finds out.
func TestDamageFoundLater(t *testing.T) {
	file := madeState(t)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var root int
	if _, err := fmt.Sscan(python(t, file, `print(c.execute("SELECT rootpage FROM sqlite_master WHERE name = 'image_file'").fetchone()[0])`), &root); err != nil {
		t.Fatal(err)
	}
	for n := range 4096 {
		data[4096*(root-1)+n] = 0xa5
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	x, err := Open(t.Context(), Options{State: file})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = x.Lookup(t.Context(), "dropbox", "collection-1", "image1:latest.simg", false)
	if code(err) != sqlite3.SQLITE_CORRUPT {
		t.Errorf("reading damage: %v", err)
	}
	x.Close()
	x, err = Open(t.Context(), Options{State: file})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if l, err := x.Listing(t.Context(), "dropbox"); err != nil || l.Known {
		t.Errorf("after the next start: %+v, %v", l, err)
	}
	if _, err := os.Stat(file + marked); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the mark is still there: %v", err)
	}
}

func TestStateThatIsNotOurs(t *testing.T) {
	for name, c := range map[string]struct{ script, want string }{
		"another program's": {`c.execute("CREATE TABLE bookmarks (url TEXT)")`, "another program's"},
		"newer":             {fmt.Sprintf(`c.executescript("CREATE TABLE x (y); PRAGMA application_id = %d; PRAGMA user_version = 999")`, applicationID), "newer"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "state.db")
			python(t, file, c.script+"\nc.commit()")
			before, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			x, err := Open(t.Context(), Options{State: file})
			if err == nil {
				x.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Open = %v, want something about %q", err, c.want)
			}
			after, err := os.ReadFile(file)
			// Only the journal mode in the header may have changed.
			if err != nil || !bytes.Equal(after[100:], before[100:]) {
				t.Errorf("the file has changed, or %v", err)
			}
		})
	}
}

func TestMigrationsAreNumbered(t *testing.T) {
	entries, err := migrations.ReadDir("sql")
	if err != nil || len(entries) == 0 {
		t.Fatal(entries, err)
	}
	for n, e := range entries {
		if want := fmt.Sprintf("%04d_", n+1); !strings.HasPrefix(e.Name(), want) {
			t.Errorf("migration %d is called %s", n+1, e.Name())
		}
	}
	x := openTest(t)
	var version int
	if err := x.state.read.QueryRow(`PRAGMA user_version`).Scan(&version); err != nil || version != len(entries) {
		t.Errorf("schema version %d, %v; want %d", version, err, len(entries))
	}
}

func TestStateIsPrivate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "deep", "er", "state.db")
	x, err := Open(t.Context(), Options{State: file})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if _, err := x.PutImage(t.Context(), "dropbox", image("a/b:1", "1", "r")); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(file + "*")
	if err != nil || len(names) < 2 {
		t.Fatal(names, err)
	}
	for _, name := range append(names, filepath.Dir(file)) {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// TestIndexesAreUsed fails when a look-up would read a whole table.
func TestIndexesAreUsed(t *testing.T) {
	x := openTest(t)
	for what, query := range map[string]string{
		"Lookup":       imageSelect + whereExact,
		"Lookup, fold": imageSelect + whereFold,
		"ByID":         imageSelect + `WHERE i.client = ?1 AND i.object = ?2`,
		"trigrams":     searchTrigram,
		"by content":   `SELECT id FROM image WHERE content = ?`,
		"by path":      `SELECT id FROM image i WHERE i.client = ?1 AND i.path > ?2 AND i.path < ?3`,
		"children":     `SELECT DISTINCT dir FROM collection WHERE client = ? AND parent = ? ORDER BY dir`,
	} {
		rows, err := x.state.read.QueryContext(t.Context(), `EXPLAIN QUERY PLAN `+query, make([]any, strings.Count(query, "?"))[:maxParameter(query)]...)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for rows.Next() {
			var a, b, c int
			var detail string
			if err := rows.Scan(&a, &b, &c, &detail); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(detail, "SCAN ") && !strings.Contains(detail, "VIRTUAL TABLE") && !strings.Contains(detail, "json_each") {
				t.Errorf("%s: %s", what, detail)
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		rows.Close()
	}
}

// maxParameter is how many parameters a query has.
func maxParameter(query string) int {
	most, plain := 0, 0
	for n, c := range query {
		if c != '?' {
			continue
		}
		if n+1 < len(query) && query[n+1] >= '1' && query[n+1] <= '9' {
			most = max(most, int(query[n+1]-'0'))
		} else {
			plain++
		}
	}
	return max(most, plain)
}

// asNobody runs f on a thread that may do with files what any user may.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with its goroutine
		if _, err := unix.SetfsuidRetUid(65534); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

// wantProblem checks that err is about the records and says what to do.
func wantProblem(t *testing.T, what string, err error, hint string) {
	t.Helper()
	if !errors.Is(err, ErrRecords) {
		t.Errorf("%s: %v, want ErrRecords", what, err)
		return
	}
	if !strings.Contains(backends.Hint(err), hint) || !strings.Contains(err.Error(), hint) {
		t.Errorf("%s: hint of %q, want %q in it", what, err, hint)
	}
}

// TestRecordsThatCannotBeUsed checks that the rest goes on, that the file stays
// as it is, and that mending it is enough.
func TestRecordsThatCannotBeUsed(t *testing.T) {
	good := pythonDatabase(t)
	python(t, good, pythonAdd, `["vsoch", "hello-world", "latest", "`+md5b+`", "hub", null, "https://x/23", {"id": 23}]`)
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other.db")
	python(t, other, `c.execute("CREATE TABLE container (id INTEGER, weight REAL)"); c.commit()`)
	foreign, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data []byte
		hint string
	}{
		"not a database":    {[]byte(strings.Repeat("this is a shopping list\n", 500)), "move it away"},
		"damaged":           {append(slices.Clone(data[:100]), bytes.Repeat([]byte{0xa5}, len(data)-100)...), "move it away"},
		"another program's": {foreign, "another program's"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "sregistry.db")
			if err := os.WriteFile(file, c.data, 0o644); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			x, err := Open(t.Context(), Options{State: filepath.Join(t.TempDir(), "state.db"), Database: file,
				Log: slog.New(slog.NewTextHandler(&log, nil))})
			if err != nil {
				t.Fatalf("Open: %v", err)
			}
			defer x.Close()
			if !strings.Contains(log.String(), "going on without records") || !strings.Contains(log.String(), c.hint) {
				t.Errorf("log says %q", log.String())
			}
			replace(t, x, []backends.Image{image("a/b:1", "1", "r")})
			_, _, err = x.PutRecord(t.Context(), Record{Client: "a", Collection: "b", Name: "c", Tag: "d"})
			wantProblem(t, "PutRecord", err, c.hint)
			_, err = x.Records(t.Context(), "")
			wantProblem(t, "Records", err, c.hint)
			if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, c.data) {
				t.Errorf("the file was changed, or %v", err)
			}
			if err := os.WriteFile(file, data, 0o644); err != nil {
				t.Fatal(err)
			}
			if all, err := x.Records(t.Context(), ""); err != nil || len(all) != 1 {
				t.Errorf("once it is mended: %+v, %v", all, err)
			}
		})
	}

	t.Run("read-only", func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "sregistry.db")
		for _, err := range []error{os.WriteFile(file, data, 0o444), os.Chmod(dir, 0o555), os.Chmod(filepath.Dir(dir), 0o755)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		defer os.Chmod(dir, 0o755)
		x := openRecords(t, filepath.Join(t.TempDir(), "none"))
		asNobody(t, func() {
			x.records = newRecords(file)
			if all, err := x.Records(t.Context(), ""); err != nil || len(all) != 1 {
				t.Errorf("Records = %+v, %v", all, err)
			}
			_, _, err := x.PutRecord(t.Context(), Record{Client: "a", Collection: "b", Name: "c", Tag: "d"})
			wantProblem(t, "PutRecord", err, "writable")
			_, err = x.DeleteRecord(t.Context(), "hub", backends.Ref{Collection: "vsoch", Name: "hello-world", Tag: "latest"})
			wantProblem(t, "DeleteRecord", err, "writable")
		})
	})

	t.Run("no such folder can be made", func(t *testing.T) {
		dir := t.TempDir()
		if err := errors.Join(os.Chmod(dir, 0o555), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(dir, 0o755)
		x := openRecords(t, filepath.Join(t.TempDir(), "none"))
		asNobody(t, func() {
			x.records = newRecords(filepath.Join(dir, "new", "folder"))
			_, _, err := x.PutRecord(t.Context(), Record{Client: "a", Collection: "b", Name: "c", Tag: "d"})
			wantProblem(t, "PutRecord", err, "SREGISTRY_DATABASE")
		})
	})
}

// TestStateHint: a state file that cannot be opened says what to do.
func TestStateHint(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	x, err := Open(t.Context(), Options{State: file})
	if err == nil {
		x.Close()
	}
	var be *backends.Error
	if !errors.As(err, &be) || !strings.Contains(be.Hint, "--cache-dir") {
		t.Errorf("Open with a folder for the state file = %v", err)
	}
}
