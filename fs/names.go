package fs

import (
	"regexp"
	"strings"

	"github.com/sregfs/sregfs/backends"
)

// sedName is sed -i's temporary name.
var sedName = regexp.MustCompile(`^sed[A-Za-z0-9]{6}$`)

// temporary reports whether programs use such a name for a file that they will
// rename: rsync's .name.XXXXXX, rclone's name.xxxxxxxx.partial, editors' swap
// and backup files, browsers' downloads.
func temporary(name string) bool {
	if strings.HasPrefix(name, ".") {
		return name != searchDir && name != byIDDir
	}
	for _, end := range []string{".partial", ".part", ".tmp", ".temp", ".swp", ".swx", ".crdownload", ".filepart", "~"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return strings.HasPrefix(name, "tmp.") || sedName.MatchString(name)
}

// imageName parses the name of an image that is to be written in a directory.
// A name that cannot be one is an error that says what names can.
func imageName(dir, name string) (backends.Ref, error) {
	ref, sidecar, ok := backends.ParseFile(name)
	if ok && !sidecar && ref.Version != "" {
		return backends.Ref{}, &backends.Error{Op: "write " + name, Err: backends.ErrInvalidName,
			Hint: "a version is made by writing to the image's own name, " + ref.Latest().File()}
	}
	if !ok || sidecar {
		return backends.Ref{}, &backends.Error{Op: "write " + name, Err: backends.ErrInvalidName,
			Hint: "call it IMAGE:TAG.simg"}
	}
	ref.Collection = backends.ParseCollection(dir)
	return ref, nil
}
