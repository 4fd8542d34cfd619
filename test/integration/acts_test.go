//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sregfs/sregfs/image/imagetest"
)

// smallImage makes a small image whose content the seed decides.
func smallImage(t *testing.T, seed uint64) string {
	t.Helper()
	return imagetest.SIF(t, imagetest.Opts{
		Seed: seed, NoShell: true, ExtraBytes: 100_000,
		Labels: map[string]string{"maintainer": "vsoch", "org.label-schema.build-size": "12MB"},
	})
}

// TestPush pushes in every way that programs copy a file, and checks that the
// remote has the very bytes and that the image is there once.
func TestPush(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		d := newMachine(t, a.env...).mount("--client=" + a.client)
		red, green := smallImage(t, 1), smallImage(t, 2)
		at := a.client + "/pusheen"
		// Of one size, they would be one to rsync if they were of one second.
		d.run("mkdir %s && touch -d 2020-01-01 %s && touch -d 2021-01-01 %s", at, red, green)
		for name, line := range map[string]string{
			"cp":      "cp %[1]s %[2]s",
			"cp-a":    "cp -a %[1]s %[2]s",
			"rsync":   "rsync -a %[1]s ./%[2]s",
			"inplace": "rsync -a --inplace %[1]s ./%[2]s",
			"dd":      "dd if=%[1]s of=%[2]s bs=64K status=none",
			"install": "install -m 0755 %[1]s %[2]s",
			"cat":     "cat %[1]s > %[2]s",
			"parts":   "(head -c 50000 %[1]s; tail -c +50001 %[1]s) > %[2]s",
			"python":  "python3 -c 'import shutil,sys; shutil.copy2(sys.argv[1], sys.argv[2])' %[1]s %[2]s",
			"rclone":  "rclone copyto %[1]s ./%[2]s",
			"sparse":  "cp --sparse=always %[1]s %[2]s",
			"direct":  "dd if=%[1]s of=%[2]s bs=1M oflag=direct conv=fsync status=none",
		} {
			t.Run(name, func(t *testing.T) {
				file := at + "/" + name + ":red.simg"
				d.run(line, red, file)
				a.mustHold(t, "pusheen/"+name+":red", red)
				d.run("cmp %s %s", red, file)
				d.want("1", "ls %s | grep -c '^%s:'", at, name)
				// Once more, and then other content.
				d.run(line, red, file)
				a.mustHold(t, "pusheen/"+name+":red", red)
				d.run(line, green, file)
				a.mustHold(t, "pusheen/"+name+":red", green)
				d.run("cmp %s %s", green, file)
				d.want("1", "ls %s | grep -c '^%s:'", at, name)
			})
		}
		d.run("tar -C %s -cf %s/t.tar %s", filepath.Dir(red), d.home, filepath.Base(red))
		d.run("cd %s && tar --force-local -xf %s/t.tar --transform='s,.*,tar:red.simg,'", at, d.home)
		a.mustHold(t, "pusheen/tar:red", red)
	})
}

// TestSecondRsyncSendsNothing: rsync finds time and size as it left them.
func TestSecondRsyncSendsNothing(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		d := newMachine(t, a.env...).mount("--client=" + a.client)
		src := filepath.Join(d.home, "src")
		if err := os.Mkdir(src, 0o755); err != nil {
			t.Fatal(err)
		}
		d.run("cp %s '%s/a:1.simg'; cp %s '%s/b:1.simg'; touch -d '2020-02-02 02:02:02' %s/*", smallImage(t, 1), src, smallImage(t, 2), src, src)
		d.run("rsync -rt %s/ %s/pusheen/", src, a.client)
		if out := d.run("rsync -rti %s/ %s/pusheen/", src, a.client); strings.Contains(out, "f") {
			t.Errorf("the second rsync sent again: %s", out)
		}
		d.unmount()
		d = d.machine.mount("--client=" + a.client)
		if out := d.run("rsync -rti %s/ %s/pusheen/", src, a.client); strings.Contains(out, "f") {
			t.Errorf("rsync after a remount sent again: %s", out)
		}
	})
}

// TestRefusedPushes: what cannot be right does not reach the remote, and says
// why.
func TestRefusedPushes(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		d := newMachine(t, a.env...).mount("--client=" + a.client)
		red := smallImage(t, 1)
		at := a.client + "/pusheen"
		d.run("mkdir %s && cp %s %s/a:red.simg", at, red, at)
		d.run("head -c 70000 %s > %s/cut.simg", red, d.home)
		d.fails("Invalid argument", "cp %s/cut.simg %s/cut:1.simg", d.home, at)
		d.fails("Invalid argument", "cp %s/cut.simg %s/a:red.simg", d.home, at)
		a.mustHold(t, "pusheen/a:red", red)
		d.run("cmp %s %s/a:red.simg", red, at)
		d.fails("No such file", "stat %s/cut:1.simg", at)
		d.want("a:red.simg", "ls %s", at)
		for _, name := range []string{"readme.txt", "a:.simg", ":x.simg", "noextension"} {
			d.fails("Invalid argument", "cp %s %s/%s", red, at, name)
		}
		if a.client == "dropbox" { // before anything is copied
			d.fails("cannot create regular file", `cp %s '%s/back\slash:1.simg'`, red, at)
		}
		d.fails("Operation not permitted", "cp %s ./x:1.simg", red)
		d.fails("Operation not permitted", "mkdir newclient")
		if out := d.run("%s status", program); !strings.Contains(out, "truncated") {
			t.Errorf("status does not tell of the truncated image:\n%s", out)
		}
	})
}

// TestRead reads in the ways of programs, and the names that lead to an image.
func TestRead(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		red := smallImage(t, 1)
		a.put(t, "pusheen/asaurus:latest", red)
		d := newMachine(t, a.env...).mount("--client=" + a.client)
		at := a.client + "/pusheen/"
		for _, name := range []string{"asaurus:latest.simg", "asaurus:latest.sif", "asaurus:latest.img", "asaurus.simg", "asaurus.sif"} {
			d.run("cmp %s %s%s", red, at, name)
		}
		d.want("asaurus:latest.simg", "ls %s", at)
		d.run("dd if=%sasaurus.simg bs=4k skip=3 count=5 status=none | cmp - <(dd if=%s bs=4k skip=3 count=5 status=none)", at, red)
		d.run("tail -c 1000 %sasaurus.simg | cmp - <(tail -c 1000 %s)", at, red)
		d.run(`python3 -c 'import mmap,sys
f=[open(p,"rb") for p in sys.argv[1:]]
a,b=(mmap.mmap(x.fileno(),0,prot=mmap.PROT_READ) for x in f)
assert a[:]==b[:]' %s %sasaurus.simg`, red, at)
		d.run("rsync -a ./%sasaurus.simg %s/out.simg && cmp %s %s/out.simg", at, d.home, red, d.home)
		d.run("cp -a %sasaurus.simg %s/copy.simg && cmp %s %s/copy.simg", at, d.home, red, d.home)
		d.want("755", "stat -c %%a %sasaurus.simg", at)
		d.fails("No such file", "cat %snothing:1.simg", at)
		d.fails("No such file", "cat %s/elsewhere/asaurus.simg", a.client)
	})
}

// TestInspect checks attributes and record.
func TestInspect(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		red := smallImage(t, 1)
		a.put(t, "pusheen/asaurus:red", red)
		d := newMachine(t, a.env...).mount("--client=" + a.client)
		at := a.client + "/pusheen/asaurus:red"
		attr := func(name string) string {
			return strings.TrimSpace(d.run("getfattr --only-values -n user.sregistry.%s %s.simg", name, at))
		}
		info, err := os.Stat(red)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{
			"client": a.client, "collection": "pusheen", "name": "asaurus", "tag": "red",
			"size": fmt.Sprint(info.Size()), "label.maintainer": "vsoch",
		} {
			if got := attr(name); got != want {
				t.Errorf("user.sregistry.%s is %q, want %q", name, got, want)
			}
		}
		if got := attr("runscript"); !strings.HasPrefix(got, "#!/bin/sh") {
			t.Errorf("runscript is %q", got)
		}
		d.fails("No such attribute", "getfattr -n user.sregistry.nonsense %s.simg", at)
		d.fails("Operation not supported", "setfacl -m u:1:r %s.simg", at)
		// mv and cp -p try this on the folders that they make.
		for _, dir := range []string{".", a.client, a.client + "/pusheen", at + ".json"} {
			d.fails("Operation not supported", "setfacl -m u:1:r %s", dir)
			d.fails("Operation not supported", "setfattr -n user.note -v hello %s", dir)
		}
		d.run("setfattr -n user.note -v hello %s.simg", at)
		d.want("hello", "getfattr --only-values -n user.note %s.simg", at)
		d.run("setfattr -x user.note %s.simg", at)
		d.fails("No such attribute", "getfattr -n user.note %s.simg", at)
		d.run("setfattr -n user.sregistry.pin -v 1 %s.simg", at)
		d.fails("Invalid argument", "setfattr -n user.sregistry.pin -v maybe %s.simg", at)
		if a.client != "local" { // all is kept there anyway
			d.want("1", "getfattr --only-values -n user.sregistry.pin %s.simg", at)
			d.run("setfattr -n user.sregistry.pin -v 0 %s.simg", at)
		}
		d.fails("No such attribute", "getfattr -n user.sregistry.pin %s.simg", at)
		if list := d.run("getfattr -d %s.simg", at); len(list) > 2500 || !strings.Contains(list, "user.sregistry.uri") {
			t.Errorf("getfattr -d shows %d bytes:\n%s", len(list), list)
		}

		var record map[string]any
		text := d.run("cat %s.json", at)
		if err := json.Unmarshal([]byte(text), &record); err != nil {
			t.Fatalf("the sidecar is no JSON: %v\n%s", err, text)
		}
		for _, key := range []string{"client", "collection", "collection_id", "created_at", "id", "image", "metrics", "name", "tag", "uri", "url", "version"} {
			if _, ok := record[key]; !ok {
				t.Errorf("the record lacks %q:\n%s", key, text)
			}
		}
		attrs := record["metrics"].(map[string]any)["data"].(map[string]any)["attributes"].(map[string]any)
		if labels := attrs["labels"].(map[string]any); labels["maintainer"] != "vsoch" {
			t.Errorf("labels are %v", labels)
		}
		for _, key := range []string{"deffile", "environment", "help", "runscript", "test"} {
			if _, ok := attrs[key]; !ok {
				t.Errorf("attributes lack %q", key)
			}
		}
		d.run("cmp <(cat %s.json) <(python3 -c 'import sys; sys.stdout.write(open(sys.argv[1]).read())' %s.json)", at, at)
		d.run("cp %s.json %s/r.json && cmp %s.json %s/r.json", at, d.home, at, d.home)
		d.want(strings.TrimSpace(d.run("cat %s.json", at)), "getfattr --only-values -n user.sregistry.json %s.simg", at)

		// The Python client's database has the record.
		var row string
		d.eventually("the record", func() error {
			row = d.run(`python3 -c '
import sqlite3,os
db=sqlite3.connect(os.path.expanduser("~/.singularity/sregistry.db"))
for r in db.execute("select c.name, k.name, c.tag, c.client, c.uri from container c join collection k on k.id=c.collection_id"): print(*r)'`)
			if row == "" {
				return fmt.Errorf("no row")
			}
			return nil
		})
		if !strings.HasPrefix(row, "asaurus pusheen red "+a.recorded()+" pusheen/asaurus:red") {
			t.Errorf("the database holds %q", row)
		}
		if out := d.run("%s images asaurus", program); !strings.Contains(out, "["+a.recorded()+"]") || !strings.Contains(out, "pusheen/asaurus:red") {
			t.Errorf("sregfs images prints:\n%s", out)
		}
	})
}

// TestRename renames inside a client and across two.
func TestRename(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		red, green := smallImage(t, 1), smallImage(t, 2)
		d := newMachine(t, a.env...).mount("--client="+a.client, "--client=local")
		at := a.client + "/pusheen"
		d.run("mkdir -p %s %s/vsoch && cp %s %s/a:red.simg && cp %s %s/a:green.simg", at, a.client, red, at, green, at)
		version := d.run("getfattr --only-values -n user.sregistry.version %s/a:red.simg", at)
		d.run("mv %s/a:red.simg %s/a:blue.simg", at, at)
		d.want(version, "getfattr --only-values -n user.sregistry.version %s/a:blue.simg", at)
		if out := d.run("%s images", program); !strings.Contains(out, "a:blue@"+version) || strings.Contains(out, "a:red@") {
			t.Errorf("after mv, images prints:\n%s", out)
		}
		a.mustHold(t, "pusheen/a:blue", red)
		d.run("cmp %s %s/a:blue.simg; ! test -e %s/a:red.simg", red, at, at)
		d.run("mv %s/a:blue.simg %s/vsoch/b:1.simg", at, a.client)
		a.mustHold(t, "vsoch/b:1", red)
		d.run("mv %s/a:green.simg %s/vsoch/b:1.simg", at, a.client)
		a.mustHold(t, "vsoch/b:1", green)
		d.run("cmp %s %s/vsoch/b:1.simg", green, a.client)
		d.want("b:1.simg", "ls %s/vsoch", a.client)
		// mv's words for EINVAL.
		d.fails("subdirectory of itself", "mv %s/vsoch/b:1.simg %s/vsoch/readme.txt", a.client, a.client)
		if a.client != "local" {
			d.run("mkdir -p local/vsoch && mv %s/vsoch/b:1.simg local/vsoch/b:1.simg && cmp %s local/vsoch/b:1.simg; ! test -e %s/vsoch/b:1.simg", a.client, green, a.client)
		}
	})
}

// TestRemove removes images and collections.
func TestRemove(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		red := smallImage(t, 1)
		d := newMachine(t, a.env...).mount("--client=" + a.client)
		at := a.client + "/pusheen"
		d.run("mkdir %s && cp %s %s/a:red.simg", at, red, at)
		d.fails("File exists", "mkdir %s", at)
		d.fails("Directory not empty", "rmdir %s", at)
		d.run("rm %s/a:red.simg", at)
		a.mustLack(t, "pusheen/a:red")
		d.fails("No such file", "stat %s/a:red.simg", at)
		d.fails("No such file", "rm %s/a:red.simg", at)
		d.run("rmdir %s && ! test -e %s", at, at)
		d.run("mkdir -p %s/deep/er && cp %s %s/deep/er/x:1.simg && rm -r %s/deep && ! test -e %s/deep", a.client, red, a.client, a.client, a.client)
		a.mustLack(t, "deep/er/x:1")
	})
}

// TestSearch finds by name, tag, label and id.
func TestSearch(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		red := smallImage(t, 1)
		d := newMachine(t, a.env...).mount("--client=" + a.client)
		d.run("mkdir -p %s/pusheen && cp %s %s/pusheen/asaurus:red.simg && cp %s %s/pusheen/asaurus:green.simg", a.client, red, a.client, smallImage(t, 2), a.client)
		for _, word := range []string{"red", "RED", "usheen/asaurus:re"} {
			if strings.Contains(word, "/") {
				continue
			}
			d.want("pusheen-asaurus:red.simg", "ls %s/.search/%s", a.client, word)
		}
		d.eventually("labels to be searchable", func() error {
			if got := strings.Fields(d.run("ls %s/.search/vsoch", a.client)); len(got) != 2 {
				return fmt.Errorf("found %v", got)
			}
			return nil
		})
		d.run("cmp %s %s/.search/red/*", red, a.client)
		d.run("cmp %s .search/red/*", red)
		d.want("", "ls %s/.search/nothingofthekind", a.client)
		d.want(a.client+"/pusheen/asaurus:green.simg", "ls %s/*/*green*", a.client)
		if id, _, err := d.try("getfattr --only-values -n user.sregistry.id %s/pusheen/asaurus:red.simg", a.client); err == nil {
			d.run("cmp %s '%s/.by-id/%s.simg'", red, a.client, id)
			if list := d.run("ls %s/.by-id", a.client); !strings.Contains(list, id) {
				t.Errorf(".by-id lists %s", list)
			}
		} else if a.client != "local" {
			t.Errorf("the image has no id: %v", err)
		}
	})
}

// TestDiskFree: df shows each account's own space.
func TestDiskFree(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		d := newMachine(t, a.env...).mount("--client=" + a.client)
		d.run("df %s && test $(df --output=size %s | tail -1) -gt 0", a.client, a.client)
	})
}

// TestRecordWithoutAFile writes a record with a url into the local client: the
// image is then read from there, and only as far as it is read.
func TestRecordWithoutAFile(t *testing.T) {
	image := smallImage(t, 1)
	var sent atomic.Int64
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(&counter{w, &sent}, r, image)
	}))
	defer web.Close()
	a := localAccount(t)
	d := newMachine(t, a.env...).mount("--client=local")
	d.run("mkdir local/web && echo '{\"url\": \"%s/x.simg\", \"metrics\": {\"branch\": \"master\"}}' > local/web/x:1.json", web.URL)
	d.want("x:1.simg", "ls local/web")
	if n := sent.Load(); n > 1 { // one is asked for to learn the size
		t.Errorf("to note a record, %d bytes were fetched", n)
	}
	d.run("cmp %s local/web/x:1.simg", image)
	d.want("vsoch", "getfattr --only-values -n user.sregistry.label.maintainer local/web/x:1.simg")
	d.want(web.URL+"/x.simg", "getfattr --only-values -n user.sregistry.url local/web/x:1.simg")
	if out := d.run("cat local/web/x:1.json"); !strings.Contains(out, "\"branch\": \"master\"") || !strings.Contains(out, "\"image\": null") {
		t.Errorf("the record is %s", out)
	}
	if out := d.run("%s images", program); !strings.Contains(out, "remote") {
		t.Errorf("images prints %s", out)
	}
	d.fails("Invalid argument", "cat <<< '{\"url\": \"file:///etc/passwd\"}' > local/web/y:1.json")
	d.fails("Invalid argument", "cat <<< '{}' > local/web/y:1.json")
	d.fails("Invalid argument", "cat <<< 'not json' > local/web/y:1.json")
	d.run("rm local/web/x:1.simg && test -z \"$(ls local/web)\"")
}

// counter counts what a web server sends.
type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}
