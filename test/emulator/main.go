// Command emulator runs one of the emulated services until SIGTERM or SIGINT,
// for the tour, the benchmark, and for trying things by hand:
//
//	emulator dropbox --control 127.0.0.1:0
//
// It prints a line "url URL" when it serves, and "control URL" for the control
// address, where any method is taken:
//
//	/counts    what has gone through each route, as JSON
//	/reset     sets the counts to zero
//	/link?latency=20ms&bandwidth=25000000    sets the line to the service
//
// It knows of each service what a line in services says.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// settings are the flags, for whatever service is run.
type settings struct {
	addr, ca, control, token string
	credentials              string
	tls                      bool
	space, bandwidth         int64
	images                   int
	latency                  time.Duration
}

// service is a running emulator.
type service struct {
	url    string
	ca     []byte // PEM, nil without TLS
	counts func() any
	reset  func()
	link   func(latency time.Duration, bandwidth int64)
	close  func()
}

// services are those that can be run, by name.
var services = map[string]func(settings) (*service, error){
	"dropbox": dropbox,
	"gdrive":  gdrive,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "emulator:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	names := make([]string, 0, len(services))
	for name := range services {
		names = append(names, name)
	}
	slices.Sort(names)
	if len(args) == 0 || services[args[0]] == nil {
		return fmt.Errorf("name one of: %s", strings.Join(names, ", "))
	}
	var s settings
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	f.StringVar(&s.addr, "addr", "127.0.0.1:0", "listen `ADDRESS`")
	f.BoolVar(&s.tls, "tls", false, "serve HTTPS for the service's own host names")
	f.StringVar(&s.ca, "ca", "", "write the certificate of its authority to `FILE`, for SSL_CERT_FILE")
	f.StringVar(&s.control, "control", "", "listen on `ADDRESS` for /counts, /reset and /link")
	f.StringVar(&s.token, "token", "emulator", "accept this access `TOKEN`")
	f.StringVar(&s.credentials, "credentials", "", "write what the client logs in with to `FILE` (gdrive)")
	f.Int64Var(&s.space, "space", 0, "the account's size in `BYTES`, 0 for the service's usual")
	f.IntVar(&s.images, "images", 0, "begin with `N` images of some bytes in collections of 1,000 (dropbox)")
	f.DurationVar(&s.latency, "latency", 0, "round trip of each request")
	f.Int64Var(&s.bandwidth, "bandwidth", 0, "`BYTES` a second in each direction, 0 for no limit")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	svc, err := services[args[0]](s)
	if err != nil {
		return err
	}
	defer svc.close()
	if s.ca != "" {
		if svc.ca == nil {
			return errors.New("--ca needs --tls")
		}
		if err := os.WriteFile(s.ca, svc.ca, 0o644); err != nil {
			return err
		}
	}
	if s.control != "" {
		ln, err := net.Listen("tcp", s.control)
		if err != nil {
			return err
		}
		control := &http.Server{Handler: svc.controls(), ReadHeaderTimeout: time.Minute}
		defer control.Close()
		go control.Serve(ln)
		fmt.Println("control", "http://"+ln.Addr().String())
	}
	fmt.Println("url", svc.url)
	<-ctx.Done()
	return nil
}

// controls is what the control address answers.
func (s *service) controls() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/counts", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(s.counts())
	})
	mux.HandleFunc("/reset", func(w http.ResponseWriter, r *http.Request) { s.reset() })
	mux.HandleFunc("/link", func(w http.ResponseWriter, r *http.Request) {
		latency, err := time.ParseDuration(r.FormValue("latency"))
		bandwidth, berr := strconv.ParseInt(r.FormValue("bandwidth"), 10, 64)
		if err := errors.Join(err, berr); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.link(latency, bandwidth)
	})
	return mux
}
