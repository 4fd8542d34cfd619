package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/pacer"
)

// emptyConfig is the configuration that Apptainer gives a Singularity image.
var emptyConfig = []byte("{}")

// Begin prepares an upload. The registry hears of it with the first part.
func (w *Writer) Begin(ctx context.Context, ref backends.Ref, resume string) (backends.Upload, error) {
	const op = "push"
	if err := w.CheckName(ref); err != nil {
		return nil, err
	}
	u := &upload{w: w, ref: ref, repository: repositoryOf(ref.Collection, ref.Name)}
	if resume == "" {
		return u, nil
	}
	if err := u.resume(ctx, resume); err != nil {
		return nil, w.fail(ctx, op, ref, err)
	}
	return u, nil
}

// Deduplicates is backends.Deduplicator's.
func (w *Writer) Deduplicates() {}

// CheckName is backends.Namer's.
func (w *Writer) CheckName(ref backends.Ref) error {
	if !valid(ref) || ref.Version != "" {
		return w.invalidName("push", ref)
	}
	return nil
}

// upload is one image on its way. Its bytes go to a session of the registry
// (OCI distribution specification, "Pushing a blob in chunks"): chunks in
// order, each answered with the address for the next. Commit names the blob and
// puts a manifest that points to it in place.
type upload struct {
	w          *Writer
	ref        backends.Ref
	repository string
	location   string // of the session, "" without one
	sent       int64  // bytes that the session holds
}

// state is an upload for another process.
type state struct {
	Repository string `json:"repository"`
	Location   string `json:"location"`
	Sent       int64  `json:"sent"`
}

// PartSize is backends.Upload's.
func (u *upload) PartSize() int64 { return u.w.partSize }

// Parallel is 1: registries take chunks in order.
func (u *upload) Parallel() int { return 1 }

// Sent is how many bytes the session holds, in whole parts.
func (u *upload) Sent() int64 { return u.sent / u.w.partSize * u.w.partSize }

// State is empty while the session holds nothing, and when its address is on
// another host than the registry or may hold a signature.
func (u *upload) State() string {
	if u.location == "" || u.sent == 0 {
		return ""
	}
	at, err := url.Parse(u.location)
	if err != nil || at.Host != u.w.registry.Name() || at.User != nil {
		return ""
	}
	for k := range at.Query() {
		if l := strings.ToLower(k); strings.Contains(l, "sig") || strings.Contains(l, "token") || strings.Contains(l, "cred") {
			return ""
		}
	}
	b, err := json.Marshal(state{u.repository, u.location, u.sent})
	if err != nil {
		return ""
	}
	return string(b)
}

// resume takes up a session; one that the registry has forgotten, or that is
// not where it was left, is begun anew.
func (u *upload) resume(ctx context.Context, text string) error {
	var st state
	if json.Unmarshal([]byte(text), &st) != nil || st.Repository != u.repository || st.Sent <= 0 {
		return nil
	}
	at, err := url.Parse(st.Location)
	if err != nil || at.Scheme+"://"+at.Host != u.w.base {
		return nil
	}
	n, next, err := u.ask(ctx, st.Location)
	if err != nil {
		return err
	}
	if n >= st.Sent {
		// What it holds beyond that was sent from the same bytes, and the whole
		// is checked against its digest.
		u.location, u.sent = next, n
	}
	return nil
}

func (u *upload) session() session { return session{u.repository, push} }

// held is how many bytes a session says that it holds. A session without any
// says "0-0", as one with a single byte does, which never comes about.
func held(resp *http.Response) (int64, bool) {
	first, last, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Range"), "bytes="), "-")
	n, err := strconv.ParseInt(last, 10, 64)
	if !ok || first != "0" || err != nil || n < 0 || n == math.MaxInt64 {
		return 0, false
	}
	if n == 0 {
		return 0, true
	}
	return n + 1, true
}

// next is where a session goes on.
func (u *upload) next(resp *http.Response, at string) string {
	location := resp.Header.Get("Location")
	if location == "" {
		return at
	}
	if resp.Request != nil {
		if abs, err := resp.Request.URL.Parse(location); err == nil {
			// Registries behind a proxy often name themselves with another
			// scheme.
			if abs.Host == u.w.registry.Name() {
				abs.Scheme, _, _ = strings.Cut(u.w.base, ":")
			}
			return abs.String()
		}
	}
	return location
}

// begin opens a session where there is none.
func (u *upload) begin(ctx context.Context) error {
	if u.location != "" {
		return nil
	}
	resp, err := u.w.do(ctx, call{session: u.session(), method: http.MethodPost, url: u.repository + "/blobs/uploads/",
		body: strings.NewReader("")}, http.StatusAccepted)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if u.location = u.next(resp, ""); u.location == "" {
		return fmt.Errorf("%w: it gave no address for the upload", backends.ErrUnreachable)
	}
	u.sent = 0
	return nil
}

// Part sends one part.
func (u *upload) Part(ctx context.Context, off int64, r io.ReaderAt) error {
	end := off + u.w.partSize
	if end <= u.sent {
		return nil // the session has it from before
	}
	if off > u.sent {
		return u.w.fail(ctx, "push", u.ref, fmt.Errorf("the part at %d comes before that at %d", off, u.sent))
	}
	// Nobody waits for what is sent ahead, so that readers go first.
	if err := u.chunk(pacer.Background(ctx), r, end-u.sent); err != nil {
		return u.w.fail(ctx, "push", u.ref, err)
	}
	return nil
}

// chunkTries is how often in a row the connection may break without the session
// having got on.
const chunkTries = 3

// chunk sends the next n bytes of r. Where the connection breaks, the session
// tells what it holds, and the rest is sent after it; a session that cannot
// tell is lost.
func (u *upload) chunk(ctx context.Context, r io.ReaderAt, n int64) error {
	if err := u.begin(ctx); err != nil {
		return err
	}
	for end, tries := u.sent+n, 1; u.sent < end; tries++ {
		before := u.sent
		err := u.patch(ctx, r, end-u.sent)
		if err == nil {
			break
		}
		at, broken := u.location, lostAnswer(err) && ctx.Err() == nil
		u.location, u.sent = "", 0
		if !broken || tries == chunkTries {
			return err
		}
		n, next, asked := u.ask(ctx, at)
		if asked != nil {
			return asked
		}
		if n < before || n > end {
			return err
		}
		u.location, u.sent = next, n
		if u.sent > before {
			tries = 0
		}
	}
	return nil
}

// lostAnswer reports whether a request may have done its work although it
// failed, and there is a point in trying again.
func lostAnswer(err error) bool {
	var gave *pacer.Error
	if errors.As(err, &gave) && gave.Tries != 1 {
		return false // it has been tried for long enough
	}
	status := statusOf(err)
	return (status == 0 || status >= 500) && (errors.Is(err, backends.ErrUnreachable) || errors.Is(err, backends.ErrBusy))
}

// patch sends the n bytes of r after what the session holds.
func (u *upload) patch(ctx context.Context, r io.ReaderAt, n int64) error {
	src := &faulty{r: r}
	// A chunk that was taken must not be sent again; the answer tells where the
	// session stands.
	resp, err := u.w.do(pacer.Once(ctx), call{session: u.session(), method: http.MethodPatch, url: u.location,
		header: map[string]string{
			"Content-Type":  "application/octet-stream",
			"Content-Range": fmt.Sprintf("%d-%d", u.sent, u.sent+n-1),
		}, body: src, off: u.sent, size: n}, http.StatusAccepted, http.StatusNoContent, http.StatusCreated)
	if err != nil {
		return src.or(err)
	}
	resp.Body.Close()
	want := u.sent + n
	if got, ok := held(resp); ok && got != want {
		u.location = u.next(resp, u.location)
		return fmt.Errorf("%w: it holds %d bytes of the upload, not %d", backends.ErrUnreachable, got, want)
	}
	u.location, u.sent = u.next(resp, u.location), want
	return nil
}

// ask asks the session at an address how many bytes it holds, -1 when it is no
// more or does not say, and where it goes on.
func (u *upload) ask(ctx context.Context, at string) (n int64, next string, err error) {
	resp, err := u.w.do(ctx, call{session: u.session(), method: http.MethodGet, url: at}, http.StatusNoContent, http.StatusOK)
	switch {
	case statusOf(err) >= 400 && statusOf(err) < 500 && !errors.Is(err, backends.ErrAuth) && !errors.Is(err, backends.ErrBusy):
		return -1, "", nil
	case err != nil:
		return -1, "", err
	}
	resp.Body.Close()
	n, ok := held(resp)
	if !ok {
		return -1, "", nil
	}
	return n, u.next(resp, at), nil
}

// faulty remembers why its reader failed, which an HTTP client wraps beyond
// recognition.
type faulty struct {
	r   io.ReaderAt
	err error
}

// ReadAt is io.ReaderAt's.
func (f *faulty) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.r.ReadAt(p, off)
	if err != nil && (err != io.EOF || n < len(p)) {
		f.err = err
		if err == io.EOF {
			f.err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

// or is the reader's error, or err when it had none.
func (f *faulty) or(err error) error {
	if f.err != nil {
		return fmt.Errorf("read what is to be sent: %w", f.err)
	}
	return err
}

// Commit sends the rest and points the tag at it. What the registry has
// already, under whatever name in this repository, is not sent again.
func (u *upload) Commit(ctx context.Context, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
	img, err := u.commit(ctx, r, size, c)
	if err != nil {
		return backends.Image{}, u.w.fail(ctx, "push", u.ref, err)
	}
	return img, nil
}

func (u *upload) commit(ctx context.Context, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
	if err := ctx.Err(); err != nil {
		return backends.Image{}, err
	}
	if err := u.unchanged(ctx, c.Replaces); err != nil {
		return backends.Image{}, err
	}
	if c.SHA256 == "" {
		h, src := sha256.New(), &faulty{r: r}
		n, err := io.Copy(h, io.NewSectionReader(src, 0, size))
		if err != nil {
			return backends.Image{}, src.or(err)
		}
		if n != size {
			return backends.Image{}, fmt.Errorf("there are %d of %d bytes to send: %w", n, size, io.ErrUnexpectedEOF)
		}
		c.SHA256 = hex.EncodeToString(h.Sum(nil))
	}
	digest := "sha256:" + c.SHA256
	if err := u.blob(ctx, digest, r, size); err != nil {
		return backends.Image{}, err
	}
	if err := u.w.putBlob(ctx, u.repository, emptyConfig); err != nil {
		return backends.Image{}, err
	}
	raw, err := sifManifest(u.ref, c.SHA256, size)
	if err != nil {
		return backends.Image{}, err
	}
	if err := u.unchanged(ctx, c.Replaces); err != nil {
		return backends.Image{}, err
	}
	if err := u.w.putManifest(ctx, u.repository, u.ref.Tag, string(types.OCIManifestSchema1), raw); err != nil {
		return backends.Image{}, err
	}
	f, err := u.w.understand(ctx, u.repository, fetched{digestOf(raw), types.OCIManifestSchema1, raw})
	if err != nil {
		return backends.Image{}, err
	}
	return u.w.image(u.ref, f), nil
}

// unchanged checks that the tag still names what the pusher saw. Registries
// have no such condition of their own, so that a moment remains in which
// another's push can be overwritten.
func (u *upload) unchanged(ctx context.Context, saw *backends.Image) error {
	now, err := u.w.resolve(ctx, u.repository, u.ref.Tag)
	switch {
	case errors.Is(err, errNotImage), errors.Is(err, errors.ErrUnsupported):
		return fmt.Errorf("%w: the tag names something that is no image for this machine", backends.ErrStale)
	case errors.Is(err, iofs.ErrNotExist):
		if saw == nil {
			return nil
		}
		return fmt.Errorf("%w: the tag is gone", backends.ErrStale)
	case err != nil:
		return err
	case saw == nil:
		return fmt.Errorf("%w: the tag was made by somebody else", backends.ErrStale)
	case now.digest != saw.Revision:
		return fmt.Errorf("%w: the tag names another image now", backends.ErrStale)
	}
	return nil
}

// sessionTries is how many sessions one push may use up.
const sessionTries = 3

// blob brings the content into the repository.
func (u *upload) blob(ctx context.Context, digest string, r io.ReaderAt, size int64) error {
	for tries := 1; ; tries++ {
		there, err := u.w.hasBlob(ctx, u.repository, digest)
		if err != nil {
			return err
		}
		if there {
			u.drop(ctx)
			return nil
		}
		resumed := u.sent > 0
		err = u.send(ctx, digest, r, size)
		// A session that has been lost on the way is begun anew, unless it was
		// refused from its first byte on.
		if err == nil || u.location != "" || ctx.Err() != nil || tries == sessionTries || !lostAnswer(err) && !(resumed && statusOf(err) != 0) {
			return err
		}
	}
}

// send sends what the session lacks, and closes it.
func (u *upload) send(ctx context.Context, digest string, r io.ReaderAt, size int64) error {
	if u.sent > size {
		u.drop(ctx)
	}
	if size <= u.w.partSize {
		return u.whole(ctx, digest, r, size)
	}
	for u.sent < size {
		err := u.chunk(ctx, r, min(u.w.partSize, size-u.sent))
		if refusesChunks(err) {
			// A registry that takes no such chunks takes the blob in one.
			return u.whole(ctx, digest, r, size)
		} else if err != nil {
			return err
		}
	}
	return u.finish(ctx, digest, nil, 0)
}

// refusesChunks reports whether a registry has refused a chunk as such.
func refusesChunks(err error) bool {
	switch statusOf(err) {
	case http.StatusMethodNotAllowed, http.StatusRequestedRangeNotSatisfiable, http.StatusRequestEntityTooLarge, http.StatusNotImplemented:
		return true
	}
	return false
}

// whole sends what the session lacks with the request that closes it.
func (u *upload) whole(ctx context.Context, digest string, r io.ReaderAt, size int64) error {
	if err := u.begin(ctx); err != nil {
		return err
	}
	return u.finish(ctx, digest, r, size)
}

// finish closes the session, sending what it lacks of size bytes of r.
func (u *upload) finish(ctx context.Context, digest string, r io.ReaderAt, size int64) error {
	at, err := url.Parse(u.location)
	if err != nil {
		return fmt.Errorf("%w: the address of the upload makes no sense", backends.ErrUnreachable)
	}
	q := at.Query()
	q.Set("digest", digest)
	at.RawQuery = q.Encode()
	src := &faulty{r: strings.NewReader("")}
	c := call{session: u.session(), method: http.MethodPut, url: at.String(), body: src,
		header: map[string]string{"Content-Type": "application/octet-stream"}}
	if r != nil {
		src.r, c.off, c.size = r, u.sent, size-u.sent
		ctx = pacer.Once(ctx) // a session that has taken a part of it takes no other
	}
	resp, err := u.w.do(ctx, c, http.StatusCreated, http.StatusNoContent)
	u.location, u.sent = "", 0
	if r == nil && statusOf(err) == http.StatusNotFound {
		// An earlier try may have ended the session, and its answer was lost.
		if there, e := u.w.hasBlob(ctx, u.repository, digest); e == nil && there {
			return nil
		}
	}
	if err != nil {
		return src.or(err)
	}
	resp.Body.Close()
	return nil
}

// drop cancels the session, as far as the registry can.
func (u *upload) drop(ctx context.Context) {
	if u.location == "" {
		return
	}
	at := u.location
	u.location, u.sent = "", 0
	if resp, err := u.w.do(ctx, call{session: u.session(), method: http.MethodDelete, url: at}, http.StatusNoContent, http.StatusOK, http.StatusAccepted); err == nil {
		resp.Body.Close()
	}
}

// Abort cancels the session. A registry that has no such thing drops sessions
// by itself after some days.
func (u *upload) Abort(ctx context.Context) error {
	u.drop(ctx)
	return nil
}

// sifManifest is a Singularity image's manifest, as Apptainer 1.4.5 writes it.
// The title is the name that `apptainer pull` gives the file.
func sifManifest(ref backends.Ref, sha string, size int64) ([]byte, error) {
	config := sha256.Sum256(emptyConfig)
	return json.Marshal(v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: sifConfigType, Size: int64(len(emptyConfig)),
			Digest: v1.Hash{Algorithm: backends.SHA256, Hex: hex.EncodeToString(config[:])}},
		Layers: []v1.Descriptor{{MediaType: sifLayerType, Size: size,
			Digest:      v1.Hash{Algorithm: backends.SHA256, Hex: sha},
			Annotations: map[string]string{"org.opencontainers.image.title": ref.Name + "_" + ref.Tag + ".sif"}}},
	})
}

// hasBlob asks whether the repository has a blob.
func (w *Writer) hasBlob(ctx context.Context, repository, digest string) (bool, error) {
	resp, err := w.do(ctx, call{session: session{repository, push}, method: http.MethodHead,
		url: repository + "/blobs/" + digest}, http.StatusOK)
	switch {
	case statusOf(err) == http.StatusNotFound:
		return false, nil
	case err != nil:
		return false, err
	}
	resp.Body.Close()
	return true, nil
}

// putBlob brings a short blob into a repository.
func (w *Writer) putBlob(ctx context.Context, repository string, b []byte) error {
	u := &upload{w: w, repository: repository}
	r, n := text(b)
	return u.blob(ctx, digestOf(b), r, n)
}

// putManifest puts a manifest under a tag or its digest.
func (w *Writer) putManifest(ctx context.Context, repository, reference, mediaType string, raw []byte) error {
	body, n := text(raw)
	resp, err := w.do(ctx, call{session: session{repository, push}, method: http.MethodPut,
		url: repository + "/manifests/" + reference, header: map[string]string{"Content-Type": mediaType}, body: body, size: n},
		http.StatusCreated, http.StatusOK, http.StatusAccepted)
	if err != nil {
		return err
	}
	resp.Body.Close()
	return nil
}
