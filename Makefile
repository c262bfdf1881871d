# Two commands for a fresh machine with Python 3.11 and make; each sets up what it needs.
PYTHON ?= python3
# CPU build by default; for a GPU, for example: make demo TORCH=torch
TORCH  ?= torch==2.13.0
PIP     = .venv/bin/python -m pip --disable-pip-version-check

demo: .venv/installed
	.venv/bin/unlearn-metrics demo

test: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(PIP) install --quiet "$(TORCH)"
	$(PIP) install --quiet -e .
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) install --quiet -e ".[test]"
	touch $@

clean:
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache

.PHONY: demo test clean
