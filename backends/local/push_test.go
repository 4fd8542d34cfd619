package local

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// TestPushOfAFile takes the kernel's way, from a file whose offset stays.
func TestPushOfAFile(t *testing.T) {
	dir := t.TempDir()
	data := bytes.Repeat([]byte("0123456789abcdef"), (2*copyChunk+5000)/16)
	write(t, dir, "staged", string(data))
	src, err := os.Open(filepath.Join(dir, "staged"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	src.Seek(7, io.SeekStart)
	s := open(t, filepath.Join(dir, "shub"), Options{})
	sum := md5.Sum(data)
	u, _ := s.Begin(t.Context(), parse(t, "c/i:x"), "")
	when := time.Unix(1500000000, 123456000)
	img, err := u.Commit(t.Context(), src, int64(len(data)), backends.Content{MD5: hex.EncodeToString(sum[:]), Modified: when})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(t, s, img); got != string(data) || err != nil {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if !img.Modified.Equal(when) {
		t.Errorf("modified %v, want %v", img.Modified, when)
	}
	if at, _ := src.Seek(0, io.SeekCurrent); at != 7 {
		t.Errorf("the source's offset is %d", at)
	}
	// Shorter than was said.
	u, _ = s.Begin(t.Context(), parse(t, "c/j:x"), "")
	if _, err := u.Commit(t.Context(), src, int64(len(data))+1, backends.Content{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Commit of a short file = %v", err)
	}
	left, _ := os.ReadDir(filepath.Join(dir, "shub", tempDir))
	if len(left) != 1 || left[0].Name() != lockFile {
		t.Errorf("left behind: %v", left)
	}
}

// TestOneOfManyWins: stores as of many processes push one name; each sees
// nothing there.
func TestOneOfManyWins(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 8 {
		s := open(t, dir, Options{})
		wg.Go(func() {
			_, err := pushAs(t.Context(), s, parse(t, "c/i:x"), fmt.Sprintf("content %d", i), nil)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, backends.ErrStale) {
				t.Errorf("push %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d of 8 pushes won, want one", won)
	}
}

// TestSweep removes what the dead left, and nothing else.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	alive, err := s.createTemp() // locked
	if err != nil {
		t.Fatal(err)
	}
	defer alive.file.Close()
	mine := filepath.Join(tempDir, tempPrefix())
	for name, old := range map[string]time.Duration{
		mine + "dead": time.Hour, mine + "fresh": time.Second,
		tempDir + "/elsewhere,new": time.Hour, tempDir + "/elsewhere,old": 48 * time.Hour,
	} {
		write(t, dir, name, "x")
		age(t, dir, name, old)
	}
	age(t, dir, alive.path, time.Hour)
	write(t, dir, tempDir+"/"+lockFile, "")
	age(t, dir, tempDir+"/"+lockFile, 1000*time.Hour)
	open(t, dir, Options{})
	for name, stays := range map[string]bool{
		mine + "dead": false, mine + "fresh": true, tempDir + "/elsewhere,new": true, tempDir + "/elsewhere,old": false,
		alive.path: true, tempDir + "/" + lockFile: true,
	} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != stays {
			t.Errorf("%s: there = %v, want %v", name, err == nil, stays)
		}
	}
}
