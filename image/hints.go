package image

const (
	// headHint covers a SIF's header, descriptors and small objects, and the
	// superblock behind them.
	headHint = 128 << 10
	// tablesHint is how much of a squashfs's tables is taken as a whole: those
	// of some 50,000 files.
	tablesHint = 1 << 20
	// rootHint is taken around a root directory's inode.
	rootHint = 64 << 10
	// startHint bounds what is taken from the start of a squashfs's data, where
	// writers put the files of the first folders, /bin among them: the shell and
	// its like, with which every start begins. It is one part in startShare of
	// the image at most.
	startHint  = 1 << 20
	startShare = 256
)

// Hints returns the ranges of an image of size bytes that whoever mounts or runs
// it will ask for first: worth fetching together with its first byte. They are
// in order, do not overlap, lie within the file, and come to at most some 2.3 MB.
func Hints(l Layout, size int64) []Range {
	want := []Range{{0, headHint}}
	if t := l.Tables; t.Len > 0 {
		want = append(want, Range{l.FSOffset, max(headHint/2, min(startHint, size/startShare))})
		if t.Len > tablesHint {
			// Large tables: the root's inode, which writers put last among the
			// inodes, and the end of it all, where the tables are that a mount
			// reads, with the last directories, the root's among them.
			end := Range{t.End() - tablesHint, tablesHint}
			want = append(want, Range{min(max(t.Off, l.root-rootHint/2), end.Off), rootHint})
			t = end
		}
		want = append(want, t)
	}
	return merge(want, size)
}

// merge cuts ranges, which are sorted by their start, to size, and joins those
// that touch.
func merge(ranges []Range, size int64) []Range {
	var out []Range
	for _, r := range ranges {
		r.Len = min(r.End(), size) - r.Off
		if r.Len <= 0 {
			continue
		}
		if n := len(out); n > 0 && r.Off <= out[n-1].End() {
			last := &out[n-1]
			last.Len = max(last.End(), r.End()) - last.Off
			continue
		}
		out = append(out, r)
	}
	return out
}
