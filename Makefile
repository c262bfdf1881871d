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

bench: .venv/installed-test
	.venv/bin/python -m tools.bench $(SHARED) | tee .performance.md

clean:
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache

.PHONY: demo test test-all docs fidelity benchmarks-page bench clean
