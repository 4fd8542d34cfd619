package catalog

import (
	"context"
	"encoding/json"
	"net/url"

	"github.com/sregfs/sregfs/backends"
)

// Recorder reports whether the client keeps records without a file.
func (cl *Client) Recorder() bool {
	_, ok := backends.As[backends.Recorder](cl.Store)
	return ok && !cl.cat.opts.ReadOnly
}

// noPointer is a record that leads nowhere: of the kind ErrInvalidName, as any
// other content that cannot stand under a name, but not of its words.
type noPointer struct{}

func (noPointer) Error() string { return "this does not say where the image is" }
func (noPointer) Unwrap() error { return backends.ErrInvalidName }

// AddRecord notes an image that lies at the url which the JSON object data
// holds: the seeds' add without a file. The other members of data, or those of
// its "metrics", become the record's metrics.
func (cl *Client) AddRecord(ctx context.Context, ref backends.Ref, data []byte) error {
	bad := func(err error) error {
		return &backends.Error{Op: "record", Client: cl.Name, Ref: ref, Err: err,
			Hint: `write a JSON object with a "url" (http or https) in it`}
	}
	r, ok := backends.As[backends.Recorder](cl.Store)
	if !ok {
		return cl.unsupported("record", ref)
	}
	var given struct {
		URL     string         `json:"url"`
		Metrics map[string]any `json:"metrics"`
	}
	if err := json.Unmarshal(data, &given); err != nil {
		return bad(noPointer{})
	}
	u, err := url.Parse(given.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return bad(noPointer{})
	}
	// Schemes are written in any case; who looks at the address knows one.
	img, err := r.Record(ctx, ref, u.Scheme+given.URL[len(u.Scheme):])
	if err != nil {
		return err
	}
	if len(given.Metrics) > 0 {
		if img.Remote, err = json.Marshal(given.Metrics); err != nil {
			return bad(err)
		}
	}
	cl.remember(img)
	_, _, err = cl.note(ctx, img, nil)
	return err
}
