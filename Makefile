# Every target installs what it needs into .venv once, and again only when the stamps are older
# than pyproject.toml or requirements.lock.

PYTHON ?= python3
PYTEST_ARGS ?=
# Pinned: an open range takes the newest build, with several gigabytes of GPU libraries.
BENCH_TORCH ?= torch==2.13.0

BIN := .venv/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet -c requirements.lock
CLI := $(BIN)/tamiyo-jax
DEV := .venv/.installed-dev
PROTOS := tamiyo_jax/contracts/leyline.proto tamiyo_jax/storage/records.proto

.PHONY: help demo test test-fast lint docs bench notebooks train evaluate proto lock clean
.DEFAULT_GOAL := help

help:
	@echo "targets: demo test test-fast lint docs bench notebooks train evaluate proto lock clean"

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed-demo: pyproject.toml requirements.lock | .venv/bin/python
	$(INSTALL) -e ".[demo]"
	@touch $@

$(DEV): pyproject.toml requirements.lock | .venv/bin/python
	$(INSTALL) -e ".[dev,docs,redis,telemetry,learn]"
	@touch $@

.venv/.installed-notebooks: $(DEV)
	$(INSTALL) -e ".[demo,notebooks]"
	@touch $@

.venv/.installed-bench: $(DEV)
	$(INSTALL) "$(BENCH_TORCH)"
	$(INSTALL) -e ".[bench]"
	@touch $@

demo: .venv/.installed-demo
	$(CLI) demo

test: $(DEV)
	$(BIN)/pytest $(PYTEST_ARGS)

test-fast: $(DEV)
	$(BIN)/pytest -m "not slow" $(PYTEST_ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(DEV)
	$(BIN)/mkdocs build --strict

bench: .venv/.installed-bench
	$(CLI) bench

notebooks: .venv/.installed-notebooks
	$(BIN)/jupyter-execute notebooks/*.ipynb

train: $(DEV)
	$(CLI) train

evaluate: $(DEV)
	$(CLI) evaluate

# The .proto is named from the repository's root, so that its descriptor's name is unique.
proto: $(DEV)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. $(PROTOS)

# uv lives in an environment of its own; the lock names versions only, no hosts and no paths.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	.venv-lock/bin/uv pip compile pyproject.toml --python-version 3.11 \
	  --extra dev --extra demo --extra docs --extra redis --extra telemetry --extra learn \
	  --extra notebooks --no-emit-index-url --no-header --no-annotate \
	  --quiet --upgrade --output-file requirements.lock
	rm -rf .venv-lock

# Leaves .venv alone: deleting an environment is a decision, not housekeeping.
clean:
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
