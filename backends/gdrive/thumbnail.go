package gdrive

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"log/slog"
	"os"
	"sync"
)

// Limits of a thumbnail
// (https://developers.google.com/workspace/drive/api/guides/file-metadata#upload-thumbnails).
const (
	maxThumbnail      = 2 << 20
	minThumbnailWidth = 220
)

// thumbnail is the PNG at path, or the robot when there is none, or none that
// Drive would take.
func thumbnail(path string, log *slog.Logger) []byte {
	if path == "" {
		return robot()
	}
	data, err := readThumbnail(path)
	if err != nil {
		log.Warn("the thumbnail cannot be used; pushed images get the robot", "setting", ThumbnailSetting, "err", err)
		return robot()
	}
	return data
}

func readThumbnail(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxThumbnail {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", path, maxThumbnail)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c, err := png.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s is no PNG: %w", path, err)
	}
	if c.Width < minThumbnailWidth {
		return nil, fmt.Errorf("%s is %d pixels wide; Drive wants %d at least", path, c.Width, minThumbnailWidth)
	}
	return data, nil
}

// robot is the picture that the Python client's users know by another hand: a
// head with an antenna, two eyes and a grille.
var robot = sync.OnceValue(func() []byte {
	const side = 256
	var (
		sky   = color.RGBA{0xe8, 0xf0, 0xf8, 0xff}
		metal = color.RGBA{0x5b, 0x7f, 0x9e, 0xff}
		dark  = color.RGBA{0x24, 0x35, 0x44, 0xff}
		light = color.RGBA{0xff, 0xd5, 0x4f, 0xff}
	)
	img := image.NewRGBA(image.Rect(0, 0, side, side))
	box := func(x0, y0, x1, y1 int, c color.Color) {
		draw.Draw(img, image.Rect(x0, y0, x1, y1), image.NewUniform(c), image.Point{}, draw.Src)
	}
	disc := func(cx, cy, r int, c color.Color) {
		for y := -r; y <= r; y++ {
			for x := -r; x <= r; x++ {
				if x*x+y*y <= r*r {
					img.Set(cx+x, cy+y, c)
				}
			}
		}
	}
	box(0, 0, side, side, sky)
	box(124, 24, 132, 64, dark) // antenna
	disc(128, 24, 12, light)
	box(28, 108, 44, 168, dark) // ears
	box(212, 108, 228, 168, dark)
	box(44, 64, 212, 216, metal) // head
	for _, x := range []int{92, 164} {
		disc(x, 118, 24, color.White)
		disc(x, 118, 12, dark)
	}
	box(76, 164, 180, 196, dark) // grille
	for x := 84; x < 180; x += 16 {
		box(x, 170, x+8, 190, light)
	}
	box(100, 216, 156, 240, dark) // neck
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		return nil // writing to memory does not fail
	}
	return b.Bytes()
})
