package oci

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestChoose: of an index's platforms the wanted one, the least demanding
// variant, and otherwise an error that names those there are.
func TestChoose(t *testing.T) {
	digest := func(n int) string { return "sha256:" + strings.Repeat(fmt.Sprint(n), 64) }
	manifest := func(n int, os, arch, variant, artifact string) string {
		return fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"artifactType":%q,"platform":{"os":%q,"architecture":%q,"variant":%q}}`,
			digest(n), artifact, os, arch, variant)
	}
	index := `{"manifests":[` + strings.Join([]string{
		manifest(1, "unknown", "unknown", "", ""),
		manifest(2, "linux", "amd64", "v3", ""),
		manifest(3, "linux", "amd64", "", "application/vnd.oci.image.config.v1+json"),
		manifest(4, "linux", "arm", "v7", ""),
		manifest(5, "linux", "arm", "v6", ""),
		manifest(6, "windows", "amd64", "", ""),
		manifest(7, "linux", "riscv64", "", "application/vnd.example"),
	}, ",") + `]}`
	for _, c := range []struct {
		os, arch string
		want     int
	}{
		{"", "", 3}, {"linux", "x86_64", 3}, {"linux", "amd64/v3", 2}, {"linux", "arm", 5}, {"linux", "arm/v7", 4}, {"windows", "", 6},
		{"linux", "s390x", 0}, {"linux", "riscv64", 0},
	} {
		got, err := newPlatform(c.os, c.arch).choose([]byte(index))
		if c.want > 0 {
			if err != nil || got != digest(c.want) {
				t.Errorf("%s/%s: got %s, %v; want %s", c.os, c.arch, got, err, digest(c.want))
			}
			continue
		}
		if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "linux/arm/v7") || strings.Contains(err.Error(), "unknown") {
			t.Errorf("%s/%s: got %s, %v; want an error that names the platforms", c.os, c.arch, got, err)
		}
	}
}
