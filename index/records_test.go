package index

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// python runs a script that has the connection c to a database. It fails the
// test if python3 does, and when there is none.
func python(t *testing.T, database, script string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "python3", append([]string{"-c", `
import json, sqlite3, sys
c = sqlite3.connect(sys.argv[1])
` + script, database}, args...)...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python3: %v\n%s", err, errs.String())
	}
	return strings.TrimSpace(string(out))
}

// The statements that SQLAlchemy sends for the Python client's add
// (sregistry/database/sqlite.py), as its echo shows them.
const pythonAdd = `
from uuid import uuid4
collection, name, tag, version, client, image, url, metrics = json.loads(sys.argv[2])
row = c.execute("SELECT collection.id AS collection_id, collection.name AS collection_name, collection.token AS collection_token, collection.created_at AS collection_created_at FROM collection WHERE collection.name = ? LIMIT ? OFFSET ?", (collection, 1, 0)).fetchone()
if row is None:
    c.execute("INSERT INTO collection (name, token, created_at) VALUES (?, ?, CURRENT_TIMESTAMP)", (collection, str(uuid4())))
    c.commit()
    row = c.execute("SELECT collection.id FROM collection WHERE collection.name = ?", (collection,)).fetchone()
uri = "%s/%s:%s" % (collection, name, tag) + ("@" + version if version else "")
old = c.execute("SELECT container.id, container.metrics FROM container WHERE container.collection_id = ? AND container.name = ? AND container.tag = ? AND container.version = ? LIMIT ? OFFSET ?", (row[0], name, tag, version, 1, 0)).fetchone()
if old is None:
    c.execute("INSERT INTO container (created_at, metrics, name, tag, image, url, uri, client, version, collection_id) VALUES (CURRENT_TIMESTAMP, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (json.dumps(metrics), name, tag, image, url, uri, client, version, row[0]))
    print("new")
else:
    m = json.loads(old[1])
    m.update(metrics)
    c.execute("UPDATE container SET metrics=?, url=?, client=? WHERE container.id = ?", (json.dumps(m), url, client, old[0]))
    print("update")
c.commit()
`

// How SQLAlchemy reads a DateTime (sqlalchemy/dialects/sqlite/base.py): it
// takes nothing else, and a fraction as a whole number of microseconds.
const pythonRead = `
import re, datetime
rows = []
for r in c.execute("SELECT container.id, container.created_at, container.metrics, container.name, container.tag, container.image, container.url, container.uri, container.client, container.version, collection_1.name, collection_1.token, collection_1.created_at FROM container LEFT OUTER JOIN collection AS collection_1 ON collection_1.id = container.collection_id"):
    for i in (1, 12):
        m = re.match(r"(\d+)-(\d+)-(\d+)(?: (\d+):(\d+):(\d+)(?:\.(\d+))?)?$", r[i])
        datetime.datetime(*map(int, m.groups(0)))
    m = re.match(r"(\d+)-(\d+)-(\d+)(?: (\d+):(\d+):(\d+)(?:\.(\d+))?)?$", r[1])
    created = datetime.datetime(*map(int, m.groups(0)))
    assert re.match("^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$", r[11]), r[11]
    rows.append({"created": str(created), "metrics": json.loads(r[2]), "name": r[3], "tag": r[4], "image": r[5], "url": r[6], "uri": r[7], "client": r[8], "version": r[9], "collection": r[10]})
print(json.dumps(rows, sort_keys=True))
`

func mustPut(t *testing.T, x *Index, r Record) Record {
	t.Helper()
	out, _, err := x.PutRecord(t.Context(), r)
	if err != nil {
		t.Fatalf("PutRecord: %v", err)
	}
	return out
}

func ptr(s string) *string { return &s }

const (
	md5a = "02c08a25c8f4697e16e896239e549a2b"
	md5b = "ed9755a0871f04db3e14971bec56a33f"
)

// TestPythonReadsOurs makes a database and reads it as the Python client does.
func TestPythonReadsOurs(t *testing.T) {
	dir := t.TempDir()
	x := openIn(t, dir)
	r, isNew, err := x.PutRecord(t.Context(), Record{
		Client: "dropbox", Collection: "pusheen", Name: "asaurus", Tag: "red", Version: md5a,
		URI: "pusheen/asaurus:red@" + md5a, URL: ptr("https://content.dropboxapi.com/2/files/download"),
		Metrics: json.RawMessage(`{"data": {"attributes": {"labels": {"maintainer": "Größe <vanessa>"}}}}`),
		Created: time.Date(2018, 1, 28, 17, 43, 28, 123456789, time.FixedZone("", 3600)),
	})
	if err != nil || !isNew || r.ID != 1 || r.CollectionID != 1 {
		t.Fatalf("PutRecord = %+v, %v, %v", r, isNew, err)
	}
	check(t, "Created", r.Created, time.Date(2018, 1, 28, 16, 43, 28, 123456000, time.UTC))
	mustPut(t, x, Record{Client: "hub", Collection: "a", Name: "b", Tag: "latest", URI: "a/b:latest", Image: ptr("/shub/a/b:latest.simg"),
		Created: time.Date(2018, 1, 28, 16, 43, 28, 0, time.UTC)})
	mustPut(t, x, Record{Client: "nvidia", Collection: "nvidia/clara", Name: "x", Tag: "1", URI: "nvidia/clara/x:1",
		Created: time.Date(2018, 1, 28, 16, 43, 28, 50_000, time.UTC)})

	db := filepath.Join(dir, "records", "sregistry.db")
	var got, want any
	if err := json.Unmarshal([]byte(python(t, db, pythonRead)), &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`[
		{"client": "dropbox", "collection": "pusheen", "created": "2018-01-28 16:43:28.123456", "image": null,
		 "metrics": {"data": {"attributes": {"labels": {"maintainer": "Größe <vanessa>"}}}}, "name": "asaurus", "tag": "red",
		 "uri": "pusheen/asaurus:red@`+md5a+`", "url": "https://content.dropboxapi.com/2/files/download", "version": "`+md5a+`"},
		{"client": "hub", "collection": "a", "created": "2018-01-28 16:43:28", "image": "/shub/a/b:latest.simg", "metrics": {},
		 "name": "b", "tag": "latest", "uri": "a/b:latest", "url": null, "version": ""},
		{"client": "nvidia", "collection": "nvidia", "created": "2018-01-28 16:43:28.000050", "image": null, "metrics": {},
		 "name": "clara/x", "tag": "1", "uri": "nvidia/clara/x:1", "url": null, "version": ""}]`), &want); err != nil {
		t.Fatal(err)
	}
	check(t, "Python reads", got, want)

	schema := python(t, db, `print("".join(s + ";" for s, in c.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")))`)
	if want := strings.TrimSpace(alchemySchema); schema != want {
		t.Errorf("schema is\n%s\nwant\n%s", schema, want)
	}
	if mode := python(t, db, `print(c.execute("PRAGMA journal_mode").fetchone()[0])`); mode != "delete" {
		t.Errorf("journal mode is %s", mode)
	}
	if got := python(t, db, pythonAdd, `["pusheen", "asaurus", "red", "`+md5a+`", "dropbox", null, "u", {"more": 1}]`); got != "update" {
		t.Errorf("Python's add says %q, want update", got)
	}
	r, ok, err := x.Record(t.Context(), "dropbox", backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "red"})
	if err != nil || !ok || *r.URL != "u" || !strings.Contains(string(r.Metrics), `"more": 1`) {
		t.Errorf("after Python's update: %+v, %v, %v", r, ok, err)
	}
}

// alchemySchema is what SQLAlchemy 1.4's create_all writes for the Python
// client's models.
const alchemySchema = "CREATE TABLE collection (\n\tid INTEGER NOT NULL, \n\tname VARCHAR(150), \n\ttoken VARCHAR(50), \n\t" +
	"created_at DATETIME, \n\tPRIMARY KEY (id), \n\tUNIQUE (name)\n);" +
	"CREATE TABLE container (\n\tid INTEGER NOT NULL, \n\tcreated_at DATETIME, \n\tmetrics TEXT NOT NULL, \n\t" +
	"name VARCHAR(250) NOT NULL, \n\ttag VARCHAR(250) NOT NULL, \n\timage VARCHAR(250), \n\turl VARCHAR(500), \n\t" +
	"uri VARCHAR(500), \n\tclient VARCHAR(50) NOT NULL, \n\tversion VARCHAR(250), \n\tcollection_id INTEGER NOT NULL, \n\t" +
	"PRIMARY KEY (id), \n\tCONSTRAINT _container_uc UNIQUE (collection_id, name, tag, client, version), \n\t" +
	"FOREIGN KEY(collection_id) REFERENCES collection (id)\n);"

// pythonDatabase makes a database as the Python client does.
func pythonDatabase(t *testing.T) string {
	t.Helper()
	db := filepath.Join(t.TempDir(), "sregistry.db")
	python(t, db, `c.executescript(sys.argv[2])`, alchemySchema)
	return db
}

func openRecords(t *testing.T, database string) *Index {
	t.Helper()
	x, err := Open(t.Context(), Options{State: filepath.Join(t.TempDir(), "state.db"), Database: database})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// TestWeReadPythons uses a database of the Python client.
func TestWeReadPythons(t *testing.T) {
	db := pythonDatabase(t)
	for _, args := range []string{
		`["vsoch", "hello-world", "latest", "` + md5b + `", "hub", null, "https://x/23", {"id": 23}]`,
		`["vsoch", "hello-world", "latest", "", "hub", "/shub/x.simg", null, {}]`,
		`["nvidia", "clara/x", "1", "", "nvidia", null, null, {}]`,
		`["library", "ubuntu", "latest", "", "dockerhub", null, null, {}]`,
	} {
		if got := python(t, db, pythonAdd, args); got != "new" {
			t.Fatalf("Python's add says %q", got)
		}
	}
	// What another program may leave: no version, no uri, no metrics worth the
	// name, odd times, no such collection.
	python(t, db, `
c.execute("INSERT INTO container (created_at, metrics, name, tag, client, version, collection_id) VALUES ('2018-01-28', 'not json', 'odd', 't', 'hub', NULL, 1)")
c.execute("INSERT INTO container (created_at, metrics, name, tag, client, version, collection_id) VALUES (NULL, '{}', 'orphan', 't', 'hub', 'v', 99)")
c.commit()`)
	before, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}

	x, ctx := openRecords(t, db), t.Context()
	all, err := x.Records(ctx, "")
	if err != nil || len(all) != 6 {
		t.Fatalf("Records = %+v, %v", all, err)
	}
	first := all[0]
	if d := time.Since(first.Created); d < -time.Minute || d > time.Hour {
		t.Errorf("created %v", first.Created)
	}
	first.Created = time.Time{}
	check(t, "first", first, Record{ID: 1, CollectionID: 1, Client: "hub", Collection: "vsoch", Name: "hello-world", Tag: "latest",
		Version: md5b, URI: "vsoch/hello-world:latest@" + md5b, URL: ptr("https://x/23"), Metrics: json.RawMessage(`{"id": 23}`)})
	check(t, "odd", all[4], Record{ID: 5, CollectionID: 1, Client: "hub", Collection: "vsoch", Name: "odd", Tag: "t",
		Metrics: json.RawMessage(`{}`), Created: time.Date(2018, 1, 28, 0, 0, 0, 0, time.UTC)})
	check(t, "orphan", all[5], Record{ID: 6, CollectionID: 99, Client: "hub", Name: "orphan", Tag: "t", Version: "v",
		Metrics: json.RawMessage(`{}`)})

	for query, want := range map[string][]int64{
		"HELLO": {1, 2}, "latest": {1, 2, 4}, md5b: {1}, "hub": {1, 2, 4, 5, 6}, "vsoch/hello": {1, 2}, "clara/x": {3},
		"nvidia/clara/x:1": {3}, "vsoch": {1, 2, 5}, "%": nil, "_": nil, `\`: nil, "' OR 1=1 --": nil, "vsoch/odd:t": {5},
	} {
		found, err := x.Records(ctx, query)
		var ids []int64
		for _, r := range found {
			ids = append(ids, r.ID)
		}
		check(t, "Records "+query, []any{ids, err}, []any{want, nil})
	}
	for _, c := range []struct {
		client string
		ref    backends.Ref
		id     int64
	}{
		{"hub", backends.Ref{Collection: "vsoch", Name: "hello-world", Tag: "latest"}, 2},
		{"hub", backends.Ref{Collection: "vsoch", Name: "hello-world", Tag: "latest", Version: md5b}, 1},
		{"hub", backends.Ref{Collection: "vsoch", Name: "hello-world", Tag: "latest", Version: md5a}, 0},
		{"dropbox", backends.Ref{Collection: "vsoch", Name: "hello-world", Tag: "latest"}, 0},
		{"nvidia", backends.Ref{Collection: "nvidia/clara", Name: "x", Tag: "1"}, 3},
	} {
		r, ok, err := x.Record(ctx, c.client, c.ref)
		if err != nil || ok != (c.id != 0) || r.ID != c.id {
			t.Errorf("Record(%s, %v) = %d, %v, %v; want %d", c.client, c.ref, r.ID, ok, err, c.id)
		}
	}
	if after, err := os.ReadFile(db); err != nil || string(after) != string(before) {
		t.Errorf("reading has changed the file, or %v", err)
	}

	// Ours beside theirs, updated by both.
	r := mustPut(t, x, Record{Client: "nvidia", Collection: "nvidia/clara", Name: "x", Tag: "1", Version: md5a,
		URI: "nvidia/clara/x:1@" + md5a, Metrics: json.RawMessage(`{"a":1}`)})
	if r.ID != 3 || r.Version != md5a || r.Collection != "nvidia/clara" {
		t.Errorf("PutRecord onto Python's = %+v", r)
	}
	if got := python(t, db, pythonAdd, `["nvidia", "clara/x", "1", "`+md5a+`", "nvidia", null, null, {}]`); got != "update" {
		t.Errorf("Python's add says %q", got)
	}
}

func TestPutRecord(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	x := openIn(t, dir)
	base := Record{Client: "dropbox", Collection: "pusheen", Name: "asaurus", Tag: "red", URI: "pusheen/asaurus:red",
		Created: time.Date(2018, 1, 28, 16, 43, 28, 0, time.UTC), URL: ptr("u1"), Image: ptr("/image"),
		Metrics: json.RawMessage(`{"id":1,"gone":1,"data":{"attributes":{"labels":{"a":"b"},"help":null},"type":"container"}}`)}
	first := mustPut(t, x, base)

	// Nothing new, and nothing told.
	again, isNew, err := x.PutRecord(ctx, base)
	check(t, "the same", []any{again, isNew, err}, []any{first, false, nil})
	empty := Record{Client: "dropbox", Collection: "pusheen", Name: "asaurus", Tag: "red"}
	check(t, "nothing told", mustPut(t, x, empty), first)
	shuffled := base
	shuffled.Metrics = json.RawMessage(` {"gone":1, "id":1} `)
	check(t, "the same in another order", mustPut(t, x, shuffled), first)

	update := empty
	update.Created = time.Now()
	update.URL, update.Version, update.URI = ptr("u2"), md5a, "pusheen/asaurus:red@"+md5a
	update.Metrics = json.RawMessage(`{"id":2,"gone":null,"data":{"attributes":{"labels":null,"help":null},"type":"container","x":1}}`)
	want := first
	want.URL, want.Version, want.URI = update.URL, update.Version, update.URI
	want.Metrics = json.RawMessage(`{"data":{"attributes":{"labels":{"a":"b"},"help":null},"type":"container","x":1},"gone":1,"id":2}`)
	got, isNew, err := x.PutRecord(ctx, update)
	check(t, "update", []any{got, isNew, err}, []any{want, false, nil})
	stored, ok, err := x.Record(ctx, "dropbox", backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "red"})
	check(t, "stored", []any{stored, ok, err}, []any{want, true, nil})

	// Another version, another client, another tag: other records.
	for n, change := range []func(*Record){
		func(r *Record) { r.Version = md5b }, func(r *Record) { r.Client = "gdrive" }, func(r *Record) { r.Tag = "blue" },
		func(r *Record) { r.Collection = "" },
	} {
		r := update
		change(&r)
		if got, isNew, err := x.PutRecord(ctx, r); err != nil || !isNew || got.ID != first.ID+int64(n)+1 {
			t.Errorf("change %d: %+v, %v, %v", n, got, isNew, err)
		}
	}
	// No version goes to the one that knows none.
	if got, isNew, err := x.PutRecord(ctx, empty); err != nil || !isNew || got.Version != "" {
		t.Errorf("without a version: %+v, %v, %v", got, isNew, err)
	}

	// Where one knows no version and one has it, that one.
	plain := Record{Client: "hub", Collection: "x", Name: "y", Tag: "z"}
	mustPut(t, x, plain)
	python(t, filepath.Join(dir, "records", "sregistry.db"), pythonAdd, `["x", "y", "z", "`+md5a+`", "hub", null, null, {}]`)
	plain.Version, plain.URL = md5a, ptr("u")
	versioned, ok, err := x.Record(ctx, "hub", backends.Ref{Collection: "x", Name: "y", Tag: "z", Version: md5a})
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if got := mustPut(t, x, plain); got.ID != versioned.ID {
		t.Errorf("update went to record %d, not %d", got.ID, versioned.ID)
	}

	for _, bad := range []string{"{", "[]", "3"} {
		for _, r := range []Record{{Client: "c", Name: "new" + bad, Tag: "t"}, empty} {
			r.Metrics = json.RawMessage(bad)
			if got, _, err := x.PutRecord(ctx, r); err == nil {
				t.Errorf("metrics %s are taken: %+v", bad, got)
			}
		}
	}
}

func TestDeleteRecord(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	ref := backends.Ref{Collection: "nvidia/clara", Name: "x", Tag: "1"}
	put := func(client, tag, version string) {
		mustPut(t, x, Record{Client: client, Collection: ref.Collection, Name: ref.Name, Tag: tag, Version: version})
	}
	left := func(want ...string) {
		t.Helper()
		all, err := x.Records(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range all {
			got = append(got, r.Client+" "+r.Collection+"/"+r.Name+":"+r.Tag+"@"+r.Version)
		}
		check(t, "left", got, want)
	}
	del := func(ref backends.Ref, want bool) {
		t.Helper()
		if ok, err := x.DeleteRecord(ctx, "a", ref); ok != want || err != nil {
			t.Errorf("DeleteRecord(%v) = %v, %v", ref, ok, err)
		}
	}
	put("a", "1", "v1")
	put("a", "1", "v2")
	put("a", "1", "v3")
	put("a", "2", "v1")
	put("b", "1", "v1")
	names, err := x.RecordClients(ctx, ref)
	check(t, "RecordClients", []any{names, err}, []any{[]string{"a", "b"}, nil})
	names, err = x.RecordClients(ctx, ref.WithVersion("v3"))
	check(t, "RecordClients of a version", []any{names, err}, []any{[]string{"a"}, nil})
	del(ref.WithVersion("v2"), true)
	del(ref.WithVersion("v2"), false)
	left("a nvidia/clara/x:1@v1", "a nvidia/clara/x:1@v3", "a nvidia/clara/x:2@v1", "b nvidia/clara/x:1@v1")
	del(ref, true)
	del(ref, false)
	left("a nvidia/clara/x:2@v1", "b nvidia/clara/x:1@v1")
}

func TestRecordsOff(t *testing.T) {
	x, ctx := openRecords(t, ""), t.Context()
	in := Record{Client: "a", Collection: "b", Name: "c", Tag: "d", Metrics: json.RawMessage(`{"x":1}`)}
	out, isNew, err := x.PutRecord(ctx, in)
	if time.Since(out.Created) > time.Hour {
		t.Errorf("a record without a date is of %s", out.Created)
	}
	in.Created = out.Created
	check(t, "PutRecord", []any{out, isNew, err}, []any{in, false, nil})
	all, err := x.Records(ctx, "")
	check(t, "Records", []any{all, err}, []any{[]Record(nil), nil})
	_, ok, err := x.Record(ctx, "a", backends.Ref{Collection: "b", Name: "c", Tag: "d"})
	check(t, "Record", []any{ok, err}, []any{false, nil})
	ok, err = x.DeleteRecord(ctx, "a", backends.Ref{})
	check(t, "DeleteRecord", []any{ok, err}, []any{false, nil})
}

// TestWhereRecordsAre checks what Options.Database may name.
func TestWhereRecordsAre(t *testing.T) {
	for name, c := range map[string]struct{ make, named, want string }{
		"folder":               {"folder/", "folder", "folder/sregistry.db"},
		"folder with a dot":    {"", ".singularity", ".singularity/sregistry.db"},
		"new folder":           {"", "new/deep", "new/deep/sregistry.db"},
		"new folder, slash":    {"", "new.db/", "new.db/sregistry.db"},
		"new file":             {"", "deep/mine.db", "deep/mine.db"},
		"file of any name":     {"file", "file", "file"},
		"names that need care": {"", "a b?c#d%20/x&y.db", "a b?c#d%20/x&y.db"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var err error
			if d, isDir := strings.CutSuffix(c.make, "/"); isDir {
				err = os.Mkdir(filepath.Join(dir, d), 0o700)
			} else if c.make != "" {
				err = os.WriteFile(filepath.Join(dir, c.make), nil, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			x := openRecords(t, dir+"/"+c.named)
			if _, err := x.Records(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(dir, c.want)); c.make != "file" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("asking alone makes a database: %v", err)
			}
			mustPut(t, x, Record{Client: "a", Collection: "b", Name: "c", Tag: "d"})
			if info, err := os.Stat(filepath.Join(dir, c.want)); err != nil || info.Size() == 0 {
				t.Errorf("no database at %s: %v", c.want, err)
			}
		})
	}
}

// TestDatabaseReplaced: the user may put away the database, or another in its
// place, at any time.
func TestDatabaseReplaced(t *testing.T) {
	dir := t.TempDir()
	x := openIn(t, dir)
	mustPut(t, x, Record{Client: "hub", Collection: "a", Name: "first", Tag: "t", URI: "a/first:t"})
	db := filepath.Join(dir, "records", "sregistry.db")
	names := func() string {
		t.Helper()
		all, err := x.Records(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, r := range all {
			names = append(names, r.Name)
		}
		return strings.Join(names, " ")
	}
	if err := os.Rename(db, db+".backup"); err != nil {
		t.Fatal(err)
	}
	check(t, "records without a database", names(), "")
	mustPut(t, x, Record{Client: "hub", Collection: "a", Name: "second", Tag: "t", URI: "a/second:t"})
	if _, err := os.Stat(db); err != nil {
		t.Errorf("a new record is in no database: %v", err)
	}
	check(t, "records of a new database", names(), "second")
	if err := os.Rename(db+".backup", db); err != nil {
		t.Fatal(err)
	}
	check(t, "records of the database that came back", names(), "first")
}

func TestMergeMetrics(t *testing.T) {
	for _, c := range []struct{ old, changes, want string }{
		{`{"a":1}`, ``, `{"a":1}`},
		{`{"a":1}`, `{}`, `{"a":1}`},
		{`{"a":1,"b":2}`, `{"b":3,"c":4}`, `{"a":1,"b":3,"c":4}`},
		{`{"a":{"x":1}}`, `{"a":{"y":2}}`, `{"a":{"y":2}}`},
		{`{"a":1}`, `{"a":null}`, `{"a":1}`},
		{`{"a":1}`, `{"a":{"x":null,"y":{}}}`, `{"a":1}`},
		{`{}`, `{"a":null}`, `{"a":null}`},
		{`{"data":{"x":1}}`, `{"data":{"y":2}}`, `{"data":{"x":1,"y":2}}`},
		{`{"data":3}`, `{"data":{"y":2}}`, `{"data":{"y":2}}`},
		{`{"data":{"x":1}}`, `{"data":3}`, `{"data":3}`},
		{`broken`, `{"a":1}`, `{"a":1}`},
		{`null`, `{"a":1}`, `{"a":1}`},
		{`{"a":"<&>"}`, `{"b":"<&>"}`, `{"a":"<&>","b":"<&>"}`},
	} {
		got, err := mergeMetrics(json.RawMessage(c.old), json.RawMessage(c.changes))
		if err != nil || string(got) != c.want {
			t.Errorf("mergeMetrics(%s, %s) = %s, %v; want %s", c.old, c.changes, got, err, c.want)
		}
	}
	if _, err := mergeMetrics(json.RawMessage(`{}`), json.RawMessage(`[1]`)); err == nil {
		t.Error("a list is taken for metrics")
	}
}
