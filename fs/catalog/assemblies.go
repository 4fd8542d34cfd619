package catalog

import (
	"context"
	"sync"
	"time"
)

// assemblies are the images that are ready, or are being made. Its zero value
// is empty.
type assemblies struct {
	mu     sync.Mutex
	making map[string]*making
	ready  map[string]*assembly
	order  []string // of ready, the longest unused first
}

const (
	// readyImages is how many are kept: some 70 bytes for each of their files.
	readyImages = 8
	// makeGrace is how long one that nobody waits for any more is still made: a
	// reader that was interrupted usually comes back.
	makeGrace = 30 * time.Second
)

// making is one that is being made. Guarded by assemblies.mu.
type making struct {
	waiting int
	cancel  context.CancelFunc
	idle    *time.Timer
	done    chan struct{}
	a       *assembly // set before done is closed, like err
	err     error
}

// assembled returns the image of that key, making it where it is not ready. However
// many ask at once, it is made once, on a context of its own. A caller whose
// ctx ends stops waiting. A failure goes to all who wait; the next caller tries
// anew.
func (c *Catalog) assembled(ctx context.Context, key string, assemble func(context.Context) (*assembly, error)) (*assembly, error) {
	s := &c.assemblies
	s.mu.Lock()
	if a := s.ready[key]; a != nil {
		s.use(key)
		s.mu.Unlock()
		return a, nil
	}
	m := s.making[key]
	if m == nil {
		m = c.startAssembly(key, assemble)
	}
	m.waiting++
	if m.idle != nil {
		m.idle.Stop()
		m.idle = nil
	}
	s.mu.Unlock()
	var err error
	select {
	case <-m.done:
		err = m.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.waiting--; m.waiting == 0 && s.making[key] == m {
		m.idle = time.AfterFunc(makeGrace, m.cancel)
	}
	if err != nil {
		return nil, err
	}
	return m.a, nil
}

// startAssembly begins to make an image. c.assemblies.mu is held.
func (c *Catalog) startAssembly(key string, assemble func(context.Context) (*assembly, error)) *making {
	s := &c.assemblies
	ctx, cancel := context.WithCancel(c.ctx)
	m := &making{cancel: cancel, done: make(chan struct{})}
	if s.making == nil {
		s.making, s.ready = map[string]*making{}, map[string]*assembly{}
	}
	s.making[key] = m
	c.work.Go(func() {
		defer cancel()
		m.a, m.err = assemble(ctx)
		s.mu.Lock()
		delete(s.making, key)
		if m.err == nil {
			s.ready[key] = m.a
			s.use(key)
		}
		if m.idle != nil {
			m.idle.Stop()
		}
		s.mu.Unlock()
		close(m.done)
	})
	return m
}

// use makes key the last to be dropped, and drops what is too much. s.mu is
// held.
func (s *assemblies) use(key string) {
	for i, k := range s.order {
		if k == key {
			s.order = append(s.order[:i], s.order[i+1:]...)
			break
		}
	}
	s.order = append(s.order, key)
	if len(s.order) > readyImages {
		delete(s.ready, s.order[0])
		s.order = s.order[1:]
	}
}
