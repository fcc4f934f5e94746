# Needs make and Python 3.11 or newer, nothing else. Everything is installed into .venv; `make clean` leaves no trace.
#
#   PYTHON   the interpreter that .venv is made with                       make demo PYTHON=python3.12
#   TORCH    what pip is asked for as torch, options included              make demo TORCH="torch"   (see constraints.txt)
#   ARGS     handed on to `mmard demo` or to pytest                        make test ARGS="tests/test_ops.py -x"
#   WORKERS  processes that the tests run in                               make test WORKERS=8
#   THREADS  of each of them; VENV, CONSTRAINTS  another environment       see .ci/matrix

PYTHON  ?= python3
TORCH   ?= $(shell grep '^torch==' $(CONSTRAINTS))
ARGS    ?=
WORKERS ?= 2
THREADS ?= 1
VENV    ?= .venv
CONSTRAINTS ?= constraints.txt

BIN  := $(VENV)/bin
# The pins in force in this environment: those of CONSTRAINTS, with the torch that is really installed.
PINS := $(VENV)/constraints.txt
CORE := $(VENV)/.core-installed
DEV  := $(VENV)/.dev-installed

# pip speaks into a file, which is shown if pip fails: its warnings about index locations would bury the one line that
# matters, and a pipe through grep would return grep's verdict instead of pip's.
pip = PIP_CONSTRAINT=$(PINS) $(BIN)/python -m pip install --quiet --disable-pip-version-check $(1) >$(VENV)/pip.log 2>&1 \
      || { grep -v '^WARNING: Location .* is ignored' $(VENV)/pip.log >&2; exit 1; }

# One thread for each test process: the arrays are tiny, and threads of several processes only wait for each other.
# Bytecode is kept, whatever the caller's shell says: without it every launched process compiles everything again.
pytest = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) OPENBLAS_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo venv dev test test-matrix test-slow test-gpu campaign lint fix docs clean
.DELETE_ON_ERROR:

help:  ## these lines
	@awk -F ':.*##' '/^[a-z-]+:.*##/ { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(CORE)  ## install into .venv, then run `mmard demo`
	@$(BIN)/mmard demo $(ARGS)

venv: $(CORE)  ## install the package into .venv, without running anything

dev: $(DEV)  ## the same with what tests and lint need

test: $(DEV)  ## the test suite, without the tests marked slow or gpu
	@$(pytest) -n $(WORKERS) --dist loadfile -m "not slow and not gpu" $(ARGS)

test-matrix:  ## the suite under other CPUs, threads, interpreters and versions: .ci/matrix; an hour
	@.ci/matrix $(ROWS)

test-slow: $(DEV)  ## the tests marked slow
	@$(pytest) -n $(WORKERS) --dist loadfile -m "slow and not gpu" $(ARGS)

test-gpu: $(DEV)  ## the tests marked gpu, which need a CUDA device
	@$(pytest) -n 0 -m gpu $(ARGS)

campaign: $(DEV)  ## kills, damaged files, odd lines, odd surroundings and enemies: half an hour, seeded
	@cd tests && PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 ../$(BIN)/python -m campaign $(ARGS)

lint: $(DEV)  ## ruff and mypy, changing nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

fix: $(DEV)  ## what ruff can mend by itself
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(DEV)  ## write the generated tables of docs/ anew
	@$(BIN)/python docs/make_tables.py

clean:  ## remove .venv, caches and build output; runs/ stays
	rm -rf $(VENV) .venv-* build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(CORE): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "mmard needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing torch and a few small packages into $(VENV), once: a few minutes, about 0.3 GB to fetch and 1 GB on disk"
	@echo "with a CPU build of torch, several GB with a CUDA build (constraints.txt says how to choose)."
	@$(PYTHON) -m venv $(VENV)
	@grep -v '^torch==' $(CONSTRAINTS) > $(PINS)
	@$(call pip,$(TORCH))
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >> $(PINS)
	@$(call pip,--editable '.[plots]')
	@touch $@

$(DEV): $(CORE)
	@echo "Installing the tools for tests and lint into $(VENV)."
	@$(call pip,--editable '.[dev]')
	@touch $@
