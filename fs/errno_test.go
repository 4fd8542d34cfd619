package fs

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"syscall"
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache"
)

// TestErrno holds the table of errors to errnos against what programs are
// promised, each kind wrapped twice, as it comes from below.
func TestErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{iofs.ErrNotExist, syscall.ENOENT},
		{iofs.ErrExist, syscall.EEXIST},
		{iofs.ErrPermission, syscall.EACCES},
		{backends.ErrInvalidName, syscall.EINVAL},
		{backends.ErrAuth, syscall.EACCES},
		{backends.ErrNotConfigured, syscall.EACCES},
		{backends.ErrReadOnly, syscall.EROFS},
		{errors.ErrUnsupported, syscall.EOPNOTSUPP},
		{backends.ErrNoSpace, syscall.ENOSPC},
		{backends.ErrQuota, syscall.EDQUOT},
		{backends.ErrBusy, syscall.EAGAIN},
		{backends.ErrUnreachable, syscall.ETIMEDOUT},
		{backends.ErrUntrusted, syscall.EIO},
		{backends.ErrCorrupt, syscall.EIO},
		{cache.ErrCorrupt, syscall.EIO},
		{cache.ErrNoRoom, syscall.ENOSPC},
		{backends.ErrStale, syscall.ESTALE},
		{backends.ErrNotEmpty, syscall.ENOTEMPTY},
		{context.Canceled, syscall.EINTR},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
		{syscall.ENOSPC, syscall.ENOSPC},
		{syscall.EXDEV, syscall.EXDEV},
		{errors.New("anything else"), syscall.EIO},
		// An interrupted wait is no failure of the network.
		{errors.Join(backends.ErrUnreachable, context.Canceled), syscall.EINTR},
	} {
		err := &backends.Error{Op: "read", Err: fmt.Errorf("get: %w", c.err)}
		if got := toErrno(err); got != c.want {
			t.Errorf("toErrno(%v) = %v, want %v", err, got, c.want)
		}
	}
	if got := toErrno(nil); got != 0 {
		t.Errorf("toErrno(nil) = %v", got)
	}
}

func TestTemporaryNames(t *testing.T) {
	for name, want := range map[string]bool{
		".asaurus:red.simg.Xa81bC":          true, // rsync
		"asaurus:red.simg.1a2b3c4d.partial": true, // rclone
		"sedAbC123":                         true,
		".asaurus.swp":                      true,
		"asaurus:red.simg~":                 true,
		"tmp.x1y2z3":                        true,
		"asaurus:red.simg.crdownload":       true,
		"asaurus:red.simg":                  false,
		"readme.txt":                        false,
		".search":                           false,
		".by-id":                            false,
		"sediment":                          false,
	} {
		if got := temporary(name); got != want {
			t.Errorf("temporary(%q) = %v, want %v", name, got, want)
		}
	}
}

func TestImageName(t *testing.T) {
	ref, err := imageName("nvidia/clara", "x:1.sif")
	if want := (backends.Ref{Collection: "nvidia/clara", Name: "x", Tag: "1"}); err != nil || ref != want {
		t.Errorf("got %+v, %v; want %+v", ref, err, want)
	}
	for _, name := range []string{"x", "x:1.json", "x:1@v.simg", ":1.simg", "x.txt"} {
		if ref, err := imageName("c", name); !errors.Is(err, backends.ErrInvalidName) {
			t.Errorf("imageName(%q) = %+v, %v", name, ref, err)
		}
	}
}
