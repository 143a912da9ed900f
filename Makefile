# Each target, alone, on a fresh Debian 12 with Rust and Node, does all that it needs. `make` lists them.

.NOTPARALLEL:
.DELETE_ON_ERROR:
SHELL := /bin/bash

# Whoever builds for release or in CI gets exactly the dependencies of Cargo.lock.
LOCKED := $(if $(CI),--locked)
# nextest gives every test a process and a time limit; without it, the same tests under cargo test.
NEXTEST := $(shell command -v cargo-nextest)
MODULE := ngx-http-handoff-module

S ?= S4
RUNS ?= 3
LEVEL ?= L0

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what is missing: nginx, headers, libclang, Node packages
	build/setup

.PHONY: build
build: setup sidecar module ## all that a user installs, in dist/

.PHONY: sidecar
sidecar:
	cargo build --release $(LOCKED) -p handoff
	install -D target/release/handoff dist/bin/handoff
	if [ -d sidecar/preload ]; then install -D -m 644 sidecar/preload/handoff.cjs dist/preload/handoff.cjs; fi

.PHONY: module
module: setup ## the module for both pinned nginx, or for yours: NGINX_SOURCE_DIR=…
ifdef NGINX_SOURCE_DIR
	build/module $(abspath $(NGINX_SOURCE_DIR))
else
	build/module debian
	build/module pinned
endif

.PHONY: test
test: build lint policy loom unit e2e ## everything that must hold before a change lands

.PHONY: lint
lint: module ## formatting, clippy (the module too), shell scripts, lock files
	cargo fmt --all --check
	cargo clippy $(LOCKED) --all-targets -- -D warnings
	for version in $$(ls dist/modules | sed 's/^nginx-//'); do \
		build/with-nginx $$version cargo clippy $(LOCKED) --release -p $(MODULE) -- -D warnings || exit; \
	done
	shellcheck .ci/run $$(grep -lr '^#!/usr/bin/env bash' build)
	build/check-lock-files

.PHONY: deny policy
deny: ## licences, bans and sources of the dependencies; installs cargo-deny
	build/deny
policy:
	build/deny --if-installed

.PHONY: loom
loom: ## core's atomics under every interleaving
ifneq ($(wildcard nginx-module/core/tests/loom*.rs),)
	RUSTFLAGS="--cfg loom" cargo test $(LOCKED) --release -p handoff-core --test 'loom*' --target-dir target/loom
endif

.PHONY: unit
unit: ## core, wire and sidecar: a Rust toolchain is enough
ifdef NEXTEST
	cargo nextest run $(LOCKED) --workspace --exclude $(MODULE) --exclude e2e --no-tests pass
else
	cargo test $(LOCKED) --workspace --exclude $(MODULE) --exclude e2e --lib --bins --tests
endif

.PHONY: e2e
e2e: build ## real nginx, real PM2, real Node apps
ifdef NEXTEST
	cargo nextest run $(LOCKED) -p e2e
else
	cargo test $(LOCKED) -p e2e --lib --bins --tests -- --test-threads=1
endif

.PHONY: demo
demo: build ## deploy under load, without Handoff and with it; about two minutes
	cargo run --release $(LOCKED) -p e2e --bin demo

.PHONY: scenario
scenario: build ## one scenario of the README: S=S4 RUNS=3 LEVEL=L0
	cargo run --release $(LOCKED) -p e2e --bin scenario -- --scenario $(S) --runs $(RUNS) --level $(LEVEL)

.PHONY: clean
clean: ## remove all that was built or installed in this folder
	rm -rf target dist tests/apps/node_modules tests/pm2/node_modules
