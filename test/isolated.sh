#!/usr/bin/env bash
# isolated.sh COMMAND... - runs a test program in mount, process and network
# namespaces of its own: whatever it mounts, starts or listens on is gone when it
# ends, however it ends, and it can reach nothing but this machine. Given to
# "go test -exec". Needs root; an ordinary user's tests run as they are.
#
# skopeo notes for the whole machine which registry has which blob, and next time
# asks a registry at the same address for it instead of making it as it was told.
# Each run has such notes of its own.
set -euo pipefail
if [ "$(id -u)" != 0 ]; then
	exec "$@"
fi
# The shell stays as process 1 of the namespace, to reap what loses its parent.
exec unshare --mount --propagation private --pid --fork --kill-child --mount-proc --net -- \
	bash -c 'ip link set lo up
		mkdir -p /var/lib/containers/cache && mount -t tmpfs blobs /var/lib/containers/cache
		"$@"; exit $?' isolated "$@"
