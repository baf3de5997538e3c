# `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help run check test lint advisories structure schemathesis fmt demo bench bench-instructions bench-profile

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

test: ## install missing dependencies, then run every test: Rust, SDK, browser
	scripts/setup
	cargo test
	cd client-demo && npm test
	GATEWAY_BIN=$(target_dir)/debug/tidings node --test tests/browser/*.test.*js

lint: ## format, clippy, docs and dependencies, warnings denied
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
	cargo deny check bans licenses sources

advisories: ## security advisories of the dependencies; skipped if the database cannot be fetched
	scripts/advisories

structure: ## lines of the Rust code, lengths of its files and functions (ARGS=--check: fail beyond the limits)
	scripts/structure $(ARGS)

schemathesis: ## valid and invalid requests to the admin listener, generated from docs/openapi.json
	scripts/schemathesis

fmt: ## format the Rust sources
	cargo fmt

demo: ## two instances on a dedicated Redis; Ctrl-C stops all
	@scripts/demo

bench: ## every benchmark, into docs/benchmarks (ARGS=--quick: a smoke test)
	node bench/run.mjs $(ARGS)

bench-instructions: ## instruction counts of the hot path (ARGS=--check: fail where one grew by 5 %)
	node bench/instructions.mjs $(ARGS)

bench-profile: ## CPU profiles: flame graphs of handshakes and of unicast
	node bench/profile.mjs
