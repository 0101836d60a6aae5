# make demo         sets everything up in .venv and shows the paper's idea on a CPU
# make test         sets everything up and runs every check
# make test-faults  tries kills, failing writes, damage and hostile input at many random places
# make test-lowest  runs the tests with the lowest versions that pyproject.toml allows, in .venv-lowest
# make upgrade      writes constraints.txt, the versions that .venv gets, anew
# Needs git, make and Python 3.11-3.13; PYTHON=python3.12 picks one.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt

# Many tests start processes: without bytecode kept beside the sources each of them would compile all of PyTorch's anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-faults test-lowest lint format docs wheel upgrade clean

demo: .venv/affsup
	$(BIN)/affsup demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadscope

test-faults: .venv/affsup-dev
	AFFSUP_FAULTS=30 OMP_NUM_THREADS=1 $(BIN)/pytest tests/faults -s

test-lowest: .venv-lowest/affsup-dev
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest -n 2 --dist loadscope

lint: .venv/affsup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/affsup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/affsup-dev
	$(BIN)/mkdocs build --strict

wheel: .venv/affsup-dev
	$(BIN)/python -m build --installer uv

upgrade: .venv/uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --no-annotate \
	  --no-emit-index-url --custom-compile-command 'make upgrade' --output-file constraints.txt pyproject.toml

.venv/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "affsup needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

.venv/affsup: .venv/uv pyproject.toml constraints.txt
	@echo "installing affsup with PyTorch: about 6 GB, a minute or two on a fast network"
	$(INSTALL) --editable .
	@touch $@

.venv/affsup-dev: .venv/uv pyproject.toml constraints.txt
	@echo "installing affsup with PyTorch and the development tools: about 6 GB, a minute or two on a fast network"
	$(INSTALL) --editable '.[dev]'
	@touch $@ .venv/affsup

.venv-lowest/affsup-dev: .venv/uv pyproject.toml
	@echo "installing affsup with the lowest versions that it allows: about 6 GB, a minute or two on a fast network"
	$(BIN)/uv venv --quiet --clear --python 3.11 .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv .venv-lowest build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
