package control

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/fs/catalog"
	"github.com/sregfs/sregfs/index"
)

// TestStatusAndForget asks a daemon whose folder has a path too long for a
// socket's address.
func TestStatusAndForget(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30), "cache")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNoDaemon) {
		t.Fatalf("Dial with no daemon = %v", err)
	}
	log := slog.New(slog.DiscardHandler)
	x, err := index.Open(t.Context(), index.Options{Database: filepath.Join(dir, "sregistry.db"), State: filepath.Join(dir, "state.db"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	m := backendtest.Memory()
	ref := backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "red"}
	m.Put(ref, []byte("image"), nil)
	cat, err := catalog.New(map[string]backends.Store{"mem": m}, catalog.Options{Index: x, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer cat.Close()
	if err := cat.Client("mem").Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, socketName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- (&Server{Catalog: cat, About: Status{Mount: "/mnt", Version: "1"}}).Serve(ctx, l) }()
	c, err := Dial(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	st, err := c.Status(t.Context())
	if err != nil || st.Mount != "/mnt" || len(st.Clients) != 1 || st.Clients[0].Images != 1 {
		t.Errorf("Status = %+v, %v", st, err)
	}
	if err := c.Forget(t.Context(), ForgetRequest{Client: "mem", Ref: backends.Ref{Collection: "pusheen", Name: "asaurus", Tag: "blue"}}); err == nil || !strings.Contains(err.Error(), "asaurus:blue") {
		t.Errorf("Forget of what is not there = %v", err)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, socketName)); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}
