package catalog

import (
	"context"
	"errors"

	"github.com/sregfs/sregfs/backends"
)

// Forget drops the record of the image ref of the client name or, where name is
// "", of the one client that there is such a record of; if there are several, the
// error names them. With bytes what is cached of the image goes, too, or the image
// itself where the client is the machine's own. A remote keeps its image; a record
// goes without it being asked, so that it can be of an image that is gone, or of a
// client that is not set up.
func (c *Catalog) Forget(ctx context.Context, name string, ref backends.Ref, bytes bool) error {
	owners, err := c.opts.Index.RecordClients(ctx, ref)
	if err != nil {
		return err
	}
	// By the names that are shown, with one that is not set up under the record's.
	var names []string
	for _, owner := range owners {
		shown := owner
		for _, cl := range c.clients {
			if cl.recordName == owner {
				shown = cl.Name
			}
		}
		if name == "" || name == shown || name == owner {
			names = append(names, shown)
		}
	}
	switch {
	case len(names) > 1:
		return severalHave("forget", names, ref)
	case len(names) == 1:
		name = names[0]
	case !bytes:
		return &backends.Error{Op: "forget", Client: name, Ref: ref, Err: errors.New("there is no record of it"), Hint: `"sregfs images" lists the records`}
	}
	if bytes {
		err := c.forgetBytes(ctx, name, ref)
		// With the image gone, the cache lets go of the bytes by itself.
		if err != nil && (len(names) == 0 || !isNotExist(err)) {
			return err
		}
	}
	cl := c.Client(name)
	if cl != nil {
		name = cl.recordName
	}
	if _, err = c.opts.Index.DeleteRecord(ctx, name, ref); err == nil && cl != nil {
		cl.unseen(ref)
	}
	return err
}

// forgetBytes drops what is cached of an image.
func (c *Catalog) forgetBytes(ctx context.Context, name string, ref backends.Ref) error {
	cl, img, err := c.Resolve(ctx, name, ref)
	if err != nil {
		return err
	}
	if cl.Local() {
		// The local client's bytes are the image itself: the seeds' rmi.
		return cl.Remove(ctx, img)
	}
	if c.opts.Cache == nil {
		return &backends.Error{Op: "forget", Client: cl.Name, Ref: img.Ref, Err: errNoCache}
	}
	return c.opts.Cache.Remove(cl.CacheKey(img))
}
