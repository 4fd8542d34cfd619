package catalog

import (
	"context"
	"errors"
	iofs "io/fs"
	"strings"
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/index"
)

// silent is a store that answers nothing.
type silent struct{ backends.Store }

func (silent) Stat(ctx context.Context, _ backends.Ref) (backends.Image, error) {
	<-ctx.Done()
	return backends.Image{}, context.Cause(ctx)
}

// TestForget: a record goes without a store being asked, also that of an image
// which is gone and that of a client which is not set up.
func TestForget(t *testing.T) {
	c := open(t, t.TempDir(), map[string]backends.Store{"one": silent{backendtest.Memory()}, "two": silent{backendtest.Memory()}})
	green, blue := red, red
	green.Tag, blue.Tag = "green", "blue"
	for _, r := range []index.Record{
		{Client: "one", Collection: red.Collection, Name: red.Name, Tag: red.Tag},
		{Client: "two", Collection: red.Collection, Name: red.Name, Tag: red.Tag},
		{Client: "two", Collection: red.Collection, Name: red.Name, Tag: green.Tag},
		{Client: "hub", Collection: red.Collection, Name: red.Name, Tag: blue.Tag},
	} {
		if _, _, err := c.Index().PutRecord(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []struct {
		client string
		ref    backends.Ref
		want   string // in the error
	}{
		{"", red, "several clients have it: one://pusheen/asaurus:red, two://pusheen/asaurus:red"},
		{"one", green, "no record"},
		{"one", red, ""},
		{"one", red, "no record"},
		{"", red, ""},
		{"", green, ""},
		{"hub", blue, ""},
		{"", blue, "no record"},
	} {
		err := c.Forget(t.Context(), f.client, f.ref, false)
		if (err == nil) != (f.want == "") || err != nil && !strings.Contains(err.Error(), f.want) {
			t.Errorf("Forget(%q, %s) = %v, want %q", f.client, f.ref, err, f.want)
		}
	}
	if left, err := c.Index().Records(t.Context(), ""); err != nil || len(left) != 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// TestForgetBytes: the record of an image that is gone goes, that of one which
// nobody can tell stays.
func TestForgetBytes(t *testing.T) {
	one, two := backendtest.Memory(), silent{backendtest.Memory()}
	c := open(t, t.TempDir(), map[string]backends.Store{"one": one, "two": two})
	for _, client := range []string{"one", "two"} {
		if _, _, err := c.Index().PutRecord(t.Context(), index.Record{Client: client, Collection: red.Collection, Name: red.Name, Tag: red.Tag}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Forget(t.Context(), "one", red, true); err != nil {
		t.Errorf("Forget of an image that is gone = %v", err)
	}
	if err := c.Forget(t.Context(), "one", red, true); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("Forget of what there is nothing of = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Forget(ctx, "two", red, true); err == nil {
		t.Error("Forget of bytes that nobody can tell = nil")
	}
	if names, err := c.Index().RecordClients(t.Context(), red); err != nil || len(names) != 1 || names[0] != "two" {
		t.Errorf("records are left of %q, %v; want two", names, err)
	}
}
