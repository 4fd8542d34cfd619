package oci_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// TestSlowHelper: a credential helper that waits for somebody to unlock a key
// ring keeps nobody waiting longer than they want.
func TestSlowHelper(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"config.json":            `{"credsStore": "slow"}`,
		"docker-credential-slow": "#!/bin/sh\nexec sleep 5\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	store := open(t, serve(t).URL, "SREGISTRY_MINE_SECRETS="+filepath.Join(dir, "config.json"))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := store.Stat(ctx, backends.Ref{Collection: "c", Name: "i", Tag: "t"})
	if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > 3*time.Second {
		t.Errorf("Stat = %v after %s", err, took)
	}
}
