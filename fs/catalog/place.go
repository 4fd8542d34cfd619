package catalog

import (
	"context"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/index"
)

// notePlace is the kind of the note that says which place a client's listing is
// of: client → backends.Placer's Place.
const notePlace = "place"

// Elsewhere reports whether x knows of a client another place than its store is at.
// New would drop what is known of it, under the hands of a mount that is still
// there.
func Elsewhere(ctx context.Context, x *index.Index, stores map[string]backends.Store) (bool, error) {
	for name, store := range stores {
		p, ok := backends.As[backends.Placer](store)
		if !ok {
			continue
		}
		before, known, err := x.Note(ctx, notePlace, name)
		if err != nil || known && string(before) != p.Place() {
			return err == nil, err
		}
	}
	return false, nil
}

// arrive drops what was listed of another place under the client's name: the
// images of one account must not pass for another's. What is cached by content
// stays.
func (cl *Client) arrive(ctx context.Context) error {
	p, ok := backends.As[backends.Placer](cl.Store)
	if !ok {
		return nil
	}
	x, place := cl.cat.opts.Index, p.Place()
	before, known, err := x.Note(ctx, notePlace, cl.Name)
	if err != nil || known && string(before) == place {
		return err
	}
	if known {
		cl.log.Info("the client has another account, folder or token than before; it is listed anew")
		if err := x.DropClient(ctx, cl.Name); err != nil {
			return err
		}
	}
	return x.SetNote(ctx, notePlace, cl.Name, []byte(place))
}
