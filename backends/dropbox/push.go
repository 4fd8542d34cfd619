package dropbox

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"sync"
	"time"

	sdk "github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"
	"golang.org/x/sync/errgroup"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/pacer"
)

// An image goes up in one request when it is small, and otherwise in parts to a
// concurrent upload session, which accepts them in any order, in multiples of
// 4 MiB but for the last one. Nothing is visible before the session is
// finished, and then the whole file is: that is Dropbox's own promise.
//
// Each part carries its content hash, so that Dropbox refuses what was damaged
// on the way. The hash of the whole follows from the same sums of blocks and is
// compared with what Dropbox says of the finished file.
const (
	// partSize is two blocks: small enough that a part lost to a bad line
	// costs little, large enough that the round trips do not show.
	partSize = 8 << 20
	// singleSize is the largest image that goes up in one request. The API's
	// limit is 150 MB; beyond a part, several connections are faster.
	singleSize = partSize
	// sessionAge is how long an upload session is counted on. Dropbox keeps
	// it for seven days.
	sessionAge = 6 * 24 * time.Hour
)

// CheckName is backends.Namer's.
func (s *Store) CheckName(ref backends.Ref) error {
	if _, ok := pathOf(ref); !ok {
		return s.refused("push", ref, backends.ErrInvalidName, "Dropbox cannot keep that name")
	}
	return nil
}

// Begin prepares an upload. It asks Dropbox only when there is one to resume.
func (s *Store) Begin(ctx context.Context, ref backends.Ref, resume string) (backends.Upload, error) {
	if err := s.CheckName(ref); err != nil {
		return nil, err
	}
	p, _ := pathOf(ref)
	u := &upload{store: s, ref: ref, path: p, sums: newBlockSums(), done: make(map[int64]bool)}
	st, ok := parseState(resume)
	if !ok || time.Since(st.Started) > sessionAge {
		return u, nil
	}
	switch alive, err := s.sessionLives(ctx, st.Session, st.Sent); {
	case err != nil:
		return nil, err
	case !alive:
		return u, nil
	}
	u.session, u.started = st.Session, st.Started
	for off := int64(0); off < st.Sent; off += partSize {
		u.done[off] = true
	}
	u.sums.restore(st.Sums)
	return u, nil
}

// sessionLives asks whether a session still takes parts, by sending it none of
// a part.
func (s *Store) sessionLives(ctx context.Context, session string, off int64) (bool, error) {
	arg := files.NewUploadSessionAppendArg(files.NewUploadSessionCursor(session, uint64(off)))
	cctx, c := newCall(ctx)
	err := s.files.UploadSessionAppendV2Context(cctx, arg, nil)
	switch {
	case err == nil:
		return true, nil
	case hasTag(err, files.UploadSessionAppendErrorNotFound), hasTag(err, files.UploadSessionAppendErrorClosed):
		return false, nil
	case len(tagsOf(err)) > 0:
		return true, nil // it knows the session and minds the empty part
	}
	return false, s.fail(ctx, "resume push of", backends.Ref{}, c, err)
}

// upload is an image on its way.
type upload struct {
	store *Store
	ref   backends.Ref
	path  string
	sums  *blockSums

	starting sync.Mutex // held while a session is being started

	mu      sync.Mutex // guards what follows
	session string     // "" until one was started
	started time.Time
	done    map[int64]bool // offsets of the parts that Dropbox has
}

// uploadState is what State tells.
type uploadState struct {
	Session string    `json:"session"`
	Started time.Time `json:"started"`
	Sent    int64     `json:"sent"`
	Sums    []byte    `json:"sums"` // of the blocks sent, one after the other
}

// parseState reads what State told. ok is false for anything else, and for what
// another layout of parts has told.
func parseState(state string) (st uploadState, ok bool) {
	if json.Unmarshal([]byte(state), &st) != nil {
		return st, false
	}
	return st, st.Session != "" && st.Sent >= 0 && st.Sent%partSize == 0 &&
		int64(len(st.Sums)) == st.Sent/block*sha256.Size
}

// PartSize is that of the parts that Part sends.
func (u *upload) PartSize() int64 { return partSize }

// Parallel is how many parts may be under way at once.
func (u *upload) Parallel() int { return u.store.parallel }

// Sent is how many leading bytes Dropbox has.
func (u *upload) Sent() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sent()
}

func (u *upload) sent() int64 {
	var n int64
	for u.done[n] {
		n += partSize
	}
	return n
}

// State describes the upload session; "" while there is none.
func (u *upload) State() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.session == "" {
		return ""
	}
	sent := u.sent()
	b, err := json.Marshal(uploadState{u.session, u.started, sent, u.sums.save(sent)})
	if err != nil {
		return ""
	}
	return string(b)
}

// Part sends one part.
func (u *upload) Part(ctx context.Context, off int64, r io.ReaderAt) error {
	if off < 0 || off%partSize != 0 {
		return &backends.Error{Op: "push", Client: u.store.client, Ref: u.ref, Err: fmt.Errorf("part at %d, not a multiple of %d", off, partSize)}
	}
	session, err := u.begin(ctx)
	if err != nil {
		return err
	}
	if err := u.append(ctx, session, r, off, partSize, false); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.session != session {
		return u.forgotten() // while this part was on its way
	}
	u.done[off] = true
	return nil
}

// begin starts the session, once.
func (u *upload) begin(ctx context.Context) (string, error) {
	u.starting.Lock()
	defer u.starting.Unlock()
	u.mu.Lock()
	session := u.session
	u.mu.Unlock()
	if session != "" {
		return session, nil
	}
	arg := files.NewUploadSessionStartArg()
	arg.SessionType = &files.UploadSessionType{Tagged: sdk.Tagged{Tag: files.UploadSessionTypeConcurrent}}
	cctx, c := newCall(ctx)
	res, err := u.store.files.UploadSessionStartContext(cctx, arg, nil)
	if err != nil {
		return "", u.store.fail(ctx, "push", u.ref, c, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.session, u.started = res.SessionId, time.Now()
	return u.session, nil
}

// append sends r[off:off+n] to the session; with last set the session is closed
// behind it.
func (u *upload) append(ctx context.Context, session string, r io.ReaderAt, off, n int64, last bool) error {
	hash, err := u.sums.add(r, off, n)
	if err != nil {
		return &backends.Error{Op: "push", Client: u.store.client, Ref: u.ref, Err: fmt.Errorf("read what is to be pushed: %w", err)}
	}
	arg := files.NewUploadSessionAppendArg(files.NewUploadSessionCursor(session, uint64(off)))
	arg.Close, arg.ContentHash = last, hash
	cctx, c := newCall(pacer.Background(ctx)) // reads go first
	c.body, c.off, c.size = r, off, n
	err = u.store.files.UploadSessionAppendV2Context(cctx, arg, nil)
	switch {
	case err == nil:
		return nil
	case c.repeated() && (hasTag(err, files.UploadSessionAppendErrorConcurrentSessionInvalidOffset) ||
		hasTag(err, files.UploadSessionAppendErrorIncorrectOffset) || hasTag(err, files.UploadSessionAppendErrorClosed)):
		// An earlier try has arrived though its answer has not. If not,
		// finishing tells that data are missing.
		return nil
	case hasTag(err, files.UploadSessionAppendErrorNotFound), hasTag(err, files.UploadSessionAppendErrorClosed):
		u.forget(session)
		return u.forgotten()
	}
	return u.store.fail(ctx, "push", u.ref, c, err)
}

func (u *upload) forgotten() error {
	return u.store.refused("push", u.ref, backends.ErrUnreachable, "Dropbox has forgotten the upload; it begins anew when it is tried again")
}

// forget drops a session that Dropbox has no more.
func (u *upload) forget(session string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.session == session {
		u.session = ""
		clear(u.done)
	}
}

// Commit sends what is missing and puts the image in place.
func (u *upload) Commit(ctx context.Context, r io.ReaderAt, size int64, content backends.Content) (backends.Image, error) {
	info := files.NewCommitInfo(u.path)
	if !content.Modified.IsZero() {
		at := sdk.DBXTime(content.Modified)
		info.ClientModified = &at
	}
	if old := content.Replaces; old != nil {
		info.Mode = &files.WriteMode{Tagged: sdk.Tagged{Tag: files.WriteModeUpdate}, Update: old.Revision}
		if old.Key != "" && old.Ref.Latest() == u.ref {
			info.Path = old.Key // it keeps the file's name that it has
		}
	}
	// Without strict_conflict, content that is there already is no conflict,
	// nor is a file that was deleted after it was seen: nothing is lost.
	var m *files.FileMetadata
	var hash string
	var err error
	u.mu.Lock()
	begun := u.session != ""
	u.mu.Unlock()
	if !begun && size <= singleSize {
		m, hash, err = u.single(ctx, r, size, info)
	} else {
		m, hash, err = u.parts(ctx, r, size, info)
	}
	if err != nil {
		return backends.Image{}, err
	}
	if m.ContentHash != hash || int64(m.Size) != size {
		return backends.Image{}, u.takeBack(ctx, m, content.Replaces)
	}
	return u.store.found(ctx, "push", u.ref, m)
}

// single sends a small image in one request.
func (u *upload) single(ctx context.Context, r io.ReaderAt, size int64, info *files.CommitInfo) (*files.FileMetadata, string, error) {
	hash, err := u.sums.add(r, 0, size)
	if err != nil {
		return nil, "", &backends.Error{Op: "push", Client: u.store.client, Ref: u.ref, Err: fmt.Errorf("read what is to be pushed: %w", err)}
	}
	arg := &files.UploadArg{CommitInfo: *info, ContentHash: hash}
	cctx, c := newCall(ctx)
	c.body, c.size = r, size
	m, err := u.store.files.UploadContext(cctx, arg, nil)
	if err != nil {
		m, err = u.settle(ctx, c, info.Path, size, hash, err)
	}
	return m, hash, err
}

// parts sends the parts that are missing, all at once, then the last one,
// which closes the session, and finishes.
func (u *upload) parts(ctx context.Context, r io.ReaderAt, size int64, info *files.CommitInfo) (*files.FileMetadata, string, error) {
	session, err := u.begin(ctx)
	if err != nil {
		return nil, "", err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(u.Parallel())
	tail := size - size%partSize
	for off := int64(0); off < tail; off += partSize {
		u.mu.Lock()
		done := u.done[off]
		u.mu.Unlock()
		if !done {
			g.Go(func() error { return u.Part(gctx, off, r) })
		}
	}
	if err := g.Wait(); err != nil {
		return nil, "", err
	}
	if err := u.append(ctx, session, r, tail, size-tail, true); err != nil {
		return nil, "", err
	}
	hash := u.sums.whole(size)
	cctx, c := newCall(ctx)
	m, err := u.store.files.UploadSessionFinishContext(cctx,
		files.NewUploadSessionFinishArg(files.NewUploadSessionCursor(session, uint64(size)), info), nil)
	if err != nil {
		if hasTag(err, files.UploadSessionFinishErrorLookupFailed) || hasTag(err, files.UploadSessionFinishErrorConcurrentSessionMissingData) {
			u.forget(session)
		}
		m, err = u.settle(ctx, c, info.Path, size, hash, err)
	}
	return m, hash, err
}

// settle judges a commit that was refused. It has succeeded all the same when
// the very content stands at the path: pushed by an earlier try whose answer
// was lost, or by somebody else.
func (u *upload) settle(ctx context.Context, c *call, path string, size int64, hash string, err error) (*files.FileMetadata, error) {
	const op = "push"
	conflict := hasTag(err, files.WriteErrorConflict)
	lost := hasTag(err, files.UploadSessionFinishErrorLookupFailed)
	if !conflict && !lost {
		return nil, u.store.fail(ctx, op, u.ref, c, err)
	}
	mctx, mc := newCall(ctx)
	there, merr := u.store.files.GetMetadataContext(mctx, files.NewGetMetadataArg(path))
	if merr != nil && !notFound(merr) {
		return nil, u.store.fail(ctx, op, u.ref, mc, merr)
	}
	m, isFile := there.(*files.FileMetadata)
	switch {
	case isFile && m.ContentHash == hash && int64(m.Size) == size:
		return m, nil
	case lost:
		return nil, u.store.refused(op, u.ref, backends.ErrUnreachable, "Dropbox has forgotten the upload; it begins anew when it is tried again")
	case hasTag(err, files.WriteConflictErrorFile):
		return nil, u.store.refused(op, u.ref, backends.ErrStale, "somebody else has put another image there")
	}
	return nil, u.store.refused(op, u.ref, iofs.ErrExist, "there is a folder, or a file instead of the collection's folder")
}

// takeBack undoes a commit of damaged content: the image that it replaced is
// put back, or the file deleted.
func (u *upload) takeBack(ctx context.Context, m *files.FileMetadata, old *backends.Image) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var err error
	if old != nil {
		_, err = u.store.files.RestoreContext(ctx, files.NewRestoreArg(m.PathLower, old.Revision))
	} else {
		arg := files.NewDeleteArg(m.PathLower)
		arg.ParentRev = m.Rev
		_, err = u.store.files.DeleteV2Context(ctx, arg)
	}
	e := u.store.refused("push", u.ref, backends.ErrCorrupt, "what arrived is not what was sent")
	if err != nil {
		e = errors.Join(e, fmt.Errorf("take it back: %w", explain(nil, err)))
	}
	return e
}

// undoTimeout bounds what is done after the caller's context may have ended.
const undoTimeout = 30 * time.Second

// Abort drops the upload. Dropbox has no call for it: what it has of an
// unfinished session is invisible and expires.
func (u *upload) Abort(context.Context) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.session = ""
	clear(u.done)
	return nil
}
