package all

import (
	"strings"
	"testing"

	"github.com/sregfs/sregfs/backends"
)

func TestClients(t *testing.T) {
	list, err := Clients(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if c.Name == "" || c.About == "" || c.Open == nil {
			t.Errorf("the client %q is incomplete: %+v", c.Name, c)
		}
		if strings.ToLower(c.Name) != c.Name || strings.ContainsAny(c.Name, "/_ ") {
			t.Errorf("the name %q cannot be a directory and a URI's client", c.Name)
		}
		for _, name := range append([]string{c.Name, strings.ToUpper(c.Name), strings.ReplaceAll(c.Name, "-", "_")}, c.Aliases...) {
			if got, ok := Lookup(list, name); !ok || got.Name != c.Name {
				t.Errorf("Lookup(%q) = %q, %v; want %q", name, got.Name, ok, c.Name)
			}
		}
	}
	if c, ok := Lookup(list, "no-such"); ok {
		t.Errorf("Lookup of an unknown name finds %q", c.Name)
	}
	if _, ok := Lookup(list, "local"); !ok {
		t.Error("there is no local client")
	}
}

func TestUnique(t *testing.T) {
	for what, c := range map[string]struct {
		list []backends.Client
		ok   bool
	}{
		"different":       {[]backends.Client{{Name: "a", Aliases: []string{"b"}}, {Name: "c"}}, true},
		"same name":       {[]backends.Client{{Name: "a"}, {Name: "a"}}, false},
		"alias is a name": {[]backends.Client{{Name: "a", Aliases: []string{"c"}}, {Name: "c"}}, false},
		"same alias":      {[]backends.Client{{Name: "a", Aliases: []string{"x"}}, {Name: "c", Aliases: []string{"x"}}}, false},
	} {
		if err := unique(c.list); (err == nil) != c.ok {
			t.Errorf("%s: unique = %v", what, err)
		}
	}
}

func TestRegistryNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"lab": true, "lab-2": true, "registry.example": true, "7": true,
		"": false, "Lab": false, "a/b": false, "..": false, ".hidden": false, "my_lab": false, "a b": false, "lab-": false,
	} {
		list, err := Clients(map[string]string{name: "https://registry.example.org"})
		if (err == nil) != ok {
			t.Errorf("Clients with a registry %q: %v, want one that is fine: %v", name, err, ok)
		}
		if _, found := Lookup(list, name); ok && !found {
			t.Errorf("the registry %q is not found by its name", name)
		}
	}
}
