# make demo | test | check | bench [ONLY=name] | clean.  Everything happens in .venv, which pip makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ONLY ?=

# The three distributions, as they lie here: umbel, whose extras require the other two.
DISTRIBUTIONS := pyproject.toml server/pyproject.toml models/pyproject.toml

.PHONY: demo test check bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/umbel demo $(DEMO)

# Tests of whole fleets need every core for themselves; both parts run, whatever the first finds.
test: $(VENV)/.dev
	failed=0; \
	$(BIN)/python -m pytest -m "not e2e" --numprocesses auto --maxprocesses 4 --max-worker-restart 1 --dist loadfile -o faulthandler_timeout=420 || failed=1; \
	$(BIN)/python -m pytest -m e2e || failed=1; \
	exit $$failed
	$(MAKE) check

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(BIN)/python tests/verifytypes.py

bench: $(VENV)/.dev
	$(BIN)/python tests/bench/run.py $(ONLY)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "umbel needs Python 3.11 or newer and $(PYTHON) is older: run  make PYTHON=python3.11 $(MAKECMDGOALS)."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.venv $(DISTRIBUTIONS) constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]' -e server -e models
	touch $@

$(VENV)/.dev: $(VENV)/.venv $(DISTRIBUTIONS) constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]' -e server -e models
	touch $@ $(VENV)/.demo
