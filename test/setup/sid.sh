#!/usr/bin/env bash
# sid.sh DIR PACKAGE... - unpacks packages of Debian's unstable suite (sid) into
# DIR, for a machine whose own release does not have them. Nothing is installed
# and apt's own configuration, lists and caches are left alone: the mirror is the
# one that the machine's sources name, with another suite, and everything is
# checked against Debian's own keyring. Works as any user.
set -euo pipefail

fail() {
	echo "sid: $*" >&2
	exit 1
}

[ $# -ge 2 ] || fail "usage: $0 DIR PACKAGE..."
mkdir -p "$1"
dir=$(cd "$1" && pwd)
shift

for tool in apt-get dpkg-deb; do
	command -v $tool >/dev/null || fail "$tool is missing: this is not a Debian machine"
done
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -f $keyring ] || fail "$keyring is missing: install debian-archive-keyring"

# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
	awk -v codename="$codename" '$2 == "main" && ($1 == codename || $1 ~ /^(stable|testing|unstable|sid)$/) { print $3; exit }')
[ -n "$mirror" ] || fail "apt's sources name no mirror of Debian ($codename main)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,parts}
: >"$work/status"
cat >"$work/sid.sources" <<-SOURCES
	Types: deb
	URIs: $mirror
	Suites: sid
	Components: main
	Signed-By: $keyring
SOURCES
# Read after the system's configuration, whose proxies still count. The hooks
# cleared here would act on the system's caches.
cat >"$work/apt.conf" <<-CONF
	#clear APT::Update::Pre-Invoke;
	#clear APT::Update::Post-Invoke;
	#clear APT::Update::Post-Invoke-Success;
	#clear Acquire::IndexTargets::deb::DEP-11;
	Dir::Etc::sourcelist "$work/sid.sources";
	Dir::Etc::sourceparts "$work/parts";
	Dir::State "$work/state";
	Dir::State::status "$work/status";
	Dir::Cache "$work/cache";
	Acquire::Languages "none";
	APT::Sandbox::User "$(id -un)";
CONF

cd "$work"
apt-get -c "$work/apt.conf" -qq update || fail "the package list of sid cannot be fetched from $mirror"
apt-get -c "$work/apt.conf" -qq download "$@" || fail "cannot download $*"
for deb in *.deb; do
	dpkg-deb -x "$deb" "$dir"
done
