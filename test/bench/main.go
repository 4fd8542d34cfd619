// Command bench measures sregfs against what people use today: the local disk,
// rclone, curl and Apptainer itself. "make bench" builds and runs it.
//
// Each row is one piece of work, done by every contestant in turn, several
// times over, in one run on one machine; what counts is the ratio of the
// medians. The stores are emulators in processes of their own with a set round
// trip and bandwidth, whose counters also tell how many bytes and requests each
// contestant needed. Everything happens in namespaces of its own, so that
// nothing is left behind and the clients that cannot be told another address
// than their service's find the emulator there.
//
// Start at rows.go for what is measured, lab.go for how.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// inside marks the process that test/isolated.sh has started.
const inside = "SREGFS_BENCH_INSIDE"

func main() {
	row := flag.String("row", "", "run only the rows with this `word` in their name")
	repeat := flag.Int("n", 3, "repetitions of each contestant")
	out := flag.String("out", "bench/results", "folder for the results")
	data := flag.String("data", "bench/data", "folder for generated images, kept between runs")
	list := flag.Bool("list", false, "list the rows and end")
	flag.Parse()
	if *list {
		for _, r := range rows {
			fmt.Printf("%-20s %s\n", r.name, r.what)
		}
		return
	}
	if err := run(*row, *repeat, *out, *data); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(word string, repeat int, out, data string) error {
	if os.Getuid() != 0 {
		return errors.New("needs root, for namespaces and FUSE passthrough")
	}
	if os.Getenv(inside) == "" {
		return enter()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	l, err := newLab(data)
	if err != nil {
		return err
	}
	defer l.close()

	rep := report{Machine: describeMachine(), Version: l.version(ctx), Rivals: l.rivals(ctx), Began: time.Now(), Repetitions: repeat}
	for _, r := range rows {
		if !strings.Contains(r.name, word) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s: %s\n", r.name, r.what)
		res, err := l.measure(ctx, r, repeat)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			res.Failure = err.Error()
			fmt.Fprintf(os.Stderr, "  failed: %v\n", err)
		}
		rep.Rows = append(rep.Rows, res)
	}
	if len(rep.Rows) == 0 {
		return fmt.Errorf("no row has %q in its name; -list shows them", word)
	}
	fmt.Print(rep.table())
	if err := rep.save(out); err != nil {
		return err
	}
	fmt.Printf("\nwritten to %s\n", filepath.Join(out, "latest.{json,svg,txt}"))
	for _, r := range rep.Rows {
		if r.Failure != "" {
			return errors.New("some rows failed")
		}
	}
	return nil
}

// enter runs this command again in its own namespaces.
func enter() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command("test/isolated.sh", append([]string{self}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// The signal reaches the child by the terminal; it ends, and so do we.
	signal.Ignore(os.Interrupt)
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	return err
}
