# The one way to build, try and test sregfs; `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Behind the machine's own programs: where go.dev installs Go, and what the
# scripts in test/setup fetch.
export PATH := $(PATH):/usr/local/go/bin:$(CURDIR)/.deps/go/bin:$(CURDIR)/.deps/apptainer/usr/bin

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# KEEP=0 ends the tour when it is over; otherwise the mount stays until Ctrl-C.
KEEP ?= 1
# SEED repeats a crash run; empty picks one and prints it.
SEED ?=
# ROW picks rows of the benchmark by a part of their name; empty runs all.
ROW ?=

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: toolchain ## build bin/sregfs
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o bin/sregfs ./cmd/sregfs

.PHONY: install
install: build ## copy bin/sregfs to $(DESTDIR)/usr/local/bin, with the link that mount(8) looks for
	install -D -m 0755 bin/sregfs $(DESTDIR)/usr/local/bin/sregfs
	install -d $(DESTDIR)/sbin
	ln -sfn /usr/local/bin/sregfs $(DESTDIR)/sbin/mount.fuse.sregfs

.PHONY: run
run: ## set the machine up, build, and show the main job on ./mnt (KEEP=0: end after it)
	@test/setup/packages.sh run
	@test/setup/apptainer.sh .deps/apptainer >/dev/null || echo 'no Apptainer: images will not be run'
	@$(MAKE) --no-print-directory build
	@go build -buildvcs=false -o bin/emulator ./test/emulator
	@KEEP=$(KEEP) test/tour.sh

.PHONY: test
test: machine ## set the machine up and run every check and test
	@test/all.sh

.PHONY: test-unit
test-unit: toolchain ## the unit tests alone, with the race detector
	@test/all.sh unit

.PHONY: test-integration
test-integration: machine ## the tests on real FUSE mounts alone
	@test/all.sh integration

.PHONY: test-crash
test-crash: machine ## kill the daemon at many moments and check what is left (SEED= repeats a run)
	@SREGFS_CRASH_SEED=$(SEED) test/all.sh crash

.PHONY: test-long
test-long: machine ## the long forms of crash, fault, stress and fuzz tests (two hours or so)
	@SREGFS_CRASH_SEED=$(SEED) test/all.sh long

.PHONY: bench
bench: machine build ## measure against local disk, rclone, curl and Apptainer (ROW= runs some rows)
	@go build -buildvcs=false -o bin/emulator ./test/emulator
	@go build -buildvcs=false -o bin/bench ./test/bench
	@test/setup/rclone.sh bench/data/rclone || echo "no newer rclone can be built: the machine's own is measured"
	@bin/bench -row '$(ROW)'

.PHONY: lint
lint: toolchain ## vet, staticcheck, gofmt, module checksums, known vulnerabilities
	@test/all.sh lint

.PHONY: clean
clean: ## remove what the other targets made
	rm -rf bin .deps bench/data bench/results

.PHONY: toolchain
toolchain:
	@test/setup/go.sh .deps/go

# All that the tests and the benchmark need.
.PHONY: machine
machine: toolchain
	@test/setup/packages.sh test
	@test/setup/apptainer.sh .deps/apptainer >/dev/null
