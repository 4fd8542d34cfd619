package gdrive

import (
	"errors"
	"testing"

	"github.com/sregfs/sregfs/backends"
)

// FuzzCursor: a cursor that is none is expired, whatever it is, and of another
// nothing is lost.
func FuzzCursor(f *testing.F) {
	for _, seed := range []string{"", " ", "12 root", "12", "x y", "-1 ", "9223372036854775808 r", "1 a b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, cursor string) {
		token, root, err := (&Store{client: "gdrive"}).position(cursor)
		if err != nil && !errors.Is(err, backends.ErrCursorReset) {
			t.Errorf("position(%q): %v", cursor, err)
		}
		if err == nil && (token == "" || token+" "+root != cursor) {
			t.Errorf("position(%q) = %q, %q", cursor, token, root)
		}
	})
}
