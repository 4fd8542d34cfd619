package oci

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/sync/singleflight"

	"github.com/sregfs/sregfs/backends"
)

// credentials are what one registry is told of its user. It is an
// authn.Authenticator that asks anew each time, so that a `docker login` while
// the program runs takes effect.
type credentials struct {
	user, password string
	file           string // a Docker credential file; "" for none
	key            string // the registry's name in the file

	asking singleflight.Group // a helper takes as long as its user does
}

// newCredentials finds the credentials among the settings: a user's name and
// password go before the credential file.
func newCredentials(v service, s backends.Settings, host string) (*credentials, error) {
	c := &credentials{
		user:     s.Lookup(v.prefix + "USERNAME"),
		password: s.Lookup(v.prefix+"PASSWORD", v.prefix+"TOKEN"),
		file:     s.Lookup(v.prefix + "SECRETS"),
		key:      host,
	}
	if c.user == "" && c.password != "" {
		c.user = v.user
	}
	for _, hub := range []string{"index.docker.io", "registry-1.docker.io"} {
		if host == hub {
			c.key = authn.DefaultAuthKey
		}
	}
	if c.file != "" {
		if _, err := c.load(); err != nil {
			return nil, fmt.Errorf("%w: %w", backends.ErrNotConfigured, err)
		}
		return c, nil
	}
	dir := s.Getenv("DOCKER_CONFIG")
	if home := s.Getenv("HOME"); dir == "" && home != "" {
		dir = filepath.Join(home, ".docker")
	}
	if dir != "" {
		c.file = filepath.Join(dir, config.ConfigFileName)
		if _, err := c.load(); err != nil {
			if !errors.Is(err, iofs.ErrNotExist) && s.Log != nil {
				s.Log.Warn("Docker's credential file is of no use", "file", c.file, "error", err)
			}
			// It may be made, or mended, while the program runs.
		}
	}
	return c, nil
}

// load reads the credential file. What the parser says of a malformed one is
// not passed on: it may quote from it.
func (c *credentials) load() (*configfile.ConfigFile, error) {
	f, err := os.Open(c.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cf, err := config.LoadFromReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s is no Docker credential file", c.file)
	}
	return cf, nil
}

// any reports whether there may be credentials, without running a helper.
func (c *credentials) any() bool {
	if c.user != "" && c.password != "" {
		return true
	}
	if c.file == "" {
		return false
	}
	cf, err := c.load()
	if err != nil {
		return false
	}
	if cf.CredentialsStore != "" || cf.CredentialHelpers[c.key] != "" {
		return true
	}
	for k := range cf.GetAuthConfigs() {
		if k == c.key || strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(k, "https://"), "http://"), "/") == c.key {
			return true
		}
	}
	return false
}

// Authorization is authn.Authenticator's. Without credentials it is anonymous.
func (c *credentials) Authorization() (*authn.AuthConfig, error) {
	if c.user != "" && c.password != "" {
		return &authn.AuthConfig{Username: c.user, Password: c.password}, nil
	}
	none := &authn.AuthConfig{}
	if c.file == "" {
		return none, nil
	}
	cf, err := c.load()
	if errors.Is(err, iofs.ErrNotExist) {
		return none, nil
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", backends.ErrNotConfigured, err)
	}
	found, err := cf.GetAuthConfig(c.key)
	if err != nil {
		// The text is a helper's, which may print anything.
		return nil, fmt.Errorf("%w: the credential helper of %s fails", backends.ErrNotConfigured, c.file)
	}
	return &authn.AuthConfig{
		Username: found.Username, Password: found.Password, Auth: found.Auth,
		IdentityToken: found.IdentityToken, RegistryToken: found.RegistryToken,
	}, nil
}

// AuthorizationContext is authn.ContextAuthenticator's. It stops waiting for a
// credential helper when ctx is done. The helper goes on for the others, who
// share it.
func (c *credentials) AuthorizationContext(ctx context.Context) (*authn.AuthConfig, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case r := <-c.asking.DoChan("", func() (any, error) { return c.Authorization() }):
		found, _ := r.Val.(*authn.AuthConfig)
		return found, r.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
