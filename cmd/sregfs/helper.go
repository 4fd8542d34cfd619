package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// fromMountHelper translates the call of mount(8) for the type fuse.sregfs,
//
//	sregfs SOURCE DIR -o OPTION,OPTION…
//
// (mount(8), "External helpers") into our own command line. An fstab line is
// such a call. The command line is empty when nothing is to be mounted (-f). An
// option that is neither ours nor one of mount(8)'s is an error, for a misspelt
// one must not pass for one that holds; -s lets it pass.
func fromMountHelper(args []string) (line []string, ok bool, err error) {
	named := strings.HasPrefix(filepath.Base(args[0]), "mount.")
	if len(args) < 3 || !named && (!slices.Contains(args, "-o") || isCommand(args[1])) {
		return nil, false, nil
	}
	flags := args[3:]
	var fake, sloppy bool
	for _, f := range flags {
		if strings.HasPrefix(f, "-") && f != "-o" && f != "-t" && f != "-N" {
			fake, sloppy = fake || strings.Contains(f, "f"), sloppy || strings.Contains(f, "s")
		}
	}
	if fake {
		return nil, true, nil
	}
	out := []string{"mount", "--daemon", args[2]}
	set := map[string]bool{} // of mountFlags; the last word counts
	for i := 0; i < len(flags); i++ {
		if flags[i] != "-o" || i+1 >= len(flags) {
			continue
		}
		i++
		for opt := range strings.SplitSeq(flags[i], ",") {
			name, value, hasValue := strings.Cut(opt, "=")
			flag := "--" + strings.ReplaceAll(name, "_", "-")
			switch {
			case name == "ro":
				out = append(out, "--read-only")
			case name == "allow_other":
				out = append(out, "--allow-other")
			case slices.Contains(mountFlags, name):
				set[name] = true
			case slices.Contains(mountFlags, "no"+name):
				delete(set, "no"+name)
			case slices.Contains(valueFlags, flag):
				if !hasValue {
					return nil, true, fmt.Errorf("the mount option %q needs a value", name)
				}
				out = append(out, flag+"="+value)
			case !sloppy && !isMountOption(name):
				return nil, true, fmt.Errorf("there is no mount option %q; sregfs has ro, noexec, noatime, allow_other, client, registry, cache_dir, cache_size, image_data, config, metrics, log_level and log_format", name)
			}
		}
	}
	for _, name := range mountFlags {
		if set[name] {
			out = append(out, "--option="+name)
		}
	}
	return out, true, nil
}

// mountFlags are the options of mount(8) that --option takes: what the mount is
// without, unless told so, and fusermount3 can give it.
var mountFlags = []string{"noexec", "noatime"}

// valueFlags are the flags that may stand as options with a value.
var valueFlags = []string{"--client", "--registry", "--cache-dir", "--cache-size", "--image-data", "--config", "--metrics", "--log-level", "--log-format"}

// isMountOption reports whether an option is for mount(8) itself, which passes
// on what an fstab line has.
func isMountOption(name string) bool {
	return name == "" || strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-") ||
		slices.Contains([]string{
			"defaults", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync",
			"atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime",
			"lazytime", "nolazytime", "iversion", "noiversion", "mand", "nomand", "silent", "loud", "nosymfollow",
			"auto", "noauto", "user", "nouser", "users", "group", "owner", "_netdev", "nofail", "comment", "uhelper", "helper",
		}, name)
}

func isCommand(s string) bool {
	return strings.HasPrefix(s, "-") || slices.Contains([]string{"mount", "unmount", "umount", "share", "images",
		"get", "rm", "rmi", "status", "clients", "login", "doctor", "completion", "help"}, s)
}
