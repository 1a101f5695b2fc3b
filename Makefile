SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build check unit demo bench test fuzz clients lint doc audit fmt manifests images cluster cluster-down

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## Build all, make the sentiment model, replay held-out sentences, draw the chart
	@hack/demo

build: ## The binaries: carpool, carpool-operator, carpool-sidecar, carpool-worker
	@hack/build
	@. hack/env.sh && say "they lie in $$bin"

bench: ## The demo's measurements, one idle client's latency by part, Redis under strain, answers in company, a peer
	@hack/bench

check: ## Format and clippy, in seconds after a change
	@hack/check

unit: ## One crate's tests, in seconds after a change: make unit CRATE=queue TEST=lease TARGET=lib; each may be left out
	@hack/unit "$(CRATE)" "$(TEST)" "$(TARGET)"

test: ## Everything, from unit tests to a real Kubernetes, closing with 'N passed, N failed'
	@hack/test

fuzz: ## Give random input to all that reads from strangers, ten minutes a target: make fuzz FUZZ_SECONDS=60 TARGET=v1
	@hack/fuzz "$(or $(FUZZ_SECONDS),600)" "$(TARGET)"

clients: ## Clients of others (tritonclient, kserve, curl, grpcurl) against models on this machine
	@hack/clients

lint: ## Format, clippy, shellcheck, luacheck, comments, rustdoc, dependencies' licences and sources, stale manifests, the chart
	@hack/lint

doc: ## The documentation of all items, private ones too, with warnings denied
	@hack/lint doc
	@. hack/env.sh && say "it begins at $$CARGO_TARGET_DIR/doc/carpool/index.html"

audit: ## The dependencies against the database of known vulnerabilities, which is fetched
	@hack/audit

fmt: ## Format the Rust code
	@cargo fmt --all
	@cargo fmt --manifest-path fuzz/Cargo.toml

manifests: ## Generate BatchedModel's definition, for crds/ and for the chart, and the golden files of what models become
	@hack/manifests

images: ## Build the images, and load them where the test cluster is up
	@hack/images

cluster: ## Start the test cluster; the first time it is built, in about 17 minutes
	@tests/cluster/cluster up

cluster-down: ## End it, with every trace but its binaries
	@tests/cluster/cluster down
