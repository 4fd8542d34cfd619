package gdrive

import (
	"context"
	"crypto/md5"
	"encoding"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	iofs "io/fs"
	"time"

	"google.golang.org/api/drive/v3"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/pacer"
)

// How an image appears whole or not at all. The bytes go into a resumable
// session; Drive shows nothing of it before the last byte has come. A session
// that Commit opens knows what the image is to be called, and shows it at
// once. One that was opened before, for parts that go ahead, makes a file of
// type "upload", which nobody takes for an image; Commit then gives it its name
// and properties with one request. For a name that exists the session is one of
// new content for that very file, so that the name keeps its id and what was
// there stays a revision. The last bytes are held back until Commit has made
// sure that they have the MD5 that was announced, and that nobody else has
// changed the image meanwhile.

// errContent: the caller's reader failed.
var errContent = errors.New("read the image")

// Begin prepares an upload. It asks the service only about one that is to be
// resumed.
func (s *Store) Begin(ctx context.Context, ref backends.Ref, resume string) (backends.Upload, error) {
	const op = "push"
	u := &upload{s: s, ref: ref.Latest(), sum: md5.New()}
	if err := ctx.Err(); err != nil {
		return nil, s.fail(ctx, op, ref, err)
	}
	if ref.Name == "" || ref.Tag == "" {
		return nil, s.refused(op, ref, backends.ErrInvalidName, "")
	}
	st, ok := s.openState(resume)
	if !ok || st.Ref != u.ref.String() {
		return u, nil
	}
	uri, err := s.ours(st.URI)
	if err != nil {
		return u, nil
	}
	u.ses, u.target = &session{s: s, uri: uri}, st.Target
	err = u.ses.put(ctx, nil, 0, -1)
	switch {
	case errors.Is(err, errForgotten), codeOf(err) >= 400 && codeOf(err) < 500 && !errors.Is(explain(err), backends.ErrAuth):
		u.ses, u.target = nil, ""
		return u, nil
	case err != nil:
		return nil, s.fail(ctx, op, ref, err)
	}
	if m, ok := u.sum.(encoding.BinaryUnmarshaler); ok && m.UnmarshalBinary(st.Sum) == nil {
		u.summed = st.Summed
	} else {
		u.sum.Reset()
	}
	return u, nil
}

// upload is an image on its way.
type upload struct {
	s      *Store
	ref    backends.Ref
	ses    *session // nil before the first byte
	target string   // the file that gets new content, "" for a new one
	named  bool     // the session knows all that the image is to be

	sum    hash.Hash // the MD5 of the bytes before summed
	summed int64
	buf    []byte
}

func (u *upload) PartSize() int64 { return u.s.part }

// Parallel is 1: a session takes its bytes in order.
func (u *upload) Parallel() int { return 1 }

func (u *upload) Sent() int64 {
	if u.ses == nil {
		return 0
	}
	return u.ses.acked / u.s.part * u.s.part
}

// Part sends a part. Parts come in order; one that the service has already is
// not sent again.
func (u *upload) Part(ctx context.Context, off int64, r io.ReaderAt) error {
	const op = "push"
	ctx = pacer.Background(ctx)
	err := ctx.Err()
	if err == nil && u.ses == nil && off == 0 {
		err = u.open(ctx)
	}
	switch {
	case err != nil:
		return u.s.fail(ctx, op, u.ref, err)
	case u.ses == nil || off > u.ses.acked:
		return u.s.refused(op, u.ref, backends.ErrUnreachable, fmt.Sprintf("the part at %d comes before what precedes it", off))
	case off+u.s.part <= u.ses.acked:
		return nil
	}
	data, err := u.read(r, off, u.s.part)
	if err == nil {
		err = u.ses.send(ctx, data, off, -1)
	}
	if errors.Is(err, errForgotten) {
		u.forget()
	}
	if err != nil {
		return u.s.fail(ctx, op, u.ref, err)
	}
	return nil
}

// open begins a session for an image of which only the name is known.
func (u *upload) open(ctx context.Context) error {
	found, err := u.s.named(ctx, u.ref)
	if err != nil {
		return err
	}
	if len(found) > 0 {
		u.target = found[0].image.ID
		u.ses, err = u.s.begin(ctx, u.target, &drive.File{}, -1)
		return err
	}
	root, err := u.s.makeRoot(ctx)
	if err != nil {
		return err
	}
	u.target = ""
	u.ses, err = u.s.begin(ctx, "", &drive.File{
		Name: objectName(u.ref) + ".uploading", MimeType: blobMIME, Parents: []string{root},
		Properties: map[string]string{propType: typeUpload},
	}, -1)
	return err
}

func (u *upload) forget() {
	u.ses, u.target, u.named = nil, "", false
}

// read reads n bytes at off, and takes them into the sum if they follow what is
// in it.
func (u *upload) read(r io.ReaderAt, off, n int64) ([]byte, error) {
	if u.ses != nil && u.ses.dirty {
		u.buf, u.ses.dirty = nil, false
	}
	if int64(cap(u.buf)) < n {
		u.buf = make([]byte, n)
	}
	data := u.buf[:n]
	if k, err := r.ReadAt(data, off); int64(k) < n {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("%w at %d: %w", errContent, off, err)
	}
	if skip := u.summed - off; skip >= 0 && skip < n {
		u.sum.Write(data[skip:])
		u.summed = off + n
	}
	return data, nil
}

// Commit sends the rest and puts the image in place.
func (u *upload) Commit(ctx context.Context, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
	const op = "push"
	leave, err := u.s.enter(ctx, u.ref)
	if err != nil {
		return backends.Image{}, u.s.fail(ctx, op, u.ref, err)
	}
	defer leave()
	img, err := u.commit(ctx, r, size, c)
	if err != nil {
		return backends.Image{}, u.s.fail(ctx, op, u.ref, err)
	}
	u.s.swept.Do(func() { u.s.sweep(ctx) })
	return img, nil
}

// enter waits until no other commit of the name is under way in this process:
// two that see no image would both make one.
func (s *Store) enter(ctx context.Context, ref backends.Ref) (leave func(), err error) {
	for {
		s.mu.Lock()
		busy, taken := s.pushing[ref]
		if !taken {
			done := make(chan struct{})
			s.pushing[ref] = done
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.pushing, ref)
				s.mu.Unlock()
				close(done)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (u *upload) commit(ctx context.Context, r io.ReaderAt, size int64, c backends.Content) (backends.Image, error) {
	if err := ctx.Err(); err != nil {
		return backends.Image{}, err
	}
	cur, alone, err := u.present(ctx, c)
	if err != nil {
		return backends.Image{}, err
	}
	meta, err := u.metadata(ctx, cur, c, alone)
	if err != nil {
		return backends.Image{}, err
	}
	if cur != nil && cur.Md5Checksum == c.MD5 && cur.Size == size && c.MD5 != "" {
		// The same content: what is said of it may be new.
		u.drop(ctx)
		f, err := u.s.patch(ctx, cur, meta)
		if err != nil {
			return backends.Image{}, err
		}
		return u.image(f), nil
	}
	target := ""
	if cur != nil {
		target = cur.Id
	}
	for try := 1; ; try++ {
		f, err := u.transfer(ctx, r, size, c, target, meta)
		if errors.Is(err, errForgotten) && try < 3 {
			u.forget()
			continue
		}
		if err != nil {
			return backends.Image{}, err
		}
		return u.reveal(ctx, f, meta, c)
	}
}

// present is the file that has the name now, nil for none, once it is what the
// pusher saw; alone says that no other file has it too.
func (u *upload) present(ctx context.Context, c backends.Content) (cur *drive.File, alone bool, err error) {
	found, err := u.s.named(ctx, u.ref)
	if err != nil {
		return nil, false, err
	}
	if len(found) > 0 {
		cur = found[0].file
	}
	if c.Replaces != nil && (cur == nil || cur.Id != c.Replaces.ID || or(cur.HeadRevisionId, cur.Md5Checksum) != c.Replaces.Revision) {
		// Searches lag behind; asking for one file does not.
		f, err := u.s.file(ctx, c.Replaces.ID)
		switch {
		case err == nil && u.names(f) &&
			(cur == nil || cur.Id == f.Id || parseTime(f.ModifiedTime).After(parseTime(cur.ModifiedTime))):
			cur = f
		case err != nil && !errors.Is(err, iofs.ErrNotExist):
			return nil, false, err
		case err != nil && cur != nil && cur.Id == c.Replaces.ID:
			cur = nil
		}
	}
	same := cur != nil && c.MD5 != "" && cur.Md5Checksum == c.MD5
	switch {
	case same:
	case cur == nil && c.Replaces != nil:
		return nil, false, fmt.Errorf("%w: the image that was to be replaced is gone", backends.ErrStale)
	case cur != nil && (c.Replaces == nil || c.Replaces.ID != cur.Id || c.Replaces.Revision != or(cur.HeadRevisionId, cur.Md5Checksum)):
		return nil, false, fmt.Errorf("%w: somebody else has put another image there", backends.ErrStale)
	}
	return cur, len(found) <= 1, nil
}

// names reports whether a file has the upload's name, as far as it says itself.
func (u *upload) names(f *drive.File) bool {
	got := refOf(f, "").Latest()
	if got.Collection == "" {
		got.Collection = u.ref.Collection // the folder's
	}
	return got == u.ref
}

// metadata is what the image's file is to be. The time is left to Drive where
// several files have the name, since it decides among them.
func (u *upload) metadata(ctx context.Context, cur *drive.File, c backends.Content, alone bool) (*drive.File, error) {
	name := objectName(u.ref.WithVersion(c.MD5))
	if cur != nil {
		name = renamed(cur.Name, u.ref, c.MD5)
	}
	meta := &drive.File{Name: name, Properties: properties(u.ref, c.MD5, name, c.Labels)}
	if cur != nil {
		for k := range cur.Properties {
			if _, ok := meta.Properties[k]; !ok {
				meta.NullFields = append(meta.NullFields, "Properties."+k)
			}
		}
	} else {
		root, err := u.s.makeRoot(ctx)
		if err != nil {
			return nil, err
		}
		meta.MimeType, meta.Parents = blobMIME, []string{root}
	}
	if !c.Modified.IsZero() && alone {
		meta.ModifiedTime = c.Modified.UTC().Format(time.RFC3339Nano)
	}
	if png := u.s.picture(); png != nil {
		meta.ContentHints = &drive.FileContentHints{Thumbnail: &drive.FileContentHintsThumbnail{
			Image: base64.URLEncoding.EncodeToString(png), MimeType: "image/png",
		}}
	}
	return meta, nil
}

// transfer sends what the service lacks, and returns the file that holds the
// whole content then: target with a new revision, or a new one.
func (u *upload) transfer(ctx context.Context, r io.ReaderAt, size int64, c backends.Content, target string, meta *drive.File) (*drive.File, error) {
	if u.ses != nil && (u.target != target || u.ses.acked > size) {
		// What was begun for another file is no good for this one.
		u.drop(ctx)
	}
	if u.ses == nil {
		ses, err := u.s.begin(ctx, target, meta, size)
		if err != nil {
			return nil, err
		}
		u.ses, u.target, u.named = ses, target, true
	}
	if err := u.catchUp(r, min(u.Sent(), size), size); err != nil {
		return nil, err
	}
	for first, off := true, u.Sent(); u.ses.file == nil; off, first = off+u.s.part, false {
		n := min(u.s.part, size-off)
		data, err := u.read(r, off, n)
		if err != nil {
			return nil, err
		}
		total := int64(-1)
		if off+n == size {
			total = size
			if got := hex.EncodeToString(u.sum.Sum(nil)); c.MD5 != "" && got != c.MD5 {
				return nil, fmt.Errorf("%w: the content's MD5 is %s, announced was %s", backends.ErrCorrupt, got, c.MD5)
			}
			if !first {
				// That took its time; what was there may have changed.
				if _, _, err := u.present(ctx, c); err != nil {
					return nil, err
				}
			}
		}
		if err := u.ses.send(ctx, data, off, total); err != nil {
			return nil, err
		}
	}
	return u.ses.file, nil
}

// catchUp takes bytes into the sum that an earlier process has sent.
func (u *upload) catchUp(r io.ReaderAt, to, size int64) error {
	if u.summed > size {
		u.sum.Reset()
		u.summed = 0
	}
	for u.summed < to {
		if _, err := u.read(r, u.summed, min(u.s.part, to-u.summed)); err != nil {
			return err
		}
	}
	return nil
}

// reveal makes an image of the file that the content has arrived in.
func (u *upload) reveal(ctx context.Context, f *drive.File, meta *drive.File, c backends.Content) (backends.Image, error) {
	if c.MD5 != "" && f.Md5Checksum != "" && f.Md5Checksum != c.MD5 {
		u.takeBack(ctx, f)
		return backends.Image{}, fmt.Errorf("%w: the service has the MD5 %s, sent was %s", backends.ErrCorrupt, f.Md5Checksum, c.MD5)
	}
	if !u.named {
		var err error
		meta.Parents = nil // it lies there already
		if f, err = u.s.patch(ctx, f, meta); err != nil {
			return backends.Image{}, err
		}
	}
	u.named = true
	if f.Trashed {
		var err error
		if f, err = u.s.rescue(ctx, f); err != nil {
			return backends.Image{}, err
		}
	}
	return u.image(f), nil
}

func (u *upload) image(f *drive.File) backends.Image {
	img := u.s.imageOf(f, "")
	img.Ref = u.ref
	return img
}

// patch changes what is said of f; it may be repeated.
func (s *Store) patch(ctx context.Context, f, meta *drive.File) (*drive.File, error) {
	changed := *meta
	changed.MimeType = ""
	return again(ctx, s.update(f.Id, &changed).Context(ctx).Fields(fileFields).Do)
}

// takeBack undoes an upload whose content turned out to be wrong.
func (u *upload) takeBack(ctx context.Context, f *drive.File) {
	ctx = context.WithoutCancel(ctx)
	var err error
	if u.target == "" {
		err = u.s.svc.Files.Delete(f.Id).Context(ctx).Do()
	} else {
		err = u.s.svc.Revisions.Delete(f.Id, f.HeadRevisionId).Context(ctx).Do()
	}
	if err != nil {
		u.s.log.Warn("content that arrived damaged could not be deleted", "client", u.s.client, "image", u.ref.String(), "err", explain(err))
	}
}

// drop gives up what was begun, as far as that is possible.
func (u *upload) drop(ctx context.Context) {
	if u.ses != nil {
		if err := u.abort(ctx); err != nil {
			u.s.log.Debug("an upload could not be given up; it goes by itself", "client", u.s.client, "image", u.ref.String(), "err", lost(err))
		}
	}
	u.forget()
	u.sum.Reset()
	u.summed = 0
}

func (u *upload) abort(ctx context.Context) error {
	if u.ses.file == nil {
		return u.ses.cancel(ctx)
	}
	if u.target != "" || u.named {
		return nil
	}
	// The answer to a request that named it may have been lost: an image is
	// never deleted here.
	f, err := u.s.file(ctx, u.ses.file.Id)
	if err == nil && f.Properties[propType] == typeUpload {
		err = u.s.svc.Files.Delete(f.Id).Context(ctx).Do()
	}
	if gone(err) || errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	return err
}

// Abort gives the upload up.
func (u *upload) Abort(ctx context.Context) error {
	if u.ses == nil {
		return nil
	}
	if err := u.abort(ctx); err != nil {
		return u.s.fail(ctx, "give up the push of", u.ref, err)
	}
	u.forget()
	return nil
}
