# The verbs of this project. `make demo` and `make test` need nothing but Python 3.11 or later and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: help demo test lint bench chaos soak docs schema clean

help: ## Show the verbs
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

demo: $(VENV)/.installed ## Show the main job on a small booking system; exits 0 only if the promises held
	@$(BIN)/outrider demo

test: $(VENV)/.tools ## Run the tests
	@$(BIN)/python -m pytest

lint: $(VENV)/.tools ## Style, types, layers and sizes, strictly
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@$(BIN)/lint-imports --no-cache && $(BIN)/python -m checks.ratchets && $(BIN)/vulture

bench: $(VENV)/.tools ## Compare with Envoy, HAProxy and nginx in one run; writes bench/results.md
	@$(BIN)/python bench/setup.py && $(BIN)/python bench/run.py && $(BIN)/python bench/guard.py --write

chaos: $(VENV)/.tools ## Under faults, beside Envoy; writes bench/chaos/results.md and results.svg
	@$(BIN)/python -m bench.chaos --compiled

soak: $(VENV)/.tools ## A million calls over 100,000 connections, with strangers and faults; nothing may be lost or kept
	@$(BIN)/python -m bench.soak

docs: $(VENV)/.installed ## Write what is generated: config/outrider.schema.json
	@$(BIN)/outrider schema > config/outrider.schema.json

clean: ## Remove what was installed and measured
	rm -rf $(VENV) bench/.work .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Outrider needs Python 3.11 or later; say which: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(VENV)/bin/python
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.tools: $(VENV)/.installed
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@
