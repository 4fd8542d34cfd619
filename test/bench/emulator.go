package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// link is the line to a store: the round trip of each request, and what all
// transfers share. The zero value is no line at all.
type link struct {
	rtt  time.Duration
	mbit int64
}

// emulator is a Dropbox account in a process of its own (test/emulator), which
// programs find under the service's own names.
type emulator struct {
	*daemon
	l       *lab
	control string
	token   string
	ca      string
}

// remoteName is the image that the remote rows read, below the account's root
// and below the client's directory.
const remoteName = "bench/image:v1.simg"

// controlAddr is free: nobody else is in the benchmark's network namespace.
const controlAddr = "127.0.0.1:8099"

// store starts an emulator behind a link, with the image that make makes as
// its one image.
func (l *lab) store(ctx context.Context, ln link, generate func(context.Context) (string, error)) (*emulator, string, error) {
	image, err := generate(ctx)
	if err != nil {
		return nil, "", err
	}
	e, err := l.emulate(ctx, 0)
	if err != nil {
		return nil, "", err
	}
	if err := e.upload(ctx, image, remoteName); err != nil {
		return nil, "", err
	}
	return e, image, e.setLink(ctx, ln)
}

// emulate starts an emulator without a link, whose account has so many images.
func (l *lab) emulate(ctx context.Context, images int) (*emulator, error) {
	dir, err := l.folder("emulator")
	if err != nil {
		return nil, err
	}
	e := &emulator{l: l, control: "http://" + controlAddr, token: "bench-token", ca: filepath.Join(dir, "ca.pem")}
	e.daemon, err = l.start([]string{"TMPDIR=" + dir}, filepath.Join(l.repo, "bin/emulator"), "dropbox",
		"--addr", "127.0.0.1:443", "--tls", "--ca", e.ca, "--token", e.token, "--space", "100000000000", "--images", strconv.Itoa(images), "--control", controlAddr)
	if err != nil {
		return nil, err
	}
	l.later(e.stop)
	if err := l.nameHosts(dir); err != nil {
		return nil, err
	}
	return e, e.until(ctx, func() bool { return e.reset(ctx) == nil })
}

// nameHosts leads the service's names to this machine, within the benchmark's
// mount namespace.
func (l *lab) nameHosts(dir string) error {
	hosts := filepath.Join(dir, "hosts")
	const names = "127.0.0.1 localhost api.dropboxapi.com content.dropboxapi.com notify.dropboxapi.com www.dropbox.com\n"
	if err := os.WriteFile(hosts, []byte(names), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(hosts, "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("lay %s over /etc/hosts: %w", hosts, err)
	}
	l.later(func() { unix.Unmount("/etc/hosts", unix.MNT_DETACH) })
	return nil
}

// call asks the emulator's control address.
func (e *emulator) call(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.control+path, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("emulator: %s: %s", path, res.Status)
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(res.Body).Decode(into)
}

func (e *emulator) reset(ctx context.Context) error { return e.call(ctx, "/reset", nil) }

func (e *emulator) setLink(ctx context.Context, ln link) error {
	q := url.Values{"latency": {ln.rtt.String()}, "bandwidth": {strconv.FormatInt(ln.mbit*1e6/8, 10)}}
	return e.call(ctx, "/link?"+q.Encode(), nil)
}

// count adds what has gone through since reset to a sample.
func (e *emulator) count(ctx context.Context, s *sample) error {
	var routes map[string]struct{ Requests, In, Out int64 }
	if err := e.call(ctx, "/counts", &routes); err != nil {
		return err
	}
	for _, r := range routes {
		s.Requests += r.Requests
		s.Bytes += r.In + r.Out
	}
	return nil
}

// sregfsEnv are the settings with which sregfs uses the account.
func (e *emulator) sregfsEnv() []string {
	return []string{"SREGISTRY_DROPBOX_TOKEN=" + e.token, "SSL_CERT_FILE=" + e.ca}
}

// rcloneEnv are rclone's, for a remote called dropbox.
func (e *emulator) rcloneEnv() []string {
	token, _ := json.Marshal(map[string]string{"access_token": e.token, "token_type": "bearer", "expiry": "2999-01-01T00:00:00Z"})
	return []string{"SSL_CERT_FILE=" + e.ca, "RCLONE_CONFIG=/dev/null", "RCLONE_CONFIG_DROPBOX_TYPE=dropbox",
		"RCLONE_CONFIG_DROPBOX_TOKEN=" + string(token)}
}

func (e *emulator) rclone(ctx context.Context, args ...string) error {
	return command(ctx, e.rcloneEnv(), e.l.rclone, args...)
}

// upload is the store's own way to put a file there, by rclone.
func (e *emulator) upload(ctx context.Context, file, name string) error {
	return e.rclone(ctx, "copyto", "--dropbox-batch-mode", "off", "--ignore-times", file, "dropbox:"+name)
}

// download is one plain HTTP download of the image.
func (e *emulator) download(ctx context.Context, to string) error {
	arg, err := json.Marshal(map[string]string{"path": "/" + remoteName})
	if err != nil {
		return err
	}
	return command(ctx, nil, "curl", "--cacert", e.ca, "--silent", "--show-error", "--fail", "--request", "POST",
		"--header", "Authorization: Bearer "+e.token, "--header", "Dropbox-API-Arg: "+string(arg),
		"--output", to, "https://content.dropboxapi.com/2/files/download")
}
