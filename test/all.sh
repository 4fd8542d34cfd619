#!/usr/bin/env bash
# all.sh [STEP...] - runs the checks and tests, all of them or the steps named,
# goes on after one that fails, and ends with a table of what became of each. A
# step's name is a function's below. Called by make, which sets the machine up.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d "${TMPDIR:-/tmp}/sregfs-test.XXXXXX")
chmod 0755 "$scratch" # ordinary users have business below it
export TMPDIR=$scratch/tmp
mkdir -m 1777 "$TMPDIR"
export GOFLAGS="${GOFLAGS:-} -buildvcs=false"

clean_up() {
	trap - EXIT INT TERM
	# As root the tests' mounts ended with their namespace; an ordinary user has
	# none. What cannot be unmounted now goes as soon as its last user does.
	awk -v under="$scratch/" 'index($5, under) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
		while read -r mount; do
			umount -l "$mount" 2>/dev/null || fusermount3 -uz "$mount" || true
		done
	chmod -R u+rwX "$scratch" 2>/dev/null || true
	rm -rf --one-file-system "$scratch"
}
trap clean_up EXIT
# A step runs in a process group of its own, or the shell would wait for its end
# before it heeds a signal.
set -m
running=
stop() {
	trap - INT TERM
	[ -z "$running" ] || { kill -TERM -- "-$running" && wait "$running"; } 2>/dev/null || true
	exit 130
}
trap stop INT TERM

# gotest ARGS... - go test, read by test/summary.
gotest() {
	go test -json "$@" 2>&1 | "$scratch/summary" -total "$scratch/total.$BASHPID"
}

build() {
	go build ./... && go build -o "$scratch/summary" ./test/summary &&
		CGO_ENABLED=0 go build -trimpath -o bin/sregfs ./cmd/sregfs
}

vet() { go vet ./... && go vet -tags integration ./test/... ./image/...; }

staticcheck() { go tool staticcheck ./... && go tool staticcheck -tags integration ./test/... ./image/...; }

format() {
	local ugly
	ugly=$(gofmt -l .)
	[ -z "$ugly" ] || {
		echo "gofmt would change: $ugly"
		return 1
	}
}

unit() { gotest -race -shuffle=on -timeout 5m ./...; }

# fuzz_one TARGET PACKAGE - one fuzz target for a while.
fuzz_one() {
	go test -run '^$' -fuzz "^$1\$" -fuzztime "${FUZZTIME:-1s}" "$2" >"$scratch/fuzz" 2>&1
}

fuzz() {
	local file package target
	grep -rl --include='*_test.go' '^func Fuzz' . | sort | while read -r file; do
		package=$(dirname "$file")
		grep -o '^func Fuzz[A-Za-z0-9_]*' "$file" | cut -c6- | while read -r target; do
			echo "$package $target"
			fuzz_one "$target" "$package" || {
				# Under load Go's fuzzer now and then takes its own time limit for a
				# failure; an input that fails is written down.
				if grep -q 'context deadline exceeded' "$scratch/fuzz" && ! grep -q 'Failing input' "$scratch/fuzz"; then
					fuzz_one "$target" "$package" && continue
				fi
				cat "$scratch/fuzz"
				exit 1
			}
		done || exit 1
	done
}

# onmounts ARGS... - gotest for the tests on real mounts, one package at a time.
onmounts() {
	gotest -tags integration -count 1 -p 1 -exec "$PWD/test/isolated.sh" "$@"
}

# halves TIMEOUT - all tests on real mounts. They wait more than they compute:
# two halves run beside each other, each in namespaces of its own. Of the tests that
# take longest in their long form, that which takes an hour lies in one and the next
# two, together three quarters of one, in the other.
halves() {
	local names half pids=() pid status=0
	names=$(go test -tags integration -list '^Test' ./test/integration | grep '^Test')
	set -m # process groups of their own, by which they are interrupted
	trap 'for pid in "${pids[@]}"; do kill -TERM -- "-$pid" || true; done' INT TERM
	for half in 0 1; do
		onmounts -timeout "$1" -run "^($(awk -v half=$half '
			{ at = /^(TestNetworkGone|TestCrash)$/ ? 0 : /^TestMoments$/ ? 1 : n++ % 2 }
			at == half' <<<"$names" | paste -sd'|'))\$" ./test/integration &
		pids+=($!)
	done
	onmounts -timeout "$1" ./image/... &
	pids+=($!)
	for pid in "${pids[@]}"; do
		wait "$pid" || status=1
	done
	return $status
}

integration() { halves 20m; }

crash() {
	onmounts -timeout 30m -run 'Crash|Moments' ./test/integration
}

long() {
	SREGFS_LONG=1 halves 3h && FUZZTIME=${FUZZTIME:-1m} fuzz
}

modules() { go mod verify; }

vulnerabilities() {
	# Needs the vulnerability database, which not every machine can reach.
	local status=0
	GOBIN=$scratch go install golang.org/x/vuln/cmd/govulncheck@v1.1.4 >"$scratch/vuln" 2>&1 &&
		"$scratch/govulncheck" ./... >"$scratch/vuln" 2>&1 || status=$?
	case $status in
	0) tail -n 1 "$scratch/vuln" ;;
	3) # what it found
		cat "$scratch/vuln"
		return 1
		;;
	*) echo "not checked: $(grep . "$scratch/vuln" | tail -n 1)" | tee "$scratch/total" ;;
	esac
}

case ${1:-all} in
all) steps='vet staticcheck format unit fuzz integration' ;;
lint) steps='vet staticcheck format modules vulnerabilities' ;;
*) steps=$* ;;
esac

table=
failed=0
began=$SECONDS
# record STEP - runs it and adds its line to the table.
record() {
	local step=$1 start=$SECONDS verdict=ok
	rm -f "$scratch"/total*
	printf '\n== %s\n' "$step"
	("$step") & # in a subshell with -e off: a step is a chain of its own
	running=$!
	if ! wait "$running"; then
		verdict=FAILED
		failed=1
	fi
	running=
	table+=$(printf '  %-16s %-7s %4d s  %s' "$step" $verdict $((SECONDS - start)) \
		"$(cat "$scratch"/total* 2>/dev/null | paste -sd';' | sed 's/;/; /g')")$'\n'
}

record build
if [ $failed = 0 ]; then
	for step in $steps; do
		record "$step"
	done
fi
printf '\n%s' "$table"
if [ $failed = 1 ]; then
	echo "  FAILED after $((SECONDS - began)) s"
	exit 1
fi
echo "  all passed in $((SECONDS - began)) s"
