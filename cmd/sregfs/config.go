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
			return v, true
		}
		if a == "--config" && i+1 < len(args) {
			return args[i+1], true
		}
	}
	if v := os.Getenv("SREGFS_CONFIG"); v != "" {
		return v, true
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
func loadConfig(path string, mustExist bool) (kong.Resolver, error) {
	values := map[string]any{}
	if path != "" {
		data, err := os.ReadFile(path)
		switch {
		case errors.Is(err, iofs.ErrNotExist) && !mustExist:
		case err != nil:
			return nil, fmt.Errorf("read the configuration: %w", err)
		default:
			if err := yaml.Unmarshal(data, &values); err != nil {
				return nil, fmt.Errorf("read the configuration %s: %w; see the README for its form", path, err)
			}
		}
	}
	known := map[string]bool{}
	return configFile{path, values, known}, nil
}

// configFile answers kong from the file.
type configFile struct {
	path   string
	values map[string]any
	known  map[string]bool
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
	switch v := v.(type) {
	case map[string]any:
		pairs := make(map[string]any, len(v))
		for k, x := range v {
			pairs[k] = fmt.Sprint(x)
		}
		return pairs, nil
	case []any, string, bool:
		return v, nil
	default:
		return fmt.Sprint(v), nil
	}
}
