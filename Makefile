# Everything a person or a machine runs on this project. `make demo` and `make test` need python3 (3.11 or later, with
# venv), pip and make; they set up the rest under .venv from the hashed requirements*.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.9
PY := $(BIN)/python
TESTS ?= tests
# Two workers; a file's tests stay together, so its fixtures are made once.
PYTEST_ARGS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow lint format bench docs lock clean setup

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r t d; do printf '%-10s %s\n' "$$t" "$$d"; done

setup: $(VENV)/.dev ## the development environment in .venv

demo: $(VENV)/.engine ## a real engine measured, a generated log, a plan for it, and the reports in out/
	$(BIN)/gambrel demo --out out

test: lint ## lint, then every test but the slow ones
	$(PY) -m pytest $(PYTEST_ARGS) -m "not slow" $(TESTS)

test-slow: $(VENV)/.dev ## the tests that take more than ten seconds each
	$(PY) -m pytest $(PYTEST_ARGS) -m slow $(TESTS)

lint: $(VENV)/.dev ## style, types and the walls between the rooms
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## apply the formatter and the safe fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.dev ## the speeds and accuracies that the documents claim, measured here
	@set -e; for bench in benchmarks/*.py; do [ -e "$$bench" ] || continue; echo "== $$bench"; $(PY) "$$bench"; done

docs: $(VENV)/.dev ## regenerate docs/commands.md and run every command and code block of the documents
	$(PY) scripts/command_reference.py docs/commands.md
	$(PY) -m pytest tests/test_docs.py

lock: $(UV) ## take the newest dependencies that pyproject.toml allows, with their hashes
	$(UV) lock --upgrade --quiet
	$(MAKE) --no-print-directory export

# uv.lock holds registry addresses and stays out of git; the exports hold names, versions and hashes alone.
EXPORT := export --quiet --frozen --all-extras --no-extra ray --no-extra dask --no-extra operators --group build --no-emit-project --no-annotate --no-header
.PHONY: export
export:
	$(UV) $(EXPORT) --no-dev --output-file requirements.txt
	$(UV) $(EXPORT) --output-file requirements-dev.txt
	@! grep -nE '://|index-url|find-links' requirements.txt requirements-dev.txt

clean: ## what was made here, .venv too
	rm -rf $(VENV) out build dist .coverage htmlcov .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gambrel needs Python 3.11 or later, $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

$(VENV)/.run: requirements.txt pyproject.toml | $(UV)
	$(UV) pip install --quiet --python $(PY) --require-hashes --requirement requirements.txt
	$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@touch $@

# --no-deps: see requirements-engine.txt. Where the engine has no packages (another platform, no disk), the demo says so
# and does without it; the next make demo tries again.
$(VENV)/.engine: requirements-engine.txt $(VENV)/.run
	@if $(UV) pip install --quiet --python $(PY) --require-hashes --no-deps --requirement requirements-engine.txt; \
	then touch $@; else echo "the embedded engine could not be installed: the demo goes without it" >&2; fi

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(UV) pip install --quiet --python $(PY) --require-hashes --requirement requirements-dev.txt
	@touch $@
