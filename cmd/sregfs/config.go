package main

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"
)

// configPath is the configuration file: what --config or SREGFS_CONFIG names,
// which must exist, else sregfs/config.yaml in the user's configuration
// folder, which need not.
func configPath(args []string) (path string, mustExist bool) {
	for i, a := range args {
		if v, ok := strings.CutPrefix(a, "--config="); ok {
			return kong.ExpandPath(v), true
		}
		if a == "--config" && i+1 < len(args) {
			return kong.ExpandPath(args[i+1]), true
		}
	}
	if v := os.Getenv("SREGFS_CONFIG"); v != "" {
		return kong.ExpandPath(v), true
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", false
	}
	return filepath.Join(dir, "sregfs", "config.yaml"), false
}

// loadConfig reads the configuration file, whose keys are the flags' names:
// "cache-size: 50G". Flags go before the environment, and the environment
// before the file.
func loadConfig(path string, mustExist bool) (configFile, error) {
	values := map[string]any{}
	if path != "" {
		data, err := os.ReadFile(path)
		switch {
		case errors.Is(err, iofs.ErrNotExist) && !mustExist:
		case err != nil:
			return configFile{}, fmt.Errorf("read the configuration: %w", err)
		default:
			var content any
			if err := yaml.Unmarshal(data, &content); err != nil {
				return configFile{}, fmt.Errorf("read the configuration %s: %w", path, err)
			}
			var ok bool
			if values, ok = content.(map[string]any); !ok && content != nil {
				return configFile{}, fmt.Errorf("read the configuration %s: it has to be lines of \"NAME: VALUE\", named as the long flags are", path)
			}
		}
	}
	return configFile{path, values}, nil
}

// configFile answers kong from the file.
type configFile struct {
	path   string
	values map[string]any
}

// registries are those that the file names.
func (c configFile) registries() map[string]string {
	list := map[string]string{}
	pairs, _ := c.values["registry"].(map[string]any)
	for name, address := range pairs {
		list[name] = fmt.Sprint(address)
	}
	return list
}

// Validate refuses keys that no flag has: a misspelt setting must not pass for
// one that holds.
func (c configFile) Validate(app *kong.Application) error {
	known := map[string]bool{}
	var visit func(n *kong.Node)
	visit = func(n *kong.Node) {
		for _, f := range n.Flags {
			known[f.Name] = true
		}
		for _, child := range n.Children {
			visit(child)
		}
	}
	visit(app.Node)
	for k := range c.values {
		if name := strings.ReplaceAll(k, "_", "-"); !known[name] || name == "config" {
			return fmt.Errorf("%s: there is no setting %q; its keys are the long flags' names", c.path, k)
		}
	}
	return nil
}

// Resolve gives a flag's value from the file, nil where the environment has
// one.
func (c configFile) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	for _, e := range flag.Envs {
		if _, ok := os.LookupEnv(e); ok {
			return nil, nil
		}
	}
	v, ok := c.values[flag.Name]
	if !ok {
		v, ok = c.values[strings.ReplaceAll(flag.Name, "-", "_")]
	}
	if !ok {
		return nil, nil
	}
	wrong := func(want string) error { return fmt.Errorf("%s: %s has to be %s", c.path, flag.Name, want) }
	switch v := v.(type) {
	case nil:
		return nil, nil
	case map[string]any:
		if !flag.IsMap() {
			return nil, wrong("a single value")
		}
		pairs := make(map[string]any, len(v))
		for k, x := range v {
			pairs[k] = fmt.Sprint(x)
		}
		return pairs, nil
	case []any:
		if !flag.IsSlice() {
			return nil, wrong("a single value")
		}
		list := make([]any, len(v))
		for i, x := range v {
			list[i] = fmt.Sprint(x)
		}
		return list, nil
	case bool:
		return v, nil
	default:
		if flag.IsMap() {
			return nil, wrong("lines of NAME: VALUE")
		}
		return fmt.Sprint(v), nil
	}
}
