# `make help` lists the targets. Each sets up what it needs first, which takes a moment when nothing is missing.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Two threads of torch on a busy two-core machine are far slower than one.
export OMP_NUM_THREADS ?= 1
# How many pytest processes share the tests.
WORKERS ?= 2

# Asked after set-up: an active conda environment with dxtbx and dials, otherwise .venv.
PYTHON = "$$(setup/install.sh --where)/python"

.PHONY: help setup demo test lint types tests format compile bench docs clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 14

setup: ## install what is missing: Debian packages (as root), .venv, DBEX itself
	@setup/install.sh

demo: setup ## refine the shipped still; the results go to refined/
	@echo 'demo: dbex.refine refGeom.expt refGeom.refl scaled.mtz mask=747_mask.pkl refine.detector=distance,shift output.directory=refined'
	@"$$(setup/install.sh --where)/dbex.refine" refGeom.expt refGeom.refl scaled.mtz mask=747_mask.pkl \
		refine.detector=distance,shift output.directory=refined

# In this order, so that the last line is pytest's.
test: ## lint, types and tests
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory tests

lint: setup ## ruff: rules and format
	@echo 'lint: ruff check, ruff format --check'
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m ruff format --check --quiet .

types: setup ## mypy over both packages
	@echo 'types: mypy'
	@$(PYTHON) -m mypy

tests: setup ## pytest, warnings as errors, shapes checked
	@echo 'tests: pytest'
	@$(PYTHON) -m pytest -n $(WORKERS) -m 'not full_profile' $(PYTEST_ARGS)

format: setup ## put the code into ruff's format and mend what ruff can
	@$(PYTHON) -m ruff check --fix --quiet .
	@$(PYTHON) -m ruff format --quiet .

compile: setup ## compile the pixel pass for this machine, once: minutes now for faster refinements later
	@$(PYTHON) -m nanobrag_torch.compiling

bench: compile ## measure every figure of docs/performance.md on this machine (minutes)
	@$(PYTHON) -m benchmarks.run

docs: setup ## build the documentation into build/docs
	@$(PYTHON) -m mkdocs build --strict --quiet
	@echo 'docs: open build/docs/index.html'

clean: ## remove what the targets made, .venv apart
	@rm -rf build refined .mypy_cache .pytest_cache .ruff_cache *.egg-info
