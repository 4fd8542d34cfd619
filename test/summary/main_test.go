package main

import (
	"io"
	"strings"
	"testing"
)

func TestSummarise(t *testing.T) {
	tests := map[string]struct {
		in   []string
		line string
		ok   bool
		says []string // in what is printed
		not  string
	}{
		"all pass": {
			in: []string{
				`{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}`,
				`{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}`,
				`{"Action":"pass","Package":"p","Elapsed":0.2}`,
			},
			line: "1 tests passed, 0 failed, 0 skipped", ok: true,
			says: []string{"ok    p"}, not: "chatter",
		},
		"one fails": {
			in: []string{
				`{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"got 1, want 2\n"}`,
				`{"Action":"fail","Package":"p","Test":"TestA"}`,
				`{"Action":"pass","Package":"p","Test":"TestB"}`,
				`{"Action":"fail","Package":"p"}`,
			},
			line: "1 tests passed, 1 failed, 0 skipped",
			says: []string{"got 1, want 2", "FAIL  p"}, not: "=== RUN",
		},
		"a package dies outside of its tests": {
			in: []string{
				`{"Action":"pass","Package":"p","Test":"TestA"}`,
				`{"Action":"output","Package":"p","Output":"panic: test timed out\n"}`,
				`{"Action":"fail","Package":"p"}`,
			},
			line: "1 tests passed, 1 failed, 0 skipped", says: []string{"panic: test timed out"},
		},
		"a package dies in a test": {
			in: []string{
				`{"Action":"output","Package":"p","Test":"TestB","Output":"=== RUN   TestB\n"}`,
				`{"Action":"output","Package":"p","Test":"TestB","Output":"goroutine 7 [select]:\n"}`,
				`{"Action":"fail","Package":"p"}`,
				`{"Action":"output","Package":"q","Test":"TestB","Output":"chatter\n"}`,
				`{"Action":"pass","Package":"q","Test":"TestB"}`,
			},
			line: "1 tests passed, 1 failed, 0 skipped", says: []string{"goroutine 7", "FAIL  p"}, not: "chatter",
		},
		"a skip tells its reason": {
			in: []string{
				`{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: needs root\n"}`,
				`{"Action":"skip","Package":"p","Test":"TestA"}`,
				`{"Action":"pass","Package":"p","Test":"TestB"}`,
			},
			line: "1 tests passed, 0 failed, 1 skipped", ok: true,
			says: []string{"skip  p TestA: a_test.go:3: needs root"},
		},
		"does not build": {
			in: []string{
				`{"ImportPath":"p","Action":"build-output","Output":"p.go:1: undefined: x\n"}`,
				`{"ImportPath":"p","Action":"build-fail"}`,
				`{"Action":"pass","Package":"q","Test":"TestB"}`,
			},
			line: "1 tests passed, 0 failed, 0 skipped, 1 packages do not build",
			says: []string{"undefined: x"},
		},
		"nothing ran": {
			in:   []string{`{"Action":"skip","Package":"p"}`, "no such flag"},
			line: "0 tests passed, 0 failed, 0 skipped", says: []string{"no such flag"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			line, ok := summarise(strings.NewReader(strings.Join(tt.in, "\n")), &out)
			if line != tt.line || ok != tt.ok {
				t.Errorf("got %q, %v; want %q, %v", line, ok, tt.line, tt.ok)
			}
			for _, s := range tt.says {
				if !strings.Contains(out.String(), s) {
					t.Errorf("%q is not in what it printed:\n%s", s, out.String())
				}
			}
			if tt.not != "" && strings.Contains(out.String(), tt.not) {
				t.Errorf("%q was printed:\n%s", tt.not, out.String())
			}
		})
	}
}

func FuzzSummarise(f *testing.F) {
	f.Add(`{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}`)
	f.Fuzz(func(t *testing.T, s string) {
		line, ok := summarise(strings.NewReader(s), io.Discard)
		if line == "" || ok && !strings.Contains(s, "pass") {
			t.Errorf("%q: got %q, %v", s, line, ok)
		}
	})
}
