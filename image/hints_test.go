package image

import (
	"slices"
	"testing"
)

// TestHintsOfLargeTables: the root's inode may be before the last part of the
// tables, or in it, in those of some 50,000 to 100,000 files.
func TestHintsOfLargeTables(t *testing.T) {
	const size = 13 << 20
	tables := Range{10 << 20, 3 << 20}
	end := Range{tables.End() - tablesHint, tablesHint}
	for root, want := range map[int64][]Range{
		tables.Off + 1<<20:  {{0, headHint}, {tables.Off + 1<<20 - rootHint/2, rootHint}, end},
		tables.Off:          {{0, headHint}, {tables.Off, rootHint}, end},
		end.Off + 1<<19:     {{0, headHint}, end},
		tables.End() - 1000: {{0, headHint}, end},
	} {
		l := Layout{Kind: Squashfs, FSSize: size, Tables: tables, root: root}
		if got := Hints(l, size); !slices.Equal(got, want) {
			t.Errorf("root at %d: Hints = %v, want %v", root, got, want)
		}
	}
}
