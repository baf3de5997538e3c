# `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help run check test lint alerts manifests advisories structure schemathesis engines fmt demo bench bench-instructions bench-cost bench-dialects bench-inbox bench-observe bench-subscribe bench-profile

# The browser tests drive the binary that `cargo test` has just built.
target_dir := $(abspath $(or $(CARGO_TARGET_DIR),target))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## one local instance, no setup: http://127.0.0.1:8080
	cargo run --release -- serve --dev

check: ## the quick checks, without a browser or Redis: format, clippy, unit tests, prose
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --workspace --lib --bins
	scripts/prose

test: ## install missing dependencies, then run every test: Rust, SDK, other clients, browser
	scripts/setup
	scripts/retry cargo
	scripts/engines --one
	cd sdk/js && ../../scripts/retry node test/*.test.js
	GATEWAY_BIN=$(target_dir)/debug/tidings scripts/retry node tests/sdk-package/*.test.mjs
	GATEWAY_BIN=$(target_dir)/debug/tidings scripts/retry node tests/clients/*.test.mjs
	GATEWAY_BIN=$(target_dir)/debug/tidings scripts/retry node tests/browser/*.test.*js

lint: ## format, clippy, docs and dependencies, warnings denied
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
	cargo deny check bans licenses sources

alerts: ## the alerts of deploy/prometheus and their test cases, and the queries of the dashboard; needs promtool
	scripts/alerts

manifests: ## deploy/kubernetes against the schemas of Kubernetes
	scripts/manifests

advisories: ## security advisories of the dependencies; skipped if the database cannot be fetched
	scripts/advisories

structure: ## lines of the Rust code, lengths of its files and functions (ARGS=--check: fail beyond the limits)
	scripts/structure $(ARGS)

schemathesis: ## valid and invalid requests to the admin listener, generated from docs/openapi.json
	scripts/schemathesis

engines: ## the tests that involve Redis on other versions and on Valkey, into docs/engines.md (ARGS=redis-6.2: on one)
	scripts/engines $(ARGS)

fmt: ## format the Rust sources
	cargo fmt

demo: ## two instances on a dedicated Redis; Ctrl-C stops all
	@scripts/demo

bench: ## every benchmark, into docs/benchmarks (ARGS=--quick: a smoke test)
	node bench/run.mjs $(ARGS)

bench-instructions: ## instruction counts of the hot path (ARGS=--check: fail where one grew by 5 %)
	node bench/instructions.mjs $(ARGS)

bench-cost: ## connections, messages and notifications beside an earlier build (ARGS="--before BINARY"; ARGS=--quick: a smoke test)
	node bench/cost.mjs $(ARGS)

bench-dialects: ## clients of socket.io and Server-Sent Events, against tidings.v1 and socket.io's own server (ARGS=--quick: a smoke test)
	node bench/dialects.mjs $(ARGS)

bench-inbox: ## pages, read positions, broadcasts and escalation, against what they are compared with (ARGS=--quick: a smoke test)
	node bench/inbox.mjs $(ARGS)

bench-observe: ## what metrics, spans and logs cost: beside a build without them (ARGS=--quick: a smoke test)
	node bench/observe.mjs $(ARGS)

bench-subscribe: ## both modes of redis.subscribe: connects, and the CPU time of a fleet
	node bench/subscribe.mjs $(ARGS)

bench-profile: ## CPU profiles: flame graphs of handshakes and of unicast
	node bench/profile.mjs
