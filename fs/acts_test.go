package fs

import (
	"testing"
	"testing/synctest"
)

// TestActs: whoever waits is woken when the last of several requests ends, and
// not before.
func TestActs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a acts
		if a.busy() != nil {
			t.Fatal("busy with nothing")
		}
		first, second := a.begin(), a.begin()
		woken := make(chan struct{})
		go func() {
			for idle := a.busy(); idle != nil; idle = a.busy() {
				<-idle
			}
			close(woken)
		}()
		first()
		synctest.Wait()
		select {
		case <-woken:
			t.Fatal("woken while a request was under way")
		default:
		}
		second()
		<-woken
	})
}
