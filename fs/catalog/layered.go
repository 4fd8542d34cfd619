package catalog

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/image"
)

func (cl *Client) openLayered(ctx context.Context, img backends.Image) (*Content, error) {
	return nil, cl.unsupported("open", img.Ref)
}
func (cl *Client) layeredAttributes(ctx context.Context, img backends.Image) (image.Attributes, error) {
	return image.Attributes{}, cl.unsupported("inspect", img.Ref)
}
func (cl *Client) layeredSize(img backends.Image) int64 { return max(img.Size, 0) }

// Manifest is what makes up a container image, as the registry has it.
func (cl *Client) Manifest(ctx context.Context, img backends.Image) (json.RawMessage, error) {
	return nil, errors.ErrUnsupported
}
