#!/usr/bin/env bash
# go.sh DIR - makes sure that there is a Go compiler. A Go of any version since
# 1.21 will do, because it fetches the one that go.mod names by itself; where
# there is none, DIR gets that version from Debian's sid packages and DIR/bin is
# to be put on the PATH.
set -euo pipefail

[ $# = 1 ] || {
	echo "usage: $0 DIR" >&2
	exit 2
}
command -v go >/dev/null && exit
[ -x "$1/bin/go" ] && exit

setup=$(cd "$(dirname "$0")" && pwd)
minor=$(awk '$1 == "go" { split($2, v, "."); print v[1] "." v[2] }' "$setup/../../go.mod")
echo "go: fetching Go $minor"
"$setup/sid.sh" "$1" "golang-$minor-go" "golang-$minor-src" || {
	echo "go: please install Go $minor or newer (https://go.dev/dl/)" >&2
	exit 1
}
ln -sfn "usr/lib/go-$minor/bin" "$1/bin"
