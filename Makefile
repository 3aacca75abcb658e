SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Any of these can be given on the command line: make test PYTHON=python3.12 PYTEST_ARGS="-k critic"
PYTHON ?= python3
VENV ?= .venv
VENV_CURRENT ?= .venv-current
JOBS ?= 2
PYTEST_ARGS ?=
TASKS ?= maze fetch_pick
QUICKSTART_ARGS ?=
COMPARISON_ARGS ?= --tasks fetch_pick --variants bc_paired diffusion_bc

BIN := $(VENV)/bin
BIN_CURRENT := $(VENV_CURRENT)/bin
METADATA := setup.py pyproject.toml sb3_diffbc/version.txt constraints/cuda.txt
HASHED := pip install --no-deps --require-hashes -r constraints/hashes

.PHONY: help quickstart comparison demonstrations test test-current install install-current pytest type lint \
	format check commit-checks docs wheel hashes clean clean-venvs

help:  ## Show this list
	@echo "make TARGET, where TARGET is one of"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

quickstart: $(VENV)/.installed  ## Install, then learn the maze from demonstrations: DiffusionBC next to BC
	$(BIN)/python examples/quickstart.py $(QUICKSTART_ARGS)

comparison: install  ## Install, then compare COMPARISON_ARGS (by default one pair of rows)
	$(BIN)/python -m benchmarks run comparison --again $(COMPARISON_ARGS)

demonstrations: install  ## Install, then roll out the bundled demonstrations of TASKS again
	$(BIN)/python -m benchmarks demonstrate $(TASKS)

test: install  ## Install, then run all tests, the slow ones too
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

test-current: install-current  ## The same with stable-baselines3 2.9, Gymnasium 1.x and the newest MuJoCo
	$(BIN_CURRENT)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

install: $(VENV)/.installed-dev  ## Set up .venv with the pinned stack and the development tools

install-current: $(VENV_CURRENT)/.installed-dev  ## Set up .venv-current with the current stack

pytest: install  ## Run the tests but the slow ones
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow" $(PYTEST_ARGS)

type: install  ## Check the types (mypy)
	$(BIN)/mypy

lint: install  ## Check style and formatting (ruff), changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install  ## Format the code and sort its imports (ruff)
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

check: lint type  ## lint and type

commit-checks: format type pytest  ## What to run before a commit

docs: install  ## Build the documentation's site/; a broken link or reference is an error
	$(BIN)/mkdocs build --strict

wheel: install  ## Build dist/*.tar.gz and, from it, dist/*.whl
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .

hashes:  ## Write constraints/hashes again after a version has changed (with uv)
	for stack in pinned:pinned current-dev:current; do \
		uv pip compile --quiet --universal --python-version 3.10 --no-deps --no-annotate \
			--generate-hashes --no-emit-package torch --custom-compile-command "make hashes" \
			constraints/$${stack%:*}.txt -o constraints/hashes/$${stack#*:}.txt; \
	done

clean:  ## Remove what builds, tests and tools left behind, but not the environments
	rm -rf build dist site *.egg-info .coverage .coverage.* htmlcov
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

clean-venvs:  ## Remove .venv and .venv-current
	rm -rf .venv .venv-current

# Set-up. A stamp file marks each finished step, so that it runs again only when its inputs change.

# $(call make-venv,DIRECTORY): creates it unless it is there, and insists on a supported Python.
define make-venv
@python="$(PYTHON)"; if [ -x $(1)/bin/pip ]; then python=$(1)/bin/python; fi; \
"$$python" -c 'import sys; (3, 10) <= sys.version_info[:2] <= (3, 12) or sys.exit( \
	"sb3-diffbc needs Python 3.10, 3.11 or 3.12, and %s is %s. Name another: make PYTHON=python3.11" \
	% (sys.executable, sys.version.split()[0]))'
@[ -x $(1)/bin/pip ] || { echo "Creating $(1)"; "$(PYTHON)" -m venv $(1); }
endef

$(VENV)/.installed: $(METADATA) constraints/pinned.txt
	$(call make-venv,$(VENV))
	$(BIN)/python -m pip install -c constraints/pinned.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(METADATA) constraints/pinned.txt constraints/hashes/pinned.txt
	$(call make-venv,$(VENV))
	$(BIN)/python -m $(HASHED)/pinned.txt
	$(BIN)/python -m pip install --no-build-isolation -c constraints/pinned.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV_CURRENT)/.installed-dev: $(METADATA) constraints/current.txt constraints/hashes/current.txt
	$(call make-venv,$(VENV_CURRENT))
	$(BIN_CURRENT)/python -m $(HASHED)/current.txt
	$(BIN_CURRENT)/python -m pip install -c constraints/current.txt torch
	$(BIN_CURRENT)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@
