package oci

import "github.com/sregfs/sregfs/backends"

// SetPartSize makes parts small enough for tests.
func SetPartSize(s backends.Store, n int64) { s.(*Writer).partSize = n }
