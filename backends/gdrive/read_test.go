package gdrive

import (
	"bytes"
	"context"
	"errors"
	"io"
	iofs "io/fs"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/gdrive/gdrivetest"
)

// TestReadCosts: a range is one request where Drive gives revisions, and two
// where it does not; the refusal is remembered.
func TestReadCosts(t *testing.T) {
	t.Parallel()
	data := random(1000)
	for name, c := range map[string]struct {
		opts gdrivetest.Options
		want map[string]int // requests for two ranges
	}{
		"revisions": {gdrivetest.Options{}, map[string]int{"revisions.get.media": 2}},
		"strict":    {gdrivetest.Options{StrictRevisions: true}, map[string]int{"revisions.get.media": 1, "files.get.media": 2, "files.get": 2}},
	} {
		a := newAccount(t, c.opts)
		a.add(python("vsoch/hello-world:pancakes.simg", data))
		s := a.open()
		img := stat(t, s, ref)
		a.ResetCounts()
		for range 2 {
			if got, err := read(s, t.Context(), img, 10, 20); err != nil || !bytes.Equal(got, data[10:30]) {
				t.Fatalf("%s: %d bytes, %v", name, len(got), err)
			}
		}
		total := 0
		for method, n := range c.want {
			total += n
			if got := a.Counts()[method].Requests; got != n {
				t.Errorf("%s: %d requests %s, want %d", name, got, method, n)
			}
		}
		if got := a.Total().Requests; got != total {
			t.Errorf("%s: %d requests, want %d: %v", name, got, total, a.Counts())
		}
	}
}

// TestReplacedUnderReader: what is read of an image that was replaced is the
// old content or ErrStale, however Drive treats revisions, and also when the
// replacement falls between the answer's beginning and the look at the head.
func TestReplacedUnderReader(t *testing.T) {
	t.Parallel()
	old, now := random(1000), bytes.Repeat([]byte{7}, 1000)
	for name, c := range map[string]struct {
		opts     gdrivetest.Options
		readOnly bool
		purge    bool
		on       string // replaced when this is asked for; "" for before
		want     error
	}{
		"before":                 {},
		"before, purged":         {purge: true, want: backends.ErrStale},
		"before, strict":         {opts: gdrivetest.Options{StrictRevisions: true}},
		"before, strict, purged": {opts: gdrivetest.Options{StrictRevisions: true}, purge: true, want: backends.ErrStale},
		"between, strict":        {opts: gdrivetest.Options{StrictRevisions: true}, on: "files.get.media"},
		"after, strict":          {opts: gdrivetest.Options{StrictRevisions: true}, on: "files.get"},
		"read-only":              {readOnly: true, want: backends.ErrStale},
		"read-only, between":     {readOnly: true, on: "files.get.media", want: backends.ErrStale},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAccount(t, c.opts)
			id := a.add(python("vsoch/hello-world:pancakes.simg", old))
			if c.readOnly {
				check(t, a.SetReadOnly(id))
			}
			s := a.open()
			img := stat(t, s, ref)
			if img.ReadOnly != c.readOnly {
				t.Fatalf("ReadOnly is %v", img.ReadOnly)
			}
			var once sync.Once
			replace := func() {
				once.Do(func() {
					check(t, a.Replace(id, now))
					if c.purge {
						check(t, a.PurgeRevisions(id))
					}
				})
			}
			if c.on == "" {
				replace()
			}
			a.SetFaults(func(r gdrivetest.Request) gdrivetest.Fault {
				if r.Method == c.on {
					replace()
				}
				return gdrivetest.Fault{}
			})
			got, err := read(s, t.Context(), img, 100, 300)
			switch {
			case c.want != nil:
				wantKind(t, err, c.want, "read")
			case err != nil || !bytes.Equal(got, old[100:400]):
				t.Errorf("read %x…, %v; want the old bytes", got[:min(4, len(got))], err)
			}
		})
	}
}

// TestReadFaults: what a reader is told of a body that breaks, and of refusals.
func TestReadFaults(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	data := random(100_000)
	a.add(python("vsoch/hello-world:pancakes.simg", data))
	evil := a.add(gdrivetest.Seed{Name: "vsoch/evil:1.simg", Abusive: true, Content: data, Properties: map[string]string{"type": "container"}})
	s := a.open()
	img := stat(t, s, ref)
	const media = "revisions.get.media"
	for name, c := range map[string]struct {
		fault gdrivetest.Fault
		want  error
	}{
		"cut":     {gdrivetest.Fault{Kind: gdrivetest.CutResponse, At: 5000}, io.ErrUnexpectedEOF},
		"quota":   {gdrivetest.Fault{Status: 403, Reason: "downloadQuotaExceeded"}, backends.ErrQuota},
		"refused": {gdrivetest.Fault{Status: 401, Reason: "authError"}, backends.ErrAuth},
	} {
		a.on(media, 1, 99, c.fault)
		got, err := read(s, t.Context(), img, 0, -1)
		wantKind(t, err, c.want, name)
		if !bytes.Equal(got, data[:len(got)]) || len(got) > 5000 {
			t.Errorf("%s: %d bytes, of which some are wrong", name, len(got))
		}
	}
	// A passing fault is not seen.
	a.on(media, 1, 1, gdrivetest.Fault{Status: 403, Reason: "rateLimitExceeded"})
	if got, err := read(s, t.Context(), img, 0, -1); err != nil || !bytes.Equal(got, data) {
		t.Errorf("after a rate limit: %d bytes, %v", len(got), err)
	}
	// A stall ends with its reader.
	a.on(media, 1, 1, gdrivetest.Fault{Kind: gdrivetest.StallResponse, At: 5000})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := read(s, ctx, img, 0, -1)
	wantKind(t, err, context.DeadlineExceeded, "stall")
	a.SetFaults(nil)
	bad, err := s.Find(t.Context(), evil)
	check(t, err)
	_, err = read(s, t.Context(), bad, 0, -1)
	wantKind(t, err, iofs.ErrPermission, "malware")
}

// TestWrongRange: an answer with another range than was asked for is not
// content.
func TestWrongRange(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	a.add(python("vsoch/hello-world:pancakes.simg", random(1000)))
	st := a.settings()
	st.Transport = rangeless{}
	s, err := Open(t.Context(), st)
	check(t, err)
	img := stat(t, s, ref)
	if got, err := read(s, t.Context(), img, 0, -1); err != nil || len(got) != 1000 {
		t.Errorf("all of it: %d bytes, %v", len(got), err)
	}
	_, err = read(s, t.Context(), img, 10, 20)
	wantKind(t, err, backends.ErrUnreachable, "a range")
}

// rangeless is a proxy that does not know ranges.
type rangeless struct{}

func (rangeless) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Del("Range")
	return http.DefaultTransport.RoundTrip(req)
}

// TestTokenLife: tokens that expire every moment are renewed on the way.
func TestTokenLife(t *testing.T) {
	t.Parallel()
	a := newAccount(t, gdrivetest.Options{})
	s := a.open()
	data := random(700_000)
	u, err := s.Begin(t.Context(), ref, "")
	check(t, err)
	for off := int64(0); off+u.PartSize() <= int64(len(data)); off += u.PartSize() {
		a.ExpireTokens()
		check(t, u.Part(t.Context(), off, bytes.NewReader(data)))
	}
	a.ExpireTokens()
	img, err := u.Commit(t.Context(), bytes.NewReader(data), int64(len(data)), content(data, nil))
	check(t, err)
	a.ExpireTokens()
	if got, err := read(s, t.Context(), img, 0, -1); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	a.Revoke()
	_, err = s.Stat(t.Context(), ref)
	wantKind(t, err, backends.ErrAuth, "Stat without consent")
	if errors.Is(err, iofs.ErrNotExist) {
		t.Error("who may not ask is told that there is nothing")
	}
}
