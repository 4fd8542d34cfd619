package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/backendtest"
	"github.com/sregfs/sregfs/test/bubble"
)

// tokenless is a store that waits for a token, which is asked for at host ("":
// nowhere) on behalf of others, too.
type tokenless struct {
	backends.Store
	transport http.RoundTripper
	host      string
}

func (s tokenless) Account(ctx context.Context) (string, error) {
	if s.host != "" {
		req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodPost, "https://"+s.host+"/token", nil)
		if err != nil {
			return "", err
		}
		if resp, err := s.transport.RoundTrip(req); err == nil {
			resp.Body.Close()
		}
	}
	<-ctx.Done()
	return "", fmt.Errorf("ask for the name: %w", ctx.Err())
}

type refusing struct{}

func (refusing) RoundTrip(req *http.Request) (*http.Response, error) {
	return nil, errors.New(req.URL.Host + ": connection refused")
}

// TestDoctorUnreachable: the doctor says what is the matter with a service, not
// that time has run out, and takes nothing for it that another client met.
func TestDoctorUnreachable(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		heard := &talk{next: refusing{}}
		for _, c := range []struct{ host, want string }{
			{"a.example", "a.example: connection refused"},
			{"b.example", "b.example: connection refused"},
			{"", "no answer within 15s"},
		} {
			store := tokenless{backendtest.Memory(), heard, c.host}
			f := (&doctorCmd{}).checkClient(t.Context(), opened{client: backends.Client{Name: "drive"}, store: store}, heard)
			if want := "remote cannot be reached: " + c.want; !f.bad || f.state != want {
				t.Errorf("with %q the doctor finds %+v, want %q", c.host, f, want)
			}
		}
	})
}
