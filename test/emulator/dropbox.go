package main

import (
	"fmt"

	"github.com/sregfs/sregfs/backends/dropbox/dropboxtest"
)

func dropbox(s settings) (*service, error) {
	srv, err := dropboxtest.Start(dropboxtest.Options{
		Addr: s.addr, TLS: s.tls, Token: s.token, Space: s.space, Latency: s.latency, Bandwidth: s.bandwidth,
	})
	if err != nil {
		return nil, err
	}
	paths := make([]string, s.images)
	for i := range paths {
		paths[i] = fmt.Sprintf("/collection%03d/image%03d:v1.simg", i/1000, i%1000)
	}
	srv.PutAll(paths, []byte("not much of an image"))
	return &service{
		url: srv.URL, ca: srv.CA(),
		counts: func() any { return srv.Counts() }, reset: srv.ResetCounts,
		link: srv.SetLink, close: srv.Close,
	}, nil
}
