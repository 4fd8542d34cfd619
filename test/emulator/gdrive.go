package main

import (
	"errors"
	"os"
	"time"

	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
	"github.com/sregfs/sregfs/backends/gdrive/gdrivetest"
)

// gdrive runs a Google Drive. Its credentials are a service account's, which
// need no login.
func gdrive(s settings) (*service, error) {
	o := gdrivetest.Options{
		Addr: s.addr, Token: s.token, Quota: s.space,
		Link: gdrivetest.Link{RoundTrip: s.latency, Bandwidth: s.bandwidth},
	}
	if s.tls {
		o.Certificate = dropboxtest.Certificate
	}
	srv, err := gdrivetest.Start(o)
	if err != nil {
		return nil, err
	}
	if s.credentials != "" {
		key, err := gdrivetest.ServiceAccountFile(srv.URL)
		if err == nil {
			err = os.WriteFile(s.credentials, key, 0o600)
		}
		if err != nil {
			return nil, errors.Join(err, srv.Close())
		}
	}
	return &service{
		url: srv.URL, ca: srv.CA(),
		counts: func() any { return srv.Counts() }, reset: srv.ResetCounts,
		link: func(latency time.Duration, bandwidth int64) {
			srv.SetLink(gdrivetest.Link{RoundTrip: latency, Bandwidth: bandwidth})
		},
		close: func() { srv.Close() },
	}, nil
}
