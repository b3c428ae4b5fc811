# The developer's commands. `make test` is the one that counts.

.PHONY: help test faults simulation check fuzz bench bench-parts bench-durability bench-workers soak instructions test-needs check-compose run
.DEFAULT_GOAL := help

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

test: test-needs ## install what the tests need, then run all of them
	cargo test
	cargo bench --bench instructions

instructions: test-needs ## compare the instructions of fixed workloads with benches/instructions.txt
	cargo bench --bench instructions

SCHEDULES ?= 20
SECONDS ?= 240
faults: test-needs ## accidents under load: SCHEDULES=20 SECONDS=240 SEED=number REDIS=any|kept|wiped|stale
	@FAULT_SCHEDULES=$(SCHEDULES) FAULT_SECONDS=$(SECONDS) FAULT_SEED=$(SEED) FAULT_REDIS=$(REDIS) \
		cargo test --test it faults::the_contract_holds_under_random_faults -- --nocapture

simulation: ## the whole proxy in a simulated world: SECONDS=240, or SEED=number for one run
	@SIMULATION_SECONDS=$(SECONDS) SIMULATION_SEED=$(SEED) \
		cargo test --lib app::tests::the_contract_holds_in_every_simulated_run -- --nocapture

check: ## formatting and lints, as in .ci/run
	@cargo fmt --version >/dev/null 2>&1 || { echo "rustfmt is missing: rustup component add rustfmt" >&2; exit 1; }
	@cargo clippy --version >/dev/null 2>&1 || { echo "clippy is missing: rustup component add clippy" >&2; exit 1; }
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

ROUNDS ?= 5
REQUESTS ?= 100000
bench: test-needs ## measure against Redis alone and other proxies; ROUNDS=5 REQUESTS=100000, writes docs/bench.*
	@for program in nutcracker haproxy; do command -v $$program >/dev/null \
		|| echo "$$program is not installed; the Debian package has that name" >&2; done
	cargo build --release
	python3 benches/compare.py --rounds $(ROUNDS) --requests $(REQUESTS) --out docs/bench

bench-parts: ## time scanner, schema, access, journal and engine by themselves
	cargo bench --bench parts

bench-durability: test-needs ## sync modes, the sink against raw SQL, the start after kill -9; writes docs/durability.md
	cargo build --release
	python3 benches/durability.py --out docs/durability.md

bench-workers: test-needs ## throughput, waits and processor time of workers = 1, 2, 3
	cargo build --release
	python3 benches/workers.py --rounds $(ROUNDS) --requests $(REQUESTS)

SOAK_SECONDS ?= 900
soak: test-needs ## a mixed load for SOAK_SECONDS=900: memory, descriptors, waits; writes docs/soak.md
	cargo build --release
	python3 benches/soak.py --seconds $(SOAK_SECONDS) --out docs/soak.md

FUZZ_SECONDS ?= 600

fuzz: ## run each fuzz target for FUZZ_SECONDS (needs a nightly toolchain and cargo-fuzz)
	@cargo fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: cargo install cargo-fuzz" >&2; exit 1; }
	@mkdir -p fuzz/corpus/requests fuzz/corpus/replies
	for target in requests replies; do \
	    cargo +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
	        -max_total_time=$(FUZZ_SECONDS) -malloc_limit_mb=16 -max_len=4096 -dict=fuzz/resp.dict || exit 1; \
	done

test-needs: ## install the servers, docker-compose and the clients that the tests use where missing
	@./scripts/install-test-needs.sh

check-compose: test-needs ## have docker-compose read docker-compose.yml
	@if command -v docker-compose >/dev/null; then docker-compose config --quiet; else docker compose config --quiet; fi
	@echo "docker-compose.yml is valid"

run: ## start the proxy on 127.0.0.1:6380 with what it has built in
	cargo run --release
