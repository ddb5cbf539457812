# Every target installs what it needs into .venv once, and again only when the stamps are older
# than pyproject.toml or requirements.lock.

PYTHON ?= python3
PYTEST_ARGS ?=
NOTEBOOK_ARGS ?=
DETECTORS_ARGS ?=
TRAIN_ARGS ?=
EVALUATE_ARGS ?=

BIN := .venv/bin
# By file, so that the tests of a file share what they compiled, and in the order of conftest.py.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet -c requirements.lock
CLI := $(BIN)/tamiyo-jax
DEV := .venv/.installed-dev
PROTOS := tamiyo_jax/contracts/leyline.proto tamiyo_jax/storage/records.proto

.PHONY: help demo test test-fast lint docs bench peer examples examples-fresh growth guard detectors crash-campaign soak notebooks train evaluate proto lock clean
.DEFAULT_GOAL := help

help:
	@echo "targets: demo test test-fast lint docs bench peer examples examples-fresh growth guard detectors crash-campaign soak notebooks train evaluate proto lock clean"

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed-demo: pyproject.toml requirements.lock | .venv/bin/python
	$(INSTALL) -e ".[demo]"
	@touch $@

$(DEV): pyproject.toml requirements.lock | .venv/bin/python
	$(INSTALL) -e ".[dev,docs,redis,telemetry,wandb]"
	@touch $@

# Some tests talk to a real Redis. Where it cannot be installed they are skipped, and say so.
.venv/.redis: | .venv/bin/python
	@command -v redis-server >/dev/null || apt-get install -qq -y redis-server >/dev/null 2>&1 \
	  || (apt-get update -qq && apt-get install -qq -y redis-server) >/dev/null 2>&1 \
	  || echo "redis-server is missing and could not be installed; its tests will be skipped"
	@touch $@

# Some tests look at the page of a run in a real browser. They are skipped likewise.
.venv/.chromium: | .venv/bin/python
	@command -v chromium >/dev/null || apt-get install -qq -y chromium >/dev/null 2>&1 \
	  || (apt-get update -qq && apt-get install -qq -y chromium) >/dev/null 2>&1 \
	  || echo "chromium is missing and could not be installed; its tests will be skipped"
	@touch $@

.venv/.installed-notebooks: $(DEV)
	$(INSTALL) -e ".[demo,notebooks]"
	@touch $@

demo: .venv/.installed-demo
	$(CLI) demo

test: $(DEV) .venv/.redis .venv/.chromium
	$(PYTEST) $(PYTEST_ARGS)

test-fast: $(DEV) .venv/.redis .venv/.chromium
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(DEV)
	$(BIN)/mkdocs build --strict

# PyTorch is large; where a CPU is enough, name its index for CPUs in PIP_EXTRA_INDEX_URL.
.venv/.installed-bench: $(DEV)
	$(INSTALL) -e ".[bench]"
	@touch $@

bench: $(DEV) .venv/.redis peer
	$(BIN)/python benchmarks/deadlines.py --repeats 10
	$(BIN)/python benchmarks/isolation.py
	$(BIN)/python benchmarks/appends.py
	$(BIN)/python benchmarks/blueprint_cache.py
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/forward.py
	$(BIN)/python benchmarks/monitor.py --sequences 4
	$(BIN)/python benchmarks/plug_costs.py
	$(BIN)/python benchmarks/sinks.py

growth: $(DEV)
	$(BIN)/python benchmarks/growth.py --plot docs/growing.png
	$(BIN)/python benchmarks/growth_gpt.py --plot docs/growing_gpt.png

crash-campaign: $(DEV)
	$(BIN)/python benchmarks/crash_campaign.py

peer: .venv/.installed-bench
	$(BIN)/python benchmarks/forward_peer.py toy/reference network/reference large/reference
	$(BIN)/python benchmarks/forward_peer.py batches
	$(BIN)/python benchmarks/forward_peer.py growth

examples: $(DEV)
	$(PYTEST) tests/test_examples.py

# Each in an environment with nothing but the wheel and its own framework: about seven minutes.
examples-fresh:
	$(PYTHON) tests/fresh_examples.py

guard: .venv/.installed-demo
	$(BIN)/python benchmarks/guard.py --plot docs/guard.png
	$(BIN)/python benchmarks/guard_matrix.py --json docs/guard_faults.json --plot docs/guard_faults.png

# On public training logs, which the project does not contain; without them it says so.
detectors: $(DEV)
	$(BIN)/python benchmarks/detectors.py $(DETECTORS_ARGS)

# Trains a policy like the shipped one into build/policy; goes on where it was ended.
train: $(DEV)
	$(CLI) train --output build/policy $(TRAIN_ARGS)

# The shipped policy and its rivals on families that no choice was made on.
evaluate: $(DEV)
	$(CLI) evaluate $(EVALUATE_ARGS)

soak: $(DEV)
	$(BIN)/python benchmarks/soak.py

# `make notebooks NOTEBOOK_ARGS=--inplace` keeps what they print and draw.
notebooks: .venv/.installed-notebooks
	printf '%s\n' notebooks/*.ipynb | xargs -n 1 -P 2 $(BIN)/jupyter-execute $(NOTEBOOK_ARGS)

# The .proto is named from the repository's root, so that its descriptor's name is unique.
proto: $(DEV)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. $(PROTOS)

# uv lives in an environment of its own; the lock names versions only, no hosts and no paths.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	.venv-lock/bin/uv pip compile pyproject.toml --python-version 3.11 \
	  --extra dev --extra demo --extra docs --extra redis --extra telemetry --extra wandb \
	  --extra notebooks --no-emit-index-url --no-header --no-annotate \
	  --quiet --upgrade --output-file requirements.lock
	rm -rf .venv-lock

# Leaves .venv alone: deleting an environment is a decision, not housekeeping.
clean:
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
