package catalog

import (
	"slices"
	"sync"
	"time"
)

// Failure is one thing that went wrong, for the user to read.
type Failure struct {
	At   time.Time `json:"at"`
	What string    `json:"what"` // one sentence
	// Times is how often the same sentence came in a row.
	Times int `json:"times"`
}

// failures keeps the newest ones.
type failures struct {
	mu   sync.Mutex
	list []Failure
}

const maxFailures = 100

// Fail notes a failure for Failures. The sentence must hold no secret.
func (c *Catalog) Fail(sentence string) {
	f := &c.failures
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.list {
		if f.list[i].What == sentence {
			old := f.list[i]
			f.list = append(slices.Delete(f.list, i, i+1), Failure{time.Now(), sentence, old.Times + 1})
			return
		}
	}
	if len(f.list) == maxFailures {
		f.list = slices.Delete(f.list, 0, 1)
	}
	f.list = append(f.list, Failure{time.Now(), sentence, 1})
}

// Failures returns the newest failures, the oldest first.
func (c *Catalog) Failures() []Failure {
	c.failures.mu.Lock()
	defer c.failures.mu.Unlock()
	return slices.Clone(c.failures.list)
}
