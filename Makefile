# `make demo` and `make test` do all set-up on a fresh machine and then their job. Only Python (3.11 or newer) is needed.
PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
# Python compiles what it imports; --no-compile saves compiling every file of every package. What it compiled must be kept,
# because the tests start many interpreters.
unexport PYTHONDONTWRITEBYTECODE
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: help demo test tests test-oldest check docs bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train a small Attractor Model on mazes for four minutes and watch it converge (writes ./demo)"
	@echo "make test    format, lint, types, import layers, spelling, then every test"
	@echo "make test-oldest  every test with the oldest supported versions, on Python 3.11 (writes .venv-oldest)"
	@echo "make check   the first five of these alone"
	@echo "make docs    build the documentation site strictly (writes ./site, which works offline)"
	@echo "make bench   compare the solvers with TorchDEQ's on the same maps (writes runs/benchmarks/solvers)"

demo: $(VENV)/.ready
	$(BIN)/attractor demo

test: check tests

tests: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# On Python 3.11: the oldest versions have no wheels for the newest Python.
test-oldest:
	$(MAKE) VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt .venv-oldest/.ready-dev
	.venv-oldest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	$(MAKE) VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt docs

check: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py
	$(BIN)/codespell

docs: $(VENV)/.ready-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.ready-dev
	$(BIN)/python -m benchmarks.solvers

clean:
	rm -rf .venv .venv-oldest

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "attractor needs Python 3.11 or newer; run make with PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)

# Torch by its exact version first: an open range could pull a newer build and its GPU libraries before constraints are seen.
$(VENV)/.ready: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(PIP) "$$(grep '^torch==' $(CONSTRAINTS))"
	$(PIP) -c $(CONSTRAINTS) -e '.[puzzles]'
	touch $@

$(VENV)/.ready-dev: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(PIP) "$$(grep '^torch==' $(CONSTRAINTS))"
	$(PIP) -c $(CONSTRAINTS) -e '.[all,docs,peers,test]'
	touch $@
