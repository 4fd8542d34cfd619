package cache

import "sync/atomic"

// bitmap is a set of block numbers that is read without a lock.
type bitmap []atomic.Uint64

func newBitmap(n int) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) has(i int) bool { return b[i>>6].Load()&(1<<(i&63)) != 0 }

// set adds i and reports whether it was absent.
func (b bitmap) set(i int) bool {
	bit := uint64(1) << (i & 63)
	return b[i>>6].Or(bit)&bit == 0
}

func (b bitmap) clear(i int) { b[i>>6].And(^(uint64(1) << (i & 63))) }

// hasAll reports whether all of [first, end) is in the set.
func (b bitmap) hasAll(first, end int) bool {
	for i := first; i < end; {
		w, bit := i>>6, i&63
		n := min(64-bit, end-i)
		mask := ^uint64(0) >> (64 - n) << bit
		if b[w].Load()&mask != mask {
			return false
		}
		i += n
	}
	return true
}

// next is the first number in [from, end) that is in the set (want) or is not
// in it (!want), or end.
func (b bitmap) next(from, end int, want bool) int {
	for i := from; i < end; {
		w := b[i>>6].Load()
		if i&63 == 0 && ((want && w == 0) || (!want && w == ^uint64(0))) {
			i += 64
			continue
		}
		if w&(1<<(i&63)) != 0 == want {
			return i
		}
		i++
	}
	return end
}
