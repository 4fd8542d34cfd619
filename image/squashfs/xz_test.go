package squashfs

import (
	"bytes"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

// machineCode is noise in which each architecture's branches are frequent.
func machineCode(n int) []byte {
	rnd := rand.New(rand.NewPCG(3, 4))
	var b []byte
	for len(b) < n {
		r := rnd.Uint32()
		lo, mid, hi := byte(r), byte(r>>8), byte(r>>16)
		switch rnd.IntN(8) {
		case 0: // x86: call near, forwards, backwards, far
			b = append(b, 0xe8, lo, mid, hi, []byte{0, 0xff, 7}[r%3])
		case 1:
			b = append(b, 0xe9, 0xe8, 0, 0xe8, 0xff, 0xe8, 0, 0, 0xff)
		case 2: // ARM: bl
			b = append(b, lo, mid, hi, 0xeb)
		case 3: // Thumb: bl
			b = append(b, lo, 0xf0|mid&7, mid, 0xf8|hi&7)
		case 4: // PowerPC: bl
			b = append(b, 0x48|lo&3, mid, hi, lo&0xfc|1)
		case 5: // SPARC: call
			b = append(b, 0x40, lo&0x3f, mid, hi, 0x7f, 0xc0|lo&0x3f, mid, hi)
		default:
			b = append(b, lo, mid, 0, 0)
		}
	}
	return b[:n]
}

// TestXZ decodes what xz itself made, with every filter and checksum.
func TestXZ(t *testing.T) {
	data := machineCode(50_003)
	const lzma2 = " --lzma2=dict=1MiB"
	for _, args := range []string{
		"--check=crc32", "--check=none", "--check=crc64", "--check=sha256", "--check=crc32 --lzma2=dict=64MiB",
		"--check=crc32 --x86" + lzma2, "--check=crc32 --powerpc" + lzma2, "--check=crc32 --arm" + lzma2,
		"--check=crc32 --armthumb" + lzma2, "--check=crc32 --sparc" + lzma2,
		"--check=crc32 --x86=start=4096" + lzma2, "--check=crc64 --arm --x86" + lzma2,
	} {
		argv := append([]string{"-c"}, strings.Fields(args)...)
		cmd := exec.Command("xz", argv...)
		cmd.Stdin = bytes.NewReader(data)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatalf("xz %q: %v", argv, err)
		}
		c, err := newCodec(XZ, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		out := make([]byte, 1<<20)
		if n, err := c.decode(out, packed); err != nil || !bytes.Equal(out[:n], data) {
			t.Errorf("xz %q: %d bytes, %v, want %d", argv, n, err, len(data))
		}
		if n, err := c.decode(out[:len(data)-1], packed); err == nil {
			t.Errorf("xz %q: %d bytes fit where one is lacking", argv, n)
		}
		if strings.Contains(args, "none") || strings.Contains(args, "sha256") {
			continue
		}
		// Bytes that LZMA2 stores say nothing of themselves: only the checksum
		// tells.
		packed[len(packed)/2] ^= 1
		if n, err := c.decode(out, packed); err == nil {
			t.Errorf("xz %q with a bit changed: %d bytes and no error", argv, n)
		}
	}
}
