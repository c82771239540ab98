# Python 3.11 or newer, make and a C library are all that is needed: the rest is installed in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ROWS   ?= 200000
KEEP   ?=
ARGS   ?=
MAX_ROWS ?= 10000000
SAVE   ?=
MINUTES ?= 10
CYCLES ?=
SEED   ?=
ONLY   ?=
GENERATED ?= 0
TAG    ?=
ENGINE ?= docker
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all-postgres check lint build image image-test bench soak coverage mutants screens figures snapshot freeze requirements clean

help:            ## List what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1 - /p' $(MAKEFILE_LIST) | awk -F' - ' '{printf "  make %-17s %s\n", $$1, $$2}'

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/installed  ## Upgrade a v0.3.4 database with a history: ROWS=200000, KEEP=1 keeps it
	@$(BIN)/python -m benchmarks.demo --rows $(ROWS) $(if $(KEEP),--keep)

# Make exports what its command line sets: tests/support/binaries.py reads PG. A file with a server or an
# environment of its own is one group, so that two workers do not both make it.
test: $(VENV)/installed  ## Run the tests on a PostgreSQL of their own: PG=16 chooses its major
	$(BIN)/pytest -n 4 --dist loadgroup $(ARGS)

test-all-postgres:       ## Run the tests on PostgreSQL 15, 16, 17 and 18
	for major in 15 16 17 18; do $(MAKE) test PG=$$major PG_BIN= TEST_DATABASE_URL= || exit; done

check: lint test         ## Lint, types, SQL lint, tests: what CI runs

lint: $(VENV)/installed  ## Run ruff, mypy, squawk, codespell, the rule of the floors; schemas of what is no code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/squawk alembic/versions/*.sql alembic/versions/*/*.sql
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec examples/compose.yaml
	$(BIN)/kubernetes-validate --quiet --strict examples/kubernetes.yaml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --offline --quiet --no-progress .github

build: $(VENV)/installed ## Build and try what is published, in dist/: TAG=v… must be that of the version
	@$(BIN)/python -m tests.support.release $(if $(TAG),--tag $(TAG))

image:           ## Build the container's image: ENGINE=podman instead of docker
	$(ENGINE) build --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) --tag usage-rollup --tag usage-rollup:$(VERSION) .

# BASE_IMAGE=… is one to pull; without it debootstrap makes one, once.
image-test: $(VENV)/installed  ## Build the image without an engine and run it, its examples and their page, on a server
	@$(BIN)/python -m tests.support.container
	$(BIN)/pytest tests/stories/image.py $(ARGS)

bench: $(VENV)/installed ## Measure everything in one run: MAX_ROWS=10000000; SAVE=1 writes docs/speed.{json,svg}
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@$(BIN)/python -m benchmarks.run --max-rows $(MAX_ROWS) $(if $(SAVE),--save)

soak: $(VENV)/installed  ## Play faults against the commands: MINUTES=10; SEED=… replays, CYCLES=… ends there
	@$(BIN)/python -m tests.support.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(CYCLES),--cycles $(CYCLES))

coverage: $(VENV)/installed  ## Run the tests, say which lines and branches none of them ran; fails under 95 %
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,coverage]'
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 4 --dist loadgroup $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

mutants: $(VENV)/installed  ## Try mistakes on the tests: ONLY=walk those of it, GENERATED=100 so many drawn ones, too
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,mutants]'
	@$(BIN)/python -m tests.support.mutants --only "$(ONLY)" --generated $(GENERATED) $(if $(SEED),--seed $(SEED))

screens: $(VENV)/installed  ## Write docs/screens.md from what the commands print, and README's figures
	$(BIN)/python -m tests.support.screens
	$(BIN)/python -m benchmarks.figures

figures: $(VENV)/installed  ## Write README's figures from docs/speed.json and docs/screens.md
	$(BIN)/python -m benchmarks.figures

snapshot: $(VENV)/installed  ## Write catalog.txt, what `usage-rollup check` compares with, from the revisions
	$(BIN)/python -m tests.support.snapshot

freeze: $(VENV)/installed  ## Add the digests of new revisions to tests/released.sha256
	$(BIN)/python -m tests.support.freeze

requirements: $(VENV)/installed  ## Pin the container's dependencies by hash
	$(BIN)/pip install --quiet --disable-pip-version-check pip-tools
	echo '# The runner, pinned by hash. Written by `make requirements`.' > requirements.txt
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --no-header --no-annotate \
	    --build-deps-for editable --allow-unsafe --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --output-file - pyproject.toml >> requirements.txt

clean:           ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
