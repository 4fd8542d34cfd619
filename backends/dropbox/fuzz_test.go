package dropbox

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	sdk "github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"

	"github.com/sregfs/sregfs/backends"
)

// FuzzHeaderSafe: what goes into a header is ASCII and means the same.
func FuzzHeaderSafe(f *testing.F) {
	f.Add("/my café/octo\U0001F419pus:\u007f.simg")
	f.Fuzz(func(t *testing.T, s string) {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		safe := headerSafe(string(b))
		for i := range len(safe) {
			if safe[i] >= 0x7f {
				t.Fatalf("headerSafe(%s) = %s", b, safe)
			}
		}
		var want, got string
		if json.Unmarshal(b, &want) != nil || json.Unmarshal([]byte(safe), &got) != nil || got != want {
			t.Fatalf("headerSafe(%s) = %s, which is %q", b, safe, got)
		}
	})
}

// FuzzParseState: a journal's state that was damaged does no harm.
func FuzzParseState(f *testing.F) {
	f.Add(`{"session":"pid","started":"2026-01-01T00:00:00Z","sent":8388608,"sums":""}`)
	f.Add(`{"session":"pid","sent":-8388608}`)
	f.Fuzz(func(t *testing.T, state string) {
		st, ok := parseState(state)
		if !ok {
			return
		}
		sums := newBlockSums()
		sums.restore(st.Sums)
		if got := sums.save(st.Sent); !bytes.Equal(got, st.Sums) {
			t.Fatalf("sums %x become %x", st.Sums, got)
		}
	})
}

// FuzzClassify: no answer, however odd, upsets the judgement of it, and the
// body stays whole.
func FuzzClassify(f *testing.F) {
	f.Add(429, []byte(`{"error":{"reason":{".tag":"too_many_write_operations"}}}`))
	f.Add(409, []byte(`{"error":{".tag":"path","path":{".tag":"too_many_write_operations"}}}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		resp := &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body))}
		classify(resp)
		if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, body) {
			t.Fatalf("the body %q became %q, %v", body, got, err)
		}
	})
}

// FuzzImage: a file of whatever name is an image under a name that the tree can
// show, and where Push would put that is a path that Dropbox takes.
func FuzzImage(f *testing.F) {
	f.Add("pusheen", "asaurus:red.simg")
	f.Add("..", ":.sif")
	f.Add("a/b", "a@sha256:0:x.img")
	f.Fuzz(func(t *testing.T, collection, name string) {
		m := files.NewFileMetadata(name, "id:1", sdk.DBXTime(time.Time{}), sdk.DBXTime(time.Time{}), "0123456789", 1)
		m.PathLower = fold("/" + collection + "/" + name)
		if !isImage(m) {
			return
		}
		img := image(m, collection)
		file := img.Ref.File()
		if img.Ref.Name == "" || img.Ref.Tag == "" || len(file) > backends.MaxName || strings.ContainsAny(file, "/\x00") {
			t.Errorf("%q is %+v, shown as %q", name, img.Ref, file)
		}
		if p, ok := pathOf(img.Ref); ok && (!valid(p) || strings.Contains(img.Ref.Object(), "/")) {
			t.Errorf("%+v would go to %q", img.Ref, p)
		}
	})
}
