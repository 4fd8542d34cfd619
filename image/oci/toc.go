package oci

import "github.com/containerd/stargz-snapshotter/estargz"

// Files in the root of an eStargz layer that belong to the format.
const (
	indexFile          = estargz.TOCTarName
	prefetchLandmark   = estargz.PrefetchLandmark
	noPrefetchLandmark = estargz.NoPrefetchLandmark
)
