package main

import (
	"encoding/json"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// report is one run.
type report struct {
	Machine string `json:"machine"`
	Version string `json:"version"`
	// Rivals are versions, by program.
	Rivals      map[string]string `json:"rivals"`
	Began       time.Time         `json:"began"`
	Repetitions int               `json:"repetitions"`
	Rows        []result          `json:"rows"`
}

func describeMachine() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return runtime.GOARCH
	}
	return fmt.Sprintf("Linux %s, %s, %d CPUs", unix.ByteSliceToString(u.Release[:]), runtime.GOARCH, runtime.NumCPU())
}

// called is a contestant with its program's version: "rclone 1.76.0 mount".
func (r report) called(contestant string) string {
	program, rest, _ := strings.Cut(contestant, " ")
	if v := r.Rivals[program]; v != "" {
		return strings.TrimSpace(program + " " + v + " " + rest)
	}
	return contestant
}

// table is the report for a terminal: a line for each contestant.
func (r report) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nsregfs %s on %s, medians of %d\n\n", r.Version, r.Machine, r.Repetitions)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "row\tcontestant\ttime\tover sregfs\tnetwork\trequests\tmemory\tdisk\tgoal")
	for _, row := range r.Rows {
		name := row.Name
		for i, e := range row.Entries {
			goal := ""
			if i == 0 {
				goal = verdict(row) + ": " + row.Goal
			}
			ratio := "-"
			if e.Ratio > 0 {
				ratio = fmt.Sprintf("%.2f", e.Ratio)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, r.called(e.Name), seconds(e.Median.Seconds), ratio,
				orDash(e.Median.Bytes, size), orDash(e.Median.Requests, func(n int64) string { return fmt.Sprint(n) }),
				orDash(e.Median.Memory, size), orDash(e.Median.Disk, size), goal)
			name = ""
		}
		if len(row.Entries) == 0 {
			fmt.Fprintf(w, "%s\t\t\t\t\t\t\t\t%s: %s\n", name, verdict(row), row.Goal)
		}
	}
	w.Flush()
	for _, row := range r.Rows {
		if row.Failure != "" {
			fmt.Fprintf(&b, "\n%s: %s\n", row.Name, row.Failure)
		}
	}
	return b.String()
}

func verdict(r result) string {
	switch {
	case r.Failure != "":
		return "FAILED"
	case r.Met:
		return "met"
	}
	return "MISSED"
}

func orDash(n int64, f func(int64) string) string {
	if n == 0 {
		return "-"
	}
	return f(n)
}

// save writes the report as JSON, picture and text: under its date, and as the
// latest.
func (r report) save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	j, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	for _, name := range []string{"latest", r.Began.UTC().Format("20060102T150405Z")} {
		for ext, content := range map[string]string{"json": string(j) + "\n", "svg": r.svg(), "txt": r.table()} {
			if err := os.WriteFile(filepath.Join(dir, name+"."+ext), []byte(content), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// The plot's measures, in pixels.
const (
	plotWidth  = 1060
	nameWidth  = 250 // of contestants' names
	barWidth   = 470 // of the longest bar of a row
	barHeight  = 16
	rowPadding = 46 // title and gap of a row
)

// svg draws a bar for each contestant's time, each row on a scale of its own.
// sregfs is blue where it meets the row's goal and red where it does not.
func (r report) svg() string {
	height := 60
	for _, row := range r.Rows {
		height += rowPadding + len(row.Entries)*(barHeight+4)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n",
		plotWidth, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	text := func(x, y int, style, s string) {
		fmt.Fprintf(&b, `<text x="%d" y="%d" %s>%s</text>`+"\n", x, y, style, html.EscapeString(s))
	}
	text(12, 24, `font-size="16" font-weight="bold"`, "sregfs "+r.Version+": time for each piece of work, shorter is better")
	text(12, 42, `fill="#555"`, fmt.Sprintf("%s, medians of %d, %s", r.Machine, r.Repetitions, r.Began.UTC().Format("2 January 2006")))
	y := 60
	for _, row := range r.Rows {
		y += 20
		text(12, y, `font-weight="bold"`, row.Name)
		text(12+nameWidth, y, `fill="#333"`, row.What)
		longest := 0.0
		for _, e := range row.Entries {
			longest = max(longest, e.Median.Seconds)
		}
		y += 6
		for i, e := range row.Entries {
			colour := "#b8bec6"
			if own := i == 0 || strings.HasPrefix(e.Name, "sregfs"); own && row.Met {
				colour = "#2563a8"
			} else if own {
				colour = "#c0392b"
			}
			width := 1
			if longest > 0 {
				width = max(1, int(e.Median.Seconds/longest*barWidth))
			}
			text(24, y+barHeight-4, "", r.called(e.Name))
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"/>`+"\n", 12+nameWidth, y, width, barHeight, colour)
			label := seconds(e.Median.Seconds)
			if e.Median.Bytes > 0 {
				label += ", " + size(e.Median.Bytes)
			}
			if e.Median.Memory > 0 {
				label += ", " + size(e.Median.Memory) + " memory"
			}
			if i > 0 && e.Ratio > 0 {
				label += fmt.Sprintf(" (%.2f x)", e.Ratio)
			}
			text(12+nameWidth+width+6, y+barHeight-4, `fill="#333"`, label)
			y += barHeight + 4
		}
		text(12+nameWidth, y+12, `fill="#777" font-size="11"`, verdict(row)+": "+row.Goal)
		y += rowPadding - 26
	}
	b.WriteString("</svg>\n")
	return b.String()
}
