# The two commands of the README, and what CI runs. PYTHON=python3.12 make ... chooses an interpreter.
PYTHON ?= python3
comma := ,
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS := --numprocesses logical --maxprocesses 4 --dist worksteal
EXPORTS := tests/export

.PHONY: demo test test-exports test-slow lint docs dist clean

demo: $(VENV)/.installed
	@$(BIN)/frameflex demo

test: $(VENV)/.installed-dev
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q $(WORKERS) $(EXPORTS:%=--ignore=%)

# Apart, because they need more packages.
test-exports: $(VENV)/.installed-export
	@$(BIN)/pytest -q -m "not soak and not gpu and not network" $(EXPORTS)
	@$(BIN)/pytest -q tests/deploy/live/test_streaming.py -k export

# The commands of every page, runs that are killed, processes that share work: most of them wait, so that more go on at
# once than there are cores. What takes minutes each is left to -m soak.
test-slow: $(VENV)/.installed-export
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -m slow --numprocesses 4 --dist worksteal $(EXPORTS:%=--ignore=%) --ignore=tests/test_docs.py
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -m slow tests/test_docs.py

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

# The site, in build/site. Needs Python 3.11, as Zensical does.
docs: $(VENV)/.installed-dev
	@$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	@$(BIN)/python tools/reference_pages.py docs/reference
	@$(BIN)/zensical build --strict --clean

# Wheel and sdist, checked, and the wheel tried where there is no source tree.
dist: $(VENV)/.installed-dev
	@rm -rf dist
	@$(BIN)/python -m pip install --quiet build twine
	@$(BIN)/python -m build --outdir dist
	@$(BIN)/twine check --strict dist/*
	@$(BIN)/python tools/try_wheel.py dist/*.whl

clean:
	rm -rf $(VENV) frameflex-demo dist build

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'frameflex needs Python 3.10 or newer; name one: make PYTHON=python3.12 ...')"
	@$(PYTHON) -m venv $(VENV)

# `import timm` fails where pip found a torchvision that is not torch's own: say so here, not in the middle of a run.
define install
	@echo "installing frameflex$(1) into $(VENV): minutes the first time, because PyTorch is large"
	@$(BIN)/python -m pip install --quiet --editable '.$(1)'
	@$(BIN)/python -c "import timm" || { echo "torch and torchvision don't belong together; try: make clean, then again"; exit 1; }
	@touch $@
endef

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(call install,)

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(call install,[dev])
	@touch $(VENV)/.installed

$(VENV)/.installed-export: $(VENV)/.installed-dev
	$(call install,[dev$(comma)export])
