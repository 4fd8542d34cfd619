package catalog

import (
	"errors"
	"testing"
)

// TestAskedMeanwhile: whoever asked for a listing while one was being made has
// it, unless it failed.
func TestAskedMeanwhile(t *testing.T) {
	for _, err := range []error{nil, errors.New("gone")} {
		var s listingState
		s.init()
		s.poke()
		s.ended(err, false)
		again := false
		select {
		case <-s.wake:
			again = true
		default:
		}
		if again != (err != nil) {
			t.Errorf("after an attempt that ended with %v it is listed again: %v", err, again)
		}
	}
}
