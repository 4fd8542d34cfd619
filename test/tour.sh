#!/usr/bin/env bash
# tour.sh - shows the main job on ./mnt, with images that it makes itself and no
# account: each command is printed and then run. "make run" builds first. With
# KEEP=0 it ends after the tour, otherwise the mount stays until Ctrl-C. Nothing
# is left behind either way, and nothing of the user's own is touched.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD

scratch=$(mktemp -d "${TMPDIR:-/tmp}/sregfs-tour.XXXXXX")
mnt=$here/mnt
other=$scratch/other # a second mount, of another machine so to speak
emulator=
waiting=
made_mnt=

# unmount DIR - takes a mount down, whatever state it is in.
unmount() {
	mountpoint -q "$1" || [ -n "$(awk -v d="$1" '$5 == d' /proc/self/mountinfo)" ] || return 0
	bin/sregfs unmount "$1" >/dev/null 2>&1 || fusermount3 -uz "$1" || true
}

clean_up() {
	trap - EXIT INT TERM
	cd "$here"
	unmount "$other"
	unmount "$mnt"
	for process in $emulator $waiting; do
		kill "$process" 2>/dev/null || true
		wait "$process" 2>/dev/null || true
	done
	if [ -n "$made_mnt" ]; then rmdir "$mnt" 2>/dev/null || true; fi
	rm -rf --one-file-system "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

bold='' plain=''
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }

# show COMMAND - prints a shell command and runs it. The tour ends when one
# fails.
show() {
	printf '\n$ %s\n' "$*"
	bash -o pipefail -c "$*"
}

# Settings of the user's are none of the tour's.
while IFS='=' read -r name _; do
	case $name in SREGISTRY_* | SREGISTRT_* | SREGFS_* | SINGULARITY_* | APPTAINER_* | XDG_*) unset "$name" ;; esac
done < <(env)
export HOME=$scratch/home PATH="$here/bin:$PATH"
mkdir -p "$HOME" "$scratch/pictures"

runtime=
for candidate in apptainer singularity; do
	if command -v $candidate >/dev/null; then
		runtime=$candidate
		break
	fi
done
# As root Apptainer would ask for privileges that many containers lack.
run="$runtime --quiet run"
if [ "$(id -u)" = 0 ]; then run+=" --no-privs"; fi

# make_image FILE MEGABYTES - a Singularity image: a system of one program, its
# metadata, and so much data that nobody will read.
make_image() {
	local root=$scratch/root
	rm -rf "$root"
	mkdir -p "$root"/{bin,dev,etc,opt,proc,root,sys,tmp,var/tmp} "$root/.singularity.d/env"
	cp "$(command -v /bin/busybox /usr/bin/busybox | head -n 1)" "$root/bin/busybox"
	for name in sh cat ls echo uname; do ln -s busybox "$root/bin/$name"; done
	touch "$root"/etc/{passwd,group,hosts,resolv.conf,localtime}
	cat >"$root/.singularity.d/runscript" <<-'RUNSCRIPT'
		#!/bin/sh
		echo "RaawwWWWWWRRRR!! I am an asaurus on $(uname -sm)."
	RUNSCRIPT
	printf '#!/bin/sh\nexport PATH=/bin\n' >"$root/.singularity.d/env/90-environment.sh"
	printf '{"MAINTAINER": "Vanessasaurus", "SPECIES": "asaurus"}\n' >"$root/.singularity.d/labels.json"
	printf 'Bootstrap: scratch\n\n%%runscript\n    echo RaawwWWWWWRRRR\n' >"$root/.singularity.d/Singularity"
	printf 'An asaurus that says hello.\n' >"$root/.singularity.d/runscript.help"
	chmod -R a+rX "$root"
	chmod 0755 "$root/.singularity.d/runscript"
	head -c "$(($2 * 1000000))" /dev/urandom >"$root/opt/data"
	mksquashfs "$root" "$1" -all-root -noappend -quiet -no-progress
}

# start_emulator - starts the emulator of Dropbox and leads sregfs to it.
start_emulator() {
	TMPDIR=$scratch bin/emulator dropbox --token tour --control 127.0.0.1:0 >"$scratch/emulator.log" 2>&1 &
	emulator=$!
	until grep -q '^url' "$scratch/emulator.log"; do
		kill -0 $emulator 2>/dev/null || {
			cat "$scratch/emulator.log" >&2
			exit 1
		}
		sleep 0.05
	done
	control=$(sed -n 's/^control //p' "$scratch/emulator.log")
	export SREGISTRY_DROPBOX_TOKEN=tour
	SREGISTRY_DROPBOX_BASE=$(sed -n 's/^url //p' "$scratch/emulator.log")
	export SREGISTRY_DROPBOX_BASE
	printf '\n$ export SREGISTRY_DROPBOX_TOKEN=tour SREGISTRY_DROPBOX_BASE=%s\n' "$SREGISTRY_DROPBOX_BASE"
}

# What the emulator has sent of images since reset_counters.
reset_counters() { curl -fsS -X POST "$control/reset"; }
show_counters() {
	curl -fsS "$control/counts" | python3 -c 'import json, os, sys
got = json.load(sys.stdin).get("files/download", {"Requests": 0, "Out": 0})
size = os.path.getsize(sys.argv[1])
print("The service sent %.2f MB of the image'"'"'s %.1f MB (%.2f %%), in %d requests."
      % (got["Out"] / 1e6, size / 1e6, 100 * got["Out"] / size, got["Requests"]))' "$1"
}

say "An image to begin with: a system of one program, as squashfs"
make_image "$scratch/asaurus.simg" 1
ls -l "$scratch/asaurus.simg"

say "There is no account here: an emulator of Dropbox on this machine stands in for the service"
start_emulator

say "Mount: one directory for each client that is set up"
mkdir "$mnt" 2>/dev/null && made_mnt=1
cd "$here"
show "sregfs mount --daemon mnt"
show "ls mnt"

say "Push into this machine's own storage by copying"
show "mkdir mnt/local/pusheen"
show "cp $scratch/asaurus.simg mnt/local/pusheen/asaurus:red.simg"
show "ls -l mnt/local/pusheen"

say "Search by any part of name, tag or label"
show "ls -l mnt/.search/asaurus/"

say "Inspect: attributes, or the whole record"
show "getfattr -d mnt/local/pusheen/asaurus:red.simg"
show "cat mnt/local/pusheen/asaurus:red.json"

say "Run it"
if [ -n "$runtime" ]; then
	show "$run mnt/local/pusheen/asaurus:red.simg"
else
	echo "(no apptainer or singularity on this machine: not shown)"
fi

say "Rename; how full is it; what is on record"
show "mv mnt/local/pusheen/asaurus:red.simg mnt/local/pusheen/asaurus:green.simg"
show "df -h mnt/local"
show "sregfs images"
show "sregfs get local://pusheen/asaurus:green"

say "The record is a SQLite file that any program reads"
show "python3 -c 'import sqlite3, os
db = sqlite3.connect(os.path.expanduser(\"~/.singularity/sregistry.db\"))
for row in db.execute(\"select client, uri, version from container\"): print(*row)'"

say "Push a larger image, 100 MB, to Dropbox (the emulator): when cp returns, the service has it"
make_image "$scratch/large.simg" 100
show "mkdir mnt/dropbox/pusheen"
show "cp $scratch/large.simg mnt/dropbox/pusheen/asaurus:blue.simg"
show "ls -l mnt/dropbox/pusheen"

say "Another machine, with nothing cached, mounts the same account and runs the image: it fetches only what it reads"
mkdir "$other"
export SINGULARITY_CACHEDIR=$scratch/other-cache SREGISTRY_DATABASE=$scratch/other.db
show "sregfs mount --daemon --client dropbox $other"
unset SINGULARITY_CACHEDIR SREGISTRY_DATABASE
show "ls -l $other/dropbox/pusheen"
reset_counters
if [ -n "$runtime" ]; then
	show "$run $other/dropbox/pusheen/asaurus:blue.simg"
else
	show "head -c 4096 $other/dropbox/pusheen/asaurus:blue.simg | md5sum"
fi
show_counters "$scratch/large.simg"
show "getfattr --absolute-names -n user.sregistry.cached $other/dropbox/pusheen/asaurus:blue.simg"
show "sregfs unmount $other"

say "Share: a link to the image (the emulator's, so it opens nowhere)"
show "sregfs share --quiet mnt/dropbox/pusheen/asaurus:blue.simg"

say "Remove, there and here"
show "rm mnt/dropbox/pusheen/asaurus:blue.simg mnt/local/pusheen/asaurus:green.simg"
show "ls mnt/dropbox/pusheen mnt/local/pusheen"
show "sregfs status"

if [ "${KEEP:-1}" = 0 ]; then
	say "That was the tour"
	exit
fi
say "The tree stays mounted at ./mnt until Ctrl-C; try it from another terminal"
trap 'exit 0' INT
# A wait, unlike a sleep, lets the trap run at once.
sleep infinity &
waiting=$!
wait
