//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
)

// status is the part of "sregfs status --json" that tests look at.
type status struct {
	Held     []heldFile
	Opens    struct{ Kernel, Daemon int64 }
	Cache    struct{ Hits int64 }
	Failures []struct{ What string }
}

// heldFile is something that waits on this disk and is not on the remote.
type heldFile struct {
	Client, Image, File, State, Error string
	Bytes                             int64
}

func (d *mounted) status() status {
	d.t.Helper()
	var s status
	out := d.run("%s status --json", program)
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		d.t.Fatalf("%v in\n%s", err, out)
	}
	return s
}

// settled waits until no upload is under way and returns what is held then.
func (d *mounted) settled() []heldFile {
	d.t.Helper()
	var held []heldFile
	d.eventually("uploads to end", func() error {
		held = d.status().Held
		for _, h := range held {
			if h.State == "uploading" || h.State == "ready" {
				return fmt.Errorf("%s is %s", h.Image, h.State)
			}
		}
		return nil
	})
	return held
}
