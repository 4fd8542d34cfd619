//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
)

// TestTwoMounts: two machines on one account see each other's pushes, renames
// and deletions.
func TestTwoMounts(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		one := newMachine(t, a.env...).mount("--client=" + a.client)
		two := newMachine(t, a.env...).mount("--client=" + a.client)
		red, green := smallImage(t, 1), smallImage(t, 2)
		file := a.client + "/pusheen/asaurus:red.simg"
		soon := func(d *mounted, line string, args ...any) {
			t.Helper()
			line = fmt.Sprintf(line, args...)
			d.eventually(line, func() error {
				out, errOut, err := d.try("%s", line)
				if err != nil {
					return fmt.Errorf("%s%s%w", out, errOut, err)
				}
				return nil
			})
		}
		two.run("ls %s", a.client) // known to be empty
		one.run("mkdir %s/pusheen && cp %s %s", a.client, red, file)
		soon(two, "ls %s/pusheen | grep -q '^asaurus:red.simg$' && cmp %s %s", a.client, red, file)
		two.run("cp %s %s", green, file)
		soon(one, "cmp %s %s", green, file)
		one.run("mv %s %s/pusheen/asaurus:blue.simg", file, a.client)
		soon(two, "test ! -e %s && cmp %s %s/pusheen/asaurus:blue.simg", file, green, a.client)
		two.run("rm %s/pusheen/asaurus:blue.simg", a.client)
		soon(one, "test ! -e %s/pusheen/asaurus:blue.simg && test -z \"$(ls %s/pusheen)\"", a.client, a.client)
	})
}

// TestOpenFileIsOneVersion: a reader keeps what it opened while the image is
// replaced on the remote, or is told; it never gets a blend.
func TestOpenFileIsOneVersion(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		red, green := smallImage(t, 1), smallImage(t, 2)
		a.put(t, "pusheen/asaurus:red", red)
		d := newMachine(t, a.env...).mount("--client=" + a.client)
		file := a.client + "/pusheen/asaurus:red.simg"
		d.run("exec 3<%s; head -c 4096 <&3 >%s/got; cp %s %s; cat <&3 >>%s/got || echo \"gave up: $?\" >%s/gaveup; test -e %s/gaveup || cmp %s %s/got",
			file, d.home, green, file, d.home, d.home, d.home, red, d.home)
		d.run("cmp %s %s", green, file)
	})
}

// TestVersions: what was overwritten stays reachable where the store keeps it.
func TestVersions(t *testing.T) {
	eachClient(t, func(t *testing.T, a account) {
		if a.client == "local" {
			t.Log("a folder keeps no old versions")
			return
		}
		red, green := smallImage(t, 1), smallImage(t, 2)
		d := newMachine(t, a.env...).mount("--client=" + a.client)
		at := a.client + "/pusheen"
		d.run("mkdir %s && cp %s %s/a:red.simg", at, red, at)
		version := strings.Fields(d.run("md5sum %s", red))[0]
		d.want(version, "getfattr --only-values -n user.sregistry.version %s/a:red.simg", at)
		d.run("cp %s %s/a:red.simg", green, at)
		d.run("cmp %s %s/a:red@%s.simg", red, at, version)
		d.run("cmp %s %s/a:red.simg", green, at)
		d.run("getfattr --only-values -n user.sregistry.versions %s/a:red.simg | grep -q '^%s '", at, version)
		d.fails("Read-only file system", "cp %s %s/a:red@%s.simg", green, at, version)
		d.fails("No such file", "cat %s/a:red@%s.simg", at, strings.Repeat("0", 32))
		// To remove an old version, where that can be, touches nothing else.
		if a.client == "dropbox" {
			d.fails("Operation not permitted", "rm %s/a:red@%s.simg", at, version)
		} else {
			d.run("rm %s/a:red@%s.simg && ls %[1]s | grep -qx a:red.simg && cmp %[3]s %[1]s/a:red.simg", at, version, green)
			d.fails("No such file", "cat %s/a:red@%s.simg", at, version)
		}
		d.run("ls %s | grep -qx a:red.simg && cmp %s %[1]s/a:red.simg", at, green)
	})
}
