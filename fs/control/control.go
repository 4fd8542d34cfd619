// Package control lets the commands of sregfs talk with the daemon that holds
// the cache: HTTP with JSON over a Unix socket in the cache directory, which
// is its owner's alone.
//
// It knows the catalog and nothing of FUSE. Serve is the daemon's side, Dial
// the command's.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/fs/catalog"
)

// socketName is the socket's name in the cache directory.
const socketName = "control.sock"

// Status is what a daemon says of itself.
type Status struct {
	PID     int    `json:"pid"`
	Version string `json:"version"`
	Mount   string `json:"mount"`
	// Device is the device number that files of the mount have, wherever it is
	// seen (st_dev of stat(2)); 0 where it is not known.
	Device   uint64         `json:"device,omitempty"`
	Since    time.Time      `json:"since"`
	ReadOnly bool           `json:"read_only"`
	Clients  []ClientStatus `json:"clients"`
	// Registries are the addresses of those that the mount was given, by their
	// clients' names.
	Registries map[string]string `json:"registries,omitempty"`
	Cache      *CacheStatus      `json:"cache,omitempty"`
	Held       []catalog.Held    `json:"held"`
	Failures   []catalog.Failure `json:"failures"`
	Opens      Opens             `json:"opens"`
}

// Opens counts opens of images since the mount was made, by who serves their
// reads.
type Opens struct {
	// Kernel reads a file of this machine by itself (FUSE passthrough).
	Kernel int64 `json:"kernel"`
	// Daemon answers what the page cache lacks.
	Daemon int64 `json:"daemon"`
}

// ClientStatus is one client's part of Status.
type ClientStatus struct {
	Name        string    `json:"name"`
	Images      int64     `json:"images"`
	Collections int64     `json:"collections"`
	Listed      bool      `json:"listed"`
	Live        bool      `json:"live"`
	At          time.Time `json:"at,omitzero"`
	Error       string    `json:"error,omitempty"`
}

// CacheStatus is the cache's part of Status, in bytes where nothing else is
// said.
type CacheStatus struct {
	Dir            string `json:"dir"`
	Used           int64  `json:"used"`
	Reserved       int64  `json:"reserved"`
	Limit          int64  `json:"limit"`
	Objects        int    `json:"objects"`
	Fetched        int64  `json:"fetched"`
	Hits           int64  `json:"hits"`
	Misses         int64  `json:"misses"`
	Evictions      int64  `json:"evictions"`
	VerifyFailures int64  `json:"verify_failures"`
}

// Server answers commands for one mount.
type Server struct {
	Catalog *catalog.Catalog
	// About is the part of Status that the caller knows.
	About Status
	// Opens counts opens; nil for a mount that does not count them.
	Opens func() Opens
}

// socket is the path of the socket in dir in a form that fits into an address,
// whose 108 bytes (unix(7)) a cache folder's path may well exceed: by way of an
// open descriptor. The path holds until release.
func socket(dir string) (path string, release func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), socketName), func() { d.Close() }, nil
}

// Listen opens the socket in dir for Serve, which closes it. A socket that a
// dead daemon left is replaced: the caller holds the cache's lock.
func Listen(ctx context.Context, dir string) (net.Listener, error) {
	path, release, err := socket(dir)
	if err != nil {
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		release()
		return nil, fmt.Errorf("replace the control socket: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		release()
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		err = errors.Join(err, l.Close())
		release()
		return nil, fmt.Errorf("close the control socket to others: %w", err)
	}
	return &listener{l, release}, nil
}

// listener removes its socket when it is closed, for which it still needs the
// folder's descriptor.
type listener struct {
	net.Listener
	release func()
}

// Close is net.Listener's. It is called once.
func (l *listener) Close() error {
	defer l.release()
	return l.Listener.Close()
}

// Serve answers on l until ctx is done, and closes it.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		reply(w, s.Status(r.Context()), nil)
	})
	mux.HandleFunc("POST /forget", func(w http.ResponseWriter, r *http.Request) {
		var q ForgetRequest
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&q); err != nil {
			reply(w, nil, err)
			return
		}
		reply(w, struct{}{}, s.Catalog.Forget(r.Context(), q.Client, q.Ref, q.Bytes))
	})
	mux.HandleFunc("POST /share", func(w http.ResponseWriter, r *http.Request) {
		var q ShareRequest
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&q); err != nil {
			reply(w, nil, err)
			return
		}
		shared, err := Share(r.Context(), s.Catalog, q)
		reply(w, shared, err)
	})
	return mux
}

// Status gathers what the daemon knows, without asking any remote.
func (s *Server) Status(ctx context.Context) Status {
	st := s.About
	st.PID = os.Getpid()
	for _, cl := range s.Catalog.Clients() {
		l := cl.Listing()
		c := ClientStatus{Name: cl.Name, Listed: l.Known, Live: l.Live}
		if l.Known {
			c.At = l.At
		}
		if l.Err == nil {
			l.Err = cl.Unreachable()
		}
		if l.Err != nil {
			c.Error = l.Err.Error()
		}
		c.Images, c.Collections, _ = s.Catalog.Index().Count(ctx, cl.Name)
		st.Clients = append(st.Clients, c)
	}
	if c := s.Catalog.Cache(); c != nil {
		x := c.Stats()
		cs := CacheStatus{
			Used: x.Used, Reserved: x.Reserved, Limit: x.Limit, Objects: x.Objects, Fetched: x.Fetched,
			Hits: x.Hits, Misses: x.Misses, Evictions: x.Evictions, VerifyFailures: x.VerifyFailures,
		}
		if st.Cache != nil {
			cs.Dir = st.Cache.Dir
		}
		st.Cache = &cs
	}
	if s.Opens != nil {
		st.Opens = s.Opens()
	}
	// Lists without anything in them are [] in JSON, for the scripts that read it.
	st.Held = append([]catalog.Held{}, s.Catalog.Held()...)
	st.Failures = append([]catalog.Failure{}, s.Catalog.Failures()...)
	return st
}

// ForgetRequest holds the arguments of Catalog.Forget.
type ForgetRequest struct {
	Client string       `json:"client,omitempty"`
	Ref    backends.Ref `json:"ref"`
	Bytes  bool         `json:"bytes"`
}

// ShareRequest says what to share, and with whom: by link where Email is "".
type ShareRequest struct {
	Client string       `json:"client,omitempty"`
	Ref    backends.Ref `json:"ref"`
	Email  string       `json:"email,omitempty"`
}

// Shared is what came of a ShareRequest.
type Shared struct {
	// Ref is the image's, as it is stored.
	Ref   backends.Ref   `json:"ref"`
	Share backends.Share `json:"share"`
}

// Share does what q asks for.
func Share(ctx context.Context, cat *catalog.Catalog, q ShareRequest) (Shared, error) {
	cl, img, err := cat.Resolve(ctx, q.Client, q.Ref)
	if err != nil {
		return Shared{}, err
	}
	share, err := cl.Share(ctx, img, q.Email)
	return Shared{img.Ref, share}, err
}

type failure struct {
	Error string `json:"error"`
}

func reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusUnprocessableEntity)
		v = failure{err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // a command that has gone needs no answer
}

// Client talks with a daemon.
type Client struct {
	http http.Client
	pid  int32 // of the daemon, 0 where it is not known
}

// ErrNoDaemon means that nobody answers on the socket.
var ErrNoDaemon = errors.New("no sregfs is mounted with this cache")

// patience is how long a daemon may take to say how it is. One that is stopped, or
// waits for a dead disk, takes for ever.
const patience = 10 * time.Second

// Dial finds the daemon of a cache directory. It fails with ErrNoDaemon.
func Dial(ctx context.Context, dir string) (*Client, error) {
	dial := func(ctx context.Context) (net.Conn, error) {
		path, release, err := socket(dir)
		if err != nil {
			return nil, err
		}
		defer release()
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	conn, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w (%s)", ErrNoDaemon, dir)
	}
	defer conn.Close()
	return &Client{
		http: http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dial(ctx)
			},
		}},
		pid: peer(conn),
	}, nil
}

// peer is the number of the process that listens at the other end, 0 where the
// system does not tell.
func peer(conn net.Conn) (pid int32) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = cred.Pid
		}
	})
	return pid
}

// Status asks the daemon how it is. One that does not answer for ten seconds is an
// error.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := c.do(asking, http.MethodGet, "/status", nil, &st)
	if err != nil && asking.Err() != nil && ctx.Err() == nil {
		return st, fmt.Errorf("the running sregfs, process %d, does not answer", c.pid)
	}
	return st, err
}

// Share has the daemon share an image, by its own credentials.
func (c *Client) Share(ctx context.Context, q ShareRequest) (Shared, error) {
	var shared Shared
	return shared, c.do(ctx, http.MethodPost, "/share", q, &shared)
}

// Forget asks the daemon to forget an image.
func (c *Client) Forget(ctx context.Context, q ForgetRequest) error {
	return c.do(ctx, http.MethodPost, "/forget", q, &struct{}{})
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://sregfs"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the running sregfs: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var f failure
		if err := json.NewDecoder(resp.Body).Decode(&f); err != nil || f.Error == "" {
			return fmt.Errorf("the running sregfs answered %s", resp.Status)
		}
		return errors.New(f.Error)
	}
	return json.NewDecoder(resp.Body).Decode(out)
}
