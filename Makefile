# `make demo` and `make test` need Python 3.11 or 3.12 and nothing else; both set up .venv once.
# Another interpreter: make PYTHON=/path/to/python3.12 demo

PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# the scripts behind the README's table of speed; the other benchmarks take arguments, or hours
SPEED := rl_step rollouts classification_as_action lambda_cost floor memory
# A worker for each core, whose tests use one thread; a file's tests share what they train, so they stay together.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

.PHONY: demo test test-slow test-learning lint format type bench clean

demo: .venv/.installed
	$(BIN)/rlobj run customer-service

test: .venv/.installed
	$(PYTEST)

test-slow: .venv/.installed
	$(PYTEST) -m "slow or not slow"

test-learning: .venv/.installed
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_learning.py

lint: .venv/.installed
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy --no-error-summary

format: .venv/.installed
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

type: .venv/.installed
	$(BIN)/mypy

bench: .venv/.installed
	for script in $(SPEED); do OMP_NUM_THREADS=2 $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python benchmarks/table.py

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

# The stamp is newer than what it was installed from, so that a second run installs nothing.
.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "rlobj needs Python 3.11 or 3.12 on the PATH; or: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up .venv with $(PYTHON) (some minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
