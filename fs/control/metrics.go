package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// ListenMetrics opens the address at which ServeMetrics answers: HOST:PORT,
// where a port alone, with or without its colon, is on the loopback interface.
// To let other machines in, an address must say so, such as 0.0.0.0:9100.
func ListenMetrics(ctx context.Context, address string) (net.Listener, error) {
	if !strings.Contains(address, ":") {
		address = ":" + address
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("the address for metrics: %w", err)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("open the address for metrics: %w", err)
	}
	return l, nil
}

// ServeMetrics answers GET /metrics on l, in Prometheus' text format, until ctx
// is done. It closes l. What it tells holds no image's name and no secret.
func (s *Server) ServeMetrics(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		writeMetrics(w, s.Status(r.Context()))
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// writeMetrics writes a status in the text exposition format 0.0.4
// (https://prometheus.io/docs/instrumenting/exposition_formats/).
func writeMetrics(w io.Writer, st Status) {
	family := func(name, kind, help string) {
		fmt.Fprintf(w, "# HELP sregfs_%s %s\n# TYPE sregfs_%[1]s %[3]s\n", name, help, kind)
	}
	one := func(name, kind, help string, v int64) {
		family(name, kind, help)
		fmt.Fprintf(w, "sregfs_%s %d\n", name, v)
	}
	family("build_info", "gauge", "The running version.")
	fmt.Fprintf(w, "sregfs_build_info{version=%s} 1\n", label(st.Version))
	one("start_time_seconds", "gauge", "When it was mounted, in Unix time.", st.Since.Unix())

	clients := func(name, help string, value func(ClientStatus) int64) {
		family(name, "gauge", help)
		for _, c := range st.Clients {
			fmt.Fprintf(w, "sregfs_%s{client=%s} %d\n", name, label(c.Name), value(c))
		}
	}
	clients("client_images", "Images on record.", func(c ClientStatus) int64 { return c.Images })
	clients("client_collections", "Collections on record.", func(c ClientStatus) int64 { return c.Collections })
	clients("client_listed", "Whether its listing is known.", func(c ClientStatus) int64 { return number(c.Listed) })
	clients("client_live", "Whether its changes are followed.", func(c ClientStatus) int64 { return number(c.Live) })
	clients("client_trouble", "Whether its last listing failed.", func(c ClientStatus) int64 { return number(c.Error != "") })

	if c := st.Cache; c != nil {
		one("cache_used_bytes", "gauge", "Bytes that cached objects take.", c.Used)
		one("cache_reserved_bytes", "gauge", "Bytes that are held for what is being pushed.", c.Reserved)
		one("cache_limit_bytes", "gauge", "The limit of both.", c.Limit)
		one("cache_objects", "gauge", "Objects on disk, whole or in part.", int64(c.Objects))
		one("cache_fetched_bytes_total", "counter", "Bytes of content that came over the network.", c.Fetched)
		one("cache_hits_total", "counter", "Reads that needed nothing from outside.", c.Hits)
		one("cache_misses_total", "counter", "Reads that did.", c.Misses)
		one("cache_evictions_total", "counter", "Objects that made room for others.", c.Evictions)
		one("cache_verify_failures_total", "counter", "Whole objects that did not match their checksum.", c.VerifyFailures)
	}

	family("opens_total", "counter", "Opens of images, by who serves their reads.")
	fmt.Fprintf(w, "sregfs_opens_total{by=\"kernel\"} %d\nsregfs_opens_total{by=\"daemon\"} %d\n", st.Opens.Kernel, st.Opens.Daemon)

	held, bytes := map[string]int64{}, int64(0)
	for _, h := range st.Held {
		held[h.State]++
		bytes += h.Bytes
	}
	family("held_files", "gauge", "Files on this disk that are not on the remote, by state.")
	for _, state := range []string{"writing", "ready", "uploading", "failed", "orphan"} {
		fmt.Fprintf(w, "sregfs_held_files{state=%s} %d\n", label(state), held[state])
	}
	one("held_bytes", "gauge", "Their bytes.", bytes)

	one("recent_failures", "gauge", "Different failures that sregfs status shows.", int64(len(st.Failures)))
}

func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// label quotes a label's value.
func label(v string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(v) + `"`
}
