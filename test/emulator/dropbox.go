package main

import "github.com/sregfs/sregfs/backends/dropbox/dropboxtest"

func dropbox(s settings) (*service, error) {
	srv, err := dropboxtest.Start(dropboxtest.Options{
		Addr: s.addr, TLS: s.tls, Token: s.token, Space: s.space, Latency: s.latency, Bandwidth: s.bandwidth,
	})
	if err != nil {
		return nil, err
	}
	return &service{
		url: srv.URL, ca: srv.CA(),
		counts: func() any { return srv.Counts() }, reset: srv.ResetCounts,
		link: srv.SetLink, close: srv.Close,
	}, nil
}
