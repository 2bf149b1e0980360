# The commands of this project. `make` lists them.
#
# Nothing is installed outside .venv. An install step runs once and again when pyproject.toml or constraints.txt
# changes; a recipe that fails, fails `make`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -qq -c constraints.txt

# Tests run side by side, so each of them gets one core.
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help quickstart install test test-long test-faults soak lint format schema docs

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 18

quickstart: $(VENV)/worker.stamp  ## install, then run a whole study: 12 trials, a promotion, a report (minutes, no GPU)
	@$(BIN)/mvsweep run sweeps/quickstart.yaml --workers 2

install: $(VENV)/dev.stamp  ## everything that development needs, in .venv

test: $(VENV)/dev.stamp  ## the tests that take seconds, on SQLite and on PostgreSQL
	@$(PYTEST) -m "not slow and not gpu and not faults" -n $(JOBS) --dist worksteal

test-long: $(VENV)/dev.stamp  ## the tests that take minutes: quickstart, wheel, images' install steps, and test-faults
	@$(PYTEST) -m "slow and not gpu"
	@$(MAKE) --no-print-directory test-faults

# The first one waits for ten minutes; the two others do the rest beside it.
test-faults: $(VENV)/dev.stamp  ## faults that take their time: ten minutes without a database, 120 workers (15 minutes)
	@$(PYTEST) -m "faults" -n 3 --dist worksteal

soak: $(VENV)/dev.stamp  ## 64 workers, 2,000 trials, a fault every few seconds, and a stock Optuna loop beside it (an hour)
	@$(BIN)/python -m benchmarks.faults.soak $(SOAK)

lint: $(VENV)/dev.stamp  ## style, types, and which part may import which
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(VENV)/dev.stamp  ## let ruff lay out the code
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

schema: $(VENV)/dev.stamp  ## write storage/schema.sql again from the tables
	@$(BIN)/python -m mathverify_sweep.store.tables > storage/schema.sql.new
	@mv storage/schema.sql.new storage/schema.sql

docs: $(VENV)/dev.stamp  ## write the table of keys in sweeps/README.md again
	@$(BIN)/python scripts/sweep_keys.py

$(VENV)/created.stamp:
	@command -v $(PYTHON) > /dev/null || { \
	    echo "There is no '$(PYTHON)'. On Debian: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	        "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	    echo "'$(PYTHON)' cannot make virtual environments. On Debian: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/worker.stamp: $(VENV)/created.stamp pyproject.toml constraints.txt
	@echo "Installing mathverify-sweep with PyTorch into $(VENV) (a few minutes)"
	@$(INSTALL) -e '.[worker]'
	@touch $@

# `dev` has all that `worker` has.
$(VENV)/dev.stamp: $(VENV)/created.stamp pyproject.toml constraints.txt
	@echo "Installing mathverify-sweep and what its tests need into $(VENV) (a few minutes)"
	@$(INSTALL) -e '.[dev]'
	@touch $(VENV)/worker.stamp $@
