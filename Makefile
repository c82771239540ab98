# Python 3.11 or newer, make and a C library are all that is needed: the rest is installed in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ROWS   ?= 200000
KEEP   ?=
MAX_ROWS ?= 10000000
SAVE   ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check lint bench snapshot requirements clean

help:            ## List what there is
	@sed -n 's/^\([a-z]*\):.*## /\1 - /p' $(MAKEFILE_LIST) | awk -F' - ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/installed  ## Upgrade a v0.3.4 database with a history: ROWS=200000, KEEP=1 keeps it
	@$(BIN)/python -m benchmarks.demo --rows $(ROWS) $(if $(KEEP),--keep)

test: $(VENV)/installed  ## Run the tests on a PostgreSQL of their own
	$(BIN)/pytest -n 2

check: lint test         ## Lint, types, SQL lint, tests: what CI runs

lint: $(VENV)/installed  ## Run ruff, mypy and squawk
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/squawk alembic/versions/*.sql

bench: $(VENV)/installed ## Measure everything in one run: MAX_ROWS=10000000; SAVE=1 writes docs/speed.{json,svg}
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@$(BIN)/python -m benchmarks.run --max-rows $(MAX_ROWS) $(if $(SAVE),--save)

snapshot: $(VENV)/installed  ## Write catalog.txt, what `usage-rollup check` compares with, from the revisions
	$(BIN)/python -m tests.support.snapshot

requirements: $(VENV)/installed  ## Pin the container's dependencies by hash
	$(BIN)/pip install --quiet --disable-pip-version-check pip-tools
	echo '# The runner and its `cli` extra, pinned by hash. Written by `make requirements`.' > requirements.txt
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --extra cli --no-header --no-annotate \
	    --build-deps-for editable --allow-unsafe --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --output-file - pyproject.toml >> requirements.txt

clean:           ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
