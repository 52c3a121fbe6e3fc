# The two commands of the README. PYTHON=python3.12 make … chooses an interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-exports lint docs clean

demo: $(VENV)/.installed
	$(BIN)/frameflex demo

test: $(VENV)/.installed-dev
	$(BIN)/pytest

# In a process of their own, after the others: with the runtimes of exports in one process, pytest has been seen to end by
# a signal in the middle of a later test, for a reason that is not known yet.
test-exports: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,export]'
	$(BIN)/pytest tests/test_export.py tests/test_divided.py
	$(BIN)/pytest tests/test_streaming.py -k export

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The site, in build/site. Needs Python 3.11, as Zensical does.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	$(BIN)/python tools/reference_pages.py docs/reference
	$(BIN)/zensical build --strict

clean:
	rm -rf $(VENV) frameflex-demo

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'frameflex needs Python 3.10 or newer; name one: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)

# `import timm` fails where pip found a torchvision that is not torch's own: say so here, not in the middle of a run.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	$(BIN)/python -c "import timm" || { echo "torch and torchvision don't belong together; try: make clean, then again"; exit 1; }
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -c "import timm" || { echo "torch and torchvision don't belong together; try: make clean, then again"; exit 1; }
	touch $@ $(VENV)/.installed
