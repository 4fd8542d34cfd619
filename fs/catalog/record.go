package catalog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/index"
)

// Record is the seeds' inspect record of an image, read from inside the image
// where that has not been done, noted in the seeds' database, and formatted as
// the Python client prints it: keys sorted, four spaces.
func (cl *Client) Record(ctx context.Context, img backends.Image) ([]byte, error) {
	attrs, err := cl.Attributes(ctx, img)
	if err != nil {
		return nil, err
	}
	r, _, err := cl.note(ctx, img, attrs)
	if err != nil && !errors.Is(err, index.ErrRecords) {
		return nil, err
	}
	// With a database that cannot be used the record lacks its numbers alone;
	// the index has logged why.
	return formatRecord(r)
}

// note writes an image's record into the seeds' database. Without attributes,
// a record that is there keeps what it has.
func (cl *Client) note(ctx context.Context, img backends.Image, attrs json.RawMessage) (index.Record, bool, error) {
	img = cl.WithVersion(img)
	metrics, err := cl.metrics(img, attrs)
	if err != nil {
		return index.Record{}, false, err
	}
	r := index.Record{
		Client: cl.recordName, Collection: img.Ref.Collection, Name: img.Ref.Name, Tag: img.Ref.Tag,
		Version: img.Version, URI: cl.URI(img), Metrics: metrics, Created: img.Created,
	}
	if img.URL != "" {
		r.URL = &img.URL
	}
	if path := cl.LocalPath(ctx, img); path != "" {
		r.Image = &path
	}
	return cl.cat.opts.Index.PutRecord(ctx, r)
}

// CreatedAt is the date of an image's record; without one when the store says that
// the image was made, or changed. It is zero where nothing says so.
func (cl *Client) CreatedAt(ctx context.Context, img backends.Image) time.Time {
	r, ok, err := cl.cat.opts.Index.Record(ctx, cl.recordName, img.Ref.Latest().WithVersion(img.Version))
	switch {
	case err == nil && ok:
		return r.Created
	case !img.Created.IsZero():
		return img.Created
	}
	return img.Modified
}

// URI is the seeds' uri of an image: with its version where one is known.
func (cl *Client) URI(img backends.Image) string {
	return img.Ref.Latest().WithVersion(img.Version).String()
}

// LocalPath is the path of an image of a local store, "" for all others.
func (cl *Client) LocalPath(ctx context.Context, img backends.Image) string {
	l, ok := backends.As[backends.Localer](cl.Store)
	if !ok {
		return ""
	}
	f, err := l.LocalFile(ctx, img)
	if err != nil {
		return ""
	}
	defer f.Close()
	return f.Name()
}

// metrics is the record's account of the image: what is inside of it, its name
// in parts, and what the remote says under keys of its own.
func (cl *Client) metrics(img backends.Image, attrs json.RawMessage) (json.RawMessage, error) {
	if attrs == nil {
		attrs = emptyAttributes
	}
	var version *string
	if img.Version != "" {
		version = &img.Version
	}
	m := map[string]any{
		"collection": img.Ref.Collection,
		"data":       map[string]any{"attributes": attrs, "type": "container"},
		"image":      img.Ref.Name,
		"storage":    img.Ref.Collection + "/" + img.Ref.Latest().Object(),
		"tag":        img.Ref.Tag,
		"uri":        img.Ref.Latest().String(),
		"url":        img.Ref.Collection + "/" + img.Ref.Name,
		"version":    version,
	}
	if len(img.Remote) > 0 {
		var remote map[string]any
		if err := json.Unmarshal(img.Remote, &remote); err != nil {
			return nil, &backends.Error{Op: "inspect", Client: cl.Name, Ref: img.Ref, Err: err}
		}
		maps.Copy(m, remote)
	}
	return json.Marshal(m)
}

// emptyAttributes stand for an image that nobody has looked into yet.
var emptyAttributes = json.RawMessage(`{"deffile":null,"environment":null,"help":null,"labels":null,"runscript":null,"test":null}`)

// formatRecord prints a record as the Python client does.
func formatRecord(r index.Record) ([]byte, error) {
	const layout = "2006-01-02 15:04:05"
	m := map[string]any{
		"client": r.Client, "collection": r.Collection, "collection_id": r.CollectionID,
		"created_at": r.Created.UTC().Format(layout), "id": r.ID, "image": r.Image, "metrics": r.Metrics,
		"name": r.Name, "tag": r.Tag, "uri": r.URI, "url": r.URL, "version": r.Version,
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "    ")
	if err := enc.Encode(m); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// recordJob asks for a record of an image that somebody looked at or, with unseen,
// says that there is none any more.
type recordJob struct {
	cl     *Client
	img    backends.Image
	unseen bool
}

// Seen notes that somebody looked at an image: its record is written soon,
// without asking the network for anything. It never blocks; when very many
// images are looked at at once, as by ls -l, some are left for the next look.
func (cl *Client) Seen(img backends.Image) {
	cl.prepare(img)
	select {
	case cl.cat.records <- recordJob{cl: cl, img: img}:
	default:
	}
}

// unseen has the next look at an image whose record was forgotten write it anew, also
// where the kernel would have answered by itself.
func (cl *Client) unseen(ref backends.Ref) {
	ref = ref.Latest()
	select {
	case cl.cat.records <- recordJob{cl: cl, img: backends.Image{Ref: ref}, unseen: true}:
	default:
	}
	cl.state.changed(index.Diff{Changed: []index.Place{{Dir: ref.Dir(), File: ref.File()}}}, nil)
}

// prepareEvery is how often at most a store is told that bytes may be wanted.
const prepareEvery = 5 * time.Second

// prepare shortens the way to the first bytes of an image that is not here:
// who looks at one by name may be about to run it.
func (cl *Client) prepare(img backends.Image) {
	if cl.preparer == nil {
		return
	}
	now, last := time.Now().UnixNano(), cl.prepared.Load()
	if now-last < int64(prepareEvery) {
		return
	}
	if _, complete := cl.Cached(img); !complete && cl.prepared.CompareAndSwap(last, now) {
		cl.preparer.Prepare()
	}
}

// writeRecords writes the records that Seen asks for.
func (c *Catalog) writeRecords() {
	type key struct {
		client, revision string
		ref              backends.Ref
	}
	done := map[key]bool{}
	for {
		select {
		case <-c.ctx.Done():
			return
		case j := <-c.records:
			if j.unseen {
				maps.DeleteFunc(done, func(k key, _ bool) bool { return k.client == j.cl.Name && k.ref.Latest() == j.img.Ref })
				continue
			}
			k := key{j.cl.Name, j.img.Revision, j.img.Ref}
			if done[k] {
				continue
			}
			if len(done) > 10_000 {
				clear(done)
			}
			done[k] = true
			if err := j.cl.record(c.ctx, j.img); err != nil && c.ctx.Err() == nil {
				c.log.Warn("cannot write a record", "image", j.img.Ref.String(), "error", err)
			}
		}
	}
}

// record writes a record of what is known without asking anybody.
func (cl *Client) record(ctx context.Context, img backends.Image) error {
	attrs, _, err := cl.cat.opts.Index.Attributes(ctx, img.ContentKey(cl.Name))
	if err != nil {
		return err
	}
	if attrs == nil {
		if _, ok, err := cl.cat.opts.Index.Record(ctx, cl.recordName, img.Ref.WithVersion(img.Version)); err != nil || ok {
			return err
		}
	}
	_, _, err = cl.note(ctx, img, attrs)
	return err
}
