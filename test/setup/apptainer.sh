#!/usr/bin/env bash
# apptainer.sh DIR - makes sure that there is an Apptainer and prints where: the
# machine's own when it has one, otherwise DIR/usr/bin/apptainer, unpacked from
# Debian's sid packages together with the C library that they were built for.
# DIR must not be moved afterwards.
set -euo pipefail

fail() {
	echo "apptainer: $*" >&2
	exit 1
}

[ $# = 1 ] || fail "usage: $0 DIR"
mkdir -p "$1"
dir=$(cd "$1" && pwd)
program=$dir/usr/bin/apptainer
if own=$(command -v apptainer) && [ "$own" != "$program" ]; then
	echo "$own"
	exit
fi

complete=$dir/.complete # names the place that the programs were made for
exec 9>"$dir.lock"      # two set-ups at once: the second finds it done
flock 9
if [ -f "$complete" ] && [ "$(cat "$complete")" = "$dir" ]; then
	echo "$program"
	exit
fi

setup=$(cd "$(dirname "$0")" && pwd)
command -v patchelf >/dev/null || fail "patchelf is missing; run $setup/packages.sh"
find "$dir" -mindepth 1 -delete
"$setup/sid.sh" "$dir" apptainer libc6 libseccomp2 libsqlite3-0

# The programs get this folder's loader and libraries, not the machine's, which
# may be older than what they were linked with.
loader=$(basename "$(patchelf --print-interpreter "$program")")
libraries=$(find "$dir/usr/lib" -name 'libc.so.6' -printf '%h\n' -quit)
loader=$(find "$dir" -name "$loader" -path '*/lib*/*' -printf '%p\n' -quit)
[ -n "$libraries" ] && [ -n "$loader" ] || fail "no C library in what was unpacked into $dir"
find "$dir/usr" -type f \
	\( -name apptainer -o -name starter \) -perm -u+x |
	while read -r binary; do
		patchelf --set-interpreter "$loader" "$binary"
		patchelf --force-rpath --set-rpath "$libraries" "$binary"
	done

# Apptainer finds its configuration and its session folder relative to where its
# programs lie.
[ -e "$dir/usr/etc" ] || ln -s ../etc "$dir/usr/etc"
[ -e "$dir/usr/lib/etc" ] || ln -s ../etc "$dir/usr/lib/etc"
mkdir -p "$dir/usr/lib/var/lib/apptainer/mnt/session"

"$program" version >/dev/null || fail "$program does not start"
echo "$dir" >"$complete"
echo "$program"
