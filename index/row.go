package index

import (
	"cmp"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"strings"

	"github.com/sregfs/sregfs/backends"
)

// imageColumns are the columns of an image that come from the store, in the
// order of row.values. What no query asks by is packed into data: every column
// costs a look-up about a microsecond.
const imageColumns = "object, path, file, fold, content, data"

// imageColumnCount is the number of names in imageColumns.
const imageColumnCount = 6

// What an image's object column begins with.
const (
	objectID  = "i"
	objectKey = "k"
	objectRef = "r"
)

// row is an image as its table holds it.
type row struct {
	object, path, file, fold string
	content                  int64
	data                     []byte
}

// values are the arguments for imageColumns.
func (r *row) values() []any {
	return []any{r.object, r.path, r.file, r.fold, r.content, r.data}
}

// newRow is img as a row.
func newRow(client string, img backends.Image) row {
	r := row{
		object: objectOf(img), path: img.Key, file: img.Ref.Latest().File(),
		content: contentID(img.ContentKey(client)), data: pack(img),
	}
	r.fold = foldOf(r.file)
	return r
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

// imageSelect reads images of one client; a WHERE on i and c follows.
const (
	imageSelect = `SELECT ` + storedColumns + imageFrom
	imageFrom   = ` FROM image i JOIN collection c ON c.id = i.collection LEFT JOIN content k ON k.id = i.content `

	storedColumns = `c.name, i.object, i.path, i.file, i.data, k.key, k.md5`
)

// foundSelect reads images of any client with all that a search needs; further
// joins and a WHERE follow.
const foundSelect = `SELECT ` + storedColumns + `, k.labels, i.id, cl.name, c.dir` + imageFrom +
	`JOIN client cl ON cl.id = i.client `

// stored is an image as it is read, with where it stands.
type stored struct {
	client string
	place  Place // from imageSelect, without Dir
	object string
	image  backends.Image
	// Only from foundSelect: its number, and the labels from inside of the
	// image as JSON.
	id     int64
	learnt string
}

// scanner reads one row after the other. It is made once for all rows of an
// answer, which may be very many.
type scanner struct {
	s                stored
	collection, path string
	data             sql.RawBytes
	key, md5         sql.NullString
	labels           sql.NullString
	dest             []any
}

// imageScanner reads rows of imageSelect, for images of client.
func imageScanner(client string) *scanner {
	c := &scanner{s: stored{client: client}}
	c.dest = []any{&c.collection, &c.s.object, &c.path, &c.s.place.File, &c.data, &c.key, &c.md5}
	return c
}

// foundScanner reads rows of foundSelect.
func foundScanner() *scanner {
	c := imageScanner("")
	c.dest = append(c.dest, &c.labels, &c.s.id, &c.s.client, &c.s.place.Dir)
	return c
}

// scan reads a row.
func (c *scanner) scan(rows *sql.Rows) (stored, error) {
	if err := rows.Scan(c.dest...); err != nil {
		return stored{}, err
	}
	s := c.s
	var err error
	if s.image, err = unpack(c.data); err != nil {
		return stored{}, err
	}
	img := &s.image
	img.Ref.Collection, img.Key = c.collection, c.path
	if id, ok := strings.CutPrefix(s.object, objectID); ok {
		img.ID = id
	}
	// The number of a content key is a short hash; the key itself decides.
	if c.key.Valid && c.key.String == img.ContentKey(s.client) {
		if img.Version == "" {
			img.Version = c.md5.String
		}
		s.learnt = c.labels.String
	}
	return s, nil
}

// newer orders images of one name, the newest first.
func newer(a, b stored) int {
	return cmp.Or(
		b.image.Modified.Compare(a.image.Modified),
		cmp.Compare(b.image.ID, a.image.ID),
		// The same object once by its name and once by a version: the name's
		// goes first.
		cmp.Compare(a.image.Ref.Version, b.image.Ref.Version),
		cmp.Compare(b.object, a.object))
}

// words is what can be found of an image, in searchable form: its name, its ID, and
// each label's key and value.
func (s *stored) words() string {
	var b strings.Builder
	add := func(text string) {
		b.WriteString(searchable(text))
		b.WriteString(separator)
	}
	ref := s.image.Ref
	if ref.Collection != "" {
		ref.Name = ref.Collection + "/" + ref.Name
	}
	add(ref.Name + ":" + ref.Tag)
	if s.image.ID != "" {
		add(s.image.ID)
	}
	for _, k := range sortedKeys(s.image.Labels) {
		add(k)
		add(s.image.Labels[k])
	}
	var learnt map[string]string
	// What cannot be read cannot be found; SetAttributes wrote it.
	if s.learnt != "" && json.Unmarshal([]byte(s.learnt), &learnt) == nil {
		for _, k := range sortedKeys(learnt) {
			add(k)
			add(learnt[k])
		}
	}
	return b.String()
}
