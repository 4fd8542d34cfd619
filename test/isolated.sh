#!/usr/bin/env bash
# isolated.sh COMMAND... - runs a test program in mount, process and network
# namespaces of its own: whatever it mounts, starts or listens on is gone when it
# ends, however it ends, and it can reach nothing but this machine. Given to
# "go test -exec". Needs root; an ordinary user's tests run as they are.
set -euo pipefail
if [ "$(id -u)" != 0 ]; then
	exec "$@"
fi
# The shell stays as process 1 of the namespace, to reap what loses its parent.
#
# skopeo notes for the whole machine which registry has which blob. When a later run
# has a registry at the same address, skopeo takes that blob there instead of the one
# it was told to make: each run has notes of its own.
exec unshare --mount --propagation private --pid --fork --kill-child --mount-proc --net -- \
	bash -ec 'ip link set lo up
		notes=/var/lib/containers/cache
		mkdir -p $notes
		mount -t tmpfs notes $notes
		"$@"; exit $?' isolated "$@"
