package squash

import (
	"encoding/binary"
	"fmt"
	"math"
)

const (
	dirHeaderSize = 12
	dirEntrySize  = 8
	dirMaxRun     = 256 // entries behind one header
	// dirExtra is what a directory's size counts beyond its listing: the
	// entries . and .., which are not kept.
	dirExtra = 3
)

// dirIndex is a place in a long listing where a look-up may begin.
type dirIndex struct {
	offset uint32 // of a header in the listing
	block  uint32 // the metadata block in which it begins
	name   string // of the entry behind it
}

// writeDir writes the inodes of all that dir holds, its listing, and itself.
func (l *layout) writeDir(dir *Inode, parent uint32) error {
	for _, e := range dir.Entries {
		if !e.Inode.isDir() {
			continue
		}
		if err := l.writeDir(e.Inode, dir.num); err != nil {
			return fmt.Errorf("%s/%w", e.Name, err)
		}
	}
	for _, e := range dir.Entries {
		// A number at or below the last is a further name of an inode that
		// has been written.
		if e.Inode.isDir() || e.Inode.num <= l.last {
			continue
		}
		if err := l.writeOther(e.Inode); err != nil {
			return fmt.Errorf("%q: %w", e.Name, err)
		}
	}
	start, size, index := l.writeListing(dir.Entries)
	if size > math.MaxUint32-dirExtra || len(index) > math.MaxUint16 {
		return fmt.Errorf("listing of %d bytes: %w", size, ErrLimit)
	}
	x, err := l.xattrs.add(dir.Xattrs)
	if err != nil {
		return err
	}
	wide := x != noXattr || size+dirExtra > math.MaxUint16 || len(index) > 0
	typ := uint16(typeDir)
	if wide {
		typ += extended
	}
	rec, err := l.begin(dir, typ)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	if !wide {
		rec = le.AppendUint32(rec, uint32(start>>16))
		rec = le.AppendUint32(rec, dir.nlink)
		rec = le.AppendUint16(rec, uint16(size+dirExtra))
		rec = le.AppendUint16(rec, uint16(start))
		rec = le.AppendUint32(rec, parent)
		l.commit(dir, rec)
		return nil
	}
	rec = le.AppendUint32(rec, dir.nlink)
	rec = le.AppendUint32(rec, uint32(size+dirExtra))
	rec = le.AppendUint32(rec, uint32(start>>16))
	rec = le.AppendUint32(rec, parent)
	rec = le.AppendUint16(rec, uint16(len(index)))
	rec = le.AppendUint16(rec, uint16(start))
	rec = le.AppendUint32(rec, x)
	for _, i := range index {
		rec = le.AppendUint32(rec, i.offset)
		rec = le.AppendUint32(rec, i.block)
		rec = le.AppendUint32(rec, uint32(len(i.name)-1))
		rec = append(rec, i.name...)
	}
	l.commit(dir, rec)
	return nil
}

// writeListing writes the names of a directory and returns where, how many
// bytes, and the index of a listing that is longer than a metadata block. A
// header stands before each run of at most dirMaxRun entries whose inodes are
// in one metadata block and have numbers within 16 bits of the first; and
// wherever a metadata block begins, for the index.
func (l *layout) writeListing(entries []Entry) (start uint64, size int64, index []dirIndex) {
	le := binary.LittleEndian
	start = l.dirs.ref()
	from := l.dirs.size
	block := from / metaSize
	for i := 0; i < len(entries); {
		if now := l.dirs.size / metaSize; now != block {
			block = now
			index = append(index, dirIndex{
				offset: uint32(l.dirs.size - from),
				block:  uint32(now * metaStride),
				name:   entries[i].Name,
			})
		}
		first := entries[i].Inode
		run, end := i, l.dirs.size+dirHeaderSize
		for run < len(entries) && run-i < dirMaxRun && (run == i || end/metaSize == block) {
			ino := entries[run].Inode
			diff := int64(ino.num) - int64(first.num)
			if ino.ref>>16 != first.ref>>16 || diff != int64(int16(diff)) {
				break
			}
			end += dirEntrySize + int64(len(entries[run].Name))
			run++
		}
		head := le.AppendUint32(make([]byte, 0, dirHeaderSize), uint32(run-i-1))
		head = le.AppendUint32(head, uint32(first.ref>>16))
		l.dirs.Write(le.AppendUint32(head, first.num))
		for _, e := range entries[i:run] {
			ino := e.Inode
			rec := le.AppendUint16(make([]byte, 0, dirEntrySize+MaxName), uint16(ino.ref))
			rec = le.AppendUint16(rec, uint16(int64(ino.num)-int64(first.num)))
			rec = le.AppendUint16(rec, ino.kind())
			rec = le.AppendUint16(rec, uint16(len(e.Name)-1))
			l.dirs.Write(append(rec, e.Name...))
		}
		i = run
	}
	size = l.dirs.size - from
	if size <= metaSize {
		index = nil
	}
	return start, size, index
}
