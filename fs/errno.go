package fs

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"strings"
	"syscall"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache"
)

// kinds maps kinds of failure to what a program sees. The first match counts.
var kinds = []struct {
	err   error
	errno syscall.Errno
}{
	{context.Canceled, syscall.EINTR},
	{backends.ErrAuth, syscall.EACCES},
	{backends.ErrNotConfigured, syscall.EACCES},
	{backends.ErrReadOnly, syscall.EROFS},
	{backends.ErrNoSpace, syscall.ENOSPC},
	{backends.ErrQuota, syscall.EDQUOT},
	{backends.ErrBusy, syscall.EAGAIN},
	{backends.ErrStale, syscall.ESTALE},
	{backends.ErrCorrupt, syscall.EIO},
	{cache.ErrCorrupt, syscall.EIO},
	{cache.ErrNoRoom, syscall.ENOSPC},
	{cache.ErrStalled, syscall.ETIMEDOUT},
	{backends.ErrInvalidName, syscall.EINVAL},
	{backends.ErrNotEmpty, syscall.ENOTEMPTY},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},
	{backends.ErrUntrusted, syscall.EIO}, // nobody waited for it
	{backends.ErrUnreachable, syscall.ETIMEDOUT},
	{iofs.ErrNotExist, syscall.ENOENT},
	{iofs.ErrExist, syscall.EEXIST},
	{iofs.ErrPermission, syscall.EACCES},
	{errors.ErrUnsupported, syscall.EOPNOTSUPP},
}

// toErrno is the errno for an error, EIO for one of no known kind.
func toErrno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.errno
		}
	}
	// After the kinds, since an Errno claims to be several of them.
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return syscall.EIO
}

// fail turns an error into an errno, and tells the user why in one sentence:
// in the log and in sregfs status. An absence and an interruption are answers,
// not failures.
func (t *Tree) fail(op, path string, err error) syscall.Errno {
	errno := toErrno(err)
	switch errno {
	case 0, syscall.ENOENT, syscall.EINTR, syscall.EEXIST, syscall.ENOTEMPTY, syscall.ENODATA, syscall.EXDEV:
		return errno
	}
	return t.told(op, path, err)
}

// told is fail for what tells of a failure whatever its kind: where an absence is
// no answer to a program's question.
func (t *Tree) told(op, path string, err error) syscall.Errno {
	errno := toErrno(err)
	if errno == 0 || errno == syscall.EINTR {
		return errno
	}
	sentence := err.Error()
	t.log.Error(op+" failed", "path", path, "errno", errno.Error(), "error", sentence)
	if !strings.Contains(sentence, errno.Error()) {
		sentence += " (" + errno.Error() + ")"
	}
	t.cat.Fail(fmt.Sprintf("%s %s: %s", op, path, sentence))
	return errno
}
