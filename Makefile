# `make demo` and `make test` do all set-up on a fresh machine and then their job. Only Python (3.11 or newer) is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test check docs bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train a small Attractor Model on mazes for four minutes and watch it converge (writes ./demo)"
	@echo "make test    format, lint, types, import layers, spelling, then every test"
	@echo "make check   the first five of these alone"
	@echo "make docs    build the documentation site strictly (writes ./site, which works offline)"
	@echo "make bench   compare the solvers with TorchDEQ's on the same maps (writes runs/benchmarks/solvers)"

demo: $(VENV)/.ready
	$(BIN)/attractor demo

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.ready-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py
	$(BIN)/codespell

docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.ready-peers
	$(BIN)/python -m benchmarks.solvers

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "attractor needs Python 3.11 or newer; run make with PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)

# Torch by its exact version first: an open range could pull a newer build and its GPU libraries before constraints are seen.
$(VENV)/.ready: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[puzzles]'
	touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,test]'
	touch $@

$(VENV)/.ready-peers: $(VENV)/.ready-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	touch $@

$(VENV)/.ready-docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
