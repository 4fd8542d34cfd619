package main

import (
	"archive/tar"
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// sampleReport has a row that is met, one that is missed and one that failed.
func sampleReport() report {
	return report{
		Machine: "Linux 6.18, amd64, 2 CPUs", Version: "v1", Began: time.Unix(0, 0), Repetitions: 3,
		Rivals: map[string]string{"rclone": "1.76.0"},
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
	for _, want := range []string{"met: 1 % & no more", "MISSED: 1.0", "FAILED: any", "no such program", "10.00", "71.0 MB", "200 ms", "rclone 1.76.0 mount"} {
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

func TestVersionIn(t *testing.T) {
	for said, want := range map[string]string{
		"rclone v1.76.0\n- os/version: debian 12": "1.76.0",
		"apptainer version 1.4.5":                 "1.4.5",
		"curl 7.88.1 (x86_64) libcurl/7.88.1":     "7.88.1",
		"no such thing":                           "",
	} {
		if got := versionIn(said); got != want {
			t.Errorf("%q: %q, want %q", said, got, want)
		}
	}
}

func TestReceivedOn(t *testing.T) {
	const table = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets
    lo: 208465112    4035    0    0    0     0          0         0 208465113    4035
  eth0:       7       1    0    0    0     0          0         0        0       0
`
	if n, err := receivedOn("lo", table); n != 208465112 || err != nil {
		t.Errorf("lo: %d, %v", n, err)
	}
	if _, err := receivedOn("wlan0", table); err == nil {
		t.Error("wlan0: no error")
	}
}

// TestLine sends through a line what comes back doubled, on two connections.
func TestLine(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(c)
				c.Write(append(b, b...))
			}()
		}
	}()
	ln, err := newLine(server.Addr().String(), link{rtt: time.Millisecond, mbit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.close()
	const n = 300_000
	for range 2 {
		c, err := net.Dial("tcp", ln.addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		sent := bytes.Repeat([]byte("a line"), n/6)
		go func() {
			c.Write(sent)
			c.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, append(sent, sent...)) {
			t.Errorf("%d bytes came back, %v", len(got), err)
		}
	}
	if got := ln.bytes.Load(); got != 2*3*n {
		t.Errorf("the line counted %d bytes, want %d", got, 2*3*n)
	}
	// One that is left open does not keep the line from closing.
	if _, err := net.Dial("tcp", ln.addr()); err != nil {
		t.Fatal(err)
	}
}

// TestContents: the registry's images are made of the same bytes each time, and
// the lazy one says where its table of contents is to be trusted.
func TestContents(t *testing.T) {
	l := &lab{tmp: t.TempDir()}
	for name, fill := range map[string]func(*tar.Writer) error{
		"system": func(w *tar.Writer) error { return addSystem(w, l) }, "files": fewFiles} {
		var made [][]byte
		for range 2 {
			path, err := archive(l, fill)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			made = append(made, b)
		}
		if !bytes.Equal(made[0], made[1]) {
			t.Errorf("%s: made twice, it is not the same", name)
		}
	}
	path, err := archive(l, fewFiles)
	if err != nil {
		t.Fatal(err)
	}
	for _, lazy := range []bool{false, true} {
		add, err := (&content{lazy: lazy}).layer(path)
		if err != nil {
			t.Fatal(err)
		}
		if pinned := add.Annotations[estargz.TOCJSONDigestAnnotation] != ""; pinned != lazy {
			t.Errorf("lazy %v: annotations %v", lazy, add.Annotations)
		}
	}
}

func fewFiles(w *tar.Writer) error {
	return fillTar(w, 3, func(*rand.Rand) int { return 5000 })
}
