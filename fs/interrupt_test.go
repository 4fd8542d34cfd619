package fs

import "testing"

func TestPendingSignals(t *testing.T) {
	const head = "Name:\tcp\nThreads:\t1\nSigQ:\t1/7000\n"
	for name, c := range map[string]struct {
		status string
		want   uint64
	}{
		"none":         {head + "SigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n", 0},
		"of both":      {head + "SigPnd:\t0000000000400000\nShdPnd:\t0000000000000002\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n", 0x400002},
		"not blocked":  {head + "SigPnd:\t0000000000400002\nShdPnd:\t0000000000000000\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000000000\n", 0x400000},
		"not ignored":  {head + "SigPnd:\t0000000000400002\nShdPnd:\t0000000000000000\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000400000\n", 2},
		"unreadable":   {head + "SigPnd:\tx\n", 0},
		"from nothing": {"", 0},
	} {
		if got := pendingSignals([]byte(c.status)); got != c.want {
			t.Errorf("%s: %#x, want %#x", name, got, c.want)
		}
	}
}
