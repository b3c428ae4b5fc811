# The developer's commands. `make test` is the one that counts.

.PHONY: help test faults check test-needs check-compose run
.DEFAULT_GOAL := help

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

test: test-needs ## install what the tests need, then run all of them
	cargo test

SCHEDULES ?= 20
SECONDS ?= 240
faults: test-needs ## accidents under load: SCHEDULES=20 SECONDS=240 SEED=number REDIS=kept|wiped|stale|any
	@FAULT_SCHEDULES=$(SCHEDULES) FAULT_SECONDS=$(SECONDS) FAULT_SEED=$(SEED) FAULT_REDIS=$(REDIS) \
		cargo test --test it faults::the_contract_holds_under_random_faults -- --nocapture

check: ## formatting and lints, as in .ci/run
	@cargo fmt --version >/dev/null 2>&1 || { echo "rustfmt is missing: rustup component add rustfmt" >&2; exit 1; }
	@cargo clippy --version >/dev/null 2>&1 || { echo "clippy is missing: rustup component add clippy" >&2; exit 1; }
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

test-needs: ## install redis-server, PostgreSQL, redis-py and docker-compose where missing
	@./scripts/install-test-needs.sh

check-compose: test-needs ## have docker-compose read docker-compose.yml
	@if command -v docker-compose >/dev/null; then docker-compose config --quiet; else docker compose config --quiet; fi
	@echo "docker-compose.yml is valid"

run: ## start the proxy on 127.0.0.1:6380 with what it has built in
	cargo run --release
