//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestRegistryAsUser: an ordinary user mounts, and has the files in a container
// image belong to whom they belong to in it.
func TestRegistryAsUser(t *testing.T) {
	run := apptainer(t)
	r := startRegistry(t, registryOptions{})
	r.push("library/tool:1", imageOf(t, v1.Config{Entrypoint: []string{"/bin/echo"}, Cmd: []string{"hello"}}, busybox(t),
		layerOf(t, regular("owned", 0o4755, "x"), entry{Header: regular("other", 0o640, "").Header, body: "y"})))
	d := newMachine(t, r.env()...).asUser(1000).mount("--client=lab", "--registry=lab="+r.scheme+"://"+r.host)
	file := "lab/library/tool:1.simg"
	d.want("hello", "%s run %s", run, file)
	d.want("a b", "%s run %s 'a b'", run, file)
	d.want("1000", "stat -c %%u %s", file)
	d.run("cp %s %s/copy.sif && unsquashfs -o $(grep -abo hsqs %s/copy.sif | head -1 | cut -d: -f1) -lln %s/copy.sif > %s/list", file, d.home, d.home, d.home, d.home)
	d.run("grep -q -- '-rwsr-xr-x 0/0 .*squashfs-root/owned$' %s/list && grep -q -- '-rw-r----- 0/0 .*squashfs-root/other$' %s/list", d.home, d.home)
}

// TestRegistryCredentials: whatever way a user has of telling who they are.
func TestRegistryCredentials(t *testing.T) {
	r := startRegistry(t, registryOptions{auth: true})
	r.push("library/secret:1", imageOf(t, v1.Config{Cmd: []string{"/bin/true"}}, busybox(t)))
	write := func(t *testing.T, path, text string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	base := r.scheme + "://" + r.host
	user, pass := r.user, r.pass
	for _, c := range []struct {
		client string
		env    []string
	}{
		{"dockerhub", []string{"SREGISTRY_DOCKERHUB_BASE=" + base, "SREGISTRY_DOCKERHUB_USERNAME=" + user, "SREGISTRY_DOCKERHUB_PASSWORD=" + pass}},
		{"dockerhub", []string{"SREGISTRY_DOCKERHUB_BASE=" + r.host, "SREGISTRY_DOCKERHUB_NOHTTPS=yes", "SREGISTRY_DOCKERHUB_USERNAME=" + user, "SREGISTRY_DOCKERHUB_PASSWORD=" + pass}},
		{"nvidia", []string{"SREGISTRY_NVIDIA_BASE=" + base, "SREGISTRY_NVIDIA_USERNAME=" + user, "SREGISTRY_NVIDIA_TOKEN=" + pass}},
	} {
		t.Run(c.client, func(t *testing.T) {
			newMachine(t, c.env...).mount("--client="+c.client).run("cat %s/library/secret:1.simg > /dev/null", c.client)
		})
	}
	t.Run("helper", func(t *testing.T) {
		m := newMachine(t)
		bin := filepath.Join(m.home, "bin")
		write(t, filepath.Join(bin, "docker-credential-tests"), fmt.Sprintf(
			"#!/bin/sh\nread -r server\n[ \"$1\" = get ] && [ \"$server\" = %s ] && printf '{\"ServerURL\":\"%%s\",\"Username\":\"%s\",\"Secret\":\"%s\"}' \"$server\"\n", r.host, user, pass), 0o755)
		m.env = append(m.env, "PATH="+bin+":"+os.Getenv("PATH"))
		for _, config := range []string{
			fmt.Sprintf(`{"credHelpers":{%q:"tests"}}`, r.host), `{"credsStore":"tests"}`,
		} {
			write(t, filepath.Join(m.home, ".docker/config.json"), config, 0o600)
			d := m.mount("--client=lab", "--registry=lab="+base)
			d.run("cat lab/library/secret:1.simg > /dev/null")
			d.unmount()
		}
	})
	t.Run("secrets file", func(t *testing.T) {
		m := newMachine(t)
		file := filepath.Join(m.home, "mine.json")
		shell(t, nil, "skopeo login --tls-verify=false --authfile %s -u '%s' -p '%s' %s", file, user, pass, r.host)
		m.env = append(m.env, "SREGISTRY_LAB_SECRETS="+file)
		m.mount("--client=lab", "--registry=lab="+base).run("cat lab/library/secret:1.simg > /dev/null")
	})
}
