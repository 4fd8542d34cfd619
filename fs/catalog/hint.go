package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/cache"
	"github.com/sregfs/sregfs/image"
)

const (
	// profileTime is how long after its first reader closed an image may be
	// opened again for the same start: Apptainer opens one several times.
	profileTime = time.Minute
	// profileShare bounds what a profile covers to one part in so many of the
	// image: whoever reads more copies it, and that teaches nothing.
	profileShare = 4
	maxProfile   = 2048 // ranges
)

// profile is what the first start of an image read, in the order in which it
// was first asked for.
type profile struct {
	Began  time.Time     `json:"began"`
	Ranges []cache.Range `json:"ranges"`
}

// hint asks ahead, when c is first read, for what an earlier start has read,
// or else for what every start reads of such an image.
func (cl *Client) hint(img backends.Image, c *Content) {
	if c.obj.Complete() {
		return
	}
	if p, ok := cl.profile(img); ok {
		c.obj.Replay(p.Ranges)
	}
	// A handle of its own: Apptainer looks at an image's head, closes it, and
	// opens it again to mount it.
	obj, err := cl.cat.opts.Cache.Object(cl.spec(img))
	if err != nil {
		return
	}
	cl.cat.work.Go(func() {
		defer obj.Close()
		cl.hintTables(cl.cat.ctx, obj)
	})
}

// hintTables asks for what whoever mounts an image reads first. It returns
// when the end of its tables is here, with which a mount begins; the rest is
// fetched as long as somebody has the image open.
func (cl *Client) hintTables(ctx context.Context, obj *cache.Object) {
	r := readerAt{ctx, &Content{size: obj.Size(), obj: obj}}
	l, err := image.Probe(ctx, r, obj.Size())
	if err != nil {
		return // no image, or the reader will learn why
	}
	var ranges []cache.Range
	for _, r := range image.Hints(l, obj.Size()) {
		ranges = append(ranges, cache.Range{Off: r.Off, N: r.Len})
	}
	obj.Prefetch(ranges)
	if l.Tables.Len > 0 {
		_, _ = obj.ReadAt(ctx, make([]byte, 1), l.Tables.End()-1)
	}
}

// profileFile is where the profile of img is kept; empty for nowhere.
func (cl *Client) profileFile(img backends.Image) string {
	if cl.cat.opts.Profiles == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(cl.CacheKey(img)))
	return filepath.Join(cl.cat.opts.Profiles, hex.EncodeToString(sum[:16])+".json")
}

func (cl *Client) profile(img backends.Image) (p profile, ok bool) {
	f, err := os.Open(cl.profileFile(img))
	if err != nil {
		return profile{}, false
	}
	defer f.Close()
	if json.NewDecoder(io.LimitReader(f, 1<<20)).Decode(&p) != nil || len(p.Ranges) > maxProfile {
		return profile{}, false
	}
	for _, r := range p.Ranges {
		if r.Off < 0 || r.N <= 0 || r.Off > math.MaxInt64-r.N {
			return profile{}, false // damaged
		}
	}
	return p, true
}

// keepProfile replaces img's profile: another mount may read it meanwhile.
func (cl *Client) keepProfile(img backends.Image, p profile) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cl.cat.opts.Profiles, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(cl.cat.opts.Profiles, ".new-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), cl.profileFile(img))
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}

// Learn remembers what has been read of an image, for its next cold start on
// whatever cache. It is called when a reader closes. The first start of a
// version is the one that counts, with all the readers that it consists of.
func (cl *Client) Learn(img backends.Image, c *Content) {
	if c.obj == nil || cl.cat.opts.Profiles == "" {
		return
	}
	trace := c.obj.Trace()
	p, known := cl.profile(img)
	if !known {
		p.Began = time.Now()
	}
	if len(trace) == 0 || c.opened.Sub(p.Began) > profileTime {
		return
	}
	before := len(p.Ranges)
	for _, r := range trace {
		if !slices.ContainsFunc(p.Ranges, func(o cache.Range) bool { return o.Off <= r.Off && r.Off+r.N <= o.Off+o.N }) {
			p.Ranges = append(p.Ranges, r)
		}
	}
	if len(p.Ranges) == before || len(p.Ranges) > maxProfile || covered(p.Ranges) > c.size/profileShare {
		return
	}
	if err := cl.keepProfile(img, p); err != nil {
		cl.log.Warn("cannot remember an access profile", "image", img.Ref.String(), "error", err)
	}
}

// covered is how many bytes ranges cover together.
func covered(ranges []cache.Range) (n int64) {
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b cache.Range) int { return int(min(max(a.Off-b.Off, -1), 1)) })
	end := int64(0)
	for _, r := range sorted {
		n += max(0, r.Off+r.N-max(r.Off, end))
		end = max(end, r.Off+r.N)
	}
	return n
}
