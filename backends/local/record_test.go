package local

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	iofs "io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// server serves one image, with or without ranges.
type server struct {
	*httptest.Server
	mu       sync.Mutex
	data     []byte
	etag     string
	noRanges bool
	status   int
	sent     int
}

func newServer(t *testing.T, data string) *server {
	s := &server{data: []byte(data), etag: `"1"`}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.status != 0 {
			w.WriteHeader(s.status)
			return
		}
		if s.noRanges {
			r.Header.Del("Range")
		}
		sum := md5.Sum(s.data)
		w.Header().Set("X-Goog-Hash", "crc32c=AAAAAA==,md5="+base64.StdEncoding.EncodeToString(sum[:]))
		w.Header().Set("ETag", s.etag)
		http.ServeContent(countWriter{w, &s.sent}, r, "", time.Time{}, bytes.NewReader(s.data))
	}))
	t.Cleanup(s.Close)
	return s
}

type countWriter struct {
	http.ResponseWriter
	n *int
}

func (w countWriter) Write(p []byte) (int, error) { *w.n += len(p); return w.ResponseWriter.Write(p) }

func TestRecord(t *testing.T) {
	for _, noRanges := range []bool{false, true} {
		data := strings.Repeat("0123456789", 10_000)
		srv := newServer(t, data)
		srv.noRanges = noRanges
		dir := t.TempDir()
		s := open(t, dir, Options{})
		r := parse(t, "vsoch/hello:x")
		u := strings.Replace(srv.URL, "http://", "http://user:sekret@", 1) + "/image"
		img, err := s.Record(t.Context(), r, u)
		if err != nil {
			t.Fatal(err)
		}
		sum := md5.Sum([]byte(data))
		if img.Ref != r || img.Size != int64(len(data)) || img.Version != hex.EncodeToString(sum[:]) || strings.Contains(img.URL, "sekret") {
			t.Errorf("Record = %+v", img)
		}
		if info, err := os.Stat(filepath.Join(dir, "vsoch/hello:x.url")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the record's file: %v, %v", info, err)
		}
		if got, _ := listed(t, s); !maps.Equal(got, map[string]string{"vsoch/hello:x": "/vsoch/hello:x.url"}) {
			t.Errorf("listed %v", got)
		}
		if !noRanges && srv.sent > 1 {
			t.Errorf("recording fetched %d bytes", srv.sent)
		}
		if now, err := s.Stat(t.Context(), r); err != nil || now.Revision != img.Revision {
			t.Errorf("Stat = %+v, %v", now, err)
		}
		for _, c := range []struct{ off, n, from, to int64 }{{0, -1, 0, 100_000}, {5, 3, 5, 8}, {99_995, 100, 99_995, 100_000}, {100_000, 5, 0, 0}, {200_000, -1, 0, 0}} {
			rc, err := s.OpenRange(t.Context(), img, c.off, c.n)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(rc); string(got) != data[c.from:c.to] || err != nil {
				t.Errorf("ranges %v: OpenRange(%d, %d) = %d bytes, %v", !noRanges, c.off, c.n, len(got), err)
			}
			rc.Close()
		}
		if _, err := s.LocalFile(t.Context(), img); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("LocalFile = %v, want ErrUnsupported", err)
		}
	}
}

// TestRecordChanges: when the server has something else, that is stale once,
// and new after.
func TestRecordChanges(t *testing.T) {
	srv := newServer(t, "the first")
	s := open(t, t.TempDir(), Options{})
	r := parse(t, "c/i:x")
	img, err := s.Record(t.Context(), r, srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	srv.mu.Lock()
	srv.data, srv.etag = []byte("2nd, new!"), `"2"`
	srv.mu.Unlock()
	if got, err := read(t, s, img); !errors.Is(err, backends.ErrStale) {
		t.Errorf("reading the old version = %q, %v; want ErrStale", got, err)
	}
	now, err := s.Stat(t.Context(), r)
	if err != nil || now.Revision == img.Revision {
		t.Fatalf("Stat = %+v, %v", now, err)
	}
	if got, err := read(t, s, now); got != "2nd, new!" || err != nil {
		t.Errorf("reading the new version = %q, %v", got, err)
	}
}

// TestRecordOtherRange: what a server gives in place of the range that was asked
// for is not taken for it.
func TestRecordOtherRange(t *testing.T) {
	const data = "0123456789"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A cache on the way that has the first half, and gives what it has.
		w.Header().Set("Content-Range", "bytes 0-4/10")
		w.WriteHeader(http.StatusPartialContent)
		io.WriteString(w, data[:5])
	}))
	t.Cleanup(srv.Close)
	s := open(t, t.TempDir(), Options{})
	img, err := s.Record(t.Context(), parse(t, "c/i:x"), srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 5} {
		rc, err := s.OpenRange(t.Context(), img, off, 5)
		if err != nil {
			if off == 0 || !errors.Is(err, backends.ErrUnreachable) {
				t.Errorf("OpenRange(%d) = %v", off, err)
			}
			continue
		}
		if got, err := io.ReadAll(rc); string(got) != data[off:off+5] || err != nil {
			t.Errorf("OpenRange(%d) reads as %q, %v", off, got, err)
		}
		rc.Close()
	}
}

func TestRecordGivesWayToFiles(t *testing.T) {
	srv := newServer(t, "from afar")
	s := open(t, t.TempDir(), Options{})
	r := parse(t, "c/i:x")
	rec, err := s.Record(t.Context(), r, srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	// A rename takes the record along.
	if rec, err = s.Rename(t.Context(), rec, parse(t, "d/j:x")); err != nil || rec.Key != "/d/j:x.url" {
		t.Fatalf("Rename = %+v, %v", rec, err)
	}
	r = rec.Ref
	if got, err := read(t, s, rec); got != "from afar" || err != nil {
		t.Errorf("after the rename it reads as %q, %v", got, err)
	}
	// A pull, as it were: the file replaces its record.
	img, err := pushAs(t.Context(), s, r, "here", &rec)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := listed(t, s); !maps.Equal(got, map[string]string{"d/j:x": "/d/j:x.simg"}) {
		t.Errorf("after the push %v", got)
	}
	// A record for what is here leaves it alone.
	again, err := s.Record(t.Context(), r, srv.URL+"/other")
	if err != nil || again.Revision != img.Revision || again.URL != srv.URL+"/other" {
		t.Errorf("Record of an image that is here = %+v, %v", again, err)
	}
	rec, err = s.Record(t.Context(), parse(t, "d/k:x"), srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), rec.Ref); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("Stat of a removed record = %v", err)
	}
}

func TestRecordFails(t *testing.T) {
	srv := newServer(t, "x")
	s := open(t, t.TempDir(), Options{})
	r := parse(t, "c/i:x")
	for status, kind := range map[int]error{404: iofs.ErrNotExist, 410: iofs.ErrNotExist, 401: backends.ErrAuth, 403: backends.ErrAuth, 418: backends.ErrUnreachable} {
		srv.mu.Lock()
		srv.status = status
		srv.mu.Unlock()
		_, err := s.Record(t.Context(), r, strings.Replace(srv.URL, "http://", "http://user:sekret@", 1))
		if !errors.Is(err, kind) || strings.Contains(err.Error(), "sekret") {
			t.Errorf("HTTP %d: Record = %v, want %v", status, err, kind)
		}
	}
	if got, _ := listed(t, s); len(got) != 0 {
		t.Errorf("a failed record is listed: %v", got)
	}
}

// TestOthersURLFiles, as browsers and desktops make them, are no records.
func TestOthersURLFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "c/page:x.url", "[InternetShortcut]\nURL=https://example.org/\n")
	write(t, dir, "c/file:x.url", `{"url":"file:///etc/passwd","size":3}`)
	write(t, dir, "c/negative:x.url", `{"url":"http://example.org","size":-3}`)
	s := open(t, dir, Options{})
	if got, _ := listed(t, s); len(got) != 0 {
		t.Errorf("listed %v", got)
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"url":"http://x/y","size":3,"validator":"\"1\""}`))
	f.Add([]byte(`{"url":"gopher://x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, ok := parseRecord(b); ok && (r.Size < 0 || !strings.HasPrefix(strings.ToLower(r.URL), "http")) {
			t.Errorf("parseRecord(%q) = %+v", b, r)
		}
	})
}
