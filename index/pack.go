package index

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// packedV1 begins an image packed in the first form. Its fields follow in the
// order of pack: texts and lists with their length before them, numbers as
// varints (encoding/binary).
const packedV1 = 1

// Flags of a packed image.
const (
	flagLayered = 1 << iota
	flagReadOnly
)

// pack is all of img but what columns hold: ID, Key and Ref.Collection. Equal
// images pack to equal bytes.
func pack(img backends.Image) []byte {
	b := make([]byte, 0, 192+len(img.URL)+len(img.Remote))
	text := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	moment := func(t time.Time) {
		if t.IsZero() {
			b = append(b, 0)
			return
		}
		b = append(b, 1)
		b = binary.AppendVarint(b, t.Unix())
		b = binary.AppendUvarint(b, uint64(t.Nanosecond()))
	}
	b = append(b, packedV1)
	text(img.Ref.Name)
	text(img.Ref.Tag)
	text(img.Ref.Version)
	text(img.Revision)
	b = binary.AppendVarint(b, img.Size)
	text(img.Version)
	text(img.Sum.Algorithm)
	text(img.Sum.Hex)
	moment(img.Created)
	moment(img.Modified)
	text(img.URL)
	b = binary.AppendUvarint(b, uint64(len(img.Labels)))
	for _, k := range sortedKeys(img.Labels) {
		text(k)
		text(img.Labels[k])
	}
	text(string(img.Remote))
	var flags byte
	if img.Layered {
		flags |= flagLayered
	}
	if img.ReadOnly {
		flags |= flagReadOnly
	}
	return append(b, flags)
}

func sortedKeys(m map[string]string) []string {
	if len(m) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(m))
}

var errPacked = errors.New("an image in the index cannot be read")

// unpack reverses pack. Times come back in UTC. It keeps nothing of b.
func unpack(b []byte) (backends.Image, error) {
	u := unpacker{rest: string(b)}
	if u.byte() != packedV1 {
		return backends.Image{}, errPacked
	}
	var img backends.Image
	img.Ref.Name = u.text()
	img.Ref.Tag = u.text()
	img.Ref.Version = u.text()
	img.Revision = u.text()
	img.Size = u.varint()
	img.Version = u.text()
	img.Sum.Algorithm = u.text()
	img.Sum.Hex = u.text()
	img.Created = u.moment()
	img.Modified = u.moment()
	img.URL = u.text()
	// A label takes two bytes at least, which bounds what is made for them.
	if n := u.uvarint(); n > uint64(len(u.rest)/2) {
		u.bad = true
	} else if n > 0 {
		img.Labels = make(map[string]string, n)
		for range n {
			k := u.text()
			img.Labels[k] = u.text()
		}
	}
	if remote := u.text(); remote != "" {
		img.Remote = []byte(remote)
	}
	flags := u.byte()
	img.Layered, img.ReadOnly = flags&flagLayered != 0, flags&flagReadOnly != 0
	if u.bad || u.rest != "" {
		return backends.Image{}, errPacked
	}
	return img, nil
}

// unpacker cuts fields off a packed image. Once bad, it gives zero values.
type unpacker struct {
	rest string
	bad  bool
}

func (u *unpacker) take(n uint64) string {
	if u.bad || n > uint64(len(u.rest)) {
		u.bad = true
		return ""
	}
	s := u.rest[:n]
	u.rest = u.rest[n:]
	return s
}

func (u *unpacker) byte() byte {
	if s := u.take(1); s != "" {
		return s[0]
	}
	return 0
}

func (u *unpacker) uvarint() uint64 {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		c := u.byte()
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v
		}
	}
	u.bad = true
	return 0
}

func (u *unpacker) varint() int64 {
	v := u.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

func (u *unpacker) text() string { return u.take(u.uvarint()) }

func (u *unpacker) moment() time.Time {
	if u.byte() == 0 {
		return time.Time{}
	}
	seconds := u.varint()
	return time.Unix(seconds, int64(u.uvarint())).UTC()
}
