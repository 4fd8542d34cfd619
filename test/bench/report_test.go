package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// sampleReport has a row that is met, one that is missed and one that failed.
func sampleReport() report {
	return report{
		Machine: "Linux 6.18, amd64, 2 CPUs", Version: "v1", Began: time.Unix(0, 0), Repetitions: 3,
		Rows: []result{
			{Name: "lazy", What: "a <cold> start", Goal: "1 % & no more", Met: true, Entries: []summary{
				{Name: "sregfs", Median: sample{Seconds: 0.2, Bytes: 1_500_000, Requests: 7}, Ratio: 1},
				{Name: "rclone mount", Median: sample{Seconds: 2, Bytes: 71_000_000}, Ratio: 10},
			}},
			{Name: "push", What: "a copy", Goal: "1.0", Entries: []summary{{Name: "sregfs", Median: sample{Seconds: 5}, Ratio: 1}}},
			{Name: "broken", What: "nothing", Goal: "any", Failure: "no such program"},
		},
	}
}

func TestTable(t *testing.T) {
	table := sampleReport().table()
	for _, want := range []string{"met: 1 % & no more", "MISSED: 1.0", "FAILED: any", "no such program", "10.00", "71.0 MB", "200 ms"} {
		if !strings.Contains(table, want) {
			t.Errorf("%q is not in the table:\n%s", want, table)
		}
	}
}

func TestPlotIsXML(t *testing.T) {
	svg := sampleReport().svg()
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
	}
	if bars := strings.Count(svg, "<rect "); bars != 1+3 {
		t.Errorf("got %d rectangles, want the ground and 3 bars", bars)
	}
}

func TestMedian(t *testing.T) {
	got := median([]sample{{Seconds: 3, Bytes: 10}, {Seconds: 1, Bytes: 30}, {Seconds: 2, Bytes: 20}})
	if want := (sample{Seconds: 2, Bytes: 20}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := median([]sample{{Seconds: 1}, {Seconds: 2}}).Seconds; got != 1.5 {
		t.Errorf("of two: got %v, want 1.5", got)
	}
}
