//go:build integration

// Package integration tries the built program on real FUSE mounts with
// programs that others wrote: coreutils, rsync, Python, rclone, Apptainer. The
// stores that a test machine cannot reach are emulated; the emulators' own
// proofs are here too.
package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// program is the built sregfs.
var program string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	if help := helpers[os.Getenv(helperEnv)]; help != nil {
		if err := help(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	dir, err := os.MkdirTemp("", "sregfs-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Ordinary users run it too.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	program = filepath.Join(dir, "sregfs")
	build := exec.Command("go", "build", "-o", program, "../../cmd/sregfs")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build sregfs: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}
