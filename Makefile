# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# The newest of everything, which only newer Pythons take, is tested in an environment of its own.
PYTHON_NEWEST := $(if $(findstring 3.13,$(PYTHON)),$(PYTHON),python3.13)
VENV_NEWEST := .venv-newest

# Compiled programs are kept between the processes of one run and from run to run.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
# Memory in large pages (glibc): a step's page faults cost a third of its time on some machines.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

# Processes that share the tests, a file at a time; 0: this one alone (as `pytest` by itself does).
WORKERS ?= 2
PYTEST := -m pytest -q -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test test-all test-newest lint format types docs clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

venv: $(VENV)/.installed  ## Make .venv from setup.py and constraints.txt

# The stamp comes last: an installation that was cut short starts again.
$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,espeak]'
	@echo "Installed in $(VENV): '$(BIN)/speechlm' is the command ('. $(BIN)/activate' makes it 'speechlm')."
	@echo "eSpeak NG, the voices of the quickstart, is GPL-3 and came with it: docs/licences.md."
	@touch $@

# What the tests compare with (PyTorch, transformers) is installed for them alone. The TPU compiler
# stands apart: where JAX finds it, every process asks it for TPUs.
$(VENV)/.oracles: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[hf,oracles]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/libtpu libtpu
	touch $@

quickstart: venv  ## Run the whole chain; options in ARGS, e.g. ARGS="--size micro"
	$(BIN)/speechlm quickstart $(ARGS)
	@echo "Now: '. $(BIN)/activate', then 'speechlm chat', 'speechlm speak', 'speechlm evaluate' (README.md, Try it)."

test: $(VENV)/.oracles  ## Run the test-suite; options in ARGS, e.g. ARGS=tests/nn
	$(BIN)/python $(PYTEST) $(ARGS)

test-all: $(VENV)/.oracles  ## The same with the slow tests, then test-newest
	$(BIN)/python $(PYTEST) -m "slow or not slow" $(ARGS)
	$(MAKE) test-newest

# Without constraints and without PyTorch, of which newer Pythons take a build of several GB: what
# compares with it is skipped. `make clean` first, for what has come out since.
$(VENV_NEWEST)/.installed: setup.py
	@$(PYTHON_NEWEST) -c "" 2>/dev/null || { echo "test-newest: no Python 3.13 here; make PYTHON=/path/to/python3.13 test-newest" >&2; exit 1; }
	$(PYTHON_NEWEST) -m venv $(VENV_NEWEST)
	$(VENV_NEWEST)/bin/python -m pip install --quiet --editable '.[dev,espeak,hf]'
	$(VENV_NEWEST)/bin/python -m pip install --quiet --no-deps --upgrade --target $(VENV_NEWEST)/libtpu libtpu
	touch $@

test-newest: $(VENV_NEWEST)/.installed  ## Run the test-suite on Python 3.13 with the newest packages
	$(VENV_NEWEST)/bin/python $(PYTEST) $(ARGS)

lint: venv  ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: venv  ## Mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: venv  ## Check types with pyright
	$(BIN)/pyright

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs  ## Bring docs/reference up to date and build the site in build/site
	$(BIN)/python docs/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

clean:  ## Remove what make made; runs/ stays
	rm -rf $(VENV) $(VENV_NEWEST) .cache .pytest_cache .ruff_cache .import_linter_cache build dist *.egg-info
