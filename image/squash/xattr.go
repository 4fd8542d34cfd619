package squash

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// noXattr is the index of an inode without extended attributes.
const noXattr = 0xffffffff

// xattrPrefixes are those that the format has numbers for.
var xattrPrefixes = [...]string{"user.", "trusted.", "security."}

// xattrTable collects sets of extended attributes; equal sets are kept once.
type xattrTable struct {
	pairs metaWriter
	ids   metaWriter
	known map[string]uint32
}

// add returns the index of the set x.
func (t *xattrTable) add(x []Xattr) (uint32, error) {
	if len(x) == 0 {
		return noXattr, nil
	}
	slices.SortFunc(x, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	var set []byte
	for i, a := range x {
		if i > 0 && a.Name == x[i-1].Name {
			return 0, fmt.Errorf("extended attribute %q twice", a.Name)
		}
		kind, name, ok := splitXattr(a.Name)
		if !ok || len(a.Value) > 1<<16 {
			return 0, fmt.Errorf("extended attribute %.100q of %d bytes: %w", a.Name, len(a.Value), ErrLimit)
		}
		set = binary.LittleEndian.AppendUint16(set, kind)
		set = binary.LittleEndian.AppendUint16(set, uint16(len(name)))
		set = append(set, name...)
		set = binary.LittleEndian.AppendUint32(set, uint32(len(a.Value)))
		set = append(set, a.Value...)
	}
	if id, ok := t.known[string(set)]; ok {
		return id, nil
	}
	id := uint32(len(t.known))
	t.known[string(set)] = id
	var rec []byte
	rec = binary.LittleEndian.AppendUint64(rec, t.pairs.ref())
	rec = binary.LittleEndian.AppendUint32(rec, uint32(len(x)))
	rec = binary.LittleEndian.AppendUint32(rec, uint32(len(set)))
	t.ids.Write(rec)
	t.pairs.Write(set)
	return id, nil
}

// splitXattr gives the number of name's prefix and the rest.
func splitXattr(name string) (kind uint16, rest string, ok bool) {
	for k, p := range xattrPrefixes {
		if rest, ok := strings.CutPrefix(name, p); ok {
			return uint16(k), rest, rest != "" && len(name) <= MaxName && !strings.Contains(rest, "\x00")
		}
	}
	return 0, "", false
}

// XattrAllowed reports whether an extended attribute can be kept: squashfs has
// only user., trusted. and security., and values of at most 64 KiB.
func XattrAllowed(x Xattr) bool {
	_, _, ok := splitXattr(x.Name)
	return ok && len(x.Value) <= 1<<16
}
