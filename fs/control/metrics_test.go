package control

import (
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sregfs/sregfs/fs/catalog"
)

func TestListenMetrics(t *testing.T) {
	for address, loopback := range map[string]bool{
		"0": true, ":0": true, "localhost:0": true, "127.0.0.1:0": true, "0.0.0.0:0": false,
	} {
		l, err := ListenMetrics(t.Context(), address)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		if got := l.Addr().(*net.TCPAddr).IP; got.IsLoopback() != loopback {
			t.Errorf("%s listens on %s", address, got)
		}
		l.Close()
	}
	for _, address := range []string{"a:b:c", "127.0.0.1:port"} {
		if l, err := ListenMetrics(t.Context(), address); err == nil {
			t.Errorf("%q was taken", address)
			l.Close()
		}
	}
}

// TestWriteMetrics: every line is one of the format's, each sample stands
// under its own header, and the numbers are those of the status.
func TestWriteMetrics(t *testing.T) {
	var b strings.Builder
	writeMetrics(&b, Status{
		Version: "v1\"\\\n", Since: time.Unix(42, 0),
		Clients:  []ClientStatus{{Name: "dropbox", Images: 7, Live: true}, {Name: "local", Error: "secret path"}},
		Opens:    Opens{Kernel: 8},
		Cache:    &CacheStatus{Used: 1 << 40, Hits: 3},
		Held:     []catalog.Held{{State: "failed", Bytes: 5, Image: "pusheen/a:red"}, {State: "failed", Bytes: 6}},
		Failures: []catalog.Failure{{What: "secret"}},
	})
	text := b.String()
	sample := regexp.MustCompile(`^([a-z_]+)(\{[a-z]+="([^"\\]|\\.)*"\})? \d+$`)
	name := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name = strings.Fields(rest)[0]
			continue
		}
		if strings.HasPrefix(line, "# HELP ") {
			continue
		}
		if m := sample.FindStringSubmatch(line); m == nil || m[1] != name {
			t.Errorf("under %s: %q", name, line)
		}
	}
	for _, want := range []string{
		`sregfs_build_info{version="v1\"\\\n"} 1`, "sregfs_start_time_seconds 42", `sregfs_client_images{client="dropbox"} 7`,
		`sregfs_client_trouble{client="local"} 1`, "sregfs_cache_used_bytes 1099511627776", `sregfs_opens_total{by="kernel"} 8`, `sregfs_held_files{state="failed"} 2`, "sregfs_held_bytes 11",
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("lacks %s", want)
		}
	}
	for _, not := range []string{"secret", "pusheen"} {
		if strings.Contains(text, not) {
			t.Errorf("tells %q", not)
		}
	}
}
