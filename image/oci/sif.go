package oci

import (
	"encoding/binary"

	"github.com/sregfs/sregfs/image/squash"
)

// The Singularity image format, version 01, as github.com/sylabs/sif/v2 has it
// (pkg/sif/sif.go, descriptor.go): a header, a table of descriptors, the
// objects. Integers are little-endian.
const (
	sifLaunch      = "#!/usr/bin/env run-singularity\n"
	sifTable       = 4096 // where the descriptors begin
	sifDescriptor  = 585  // bytes of one
	sifDescriptors = 48
	sifObjects     = sifTable + sifDescriptors*sifDescriptor

	sifDefinition = 0x4001
	sifPartition  = 0x4004
	sifJSON       = 0x4006

	sifGroup     = 0xf0000001 // the first group
	sifSquashfs  = 1
	sifPrimary   = 2 // the partition with the root file system
	sifNameBytes = 128
	sifExtra     = 384
)

// sifArch are the numbers of architectures, by the Go toolchain's names.
var sifArch = map[string]string{
	"386": "01", "amd64": "02", "arm": "03", "arm64": "04", "ppc64": "05", "ppc64le": "06",
	"mips": "07", "mipsle": "08", "mips64": "09", "mips64le": "10", "s390x": "11", "riscv64": "12", "loong64": "13",
}

// sifObject is one object of an image.
type sifObject struct {
	kind    uint32
	name    string
	content []byte // nil: the partition
}

// sifHead returns everything that stands before the file system: header,
// descriptors and the small objects, up to where a part may begin (PartSize). The partition, of the
// given size, follows and is the last object. Times are zero, so that the same
// image is the same bytes everywhere.
func sifHead(id [16]byte, arch string, objects []sifObject, partition int64) []byte {
	le := binary.LittleEndian
	code := sifArch[arch]
	if code == "" {
		code = "00"
	}
	var table, data []byte
	at := func() int64 { return sifObjects + int64(len(data)) }
	descriptor := func(o sifObject, number int, offset, size, padded int64) {
		b := le.AppendUint32(nil, o.kind)
		b = append(b, 1) // in use
		b = le.AppendUint32(b, uint32(number))
		b = le.AppendUint32(b, sifGroup)
		b = le.AppendUint32(b, 0) // linked to nothing
		b = le.AppendUint64(b, uint64(offset))
		b = le.AppendUint64(b, uint64(size))
		b = le.AppendUint64(b, uint64(padded))
		b = append(b, make([]byte, 4*8)...) // made, changed, user, group
		b = append(b, o.name...)
		b = append(b, make([]byte, sifNameBytes-len(o.name))...)
		extra := make([]byte, sifExtra)
		if o.kind == sifPartition {
			le.PutUint32(extra, sifSquashfs)
			le.PutUint32(extra[4:], sifPrimary)
			copy(extra[8:], code)
		}
		table = append(table, append(b, extra...)...)
	}
	for i, o := range objects {
		n := int64(len(o.content))
		descriptor(o, i+1, at(), n, n)
		data = append(data, o.content...)
	}
	gap := -at() & (squash.PartSize - 1)
	data = append(data, make([]byte, gap)...)
	descriptor(sifObject{kind: sifPartition}, len(objects)+1, at(), partition, gap+partition)

	head := make([]byte, 0, at())
	head = append(head, sifLaunch...)
	head = append(head, make([]byte, 32-len(sifLaunch))...)
	head = append(head, "SIF_MAGIC\x00"...)
	head = append(head, "01\x00"...)
	head = append(head, code...)
	head = append(head, 0)
	head = append(head, id[:]...)
	for _, v := range []int64{
		0, 0, // made, changed
		sifDescriptors - int64(len(objects)) - 1, sifDescriptors,
		sifTable, sifDescriptors * sifDescriptor,
		sifObjects, int64(len(data)) + partition,
	} {
		head = le.AppendUint64(head, uint64(v))
	}
	head = append(head, make([]byte, sifTable-len(head))...)
	head = append(head, table...)
	head = append(head, make([]byte, sifObjects-len(head))...)
	return append(head, data...)
}
