# One entry for people and for CI; `make` alone lists the targets.
# The first target that needs it makes .venv with the pinned packages; PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
IMAGES ?=

.DEFAULT_GOAL := help
.PHONY: help demo app test test-long lint clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.ready  ## train, export and measure an encoder on the miniature into runs/demo; IMAGES=folder takes your pictures
	$(BIN)/python -m scripts.demo $(if $(IMAGES),--images "$(IMAGES)")

app: runs/demo/export .venv/.ready-app  ## open the page on which the demo's encoder edits pictures, after make demo
	$(BIN)/python -m eval.app --encoder runs/demo/export --captioner models/miniature/llava --browser=true

runs/demo/export:
	@echo "the page edits with the demo's encoder, and runs/demo/export is not there: make demo makes it" >&2; exit 1

test: .venv/.ready-dev  ## the tests that CI runs, on two cores
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-long: .venv/.ready-dev  ## the slow tests only (trainings, recipes, chaos) with bitsandbytes, and the broken lines
	$(BIN)/pip install --quiet --constraint constraints.txt ".[bitsandbytes]"
	OMP_NUM_THREADS=2 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m long --timeout 3600
	$(BIN)/python -m scripts.mutants --jobs 2

lint: .venv/.ready-dev  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove caches and build leftovers; runs/ and .venv stay
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -path ./.venv -prune -o -path ./runs -prune -o -name __pycache__ -type d -exec rm -rf {} +

# What commands need; torch goes first and pinned: an open range would bring gigabytes of other builds of it.
.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
			"name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt torch
	$(BIN)/pip install --constraint constraints.txt ".[eval]"
	touch $@

# What the page needs beside that.
.venv/.ready-app: .venv/.ready
	$(BIN)/pip install --constraint constraints.txt ".[app]"
	touch $@

# What tests and checks need beside that.
.venv/.ready-dev: .venv/.ready
	$(BIN)/pip install --constraint constraints.txt ".[dev]"
	touch $@
