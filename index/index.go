// Package index is the record of what was seen, in two SQLite files.
//
// The state is ours: what each client's store was last said to hold, the
// positions in change feeds, what was learnt of contents, extended attributes,
// small notes. All of it can be learnt again, so a state file that is damaged
// is put aside and begun anew.
//
// The records are the seeds': the database of the Python client, with just its
// tables, which both programs use at the same time. It belongs to the user: it
// is never rebuilt, migrated or overwritten.
//
// The package knows nothing of stores, FUSE or the cache; it is told and asked
// in the vocabulary of backends. Names of directories and files are always
// those of the tree (backends.CollectionPath, Ref.File). Start at Open and
// Index; listing.go takes listings in, lookup.go answers.
//
// Lock order: Index.writing before any transaction. Nothing is held while a
// caller's iterator or loop body runs.
package index

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Options say where the files are.
type Options struct {
	// Database is the seeds' database, a file or a folder that holds (or is to
	// hold) sregistry.db. Empty turns records off, as SREGISTRY_DISABLE does.
	Database string
	// State is the file of our own state. Its folder is made if need be.
	State string
	// Log gets what a user may want to know; nil for nothing.
	Log *slog.Logger
}

// Index is the open record of what was seen. It is safe for concurrent use,
// also by several processes with the same files. Reading never waits for
// writing. Every method returns soon after its context is done.
type Index struct {
	log     *slog.Logger
	state   *state
	records *records // nil when turned off

	writing chan struct{} // holds a token while this process writes the state
	clients sync.Map      // name → number; a client's number never changes

	page      int // rows that are read at once while a caller iterates
	maxPlaces int // places that a Diff tells singly

	rooms sync.Pool // of *[]stored, for a page of images

	indexing chan struct{} // wakes the search indexer
	cancel   context.CancelFunc
	work     sync.WaitGroup
}

// Open opens both files and makes what is missing. A state file that is no
// good is put aside, with a log line. A seeds' database that cannot be used is
// logged and leaves everything but the records working: they are tried again
// with each use, and fail with an error that wraps ErrRecords and says what to
// do. The caller closes the Index.
func Open(ctx context.Context, o Options) (*Index, error) {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if o.State == "" {
		return nil, errors.New("open the index: no state file is named")
	}
	st, err := openState(ctx, o.State, log)
	if err != nil {
		return nil, fmt.Errorf("open the index: %w", err)
	}
	x := &Index{
		log: log, state: st, page: defaultPage, maxPlaces: defaultPlaces,
		writing:  make(chan struct{}, 1),
		indexing: make(chan struct{}, 1),
	}
	if o.Database != "" {
		x.records = newRecords(o.Database)
		if err := x.records.check(ctx); err != nil {
			if ctx.Err() != nil {
				return nil, errors.Join(err, x.records.close(), st.close())
			}
			log.Warn("going on without records", "error", err)
		}
	}
	background, cancel := context.WithCancel(context.Background())
	x.cancel = cancel
	x.work.Go(func() { x.followQueue(background) })
	return x, nil
}

// Close waits for background work and closes the files. Iterators must have
// ended.
func (x *Index) Close() error {
	x.cancel()
	x.work.Wait()
	err := x.state.close()
	if x.records != nil {
		err = errors.Join(err, x.records.close())
	}
	return err
}

// Listing is how well a client's holdings are known.
type Listing struct {
	// Known: a complete listing was taken in at some time.
	Known bool
	// Cursor is the change feed's position that goes with it.
	Cursor string
	// At is when the listing was last known to be right.
	At time.Time
}

// Diff tells which names of the tree now mean something else.
type Diff struct {
	// Changed holds each place once, in any order.
	Changed []Place
	// Full says that more changed than is told singly; Changed is then empty.
	Full bool
}

// Place is a name in a client's tree.
type Place struct {
	// Dir is a collection's path, as backends.CollectionPath gives it.
	Dir string
	// File is an image's name without a version, as Ref.File gives it; empty
	// for the collection itself.
	File string
}

const (
	// defaultPage keeps a loop over many images below a few hundred kilobytes.
	defaultPage = 2000
	// Telling the kernel costs a system call for each place; past this, dropping
	// everything is cheaper.
	defaultPlaces = 2000
)

// places gathers a Diff.
type places struct {
	max  int
	seen map[Place]bool
	full bool
}

func (p *places) add(dir, file string) {
	if p.full || dir == "" && file == "" {
		return // the client's own directory is always there
	}
	if p.seen == nil {
		p.seen = map[Place]bool{}
	}
	if len(p.seen) == p.max && !p.seen[Place{dir, file}] {
		p.full, p.seen = true, nil
		return
	}
	p.seen[Place{dir, file}] = true
}

func (p *places) diff() Diff {
	d := Diff{Full: p.full}
	for place := range p.seen {
		d.Changed = append(d.Changed, place)
	}
	return d
}
