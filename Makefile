# Two commands for a fresh machine with Python 3.11 and make; each sets up what it needs.
PYTHON ?= python3
# CPU build by default; for a GPU, for example: make demo TORCH=torch
TORCH  ?= torch==2.13.0
XDIST   = -n auto --dist loadfile --no-loadscope-reorder
PIP     = .venv/bin/python -m pip --disable-pip-version-check

demo: .venv/installed
	.venv/bin/unlearn-metrics demo

test: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest $(XDIST) -m "not slow"

# What `make test` leaves out: runs really killed, launchers of several processes, real checkpoints, a browser.
test-all: .venv/installed-test
	.venv/bin/python -m pytest $(XDIST) -m slow

# Both ends of the versions that pyproject.toml allows, each in a folder of its own before the others.
VERSIONS ?= transformers==5.20.0 transformers==5.24.0 datasets==4.0.0
test-versions: .venv/installed-test
	for version in $(VERSIONS); do \
	  $(PIP) install --quiet --no-deps --target .versions/$$version $$version && \
	  PYTHONPATH=$(CURDIR)/.versions/$$version .venv/bin/python -m pytest $(XDIST) -m "not slow" tests/backends tests/benchmarks || exit 1; \
	done

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(PIP) install --quiet "$(TORCH)"
	$(PIP) install --quiet -e .
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) install --quiet -e ".[test]"
	touch $@

docs: .venv/installed
	$(PIP) install --quiet -e ".[docs]"
	.venv/bin/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs
	@echo "open build/docs/index.html"

# Need a folder with checkpoints/, data/tofu/ and reference/; bench also an idle machine (an hour on two cores).
SHARED ?= ../shared

fidelity: .venv/installed-test
	.venv/bin/python -m tools.fidelity $(SHARED) > .fidelity.md && mv .fidelity.md docs/fidelity.md

benchmarks-page: .venv/installed-test
	.venv/bin/python -m tools.benchmarks_page docs/benchmarks.md

# Real checkpoints ranked, and the field's published logs, into build/example/site: 15 minutes on one core, LIMIT=140 less.
site: .venv/installed-test
	.venv/bin/python -m tools.example_site $(SHARED) build/example $(if $(LIMIT),--limit $(LIMIT))

bench: .venv/installed-test
	.venv/bin/python -m tools.bench $(SHARED) | tee .performance.md

clean:
	rm -rf .venv .versions dist build .mypy_cache .ruff_cache .pytest_cache

.PHONY: demo test test-all test-versions docs fidelity benchmarks-page site bench clean
