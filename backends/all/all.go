// Package all is the list of clients: the one place that names them. A new
// client is a package beside this one and a line here.
package all

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/backends/dropbox"
	"github.com/sregfs/sregfs/backends/gdrive"
	"github.com/sregfs/sregfs/backends/local"
	"github.com/sregfs/sregfs/backends/oci"
)

// Clients returns every client the program knows, in the order in which they
// are shown, and one more for each configured registry (name → URL). A name
// that is taken, or cannot be a directory's and a variable's part, is an error.
func Clients(registries map[string]string) ([]backends.Client, error) {
	list := []backends.Client{
		local.Client,
		dropbox.Client,
		gdrive.Client,
		oci.DockerHub,
		oci.Nvidia,
	}
	for _, name := range slices.Sorted(maps.Keys(registries)) {
		if !registryName.MatchString(name) {
			return nil, fmt.Errorf("a registry cannot be named %q: take lower-case letters, digits and hyphens", name)
		}
		list = append(list, oci.Registry(name, registries[name]))
	}
	return list, unique(list)
}

// registryName is what look-ups, which fold case and take "_" for "-", can find.
var registryName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)

// unique refuses two clients that answer to one name.
func unique(list []backends.Client) error {
	taken := map[string]string{}
	for _, c := range list {
		for _, name := range append([]string{c.Name}, c.Aliases...) {
			if other, ok := taken[name]; ok {
				return fmt.Errorf("the name %q of the client %s is taken by %s; choose another", name, c.Name, other)
			}
			taken[name] = c.Name
		}
	}
	return nil
}

// Lookup finds a client by its name or an alias, in any case, with "_" for "-".
func Lookup(list []backends.Client, name string) (backends.Client, bool) {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	for _, c := range list {
		for _, n := range append([]string{c.Name}, c.Aliases...) {
			if n == name {
				return c, true
			}
		}
	}
	return backends.Client{}, false
}
