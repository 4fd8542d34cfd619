//go:build integration

package integration

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

// nagged writes a file and sends itself a signal again and again while it
// closes it.
const nagged = `
import os, signal, sys, threading, time
nag = getattr(signal, sys.argv[3])
signal.signal(nag, lambda *_: None)
data = open(sys.argv[1], "rb").read()
fd = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT, 0o755)
while data:
    data = data[os.write(fd, data):]
def send():
    for _ in range(20):
        time.sleep(.05)
        os.kill(os.getpid(), nag)
threading.Thread(target=send, daemon=True).start()
os.close(fd)
`

// TestInterruptedClose: the signal by which Go's runtime preempts its threads
// does not end a close that pushes; any other one does, and the push goes on.
func TestInterruptedClose(t *testing.T) {
	s := dropboxtest.New(dropboxtest.Options{})
	t.Cleanup(s.Close)
	a := dropboxAt(s)
	image := bigImage(t, 1)
	d := newMachine(t, a.env...).mount("--client=dropbox")
	script := filepath.Join(d.home, "nagged.py")
	if err := os.WriteFile(script, []byte(nagged), 0o644); err != nil {
		t.Fatal(err)
	}
	d.run("mkdir dropbox/pusheen")
	s.SetLink(0, 12<<20)
	d.run("python3 %s %s dropbox/pusheen/a:1.simg SIGURG", script, image)
	a.mustHold(t, "pusheen/a:1", image)
	d.fails("InterruptedError", "python3 %s %s dropbox/pusheen/a:2.simg SIGUSR1", script, image)
	d.eventually("the push that was left", func() error {
		if _, ok := a.get("pusheen/a:2"); !ok {
			return errors.New("not there")
		}
		return nil
	})
	a.mustHold(t, "pusheen/a:2", image)
}
