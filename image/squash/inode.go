package squash

import (
	"encoding/binary"
	"math"
)

// The types of inodes. An extended type is the plain one plus extended.
const (
	typeDir = iota + 1
	typeFile
	typeSymlink
	typeBlock
	typeChar
	typeFIFO
	typeSocket
	extended = 7
)

const noFragment = 0xffffffff

// kind is the inode's plain type, which directory entries hold as well.
func (i *Inode) kind() uint16 {
	switch i.Mode & ModeType {
	case ModeDir:
		return typeDir
	case ModeRegular:
		return typeFile
	case ModeSymlink:
		return typeSymlink
	case ModeBlock:
		return typeBlock
	case ModeChar:
		return typeChar
	case ModeFIFO:
		return typeFIFO
	}
	return typeSocket
}

// begin starts the inode's record: what all types have in common.
func (l *layout) begin(ino *Inode, kind uint16) ([]byte, error) {
	uid, err := l.id(ino.UID)
	if err != nil {
		return nil, err
	}
	gid, err := l.id(ino.GID)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	b := le.AppendUint16(make([]byte, 0, 64), kind)
	b = le.AppendUint16(b, uint16(ino.Mode&modePerm))
	b = le.AppendUint16(b, uid)
	b = le.AppendUint16(b, gid)
	b = le.AppendUint32(b, ino.MTime)
	return le.AppendUint32(b, ino.num), nil
}

// commit appends the inode's record to the table.
func (l *layout) commit(ino *Inode, rec []byte) {
	ino.ref = l.inodes.ref()
	l.refs[ino.num-1] = ino.ref
	l.last = ino.num
	l.inodes.Write(rec)
}

// writeOther writes an inode that is no directory.
func (l *layout) writeOther(ino *Inode) error {
	x, err := l.xattrs.add(ino.Xattrs)
	if err != nil {
		return err
	}
	kind := ino.kind()
	wide := x != noXattr
	if kind == typeFile {
		wide = wide || ino.nlink > 1 || ino.Size > math.MaxUint32 || ino.start > math.MaxUint32
	}
	typ := kind
	if wide {
		typ += extended
	}
	rec, err := l.begin(ino, typ)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	if kind == typeFile {
		l.commit(ino, appendFile(rec, ino, wide, x))
		return nil
	}
	rec = le.AppendUint32(rec, ino.nlink)
	switch kind {
	case typeSymlink:
		rec = le.AppendUint32(rec, uint32(len(ino.Target)))
		rec = append(rec, ino.Target...)
	case typeBlock, typeChar:
		// As new_encode_dev of the kernel's linux/kdev_t.h.
		rec = le.AppendUint32(rec, ino.Minor&0xff|ino.Major<<8|ino.Minor&^0xff<<12)
	}
	if wide {
		rec = le.AppendUint32(rec, x)
	}
	l.commit(ino, rec)
	return nil
}

// appendFile appends what a regular file's record has besides.
func appendFile(rec []byte, ino *Inode, wide bool, x uint32) []byte {
	le := binary.LittleEndian
	if wide {
		rec = le.AppendUint64(rec, uint64(ino.start))
		rec = le.AppendUint64(rec, uint64(ino.Size))
		rec = le.AppendUint64(rec, uint64(ino.sparse()))
		rec = le.AppendUint32(rec, ino.nlink)
		rec = le.AppendUint32(rec, noFragment)
		rec = le.AppendUint32(rec, 0) // offset in the fragment
		rec = le.AppendUint32(rec, x)
	} else {
		rec = le.AppendUint32(rec, uint32(ino.start))
		rec = le.AppendUint32(rec, noFragment)
		rec = le.AppendUint32(rec, 0)
		rec = le.AppendUint32(rec, uint32(ino.Size))
	}
	if ino.Blocks != nil {
		for _, b := range ino.Blocks {
			rec = le.AppendUint32(rec, b)
		}
		return rec
	}
	for left := ino.Size; left > 0; left -= BlockSize {
		rec = le.AppendUint32(rec, uint32(min(left, BlockSize))|BlockStored)
	}
	return rec
}

// sparse is how many bytes of the file are holes. The kernel takes it from the
// blocks that st_blocks tells of, and it must not reach the size itself.
func (i *Inode) sparse() int64 {
	var n int64
	left := i.Size
	for _, b := range i.Blocks {
		if b == 0 {
			n += min(left, BlockSize)
		}
		left -= BlockSize
	}
	if n > 0 && n == i.Size {
		n--
	}
	return n
}
