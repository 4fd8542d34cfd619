package fs

import (
	"testing"
	"time"

	"github.com/sregfs/sregfs/test/bubble"
)

// TestActs: whoever waits goes on a moment after the last of several requests
// has ended, not before, and not when another one has begun meanwhile.
func TestActs(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var a acts
		if !a.calm() || !a.waitCalm(nil) {
			t.Fatal("not calm with nothing")
		}
		first, second := a.begin(), a.begin()
		began := time.Now()
		calm := make(chan time.Duration, 1)
		go func() {
			a.waitCalm(nil)
			calm <- time.Since(began)
		}()
		time.Sleep(time.Second)
		first()
		time.Sleep(time.Second)
		second()
		time.Sleep(actsCalm / 2)
		third := a.begin() // a rename after its look-up
		time.Sleep(time.Hour)
		if a.calm() {
			t.Error("calm during a request")
		}
		third()
		if got, want := <-calm, 2*time.Second+actsCalm/2+time.Hour; got < want || got > want+actsCalm {
			t.Errorf("calm after %v, want %v", got, want)
		}
	})
}

// TestActsInConstantUse: a directory that is never calm is not waited for for
// ever, and the end of the tree ends the wait.
func TestActsInConstantUse(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var a acts
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(actsCalm / 4):
					a.begin()()
				}
			}
		}()
		began := time.Now()
		time.Sleep(actsCalm)
		if !a.waitCalm(nil) || time.Since(began) > 2*actsPatience {
			t.Errorf("waited for %v", time.Since(began))
		}
		close(stop)
		end := a.begin()
		defer end()
		quit := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(quit) })
		if a.waitCalm(quit) {
			t.Error("calm during a request")
		}
	})
}
