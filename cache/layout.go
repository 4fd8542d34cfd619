package cache

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"
)

// The format on disk; docs/cache-format.md describes it.
const (
	formatVersion = 1
	formatName    = "sregfs-cache"

	// blockSize is the unit of presence. Small, because a random read of
	// 4 KiB should not cost more than a fraction of a round trip; requests are
	// made of many adjacent blocks, so their number does not depend on it.
	blockSize = 32 << 10

	metaSuffix = ".json" // what the object is; its existence is the object's
	mapSuffix  = ".map"  // one slot for each block
	dataSuffix = ".data" // the bytes, sparse
	pinSuffix  = ".pin"  // the key of a pinned object, present or not
	tmpPrefix  = "tmp."  // in the making; swept at the next Open

	slotSize = 8

	// maxSize bounds an object: what is kept in memory of an open one grows
	// with it (a thousandth of its size in all).
	maxSize = 1 << 40
)

// castagnoli is the checksum of blocks and slots: CRC-32C, which the processor
// computes faster than the disk delivers. It guards against rot and torn
// writes, not against an attacker, who would change the map as well.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// meta is the contents of an object's .json file.
type meta struct {
	Version int    `json:"version"`
	Key     string `json:"key"`
	Size    int64  `json:"size"`
	Block   int    `json:"block"`
	// Nonce goes into each slot's own checksum, so that no slot of an earlier
	// object of the same name is ever taken for one of this.
	Nonce uint32 `json:"nonce"`
	// Complete: all bytes are here and match what they must.
	Complete bool   `json:"complete,omitempty"`
	MD5      string `json:"md5,omitempty"`
	SHA256   string `json:"sha256,omitempty"`
	Inner    bool   `json:"inner,omitempty"` // made by Build
	// File is the data file as it was when the object was completed.
	File identity `json:"file,omitzero"`
}

func (m *meta) blocks() int { return int((m.Size + blockSize - 1) / blockSize) }

// objectName is the base name of the files of the object with that key. Keys
// are arbitrary text, so they never become part of a path.
func objectName(key string) string {
	h := sha256.Sum256([]byte(key))
	return hex.EncodeToString(h[:])
}

func newNonce() uint32 {
	var b [4]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint32(b[:])
}

// readMeta reads and checks an object's .json file. Anything that is not
// exactly what writeMeta wrote is an error.
func readMeta(d disk, name string) (meta, error) {
	b, err := readAll(d, name+metaSuffix, 1<<20)
	if err != nil {
		return meta{}, err
	}
	m, err := parseMeta(b)
	if err != nil {
		return meta{}, fmt.Errorf("%s: %w", name+metaSuffix, err)
	}
	if objectName(m.Key) != name {
		return meta{}, fmt.Errorf("%s: belongs to another object", name+metaSuffix)
	}
	return m, nil
}

var errBadMeta = errors.New("not an object's description")

func parseMeta(b []byte) (meta, error) {
	var m meta
	if err := json.Unmarshal(b, &m); err != nil {
		return meta{}, fmt.Errorf("%w: %w", errBadMeta, err)
	}
	if m.Version != formatVersion || m.Block != blockSize || m.Size < 0 || m.Size > maxSize || m.Key == "" {
		return meta{}, errBadMeta
	}
	return m, nil
}

// writeMeta replaces an object's .json file, durably and as a whole.
func writeMeta(d disk, name string, m *meta) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return replaceFile(d, name+metaSuffix, append(b, '\n'))
}

func replaceFile(d disk, name string, b []byte) error {
	tmp := tmpPrefix + name + "." + rand.Text()
	f, err := d.Open(tmp, os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = d.Rename(tmp, name)
	}
	if err != nil {
		d.Remove(tmp)
		return err
	}
	return d.Sync()
}

func readAll(d disk, name string, limit int64) ([]byte, error) {
	f, err := d.Open(name, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() > limit {
		return nil, fmt.Errorf("%s: too large", name)
	}
	b := make([]byte, fi.Size())
	n, err := f.ReadAt(b, 0)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}

// putSlot encodes the slot of a block that is present: the checksum of its
// bytes, and a checksum over that, the block's number and the object's nonce.
// An absent block's slot is eight zeros, or anything that does not check out.
func putSlot(dst []byte, nonce uint32, block int, crc uint32) {
	binary.LittleEndian.PutUint32(dst, crc)
	binary.LittleEndian.PutUint32(dst[4:], slotCheck(nonce, block, crc))
}

func slotCheck(nonce uint32, block int, crc uint32) uint32 {
	var b [16]byte
	binary.LittleEndian.PutUint32(b[:], nonce)
	binary.LittleEndian.PutUint64(b[4:], uint64(block))
	binary.LittleEndian.PutUint32(b[12:], crc)
	c := crc32.Checksum(b[:], castagnoli)
	if c == 0 {
		c = 1 // a slot of zeros is an absent block
	}
	return c
}

func parseSlot(src []byte, nonce uint32, block int) (crc uint32, ok bool) {
	crc = binary.LittleEndian.Uint32(src)
	check := binary.LittleEndian.Uint32(src[4:])
	return crc, check != 0 && check == slotCheck(nonce, block, crc)
}

// splitName takes a file name of the objects directory apart. ok is false for
// files that are none of ours.
func splitName(file string) (name, suffix string, ok bool) {
	i := strings.IndexByte(file, '.')
	if i != 2*sha256.Size {
		return "", "", false
	}
	name, suffix = file[:i], file[i:]
	switch suffix {
	case metaSuffix, mapSuffix, dataSuffix, pinSuffix:
		return name, suffix, true
	}
	return "", "", false
}

// readMap calls present for each block that the map says is there.
func readMap(f file, m *meta, present func(block int, crc uint32)) error {
	buf := make([]byte, 64<<10)
	blocks := m.blocks()
	for first := 0; first < blocks; first += len(buf) / slotSize {
		want := min(len(buf), (blocks-first)*slotSize)
		n, err := f.ReadAt(buf[:want], int64(first)*slotSize)
		if err != nil && err != io.EOF {
			return err
		}
		for i := 0; i+slotSize <= n; i += slotSize {
			if crc, ok := parseSlot(buf[i:], m.Nonce, first+i/slotSize); ok {
				present(first+i/slotSize, crc)
			}
		}
		if n < want {
			break
		}
	}
	return nil
}
