# Two commands on a fresh machine: `make quickstart` and `make test`. Each sets up what it needs.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint types check clean

quickstart: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/flowzoo run benchmarks/quickstart.yaml --jobs 2

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/pyright

check: lint types test

clean:
	rm -rf .venv build *.egg-info

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "flowzoo needs Python 3.10 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
