# Every target sets up what it needs in .venv/ and runs unattended.
#
#   make demo     events of real users through a broker, recommendations out
#   make test     the tests
#   make check    everything a change must pass: format, lint, types, tests
#   make lint     the same without the tests
#   make format   rewrite the sources as `make lint` wants them
#   make clean    remove .venv/ and what tools and runs left behind
#
#   PYTHON=python3.12   the interpreter that builds .venv/ (3.11 to 3.13)
#   TORCH=torch==2.9.1  the torch to install; the default is the release that is tested
#   ARGS="-k filters"   passed on to pytest, or to the demo

PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=

VENV := .venv
INSTALLED := $(VENV)/.installed
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check lint format clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(INSTALLED)
	$(BIN)/python -m examples.movielens.demo $(ARGS)

# Files in their order, which has those that wait for brokers before those that compute.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

check: lint test

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch comes first and alone, so that nothing after it picks another build. Bytecode is made of what is imported, when it
# is: of all that comes with these packages it takes pip half a minute. recbole carries MovieLens 100K inside its
# wheel; only its data files are read, so its dependencies stay out.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  "xgr-stream needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d: run make PYTHON=python3.12, for example" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --no-compile "$(TORCH)"
	$(BIN)/python -m pip install --no-compile --editable ".[demo,dev]"
	$(BIN)/python -m pip install --no-compile --no-deps recbole==1.2.1
	@touch $@

clean:
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
