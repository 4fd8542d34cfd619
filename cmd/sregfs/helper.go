package main

import (
	"path/filepath"
	"slices"
	"strings"
)

// fromMountHelper translates the call of mount(8) for the type fuse.sregfs,
//
//	sregfs SOURCE DIR -o OPTION,OPTION…
//
// (mount.fuse3(8)) into our own command line. An fstab line is such a call.
func fromMountHelper(args []string) ([]string, bool) {
	named := strings.HasPrefix(filepath.Base(args[0]), "mount.")
	if len(args) < 3 || !named && (!slices.Contains(args, "-o") || isCommand(args[1])) {
		return nil, false
	}
	out := []string{"mount", "--daemon", args[2]}
	for i := 3; i < len(args); i++ {
		if args[i] != "-o" || i+1 >= len(args) {
			continue
		}
		i++
		for opt := range strings.SplitSeq(args[i], ",") {
			name, value, hasValue := strings.Cut(opt, "=")
			flag := "--" + strings.ReplaceAll(name, "_", "-")
			switch {
			case name == "ro":
				out = append(out, "--read-only")
			case name == "allow_other":
				out = append(out, "--allow-other")
			case hasValue && slices.Contains([]string{"--client", "--registry", "--cache-dir", "--cache-size", "--config", "--log-level", "--log-format"}, flag):
				out = append(out, flag+"="+value)
			}
			// What is left (rw, nosuid, user, _netdev, x-systemd…) is for
			// mount(8) itself.
		}
	}
	return out, true
}

func isCommand(s string) bool {
	return strings.HasPrefix(s, "-") || slices.Contains([]string{"mount", "unmount", "umount", "share", "images",
		"get", "rm", "rmi", "status", "clients", "login", "doctor", "completion"}, s)
}
