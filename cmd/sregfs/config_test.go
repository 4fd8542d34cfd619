package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzConfig: a configuration file, whatever is in it, sets what a flag can set
// or is refused with a sentence that names the file.
func FuzzConfig(f *testing.F) {
	for _, seed := range []string{
		"client: [local]\nregistry:\n  lab: https://registry.example.org\ncache-dir: /scratch\ncache-size: 50G\n",
		"log-level: debug\nlog_format: json\n", "client: 5\n", "registry: [a]\n", "cache-size: {a: b}\n", "config: x\n", "read-only: maybe\n",
		"", "- a\n", "a", "client:\n", "client: [[a]]\n", "? [a]: b\n", "1: 2\n", "a: &a [*a]\n", "registry: {lab: [1]}\n", "\x00",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		home := t.TempDir()
		t.Setenv("HOME", home)
		file := filepath.Join(home, "config.yaml")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		// A command that only looks.
		err := run(context.Background(), []string{"status", "--config", file}, io.Discard, io.Discard)
		if err == nil {
			return
		}
		if said := err.Error(); said == "" || strings.Contains(said, "panic") || strings.Contains(said, "goroutine") {
			t.Errorf("%q: %v", data, err)
		}
	})
}
