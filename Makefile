# make setup: a virtual environment with everything; make demo: see it run; make test: lint, types and fast tests;
# make docs: the site; make dist: wheel and sdist.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo docs dist test test-all coverage fuzz audit lint types clean

setup: $(VENV)/ready

# Editable, and through constraints.txt, so that two installs are alike.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jzi needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@mkdir -p $(VENV)/types && ln -sfn ../.. $(VENV)/types/jzi
	@touch $@
	@echo "ready: $(BIN)/jzi --help"

demo: setup
	$(BIN)/jzi demo demo-out

# What documentation and packages need beyond dev.
$(VENV)/extras: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs,dist]'
	@touch $@

demo-out/zoom.html:
	$(MAKE) demo

# The site in build/site, with the notebooks executed on the demo's town; a cell that fails, or a warning, is an error.
docs: $(VENV)/extras demo-out/zoom.html
	$(BIN)/python -m jzi.docs.generate.notebooks demo-out build/notebooks
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "built: build/site/index.html"

# Wheel and sdist in dist/, checked: their metadata, their files, and an installation in a clean environment.
dist: $(VENV)/extras
	rm -rf dist
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m build --outdir dist > /dev/null
	$(BIN)/twine check --strict dist/*
	$(BIN)/python packaging/check_wheel.py dist

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The package is the root of the repository, whatever that folder is called: a link gives mypy its name.
types: setup
	MYPYPATH=$(VENV)/types $(BIN)/mypy -p jzi

# A process per core, each on one thread; the tests of a file run in one of them and share its fixtures. Files keep the
# order of tests/conftest.py, the longest first, so that no process is left with one of them at the end.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# What a change is tried with: lint, types, and the tests that take no more than a few seconds each.
test: lint types
	$(PYTEST) -m 'not slow'

# All of it, and the property tests with more examples; CI runs this.
test-all: lint types
	HYPOTHESIS_PROFILE=thorough $(PYTEST) --durations 30

# Which lines no test reaches. Apart from the tests: tracing takes about half as long again.
coverage: setup
	$(PYTEST) --cov --cov-report=term:skip-covered

# Hostile photos, tables, rasters, settings, checkpoints, requests, caches and models; other ones on every run, for minutes.
HOSTILE := tests/properties/test_hostile.py tests/properties/test_hostile_requests.py tests/test_cache_metadata.py \
	tests/test_model_folder.py tests/test_import_checkpoint.py

fuzz: setup
	HYPOTHESIS_PROFILE=fuzz $(PYTEST) --timeout 3600 $(HOSTILE)

# Known vulnerabilities of the packages in constraints.txt; needs network.
audit: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt pip-audit
	$(BIN)/pip-audit --progress-spinner off --skip-editable

clean:
	rm -rf $(VENV) demo-out build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
