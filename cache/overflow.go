package cache

import (
	"container/list"
	"sync"
)

// overflowBytes is how much is kept in memory of what the disk does not take.
const overflowBytes = 32 << 20

// overflow is a small memory for blocks that cannot be kept on disk, so that a
// sequential reader is still served from what was fetched ahead of it, and
// neighbours in one block do not fetch it twice.
type overflow struct {
	mu     sync.Mutex
	blocks map[overflowKey]*list.Element
	recent list.List // of overflowBlock, most recent first
	used   int64
}

type overflowKey struct {
	l *live
	b int
}

type overflowBlock struct {
	key  overflowKey
	data []byte
}

// get returns block b of l, not to be changed, or nil.
func (o *overflow) get(l *live, b int) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	el := o.blocks[overflowKey{l, b}]
	if el == nil {
		return nil
	}
	o.recent.MoveToFront(el)
	return el.Value.(overflowBlock).data
}

func (o *overflow) has(l *live, b int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.blocks[overflowKey{l, b}] != nil
}

// put keeps a copy of data.
func (o *overflow) put(l *live, b int, data []byte) {
	o.drop(l, b)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.blocks == nil {
		o.blocks = map[overflowKey]*list.Element{}
	}
	key := overflowKey{l, b}
	o.blocks[key] = o.recent.PushFront(overflowBlock{key, append([]byte(nil), data...)})
	o.used += int64(len(data))
	for o.used > overflowBytes {
		o.remove(o.recent.Back())
	}
}

func (o *overflow) remove(el *list.Element) {
	blk := o.recent.Remove(el).(overflowBlock)
	delete(o.blocks, blk.key)
	o.used -= int64(len(blk.data))
}

func (o *overflow) drop(l *live, b int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if el := o.blocks[overflowKey{l, b}]; el != nil {
		o.remove(el)
	}
}

// forget drops all that is kept of l.
func (o *overflow) forget(l *live) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for key, el := range o.blocks {
		if key.l == l {
			o.remove(el)
		}
	}
}
