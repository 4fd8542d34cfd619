package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// TestStress has many goroutines do everything at once on a real disk: read,
// fill, hint, cancel, close, remove, pin, build, adopt, reserve, with a source
// that cuts bodies and a limit that is too small, and again after somebody
// flipped bits in the files. No read may return a wrong byte.
func TestStress(t *testing.T) {
	dir := t.TempDir()
	const objects = 8
	specs := make([]Spec, objects)
	datas := make([][]byte, objects)
	for i := range specs {
		data := content(200_000+i*60_000, uint64(i))
		r := rand.New(rand.NewPCG(uint64(i), 2))
		var mu sync.Mutex
		src := &source{data: data, fault: func(_ int, _, n int64, body io.Reader) (io.Reader, error) {
			mu.Lock()
			defer mu.Unlock()
			if r.IntN(4) == 0 {
				return io.MultiReader(io.LimitReader(body, r.Int64N(n+1)), errReader{errCut}), nil
			}
			return body, nil
		}}
		h := sha256.Sum256(data)
		specs[i] = Spec{Key: fmt.Sprint("k", i), Size: int64(len(data)), Fetcher: src,
			Sum: Sum{Hex: hex.EncodeToString(h[:]), New: sha256.New}}
		datas[i] = data
	}
	for round := range uint64(2) {
		stress(t, dir, specs, datas, round)
		files, err := filepath.Glob(filepath.Join(dir, "cache", "objects", "*"+dataSuffix))
		if err != nil || len(files) == 0 {
			t.Fatalf("no data files (%v)", err)
		}
		for i, path := range files {
			flipBits(t, path, rand.New(rand.NewPCG(uint64(i), round)))
		}
	}
}

// flipBits changes ten bytes of a file.
func flipBits(t *testing.T, path string, r *rand.Rand) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for range min(10, len(b)) {
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func stress(t *testing.T, dir string, specs []Spec, datas [][]byte, round uint64) {
	objects := len(specs)
	c, err := Open(filepath.Join(dir, "cache"), Options{Log: quiet(), Limit: 2_500_000, Parallel: 4, FetchTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c.fds.max = 4
	expected := func(err error) bool {
		return err == nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errCut) || errors.Is(err, io.ErrUnexpectedEOF)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for w := range 12 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), round))
			for ctx.Err() == nil {
				i := r.IntN(objects)
				data := datas[i]
				switch r.IntN(20) {
				case 0:
					if err := c.Remove(specs[i].Key); err != nil && !errors.Is(err, ErrInUse) {
						t.Error(err)
					}
					continue
				case 1:
					c.Pin(specs[i].Key, r.IntN(2) == 0)
					continue
				case 2:
					if release, err := c.Reserve(r.Int64N(300_000)); err == nil {
						time.Sleep(time.Millisecond)
						release()
					}
					continue
				case 3:
					path := filepath.Join(dir, fmt.Sprint("staged", w))
					os.WriteFile(path, data, 0o600)
					if err := c.Adopt(specs[i].Key, path, int64(len(data)), nil); err != nil && !errors.Is(err, ErrNoRoom) {
						t.Error(err)
					}
					continue
				}
				o, err := c.Object(specs[i])
				if err != nil {
					t.Error(err)
					return
				}
				short, stop := context.WithTimeout(ctx, time.Duration(r.IntN(20))*time.Millisecond)
				switch r.IntN(6) {
				case 0:
					if err := o.Fill(short); !expected(err) && !errors.Is(err, ErrNoRoom) {
						t.Error(err)
					}
				case 1:
					o.Prefetch([]Range{{r.Int64N(200_000), r.Int64N(200_000)}})
				}
				off := r.Int64N(int64(len(data)))
				for range r.IntN(6) {
					p := make([]byte, 1+r.IntN(80_000))
					n, err := o.ReadAt(short, p, off)
					if err != io.EOF && !expected(err) {
						t.Error(err)
					}
					if !bytes.Equal(p[:n], data[off:off+int64(n)]) {
						t.Errorf("wrong bytes of object %d in [%d, %d)", i, off, off+int64(n))
					}
					if off += int64(n); off >= int64(len(data)) {
						break
					}
				}
				stop()
				o.Close()
			}
		})
	}
	wg.Wait()
	for i := range specs {
		if err := c.Pin(specs[i].Key, false); err != nil {
			t.Error(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if s := c.Stats(); s.VerifyFailures > 0 {
		t.Errorf("objects were put together wrong: %+v", s)
	}
	if s := c.Stats(); s.Used+s.Reserved > s.Limit || s.Used < 0 {
		t.Errorf("%+v", s)
	}
}
