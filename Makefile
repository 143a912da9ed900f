# Each target, alone, on a fresh Debian 12 with Rust and Node, does all that it needs. `make` lists them.

.NOTPARALLEL:
.DELETE_ON_ERROR:
SHELL := /bin/bash

# Whoever builds for release or in CI gets exactly the dependencies of Cargo.lock.
LOCKED := $(if $(CI),--locked)
# nextest gives every test a process and a time limit; without it, the same tests under cargo test.
ifneq ($(shell command -v cargo-nextest),)
ALL_TESTS := cargo nextest run $(LOCKED)
else
ALL_TESTS := cargo test $(LOCKED) --lib --bins --tests
ONE_AT_A_TIME := -- --test-threads=1
endif
MODULE := ngx-http-handoff-module

S = S4
RUNS = 3
LEVEL = L0

# What follows takes its results from target/.
unexport CARGO_TARGET_DIR

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what is missing: nginx, headers, libclang, Node packages
	build/setup

.PHONY: build
build: setup sidecar module ## all that a user installs, in dist/

# Cargo's default members, not -p: the features of a dependency are then the same for every command below, and it is built once.
.PHONY: sidecar
sidecar:
	cargo build --release $(LOCKED) --bin handoff --bin handoff-papers
	install -D target/release/handoff dist/bin/handoff
	install -D -m 644 sidecar/preload/handoff.cjs dist/preload/handoff.cjs
	target/release/handoff-papers dist

# Debian's tools for packages, and those with which the tests look at them.
PACKAGING = debhelper dpkg-dev lintian mandoc zsh fish systemd apparmor
.PHONY: packages
packages: build ## Debian packages for Debian's own nginx, and the npm package of the preload, in dist/packages/
	build/setup $(PACKAGING)
	build/packages

.PHONY: packages-test
packages-test: packages ## installs, upgrades and removes them on a Debian of its own, and follows the ten-minute guide; needs root
	build/setup debootstrap systemd-container
	build/packages 2 target/packages/next
	build/clean-root
	cargo test $(LOCKED) -p e2e --test packages_clean -- --ignored --nocapture --test-threads=1

.PHONY: exec-test
exec-test: packages ## `handoff exec` with the real systemd, Node, gunicorn and puma, on a Debian of its own; needs root
	build/setup debootstrap systemd-container
	build/packages 2 target/packages/next
	build/clean-root
	cargo test $(LOCKED) -p e2e --test exec -- --ignored --nocapture --test-threads=1

.PHONY: module
module: setup ## the module for both pinned nginx, or for yours: NGINX_SOURCE_DIR=…
ifdef NGINX_SOURCE_DIR
	build/module $(abspath $(NGINX_SOURCE_DIR))
else
	build/module debian
	build/module pinned
endif

.PHONY: test
test: build lint policy preload-beside tests ## everything that must hold before a change lands

.PHONY: lint
lint: module ## formatting, clippy (the module too), shell scripts, lock files
	cargo fmt --all --check
	cargo clippy $(LOCKED) --all-targets -- -D warnings
	for tree in target/nginx/*/; do \
		build/with-nginx $$(basename $$tree) cargo clippy $(LOCKED) --release -p $(MODULE) -- -D warnings || exit; \
	done
	shellcheck .ci/run $$(grep -lrE '^#!(/usr/bin/env bash|/bin/sh)' build tests/clean)
	build/check-lock-files

.PHONY: deny policy
deny: ## licences, bans and sources of the dependencies; installs cargo-deny
	build/deny
policy:
	build/deny --if-installed

.PHONY: loom
loom: ## core's claim and drain under every interleaving; the wrong order must be caught
	build/loom

.PHONY: model
model: ## the drain protocol of one host, and that of many through a store: every order of their steps, with wide bounds; minutes
	cargo test $(LOCKED) -p model -- --include-ignored --nocapture
	cargo test $(LOCKED) -p handoff --test store_model -- --include-ignored --nocapture

.PHONY: unit
unit: ## core, wire and sidecar alone: a Rust toolchain and protoc are enough
	cargo test $(LOCKED) -p handoff-core -p handoff-wire -p handoff -- --skip real_pm2

.PHONY: contract
contract: setup ## what we take for granted of PM2: its versions 5, 6 and 7, each on Node 18, 20 and 22
	cargo test $(LOCKED) -p handoff --test contract -- --include-ignored

# node --test takes files: what it makes of a folder differs between these Nodes.
.PHONY: preload
preload: setup ## the Node preload: Node 18, 20 and 22, PM2 5, 6 and 7, Express, Fastify, Koa, Nest
	for node in tests/node/node_modules/node-*/bin/node; do \
		$$node --version && $$node --test sidecar/preload/test/*.test.js || exit; \
	done

# The preload's tests mostly wait: what only computes is done beside them, with what they leave of the machine.
.PHONY: preload-beside built
preload-beside: setup
	nice -n 19 $(MAKE) loom built >target/built.log 2>&1 & built=$$!; \
	$(MAKE) preload || { kill $$built; exit 1; }; \
	wait $$built; ended=$$?; cat target/built.log; exit $$ended
built:
	$(ALL_TESTS) --no-run

# One run for all of them: cargo then builds each dependency once, and the last lines count every test.
.PHONY: tests
tests: packages wrong-order
	$(WITH_WRONG_ORDER) $(ALL_TESTS) $(ONE_AT_A_TIME)

.PHONY: barrier
barrier: build wrong-order ## hundreds of drains under load: nothing starts after the acknowledgement
	$(WITH_WRONG_ORDER) cargo test --release $(LOCKED) --test barrier -- --include-ignored --nocapture --test-threads=1

.PHONY: churn
churn: build ## peers come and go 14 400 times under every balancer, with reloads and without, over each nginx: five minutes
	cargo test $(LOCKED) -p e2e --test slots churn:: -- --include-ignored --nocapture --test-threads=1

.PHONY: soak
soak: build ## SOAK_DEPLOYS (1000) and SOAK_REQUESTS (1000000) over each nginx, mode and level: nobody fails, nothing runs twice, nothing grows
	cargo run --release $(LOCKED) --bin soak

.PHONY: chaos
chaos: build ## CHAOS_FAULTS (500) at random moments of deploys, each judged, by CHAOS_SEED (1); installs libfaketime; needs root
	build/setup libfaketime
	cargo run --release $(LOCKED) --bin chaos

.PHONY: every-case
every-case: build ## every broken release, every signal at every step, hundreds of deploys of one app, S9: an hour
	cargo test $(LOCKED) -p e2e --test rollout --test s1 --test s5 --test s9 -- --ignored --nocapture --test-threads=1

.PHONY: deaths
deaths: build ## each way in which workers end that is no deploy, with Handoff, and with stock and tuned nginx
	cargo test $(LOCKED) -p e2e --test deaths -- --include-ignored --nocapture --test-threads=1

.PHONY: fuzz
fuzz: ## API, directives, PM2's bus and list, configuration, preload, nginx -T: each for FUZZ_SECONDS (60); installs cargo-fuzz
	build/fuzz $(or $(FUZZ_SECONDS),60)

# What the suite plays backends and clients with; without one of these, tests of it are skipped.
NGINX_TESTS_NEED = libfcgi-perl libio-socket-ssl-perl libcryptx-perl libcache-memcached-perl memcached \
	uwsgi-core uwsgi-plugin-python3
.PHONY: regression
regression: build ## nginx's own test suite, with the module and without, over each nginx; NGINX_TESTS=/path to a checkout: half an hour
	build/setup $(NGINX_TESTS_NEED)
	cargo run $(LOCKED) -p e2e --bin regression -- --suite "$$(build/nginx-tests)"

SANITIZED = untouched same_bytes smuggling access api answers hold in_flight orphans plus reload retry reuse slots \
	slow_start trial worker_variable control_socket
.PHONY: sanitize
sanitize: build ## nginx and the module with AddressSanitizer and UndefinedBehaviorSanitizer, under stress; or NGINX_SOURCES=/path…: ten minutes
	build/sanitize $(NGINX_SOURCES) -- $(LOCKED) --no-fail-fast $(addprefix --test ,$(SANITIZED))

.PHONY: valgrind
valgrind: build ## nginx's own tests of upstreams with `handoff` under valgrind; NGINX_TESTS as above: five minutes
	build/setup valgrind $(NGINX_TESTS_NEED)
	build/valgrind "$$(build/nginx-tests)"

.PHONY: advisories
advisories: ## known vulnerabilities of the dependencies (RustSec); needs the network; installs cargo-deny
	build/deny advisories

.PHONY: deploys
deploys: build ## `handoff deploy`: each step fails, is interrupted, is killed; on both nginx, PM2 5, 6 and 7: ten minutes
	cargo test $(LOCKED) -p e2e --test deploy -- --include-ignored --nocapture --test-threads=1

.PHONY: store
store: build ## many nginx and etcd: its restart, its loss, garbage, a dead app host; the failing baseline; how long a mark takes: five minutes
	cargo test $(LOCKED) -p handoff --test store_model -- --include-ignored --nocapture
	cargo test $(LOCKED) -p e2e --test store -- --include-ignored --nocapture --test-threads=1

# A module that looks before it claims: the test of the barrier must notice.
WITH_WRONG_ORDER = HANDOFF_WRONG_ORDER_MODULE=$$(build/module pinned look_before_claim)
.PHONY: wrong-order
wrong-order: setup
	build/module pinned look_before_claim

.PHONY: s9
s9: build ## 2 280 POSTs over each nginx, aimed at the moment when Node closes, and after its own 6 s; one worker, and four in cluster mode: half an hour
	cargo test $(LOCKED) -p e2e --test s9 -- --ignored --nocapture --test-threads=1

.PHONY: latency
latency: build ## from `up` to the request at the peer, of those who waited; and what a flood of them costs others
	cargo test $(LOCKED) -p e2e --test hold latency:: -- --ignored --nocapture --test-threads=1

.PHONY: storm
storm: build ## 100 000 requests of every kind over each nginx, while peers, pauses, reloads and deaths come and go: three minutes
	cargo test $(LOCKED) -p e2e --test hold storm:: -- --ignored --nocapture --test-threads=1

.PHONY: containers
containers: build ## each documented way to replace a container, in front of both nginx: two minutes; needs root
	cargo test $(LOCKED) -p e2e --test containers -- --include-ignored --nocapture --test-threads=1

.PHONY: many-hosts
many-hosts: build ## three app hosts, two nginx and etcd on a network of their own; what befalls them in mid-deploy: ten minutes, needs root
	cargo test $(LOCKED) -p e2e --test net --test many_hosts -- --include-ignored --nocapture --test-threads=1

.PHONY: many-hosts-scale
many-hosts-scale: setup ## what 1 000 app hosts, 50 nginx and 20 000 workers ask of etcd, and how they come back to it: five minutes
	cargo run --release $(LOCKED) --bin scale
	cargo run --release $(LOCKED) --bin herd

.PHONY: footprint
footprint: build ## what `handoff run` costs beside 100 workers: memory, CPU at rest, and how fast it is in a flood of logs: five minutes
	cargo run --release $(LOCKED) --bin footprint

.PHONY: demo
demo: build ## deploy under load, without Handoff and with it; about two minutes
	cargo run --release $(LOCKED) --bin demo

.PHONY: scenario
scenario: build ## one scenario of the README: S=S4 RUNS=3 LEVEL=L0, L1 (which installs HAProxy and Caddy) or L2
ifeq ($(LEVEL),L1)
	build/setup haproxy
	build/caddy
endif
	cargo run --release $(LOCKED) --bin scenario -- --scenario $(S) --runs $(RUNS) --level $(LEVEL) $(if $(filter L1,$(LEVEL)),--control)

.PHONY: bench
bench: speed ## all that is measured of speed: the next one, then what a request costs, under every balancer; installs valgrind; three quarters of an hour
	build/setup valgrind libjemalloc2
	cargo run --release $(LOCKED) --bin cost -- --table

.PHONY: speed
speed: build ## the tables of docs/speed.md: drains, deaths, deploys beside HAProxy and Caddy, 10 000 peers, the preload, the sidecar: half an hour
	build/setup haproxy
	build/caddy
	cargo run --release $(LOCKED) --bin speed
	cargo run --release $(LOCKED) --bin footprint

.PHONY: reuse
reuse: build ## what handoff_reuse opens and keeps, beside `always`, towards another machine; needs root
	cargo run --release $(LOCKED) --bin reuse

.PHONY: clean
clean: ## remove all that was built or installed in this folder
	rm -rf target dist tests/apps/node_modules tests/node/node_modules tests/pm2/node_modules \
		sidecar/preload/test/node_modules
