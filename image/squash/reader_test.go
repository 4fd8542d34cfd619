package squash

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/squashfs"
)

// openDiskfs reads img with a reader that shares no line with our writer.
func openDiskfs(t *testing.T, img []byte) *squashfs.FileSystem {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, img, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := file.OpenFromPath(path, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fs, err := squashfs.Read(f, int64(len(img)), 0, 0)
	if err != nil {
		t.Fatalf("go-diskfs: %v", err)
	}
	return fs
}

func TestReadByDiskfs(t *testing.T) {
	for _, codec := range []Codec{Plain, Zstd} {
		t.Run(codec.String(), func(t *testing.T) { testReadByDiskfs(t, codec) })
	}
}

func testReadByDiskfs(t *testing.T, codec Codec) {
	b := newBuilder(t, codec, 2)
	content := map[string][]byte{}
	var many []Entry
	for i := range 1200 {
		name := fmt.Sprintf("%04d-%s", i, strings.Repeat("n", i%200))
		p := bytes.Repeat([]byte{byte(i)}, i)
		if i%50 == 0 { // go-diskfs reads the whole listing at each open
			content["many/"+name] = p
		}
		many = append(many, Entry{name, b.file(i%2, p)})
	}
	root := dir(Entry{"many", dir(many...)}, Entry{"empty", dir()})
	for _, n := range []int{0, 1, BlockSize - 1, BlockSize, BlockSize + 1, 5 << 20} {
		name := fmt.Sprint("size", n)
		content[name] = noise(n)
		root.Entries = append(root.Entries, Entry{name, b.file(1, content[name])})
	}
	content["sparse"] = slices.Concat(noise(BlockSize), make([]byte, 3*BlockSize), []byte("end"))
	root.Entries = append(root.Entries, Entry{"sparse", b.file(0, content["sparse"])},
		Entry{"link", &Inode{Mode: ModeSymlink | 0o777, Target: "many"}})

	fs := openDiskfs(t, b.image(root, Options{Codec: codec}))
	for name, want := range content {
		f, err := fs.OpenFile(name, 0)
		if err != nil {
			t.Fatalf("open %s: %v", name, err)
		}
		got, err := io.ReadAll(f)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: read %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
	list, err := fs.ReadDir("many")
	if err != nil || len(list) != len(many) {
		t.Errorf("ReadDir: %d names, %v; want %d", len(list), err, len(many))
	}
}
