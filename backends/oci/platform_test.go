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
		manifest(8, "linux", "arm64", "v8", ""),
	}, ",") + `]}`
	for _, c := range []struct {
		os, arch string
		want     int
	}{
		{"", "", 3}, {"linux", "x86_64", 3}, {"linux", "amd64/v3", 2}, {"linux", "arm", 5}, {"linux", "arm/v7", 4}, {"windows", "", 6},
		{"linux", "arm/v8", 4}, {"linux", "amd64/v2", 3}, {"linux", "amd64/v4", 2}, {"linux", "arm64", 8}, {"linux", "aarch64/v8", 8},
		{"linux", "arm/v5", 0},
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

// TestChooseWithoutPlatform: an image whose builder did not say what it is for is
// taken where no other fits, whatever lies beside it.
func TestChooseWithoutPlatform(t *testing.T) {
	digest := func(n int) string { return "sha256:" + strings.Repeat(fmt.Sprint(n), 64) }
	const mediaType = "application/vnd.oci.image.manifest.v1+json"
	bare := fmt.Sprintf(`{"mediaType":%q,"digest":%q}`, mediaType, digest(1))
	other := func(os, arch string) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"platform":{"os":%q,"architecture":%q}}`, mediaType, digest(2), os, arch)
	}
	for _, c := range []struct {
		manifests []string
		want      int
	}{
		{[]string{bare}, 1}, {[]string{bare, other("unknown", "unknown")}, 1},
		{[]string{bare, other("linux", "s390x")}, 1}, {[]string{bare, other("linux", "amd64")}, 2},
	} {
		got, err := newPlatform("", "").choose([]byte(`{"manifests":[` + strings.Join(c.manifests, ",") + `]}`))
		if err != nil || got != digest(c.want) {
			t.Errorf("%v: got %s, %v; want %s", c.manifests, got, err, digest(c.want))
		}
	}
}
