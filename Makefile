# `make demo` and `make test` are all that a fresh machine needs; CONTRIBUTING.md has the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest

# What an installed checkout must follow: the rest of the Python code is used in place.
INPUTS := pyproject.toml setup.py $(shell find protos kernels/cpu/csrc fabric/parallel/csrc placement/csrc -type f -not -name '*.pyc')
# The dev extra contains the serve extra: running needs either.
RUNNABLE := $(firstword $(wildcard $(VENV)/.dev-installed) $(VENV)/.serve-installed)

BENCHMARKS := router engine step_overhead overlap perplexity collectives control parallel paging batching scheduling \
	two_models multiplexing alpaserve placement_search parallelize aiconfigurator simulator fidelity first_answer

.DEFAULT_GOAL := help
.PHONY: help venv demo serve test check bench proto clean

help:
	@echo "make demo    install what serving needs, then answer a few prompts with a real model"
	@echo "make serve   the same, and stay up"
	@echo "make venv    install everything for development into $(VENV)"
	@echo "make test    all tests"
	@echo "make check   format, lint, types, import contracts, protos, spelling, sizes"
	@echo "make bench   benchmark scripts, results in build/bench/"
	@echo "make proto   gRPC stubs, after a change of a .proto"
	@echo "make clean   delete what was built"

venv: $(VENV)/.dev-installed

demo: $(RUNNABLE)
	$(BIN)/fabric demo

serve: $(RUNNABLE)
	$(BIN)/fabric serve

test check bench: export OMP_NUM_THREADS ?= 2

test: venv
	$(PYTEST) -n 2 -m "not ray and not dist and not weights"
	$(PYTEST) -m weights
	$(PYTEST) -m "ray or dist"

check: venv
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint protos
	$(BIN)/codespell
	$(PYTEST) -q tests/architecture

bench: venv
	mkdir -p build/bench
	set -e; for name in $(BENCHMARKS); do \
	    $(BIN)/python tests/perf/$$name.py --json build/bench/$$name.json; \
	done

proto: venv
	$(BIN)/python protos/generate.py

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f $(VENV)/.*-installed fabric/rpc/v1/*_pb2*
	find kernels fabric placement -name '*.so' -delete

# .dev-installed and .serve-installed stand for an installed extra.
$(VENV)/.%-installed: $(INPUTS) | $(BIN)/pip
	@echo "Installing llm-fabric[$*] into $(VENV); the first time takes minutes and 2 GB of disk."
	$(PIP) install -e '.[$*]'
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "llm-fabric needs Python 3.11 or newer as $(PYTHON); name one: make PYTHON=python3.12" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' \
	    2>/dev/null || { \
	    echo "$(PYTHON) has no C headers; on Debian and Ubuntu: apt install python3-dev" >&2; \
	    exit 1; }
	@command -v $${CXX:-g++} >/dev/null || { \
	    echo "The kernels need a C++ compiler; on Debian and Ubuntu: apt install g++" >&2; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)
