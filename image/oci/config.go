package oci

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// maxConfig is the largest configuration that is looked at. Registries refuse
// manifests beyond 4 MiB; real configurations have some kilobytes.
const maxConfig = 8 << 20

// Config is an image's configuration (OCI image specification, config.md), as
// far as a Singularity image is made of it. Docker's is the same.
type Config struct {
	// Created is when the image was made; zero if it does not say.
	Created time.Time
	// Architecture is in the Go toolchain's words.
	Architecture string
	// Env has NAME=VALUE, or a NAME alone.
	Env []string
	// Entrypoint and Cmd are what runs.
	Entrypoint, Cmd []string
	// Labels are the image's own.
	Labels map[string]string
	// DiffIDs are the layers', the lowest first.
	DiffIDs []string
	// Raw is the whole configuration, RawConfig its part "config".
	Raw, RawConfig []byte
}

// command is a list of words; old builders wrote one as a string.
type command []string

// UnmarshalJSON takes either form.
func (c *command) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*c = nil
		if one != "" {
			*c = command{one}
		}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(c))
}

// ParseConfig reads a configuration. What it fails with wraps ErrCorrupt.
func ParseConfig(raw []byte) (*Config, error) {
	if len(raw) > maxConfig {
		return nil, corrupt("a configuration of %d bytes", len(raw))
	}
	var file struct {
		Created      string          `json:"created"`
		Architecture string          `json:"architecture"`
		Config       json.RawMessage `json:"config"`
		RootFS       struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, corrupt("configuration: %w", err)
	}
	c := &Config{Architecture: file.Architecture, DiffIDs: file.RootFS.DiffIDs, Raw: raw, RawConfig: []byte("{}")}
	if t, err := time.Parse(time.RFC3339Nano, file.Created); err == nil {
		c.Created = t
	}
	if len(file.Config) == 0 || bytes.Equal(file.Config, []byte("null")) {
		return c, nil
	}
	var conf struct {
		Env        []string
		Entrypoint command
		Cmd        command
		Labels     map[string]string
	}
	if err := json.Unmarshal(file.Config, &conf); err != nil {
		return nil, corrupt("configuration: %w", err)
	}
	c.Env, c.Entrypoint, c.Cmd, c.Labels = conf.Env, conf.Entrypoint, conf.Cmd, conf.Labels
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		// ENTRYPOINT [""] in a Dockerfile takes the base image's away; Docker
		// runs Cmd alone then.
		c.Entrypoint = nil
	}
	var raw2 bytes.Buffer
	if err := json.Compact(&raw2, file.Config); err != nil {
		return nil, corrupt("configuration: %w", err)
	}
	c.RawConfig = raw2.Bytes()
	return c, nil
}

// quote makes s one word for a POSIX shell, exactly. The NUL bytes that JSON
// could hold, but no argument can, are left out. A quotation mark is quoted by
// the other kind, since the shell that Apptainer has built in gets a backslash
// wrong there.
func quote(s string) string {
	s = strings.ReplaceAll(s, "\x00", "")
	return "'" + strings.ReplaceAll(s, "'", `'"'"'`) + "'"
}

// quoteAll makes several words.
func quoteAll(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = quote(w)
	}
	return strings.Join(out, " ")
}

// isVariable reports whether a shell can have a variable of that name.
func isVariable(name string) bool {
	for i, c := range []byte(name) {
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// environment is the script that sets the image's variables. PATH is the
// image's; any other one yields to what the user set for the container
// (APPTAINERENV_X). Of a repeated name the first counts.
func (c *Config) environment() string {
	var b strings.Builder
	b.WriteString("#!/bin/sh\n")
	seen := map[string]bool{}
	for _, env := range c.Env {
		name, value, assigned := strings.Cut(env, "=")
		if !isVariable(name) || seen[name] {
			continue
		}
		seen[name] = true
		switch {
		case !assigned:
			b.WriteString("export " + name + `="${` + name + `:-}"` + "\n")
		case name == "PATH":
			b.WriteString("export PATH=" + quote(value) + "\n")
		default:
			b.WriteString(`[ -n "${` + name + `:-}" ] || ` + name + "=" + quote(value) + "\n")
			b.WriteString("export " + name + "\n")
		}
	}
	return b.String()
}

// interpretMe makes Apptainer run the script with the shell that it has built
// in, so that the image needs none. It does so with scripts in which it finds
// the middle line, within the first 64 KiB. In that shell exec returns, and the
// last one counts.
const interpretMe = `if false; then
eval "set ${SINGULARITY_OCI_RUN}"
fi
`

// runscript is the script that runs the image. The user's arguments take the
// place of Cmd, and come through as they are. With cmdOnly, which is
// SREGISTRY_DOCKER_CMD, Cmd runs (or Entrypoint, if there is none), and
// arguments follow it.
func (c *Config) runscript(cmdOnly bool) string {
	const head = "#!/bin/sh\n" + interpretMe
	entry, cmd := c.Entrypoint, c.Cmd
	if cmdOnly {
		if len(cmd) > 0 {
			entry = cmd
		}
		cmd = nil
	}
	with := `exec "$@"`
	if len(entry) > 0 {
		with = "exec " + quoteAll(entry) + ` "$@"`
	}
	without := "exec " + quoteAll(slices.Concat(entry, cmd))
	switch {
	case len(entry) == 0 && len(cmd) == 0:
		without = `echo "This image has no entrypoint and no command; say what to run" >&2
    exit 1`
	case len(cmd) == 0:
		return head + with + "\n"
	}
	return head + "if [ $# -gt 0 ]; then\n    " + with + "\nelse\n    " + without + "\nfi\n"
}
