#!/usr/bin/env bash
# rclone.sh DIR - builds the newest rclone, with what the benchmark uses of it,
# as DIR/rclone, unless one is there already. Fails where Go's modules cannot be
# had; the benchmark then takes the machine's own rclone and says so.
set -euo pipefail
dir=${1:?usage: $0 DIR}
if [ -x "$dir/rclone" ]; then exit 0; fi

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
work=$(mktemp -d "$dir/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >main.go <<'GO'
// Command rclone is rclone with few of its commands and services: all of them
// take a quarter of an hour to build.
package main

import (
	_ "github.com/rclone/rclone/backend/dropbox"
	_ "github.com/rclone/rclone/backend/local"
	"github.com/rclone/rclone/cmd"
	_ "github.com/rclone/rclone/cmd/copyto"
	_ "github.com/rclone/rclone/cmd/deletefile"
	_ "github.com/rclone/rclone/cmd/mount"
	_ "github.com/rclone/rclone/cmd/version"
)

func main() { cmd.Main() }
GO
export GOFLAGS=-mod=mod CGO_ENABLED=0
go mod init bench.invalid/rclone 2>log
go get github.com/rclone/rclone@latest >>log 2>&1 || { tail -n 3 log >&2; exit 1; }
version=$(go list -m -f '{{.Version}}' github.com/rclone/rclone)
go build -trimpath -buildvcs=false -ldflags "-s -w -X github.com/rclone/rclone/fs.Version=$version" -o rclone . >>log 2>&1 ||
	{ tail -n 3 log >&2; exit 1; }
mv rclone "$dir/rclone"
