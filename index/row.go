package index

import (
	"cmp"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/sregfs/sregfs/backends"
)

// imageColumns are the columns of an image that come from the store, in the
// order of row.values.
const imageColumns = "object, path, file, fold, name, tag, pinned, revision, size, version, sum, " +
	"created, modified, url, labels, remote, flags, extra, content"

// imageColumnCount is the number of names in imageColumns.
const imageColumnCount = 19

// Flags of an image row.
const (
	flagLayered = 1 << iota
	flagReadOnly
)

// What an image's object column begins with.
const (
	objectID  = "i"
	objectKey = "k"
	objectRef = "r"
)

// row is an image as its table holds it.
type row struct {
	object, path, file, fold, name, tag, pinned string
	revision                                    string
	size                                        int64
	version, sum                                string
	created, modified                           sql.NullInt64
	url, labels, remote                         string
	flags                                       int64
	extra                                       string
	content                                     int64
}

// extra is what fits no column.
type extra struct {
	// Times before 1678 or after 2262, which nanoseconds cannot tell: seconds
	// since 1970 and nanoseconds.
	Created  *[2]int64 `json:"created,omitempty"`
	Modified *[2]int64 `json:"modified,omitempty"`
}

// values are the arguments for imageColumns.
func (r *row) values() []any {
	return []any{r.object, r.path, r.file, r.fold, r.name, r.tag, r.pinned, r.revision, r.size, r.version,
		r.sum, r.created, r.modified, r.url, r.labels, r.remote, r.flags, r.extra, r.content}
}

// newRow is img as a row. It fails when labels cannot be written.
func newRow(client string, img backends.Image) (row, error) {
	r := row{
		object: objectOf(img), path: img.Key, file: img.Ref.Latest().File(),
		name: img.Ref.Name, tag: img.Ref.Tag, pinned: img.Ref.Version,
		revision: img.Revision, size: img.Size, version: img.Version, sum: img.Sum.String(),
		url: img.URL, remote: string(img.Remote), content: contentID(img.ContentKey(client)),
	}
	r.fold = foldOf(r.file)
	if len(img.Labels) > 0 {
		labels, err := json.Marshal(img.Labels)
		if err != nil {
			return row{}, fmt.Errorf("labels of %s: %w", img.Ref, err)
		}
		r.labels = string(labels)
	}
	if img.Layered {
		r.flags |= flagLayered
	}
	if img.ReadOnly {
		r.flags |= flagReadOnly
	}
	var more extra
	r.created, more.Created = nanos(img.Created)
	r.modified, more.Modified = nanos(img.Modified)
	if more != (extra{}) {
		data, err := json.Marshal(more)
		if err != nil {
			return row{}, fmt.Errorf("times of %s: %w", img.Ref, err)
		}
		r.extra = string(data)
	}
	return r, nil
}

// objectOf is what makes an image the same one: its ID where the store has
// such a thing, else its path, else its name.
func objectOf(img backends.Image) string {
	switch {
	case img.ID != "":
		return objectID + img.ID
	case img.Key != "":
		return objectKey + img.Key
	}
	return objectRef + img.Ref.String()
}

// foldOf is name in lower case, "" when that is name itself.
func foldOf(name string) string {
	if f := strings.ToLower(name); f != name {
		return f
	}
	return ""
}

// contentID is the number under which a content key is kept.
func contentID(key string) int64 {
	sum := sha256.Sum256([]byte(key))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}

var (
	minNano = time.Unix(0, math.MinInt64)
	maxNano = time.Unix(0, math.MaxInt64)
)

// nanos is t for a column, NULL for the zero time. A time that nanoseconds
// cannot tell becomes the nearest one that they can, and is returned.
func nanos(t time.Time) (sql.NullInt64, *[2]int64) {
	switch {
	case t.IsZero():
		return sql.NullInt64{}, nil
	case t.Before(minNano):
		return sql.NullInt64{Int64: math.MinInt64, Valid: true}, &[2]int64{t.Unix(), int64(t.Nanosecond())}
	case t.After(maxNano):
		return sql.NullInt64{Int64: math.MaxInt64, Valid: true}, &[2]int64{t.Unix(), int64(t.Nanosecond())}
	}
	return sql.NullInt64{Int64: t.UnixNano(), Valid: true}, nil
}

func fromNanos(n sql.NullInt64) time.Time {
	if !n.Valid {
		return time.Time{}
	}
	return time.Unix(0, n.Int64).UTC()
}

// imageSelect reads images for scanImage; a WHERE on i, c and cl follows.
const imageSelect = `SELECT i.id, cl.name, c.name, c.dir,
	i.object, i.path, i.file, i.name, i.tag, i.pinned, i.revision, i.size, i.version, i.sum,
	i.created, i.modified, i.url, i.labels, i.remote, i.flags, i.extra,
	coalesce(k.key, ''), coalesce(k.md5, ''), coalesce(k.labels, '')
FROM image i
JOIN collection c ON c.id = i.collection
JOIN client cl ON cl.id = i.client
LEFT JOIN content k ON k.id = i.content
`

// stored is an image as it is read, with where it stands.
type stored struct {
	id     int64
	client string
	place  Place
	object string
	image  backends.Image
	// learnt are labels from inside of the image, as JSON.
	learnt string
}

// scanImage reads a row of imageSelect.
func scanImage(rows *sql.Rows) (stored, error) {
	var (
		s        stored
		r        row
		key, md5 string
	)
	img := &s.image
	err := rows.Scan(&s.id, &s.client, &img.Ref.Collection, &s.place.Dir,
		&r.object, &img.Key, &s.place.File, &img.Ref.Name, &img.Ref.Tag, &img.Ref.Version,
		&img.Revision, &img.Size, &img.Version, &r.sum,
		&r.created, &r.modified, &img.URL, &r.labels, &r.remote, &r.flags, &r.extra,
		&key, &md5, &s.learnt)
	if err != nil {
		return stored{}, err
	}
	s.object = r.object
	if id, ok := strings.CutPrefix(r.object, objectID); ok {
		img.ID = id
	}
	if algorithm, hex, ok := strings.Cut(r.sum, ":"); ok {
		img.Sum = backends.Checksum{Algorithm: algorithm, Hex: hex}
	}
	img.Created, img.Modified = fromNanos(r.created), fromNanos(r.modified)
	if r.labels != "" {
		if err := json.Unmarshal([]byte(r.labels), &img.Labels); err != nil {
			return stored{}, fmt.Errorf("labels of %s: %w", img.Ref, err)
		}
	}
	if r.remote != "" {
		img.Remote = json.RawMessage(r.remote)
	}
	img.Layered, img.ReadOnly = r.flags&flagLayered != 0, r.flags&flagReadOnly != 0
	if r.extra != "" {
		var more extra
		if err := json.Unmarshal([]byte(r.extra), &more); err != nil {
			return stored{}, fmt.Errorf("times of %s: %w", img.Ref, err)
		}
		if more.Created != nil {
			img.Created = time.Unix(more.Created[0], more.Created[1]).UTC()
		}
		if more.Modified != nil {
			img.Modified = time.Unix(more.Modified[0], more.Modified[1]).UTC()
		}
	}
	// The number of a content key is a short hash; the key itself decides.
	if key == "" || key != img.ContentKey(s.client) {
		s.learnt = ""
	} else if img.Version == "" {
		img.Version = md5
	}
	return s, nil
}

// newer orders images of one name, the newest first.
func newer(a, b stored) int {
	if c := b.image.Modified.Compare(a.image.Modified); c != 0 {
		return c
	}
	if c := cmp.Compare(b.image.ID, a.image.ID); c != 0 {
		return c
	}
	// The same object once by its name and once by a version: the name's goes
	// first.
	if c := cmp.Compare(a.image.Ref.Version, b.image.Ref.Version); c != 0 {
		return c
	}
	return cmp.Compare(b.object, a.object)
}
