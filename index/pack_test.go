package index

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// TestImagesComeBackExactly takes images through the database.
func TestImagesComeBackExactly(t *testing.T) {
	base := image("pusheen/asaurus:red", "id:1", "015f")
	with := func(f func(*backends.Image)) backends.Image {
		img := base
		f(&img)
		return img
	}
	for name, img := range map[string]backends.Image{
		"plain":         base,
		"no ID, no Key": with(func(i *backends.Image) { i.ID, i.Key = "", "" }),
		"Key alone":     with(func(i *backends.Image) { i.ID = "" }),
		"root":          with(func(i *backends.Image) { i.Ref.Collection = "" }),
		"nested":        with(func(i *backends.Image) { i.Ref.Collection = "nvidia/clara/x" }),
		"all fields": {
			Ref: backends.Ref{Collection: "c", Name: "n", Tag: "t", Version: "sha256:00"},
			ID:  "id:2", Key: "/c/n:t.simg", Revision: "rev", Size: math.MaxInt64, Version: "02c08a25c8f4697e16e896239e549a2b",
			Sum:      backends.Checksum{Algorithm: backends.SHA256, Hex: "abc"},
			Created:  time.Date(2018, 1, 28, 16, 43, 28, 999999999, time.UTC),
			Modified: time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC),
			URL:      "https://example.com/a?b=c",
			Labels:   map[string]string{"": "", "maintainer": "vanessa", "ü": "\x00\xff"},
			Remote:   json.RawMessage(`{"id": 23, "name": "ü"}`),
			Layered:  true, ReadOnly: true,
		},
		"unknown size": with(func(i *backends.Image) { i.Size = -1 }),
		"far times": with(func(i *backends.Image) {
			i.Created = time.Date(-5000, 1, 2, 3, 4, 5, 6, time.UTC)
			i.Modified = time.Date(99999, 1, 2, 3, 4, 5, 6, time.UTC)
		}),
		"the epoch": with(func(i *backends.Image) { i.Created = time.Unix(0, 0).UTC() }),
		"odd names": with(func(i *backends.Image) {
			i.Ref = backends.Ref{Collection: "../a\nb", Name: "x/y\x00z%2F", Tag: "'\"; --"}
		}),
		"bad UTF-8":  with(func(i *backends.Image) { i.Ref.Name, i.Revision = "\xff\xfe", "\x80" }),
		"long names": with(func(i *backends.Image) { i.Ref.Name = string(make([]byte, 3000)) }),
	} {
		t.Run(name, func(t *testing.T) {
			x := openTest(t)
			dir, file := img.Ref.Dir(), img.Ref.Latest().File()
			find := func() backends.Image {
				got, ok, err := x.Lookup(t.Context(), "dropbox", dir, file, false)
				if err != nil || !ok {
					t.Fatalf("Lookup(%q, %q) = %v, %v", dir, file, ok, err)
				}
				return got
			}
			replace(t, x, []backends.Image{img})
			check(t, "from a listing", find(), img)
			if d := replace(t, x, []backends.Image{img}); len(d.Changed) != 0 || d.Full {
				t.Errorf("the same listing changes %+v", d)
			}
			if _, err := x.RemoveImage(t.Context(), "dropbox", img); err != nil {
				t.Fatal(err)
			}
			if _, err := x.PutImage(t.Context(), "dropbox", img); err != nil {
				t.Fatal(err)
			}
			check(t, "from PutImage", find(), img)
			if d, err := x.PutImage(t.Context(), "dropbox", img); err != nil || len(d.Changed) != 0 {
				t.Errorf("putting the same changes %+v, %v", d, err)
			}
		})
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(pack(image("a/b:c", "1", "r")))
	f.Add(pack(backends.Image{Labels: map[string]string{"a": "b"}, Remote: json.RawMessage(`{}`), Created: time.Unix(1, 2)}))
	f.Add([]byte{packedV1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := unpack(b)
		if err != nil {
			return
		}
		again, err := unpack(pack(img))
		if err != nil || !reflect.DeepEqual(again, img) {
			t.Fatalf("unpack(pack(%+v)) = %+v, %v", img, again, err)
		}
	})
}
