PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CLIENTS := .cache/clients
CLIENT_VENVS := suites langchain instructor litellm
NODE_MODULES := examples/javascript/node_modules

.DEFAULT_GOAL := help
.PHONY: help setup debian clients serve test test-gpu kernels-matrix check check-types check-kernels bench conformance format proto docs

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(INSTALLED) ## create .venv and install everything, at the versions of requirements.lock

$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"baleen needs Python 3.11 or newer, found {v[0]}.{v[1]}")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

debian: ## as root with apt: install Debian's redis-server and chromium, if missing; without them some tests are skipped
	@for package in redis-server chromium; do \
	  command -v $$package >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
	  { apt-get -qq update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
	    apt-get -qq install -y --no-install-recommends $$package; } || \
	  echo "$$package could not be installed: the tests that need it are skipped"; done

clients: setup $(CLIENT_VENVS:%=$(CLIENTS)/%/.installed) $(NODE_MODULES)/.installed ## install clients and suites of others; without them some tests are skipped

# environments of their own: what they need does not go together
$(CLIENTS)/%/.installed: tests/clients/%.txt | $(INSTALLED)
	@rm -rf $(@D) && $(PYTHON) -m venv --without-pip $(@D) && \
	  $(BIN)/pip --python $(@D)/bin/python install --quiet --no-deps --no-compile --requirement $< && touch $@ || \
	  echo "$< could not be installed: the tests that need it are skipped"

$(NODE_MODULES)/.installed: examples/javascript/package-lock.json
	@if command -v npm >/dev/null; then \
	  cd $(<D) && npm ci --silent --no-audit --no-fund && touch node_modules/.installed; else false; fi || \
	  echo "$< could not be installed: the tests that need it are skipped"

serve: setup ## start a cluster on this machine: HTTP on 127.0.0.1:8000, gRPC on 9000, until Ctrl-C; UP='--config FILE' for another
	$(BIN)/baleen up $(UP)

# how many run side by side: tests of many processes mostly wait
STREAMS ?= 2
PYTEST := $(BIN)/pytest --dist loadfile --no-loadscope-reorder --numprocesses

test: setup debian ## run every test that needs no GPU; STREAMS=1 for one after the other
	$(MAKE) --no-print-directory --jobs 2 clients
	$(PYTEST) $(STREAMS) -m "not gpu and not nixl"
	$(BIN)/pytest -m "nixl and not gpu" tests/contract

test-gpu: setup ## run the tests that need a GPU; SANITIZER=memcheck runs them under compute-sanitizer
	TRITON_INTERPRET=0 $(if $(SANITIZER),compute-sanitizer --tool $(SANITIZER) --error-exitcode 86) $(BIN)/python -m pytest -m gpu tests

# Triton's interpreter of 3.6.0 needs a numpy below 2.4, which warns of what it does
OLDEST_TRITON := 3.6.0
OLDEST_NUMPY := 2.3.5
OLDEST := .cache/oldest/triton-$(OLDEST_TRITON)-numpy-$(OLDEST_NUMPY)

$(OLDEST)/.installed: | $(INSTALLED)
	rm -rf $(@D)
	$(BIN)/pip install --quiet --no-deps --no-compile --target $(@D) triton==$(OLDEST_TRITON) numpy==$(OLDEST_NUMPY)
	touch $@

kernels-matrix: setup $(OLDEST)/.installed ## kernels on the oldest Triton and numpy too: their tests, and every build ahead of time for sm_90 and sm_100
	$(BIN)/python -m kernels.testing.ahead --blackwell
	PYTHONPATH=$(CURDIR)/$(OLDEST) $(BIN)/python -m kernels.testing.ahead --blackwell
	PYTHONPATH=$(CURDIR)/$(OLDEST) $(BIN)/python -m pytest --dist loadfile --numprocesses 2 -q -m "not gpu" \
	  -W "ignore:Conversion of an array" tests/unit/kernels $(wildcard tests/unit/workers/model/test_device_*.py)

check: setup ## format, lint, types, kernels compiled ahead of time, and fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target check-types check-kernels
	$(PYTEST) 2 -q --hypothesis-profile quick -m "not gpu and not slow" tests/repo tests/unit

# side by side, since both are slow where nothing is kept of the last run
check-types:
	$(BIN)/mypy
check-kernels:
	$(BIN)/python -m kernels.testing.ahead

format: setup ## rewrite the sources as `check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## measure the engine, the prefix index and the policies; results as JSON on stdout
	$(BIN)/python -m benchmarks.run

conformance: clients ## put the suites of others to a gateway, with 300 generated calls for each operation
	$(BIN)/python -m tests.support.conformance --examples 300

proto: setup ## generate baleen/v1 from proto/baleen/v1
	$(BIN)/python proto/generate.py

docs: setup ## write docs/metrics.md, docs/api.md and docs/errors from the tables of metrics, request fields and pages
	$(BIN)/python -m baleen.metrics_page docs/metrics.md
	$(BIN)/python -m router.gateway.api_page docs/api.md
	$(BIN)/python -m router.gateway.error_pages docs/errors
