package index

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// otherProcess names the state file that this process is to write to in place
// of running tests.
const otherProcess = "SREGFS_INDEX_TEST_STATE"

func TestMain(m *testing.M) {
	if file := os.Getenv(otherProcess); file != "" {
		if err := beOtherProcess(file, os.Getenv(otherProcess+"_NAME")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const processActs = 20

// beOtherProcess opens, changes and closes the index as short-lived commands
// do.
func beOtherProcess(file, name string) (err error) {
	ctx := context.Background()
	x, err := Open(ctx, Options{State: file})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	for n := range processActs {
		if _, err := x.PutImage(ctx, "dropbox", image(fmt.Sprintf("%s/b:%d", name, n), fmt.Sprint(name, n), "r")); err != nil {
			return err
		}
		if err := x.SetNote(ctx, "k", fmt.Sprint(name, n), []byte("v")); err != nil {
			return err
		}
		if _, err := x.Search(ctx, "", name, 10); err != nil {
			return err
		}
	}
	return nil
}

// TestProcesses has several processes make and use one state file at once,
// while a listing is taken in.
func TestProcesses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	const processes = 3
	var group sync.WaitGroup
	for p := range processes {
		group.Go(func() {
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), otherProcess+"="+file, fmt.Sprintf("%s_NAME=proc%d", otherProcess, p))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("process %d: %v\n%s", p, err, out)
			}
		})
	}
	x, err := Open(t.Context(), Options{State: file})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	listing := func(yield func(backends.Entry, error) bool) {
		synthetic(300, 0)(yield)
		group.Wait() // what they do is learnt meanwhile, and stays
	}
	if _, err := x.ReplaceListing(t.Context(), "dropbox", listing, "cursor"); err != nil {
		t.Fatal(err)
	}
	images, _, err := x.Count(t.Context(), "dropbox")
	check(t, "images", []any{images, err}, []any{int64(300 + processes*processActs), nil})
	check(t, "notes", len(collect(t, x.Notes(t.Context(), "k"))), processes*processActs)
	found, err := x.Search(t.Context(), "", "proc", 0)
	check(t, "found", []any{len(found), err}, []any{processes * processActs, nil})
}

// TestEverythingAtOnce is for the race detector.
func TestEverythingAtOnce(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	var group sync.WaitGroup
	ok := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	for g := range 3 {
		client := []string{"dropbox", "gdrive", "dropbox"}[g]
		group.Go(func() {
			for n := range 4 {
				img := image(fmt.Sprintf("w%d/b:%d", g, n), fmt.Sprint(g, "-", n), "r")
				_, err := x.PutImage(ctx, client, img)
				ok(err)
				_, err = x.ReplaceListing(ctx, client, synthetic(50, n), "c")
				ok(err)
				_, err = x.Apply(ctx, client, []backends.Change{{Entry: backends.Entry{Image: img}}}, "c")
				ok(err)
				ok(x.LearnVersion(ctx, img.ContentKey(client), "m"))
				ok(x.SetAttributes(ctx, img.ContentKey(client), []byte(`{}`), map[string]string{"l": fmt.Sprint(n)}))
				ok(x.SetXattr(ctx, client, "a", "b", "user.x", []byte{1}))
				_, err = x.RemoveImage(ctx, client, img)
				ok(err)
				_, _, err = x.PutRecord(ctx, Record{Client: client, Collection: "a", Name: "b", Tag: "c", URI: fmt.Sprint(n)})
				ok(err)
			}
		})
		group.Go(func() {
			for range 15 {
				_, _, err := x.Lookup(ctx, client, "collection-0", "image1:latest.simg", true)
				ok(err)
				for _, err := range x.Images(ctx, client, "collection-0") {
					ok(err)
				}
				_, err = x.Search(ctx, "", "image", 20)
				ok(err)
				_, err = x.Collections(ctx, client, "")
				ok(err)
				_, err = x.Records(ctx, "a")
				ok(err)
			}
		})
	}
	group.Wait()
	if all, err := x.Records(ctx, ""); err != nil || len(all) != 2 {
		t.Errorf("%d records, %v; want one for each client", len(all), err)
	}
}

// TestReadersDoNotWait asks while a writer has the file, within this process
// and without.
func TestReadersDoNotWait(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	replace(t, x, []backends.Image{image("a/b:1", "1", "r")})
	err := x.write(ctx, "hold the lock", func(w *txn) error {
		if _, err := w.exec(`DELETE FROM image`); err != nil {
			return err
		}
		// These would hang for as long as the writer waits for them.
		if _, ok, err := x.Lookup(ctx, "dropbox", "a", "b:1.simg", true); !ok || err != nil {
			t.Errorf("Lookup = %v, %v", ok, err)
		}
		if _, err := x.PutImage(ctx, "dropbox", image("a/b:1", "1", "r")); err != nil {
			t.Errorf("PutImage of what is there: %v", err)
		}
		if found, err := x.Search(ctx, "", "b:1", 0); len(found) != 1 || err != nil {
			t.Errorf("Search = %v, %v", found, err)
		}
		// A writer waits, and stops when its context ends.
		short, cancel := context.WithCancel(ctx)
		waiting := make(chan error)
		go func() { waiting <- x.SetNote(short, "k", "k", nil) }()
		cancel()
		if err := <-waiting; !errors.Is(err, context.Canceled) {
			t.Errorf("a writer that gave up says %v", err)
		}
		return errors.New("undo")
	})
	if err == nil {
		t.Error("write has lost its error")
	}
	check(t, "tree", tree(t, x, "dropbox"), []string{"a/", "a/b:1.simg r"})
}

// TestPythonWritesBesideUs has the Python client add records while we do.
func TestPythonWritesBesideUs(t *testing.T) {
	const n = 40
	db := pythonDatabase(t)
	x := openRecords(t, db)
	cmd := exec.CommandContext(t.Context(), "python3", "-c", `
import sqlite3, sys
for i in range(`+fmt.Sprint(n)+`):
    c = sqlite3.connect(sys.argv[1])
    args = '["shared", "python", "%d", "", "hub", null, null, {}]' % i
    exec(sys.argv[2], {"c": c, "sys": type("S", (), {"argv": ["", "", args]}), "json": __import__("json"), "sqlite3": sqlite3})
    c.close()
`, db, pythonAdd)
	var errs strings.Builder
	cmd.Stdout, cmd.Stderr = io.Discard, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		mustPut(t, x, Record{Client: "dropbox", Collection: "shared", Name: "go", Tag: fmt.Sprint(i)})
		if _, err := x.Records(t.Context(), "python"); err != nil {
			t.Error(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("python3: %v\n%s", err, errs.String())
	}
	all, err := x.Records(t.Context(), "")
	check(t, "records", []any{len(all), err}, []any{2 * n, nil})
	if got := python(t, db, `print(c.execute("SELECT count(*) FROM collection").fetchone()[0], c.execute("PRAGMA integrity_check").fetchone()[0])`); got != "1 ok" {
		t.Errorf("collections and integrity: %s", got)
	}
}

// TestRecordsLocked has another program hold the records.
func TestRecordsLocked(t *testing.T) {
	db := pythonDatabase(t)
	x := openRecords(t, db)
	mustPut(t, x, Record{Client: "hub", Collection: "a", Name: "b", Tag: "c"})
	holder := exec.CommandContext(t.Context(), "python3", "-c", `
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
c.execute("ROLLBACK")
`, db)
	release, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(said, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	// Whoever will not wait gets the context's error.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := x.Records(ctx, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Records with little time = %v", err)
	}
	x.records.wait = time.Millisecond
	if err := x.records.close(); err != nil {
		t.Fatal(err)
	}
	_, _, err = x.PutRecord(t.Context(), Record{Client: "hub", Collection: "a", Name: "b", Tag: "c"})
	wantProblem(t, "PutRecord", err, "locked")
	if err := errors.Join(release.Close(), holder.Wait()); err != nil {
		t.Fatal(err)
	}
	if all, err := x.Records(t.Context(), ""); err != nil || len(all) != 1 {
		t.Errorf("once it is free: %+v, %v", all, err)
	}
}

// TestChangeAfterComparing has another process change things after a listing
// was compared with what there is, and before it could write.
func TestChangeAfterComparing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	open := func() *Index {
		x, err := Open(t.Context(), Options{State: file})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { x.Close() })
		return x
	}
	x, other := open(), open()
	replace(t, x, []backends.Image{image("a/b:1", "1", "r1"), image("a/b:2", "2", "s1"), image("a/old:1", "5", "o1")})
	// The search indexer writes too, and must not be taken for the listing.
	for waiting := 1; waiting > 0 || len(x.writing) > 0; time.Sleep(time.Millisecond) {
		if _, err := x.state.read.row(t.Context(), []any{&waiting}, `SELECT count(*) FROM search_queue`); err != nil {
			t.Fatal(err)
		}
	}
	listed := make(chan error)
	_, err := other.change(t.Context(), "change", "dropbox", func(c *change) error {
		for _, err := range []error{
			c.put(image("a/b:1", "1", "r2")), c.put(image("n/new:1", "9", "n1")), c.remove(`i.object = ?2`, objectID+"2"),
		} {
			if err != nil {
				return err
			}
		}
		go func() {
			_, err := x.ReplaceListing(t.Context(), "dropbox", entries([]backends.Image{
				image("a/b:1", "1", "r1"), image("a/b:2", "2", "s1"), image("m/b:3", "3", "t1")}, nil, nil), "")
			listed <- err
		}()
		for len(x.writing) == 0 { // it has compared, and waits for us
			time.Sleep(time.Millisecond)
		}
		return nil
	})
	if err := errors.Join(err, <-listed); err != nil {
		t.Fatal(err)
	}
	check(t, "tree", tree(t, x, "dropbox"), []string{"a/", "a/b:1.simg r2", "m/", "m/b:3.simg t1", "n/", "n/new:1.simg n1"})
	found, err := x.Search(t.Context(), "", "", 0)
	check(t, "found", []any{uris(found), err}, []any{[]string{"dropbox://a/b:1", "dropbox://m/b:3", "dropbox://n/new:1"}, nil})
}
