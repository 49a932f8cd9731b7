# The one door to the project: `make help` lists what is behind it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test e2e bench lint tools build clean-bed need-root chart image
# Tools come before what is built with them.
.NOTPARALLEL:

# What is slow to make is kept outside the clone.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fairlead
# Where cargo builds.
TARGET := $(or $(CARGO_TARGET_DIR),target)
# In CI the lock file is taken as it is, or it is an error.
LOCKED := $(if $(filter true,$(CI)),--locked)

# How the programs in the images are built.
PROFILE ?= release

DENY_VERSION := 0.20.2
DENY := $(CACHE)/cargo-deny-$(DENY_VERSION)/bin/cargo-deny

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: need-root tools build ## Show it: a two-node cluster on this machine, every kind of Service, real packets (root; KEEP=1 leaves it running)
	@$(TARGET)/debug/demo $(if $(KEEP),--keep)

test: tools lint build ## Pass all tests: lints, documentation, unit, golden, property, real API server, real kernel (root)
	cargo test --workspace --exclude fairlead-e2e $(LOCKED)
	cargo test --package fairlead-e2e --lib $(LOCKED)
	e2e/run-suites.sh $(LOCKED)

e2e: need-root tools build image ## Real kubelets and kind, the Helm chart, the examples in real Pods, Kubernetes' own end-to-end tests (root; FULL=1 for all of them, QUICK=1 for two nodes without the operations, KEEP=1 leaves it running)
	@e2e/cluster/build.sh $(if $(QUICK),,--kind)
	@FAIRLEAD_INSTALL=chart $(TARGET)/debug/cluster $(if $(QUICK),--quick) $(if $(KEEP),--keep)
	@$(if $(QUICK),,$(TARGET)/debug/cluster --kind)
	@$(if $(FULL),$(TARGET)/debug/cluster --kind --takeover)
	@$(if $(FULL),FAIRLEAD_INSTALL=chart $(TARGET)/debug/cluster --nodes 6 --specs further)
	@$(if $(FULL),FAIRLEAD_INSTALL=chart $(TARGET)/debug/cluster --dual-stack --specs dual-stack)

bench: need-root ## Measure planning, compiling, programming and first packets, with optimisation (root; some minutes)
	cargo run --release -p fairlead-e2e --bin bench $(LOCKED)

lint: $(DENY) ## Check formatting, clippy, documentation, licences and sources of dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(LOCKED) -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet $(LOCKED)
	$(DENY) --log-level error check bans licenses sources

tools: ## Build the genuine Kubernetes programs that the tests run on, once, outside the clone; install missing packages
	@e2e/tools/build.sh
	@e2e/helm/build.sh

chart: build ## Make what is generated from the Helm chart: manifests/rendered, and the table of values in its README
	@e2e/helm/build.sh
	@$(TARGET)/debug/chart

image: ## Build the container images as archives in target/images, from release binaries and Debian packages, without Docker (PROFILE=dev: from unoptimised ones)
	cargo build --profile $(PROFILE) --bins -p fairlead-controller -p fairlead-programmer -p fairlead-cli $(LOCKED)
	cargo build -p fairlead-images $(LOCKED)
	@$(TARGET)/debug/image --programs $(TARGET)/$(PROFILE:dev=debug) --packages $(CACHE)/packages --out $(TARGET)/images

clean-bed: build ## Remove what killed tests and demos left behind; what is in use is left alone
	@$(TARGET)/debug/clean-bed

# Not listed: says at once, not after a long build, that demo or bench cannot run.
need-root:
	@[ "$$(id -u)" = 0 ] || { echo "run it as root, it makes network namespaces: sudo --preserve-env=PATH make $(MAKECMDGOALS)" >&2; exit 1; }

# Not listed: the programs that tests and demo start.
build:
	@cargo build --workspace --bins $(LOCKED)

$(DENY):
	@echo "cargo-deny $(DENY_VERSION): building it into $(CACHE) (once; some minutes)"
	cargo install --locked --version $(DENY_VERSION) --root $(CACHE)/cargo-deny-$(DENY_VERSION) cargo-deny
