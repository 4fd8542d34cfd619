package cache

import (
	"sync"
	"time"
)

// fastLink is what a guess at a link's rate is taken seriously up to: 1 Gbit/s.
const fastLink = 125e6

// link is what is known of the way to the store: how long it takes to answer
// and how fast it delivers.
type link struct {
	mu    sync.Mutex
	rtt   time.Duration // least time to the first block
	rate  float64       // bytes a second, all transfers together
	burst float64       // bytes a second within a body, behind its first block
	since time.Time
	bytes int64
}

// saw takes note of k bytes that arrived after wait.
func (k *link) saw(first bool, wait time.Duration, n int, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if first && (k.rtt == 0 || wait < k.rtt) {
		k.rtt = wait
	}
	if !first && wait > 0 {
		now := float64(n) / max(wait, time.Millisecond/8).Seconds()
		if k.burst == 0 {
			k.burst = now
		}
		k.burst += (min(now, 4*k.burst) - k.burst) / 8
	}
	const sample = 50 * time.Millisecond
	switch d := now.Sub(k.since); {
	case k.since.IsZero() || d > time.Second:
		k.since, k.bytes = now, 0
	case d >= sample:
		rate := float64(k.bytes+int64(n)) / d.Seconds()
		if rate > k.rate {
			k.rate = rate
		} else {
			k.rate += (rate - k.rate) / 8
		}
		k.since, k.bytes = now, 0
		return
	}
	k.bytes += int64(n)
}

// speed is the rate in bytes a second.
func (k *link) speed() float64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.rate
}

// capacity is the rate in bytes a second that the link may have, though nobody
// has used it so far; at most fastLink. 0 while nothing is known.
func (k *link) capacity() float64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return max(k.rate, k.guessed())
}

// guessed is the rate that bodies came with, as far as it is believed. The caller
// holds k.mu.
func (k *link) guessed() float64 { return min(k.burst, fastLink) }

// product is the bandwidth-delay product in bytes, by a guess while no rate was
// measured.
func (k *link) product() int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	rate := k.rate
	if rate == 0 {
		rate = k.guessed()
	}
	return int64(rate * k.rtt.Seconds())
}

// within is how many bytes come in d, or in a round trip where that is longer.
func (k *link) within(d time.Duration) int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return int64(k.rate * max(d, k.rtt).Seconds())
}
