#!/usr/bin/env bash
# packages.sh [run|test] - installs what the tour (run) or the tests (test, the
# default) need and the machine lacks. On Debian or Ubuntu as root it uses apt;
# elsewhere it says what is missing and exits 1. Says nothing when nothing is
# missing.
set -euo pipefail

# Each line: the package by Debian's name, then the command, or the file of
# which one must exist, that shows that it is there.
for_run='
ca-certificates /etc/ssl/certs/ca-certificates.crt
fuse3           fusermount3
attr            getfattr
squashfs-tools  mksquashfs
busybox-static  /bin/busybox /usr/bin/busybox
python3         /usr/bin/python3
curl            curl
mount           mountpoint umount
procps          ps
patchelf        patchelf
squashfuse      squashfuse
'
for_test='
gcc                gcc
libc6-dev          /usr/include/stdio.h
git                git
squashfs-tools-ng  tar2sqfs
rclone             rclone
docker-registry    docker-registry
skopeo             skopeo
rsync              rsync
fio                fio
strace             strace
sqlite3            sqlite3
acl                setfacl
openssl            openssl
iproute2           /usr/sbin/ip /sbin/ip /usr/bin/ip
util-linux         setpriv unshare
libcap2-bin        /usr/sbin/capsh /sbin/capsh
e2fsprogs          /usr/sbin/mkfs.ext4 /sbin/mkfs.ext4
'

case ${1:-test} in
run) wanted=$for_run ;;
test) wanted=$for_run$for_test ;;
*)
	echo "usage: $0 [run|test]" >&2
	exit 2
	;;
esac

present() {
	local probe
	for probe; do
		case $probe in
		/*) if [ -e "$probe" ]; then return 0; fi ;;
		*) if command -v "$probe" >/dev/null; then return 0; fi ;;
		esac
	done
	return 1
}

missing() {
	local package probes
	while read -r package probes; do
		[ -n "$package" ] || continue
		# Unquoted: the probes are words.
		# shellcheck disable=SC2086
		present $probes || echo "$package"
	done <<<"$wanted"
}

# The tests mount as an ordinary user, too: fusermount3 opens /dev/fuse as its
# caller, and some machines keep it to root.
open_dev_fuse() {
	if [ ! -e /dev/fuse ]; then
		modprobe fuse 2>/dev/null || true
	fi
	if [ ! -e /dev/fuse ]; then
		echo "packages: /dev/fuse is missing: the kernel has no FUSE, or this container was not given the device" >&2
		exit 1
	fi
	if [ "$(stat -c %a /dev/fuse)" != 666 ] && [ "$(id -u)" = 0 ]; then
		chmod 0666 /dev/fuse
	fi
}

install() {
	export DEBIAN_FRONTEND=noninteractive
	# The registry's package starts a service; the tests start their own.
	local policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		trap 'rm -f '$policy EXIT
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 0755 $policy
	fi
	echo "packages: installing $*"
	# Known package lists are tried first; they may be absent or out of date.
	apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 ||
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }
}

lacking=$(missing)
if [ -n "$lacking" ]; then
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		# shellcheck disable=SC2086
		install $lacking
		lacking=$(missing)
	fi
	if [ -n "$lacking" ]; then
		echo "packages: please install (Debian's names): $(echo $lacking)" >&2
		exit 1
	fi
fi
open_dev_fuse
