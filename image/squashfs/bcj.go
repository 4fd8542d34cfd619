package squashfs

import "encoding/binary"

// branchFilters undo the xz filters that made the addresses in branches of
// machine code absolute (.xz file format, section 5.3.2). Each gets the block
// and the address of its first byte.
var branchFilters = map[uint64]func(b []byte, start uint32){
	0x04: undoX86,
	0x05: undoPowerPC,
	0x07: undoARM,
	0x08: undoARMThumb,
	0x09: undoSPARC,
}

// undoPowerPC: b and bl with the AA bit clear and LK set, 24 bits of address
// in words, big-endian.
func undoPowerPC(b []byte, start uint32) {
	for i := 0; i+4 <= len(b); i += 4 {
		w := binary.BigEndian.Uint32(b[i:])
		if w&0xfc000003 == 0x48000001 {
			dest := w&0x03fffffc - (start + uint32(i))
			binary.BigEndian.PutUint32(b[i:], 0x48000001|dest&0x03fffffc)
		}
	}
}

// undoARM: bl without a condition, 24 bits of address in words that count from
// two instructions on.
func undoARM(b []byte, start uint32) {
	for i := 0; i+4 <= len(b); i += 4 {
		if b[i+3] != 0xeb {
			continue
		}
		w := binary.LittleEndian.Uint32(b[i:])
		dest := w<<2 - (start + uint32(i) + 8)
		binary.LittleEndian.PutUint32(b[i:], 0xeb000000|dest>>2&0x00ffffff)
	}
}

// undoARMThumb: the pair of half-words of bl, eleven bits of address in each.
func undoARMThumb(b []byte, start uint32) {
	for i := 0; i+4 <= len(b); i += 2 {
		hi, lo := binary.LittleEndian.Uint16(b[i:]), binary.LittleEndian.Uint16(b[i+2:])
		if hi&0xf800 != 0xf000 || lo&0xf800 != 0xf800 {
			continue
		}
		src := uint32(hi&0x7ff)<<12 | uint32(lo&0x7ff)<<1
		dest := (src - (start + uint32(i) + 4)) >> 1
		binary.LittleEndian.PutUint16(b[i:], 0xf000|uint16(dest>>11&0x7ff))
		binary.LittleEndian.PutUint16(b[i+2:], 0xf800|uint16(dest&0x7ff))
		i += 2
	}
}

// undoSPARC: call with an address whose upper bits are all equal.
func undoSPARC(b []byte, start uint32) {
	for i := 0; i+4 <= len(b); i += 4 {
		w := binary.BigEndian.Uint32(b[i:])
		if w&0xffc00000 != 0x40000000 && w&0xffc00000 != 0x7fc00000 {
			continue
		}
		dest := (w<<2 - (start + uint32(i))) >> 2
		sign := (0 - dest>>22&1) << 22 & 0x3fffffff
		binary.BigEndian.PutUint32(b[i:], 0x40000000|sign|dest&0x003fffff)
	}
}

// undoX86: call and jmp (0xe8, 0xe9) with 32 bits of address of which the top
// byte is 0x00 or 0xff. Opcode bytes shortly before may show that this one is
// part of an address; seen holds one bit for each of the last bytes that looked
// like an opcode, as the encoder kept it.
func undoX86(b []byte, start uint32) {
	allowed := [8]bool{true, true, true, false, true, false, false, false}
	bitNumber := [8]uint{0, 1, 2, 2, 3, 3, 3, 3}
	sign := func(c byte) bool { return c == 0 || c == 0xff }
	seen, last := uint32(0), -5
	for i := 0; i+5 <= len(b); {
		if b[i]&0xfe != 0xe8 {
			i++
			continue
		}
		distance := i - last
		last = i
		if distance > 5 {
			seen = 0
		} else {
			for range distance {
				seen = seen & 0x77 << 1
			}
		}
		if !sign(b[i+4]) || !allowed[seen>>1&7] || seen>>1 >= 0x10 {
			seen |= 1
			if sign(b[i+4]) {
				seen |= 0x10
			}
			i++
			continue
		}
		src := binary.LittleEndian.Uint32(b[i+1:])
		var dest uint32
		for {
			dest = src - (start + uint32(i) + 5)
			if seen == 0 {
				break
			}
			shift := bitNumber[seen>>1&7] * 8
			if !sign(byte(dest >> (24 - shift))) {
				break
			}
			src = dest ^ (1<<(32-shift) - 1)
		}
		dest &= 0x01ffffff
		dest |= 0 - dest&0x01000000
		binary.LittleEndian.PutUint32(b[i+1:], dest)
		i += 5
		seen = 0
	}
}
