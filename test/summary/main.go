// Command summary turns the events of "go test -json" on standard input into
// what a person wants to know: the output of what failed, the reason of what
// was skipped, a line for each package, and a closing count, which -total also
// writes to a file.
//
// It exits 1 when a test or a build failed and when no test ran at all, since a
// run that proves nothing is no success.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// event is one line of "go test -json" (go doc test2json, go help buildjson).
type event struct {
	Action     string
	Package    string
	ImportPath string // of build events
	Test       string
	Elapsed    float64
	Output     string
}

func main() {
	total := flag.String("total", "", "also write the closing count to `FILE`")
	flag.Parse()
	line, ok := summarise(os.Stdin, os.Stdout)
	fmt.Println(line)
	if *total != "" {
		if err := os.WriteFile(*total, []byte(line+"\n"), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "summary:", err)
			os.Exit(1)
		}
	}
	if !ok {
		os.Exit(1)
	}
}

// summarise copies what matters from in to out and returns the closing count.
// ok is false when anything failed or nothing ran.
func summarise(in io.Reader, out io.Writer) (line string, ok bool) {
	var passed, failed, broken int
	var skipped []string
	// output is what each test and package has printed so far.
	output := map[[2]string]*strings.Builder{}
	failing := map[string]bool{} // packages with a test that failed

	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Action == "" {
			fmt.Fprintln(out, lines.Text()) // not an event: the go command itself
			continue
		}
		key := [2]string{e.Package, e.Test}
		switch e.Action {
		case "build-output":
			fmt.Fprint(out, e.Output)
		case "build-fail":
			broken++
			fmt.Fprintf(out, "FAIL  %s: does not build\n", e.ImportPath)
		case "output":
			if output[key] == nil {
				output[key] = &strings.Builder{}
			}
			output[key].WriteString(e.Output)
		case "pass", "fail", "skip":
			text := ""
			if b := output[key]; b != nil {
				text = b.String()
			}
			if e.Action == "fail" {
				text = withoutMarks(text)
			}
			delete(output, key)
			seconds := time.Duration(e.Elapsed * float64(time.Second)).Round(10 * time.Millisecond)
			switch {
			case e.Test == "" && e.Action == "skip":
				// A package without tests.
			case e.Test == "" && e.Action == "fail":
				if !failing[e.Package] {
					failed++ // it panicked or ran out of time outside of a test
				}
				for _, k := range unfinished(output, e.Package) {
					fmt.Fprint(out, withoutMarks(output[k].String()))
					delete(output, k)
				}
				fmt.Fprintf(out, "%sFAIL  %s  %v\n", text, e.Package, seconds)
			case e.Test == "":
				fmt.Fprintf(out, "ok    %s  %v\n", e.Package, seconds)
			case e.Action == "pass":
				passed++
			case e.Action == "fail":
				failed++
				failing[e.Package] = true
				fmt.Fprint(out, text)
			case e.Action == "skip":
				skipped = append(skipped, e.Package+" "+e.Test+": "+reason(text))
			}
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(out, "summary:", err)
		broken++
	}
	slices.Sort(skipped)
	for _, s := range skipped {
		fmt.Fprintln(out, "skip ", s)
	}
	line = fmt.Sprintf("%d tests passed, %d failed, %d skipped", passed, failed, len(skipped))
	if broken > 0 {
		line += fmt.Sprintf(", %d packages do not build", broken)
	}
	return line, failed == 0 && broken == 0 && passed > 0
}

// unfinished are the tests of a package that have printed something and did not
// end, in alphabetical order: one of them may have taken the others along.
func unfinished(output map[[2]string]*strings.Builder, pkg string) [][2]string {
	var keys [][2]string
	for k := range output {
		if k[0] == pkg && k[1] != "" {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b [2]string) int { return strings.Compare(a[1], b[1]) })
	return keys
}

// withoutMarks takes out what only machines need: when a test ran and paused,
// and that its package failed, which is said once more below.
func withoutMarks(text string) string {
	var b strings.Builder
	for l := range strings.Lines(text) {
		if !strings.HasPrefix(l, "=== ") && !strings.HasPrefix(l, "FAIL") {
			b.WriteString(l)
		}
	}
	return b.String()
}

// reason is the message of t.Skip in a skipped test's output.
func reason(text string) string {
	for l := range strings.Lines(text) {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "===") || strings.HasPrefix(l, "---") {
			continue
		}
		return l
	}
	return "no reason given"
}
