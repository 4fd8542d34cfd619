package fs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// signalPoll is how often a caller that a signal has interrupted is looked at
// again. The kernel tells only of the first signal.
const signalPoll = 100 * time.Millisecond

// patient is ctx for an act that a caller who is interrupted cannot just repeat:
// close(2) is not repeated after EINTR, and a second rm does not find what the
// first one removed. It does not end for the signals by which Go's runtime
// preempts its threads (SIGURG); any other one ends it within signalPoll. The
// caller must call stop.
func patient(ctx context.Context, tid uint32) (_ context.Context, stop func()) {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(ctx, func() {
		tick := time.NewTicker(signalPoll)
		defer tick.Stop()
		for preempted(tid) {
			select {
			case <-tick.C:
			case <-inner.Done():
				return
			}
		}
		cancel()
	})
	return inner, func() {
		unhook()
		cancel()
	}
}

// preempted reports whether SIGURG is the only signal that a thread has yet to
// take.
func preempted(tid uint32) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return false
	}
	pending := pendingSignals(status)
	return pending == 1<<(unix.SIGURG-1)
}

// pendingSignals reads the signals that wait for a thread and are neither
// blocked nor ignored from its status file (proc_pid_status(5)).
func pendingSignals(status []byte) uint64 {
	mask := func(name string) uint64 {
		_, rest, _ := bytes.Cut(status, []byte("\n"+name+":\t"))
		word, _, _ := bytes.Cut(rest, []byte("\n"))
		v, err := strconv.ParseUint(string(word), 16, 64)
		if err != nil {
			return 0
		}
		return v
	}
	return (mask("SigPnd") | mask("ShdPnd")) &^ (mask("SigBlk") | mask("SigIgn"))
}
