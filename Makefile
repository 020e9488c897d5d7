# `make demo` shows the whole loop on embedded data, `make test` runs the suite, `make docs` builds the
# docs as a site.
# Needs Python 3.11 or later and make; everything else goes into .venv.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    := demo

.PHONY: demo test lint docs clean

# One pip call resolves torch and torchvision together.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	@BIN=$(BIN) OUT=$(OUT) sh docs/demo.sh

# One thread to a worker: two workers with two threads each wait for one another on two cores.
# Workers start on halves of the suite, so that few fixtures are made twice.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Its own environment, without torch; a broken link ends it.
$(VENV)-docs/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check 'mkdocs-material>=9.6,<10'
	touch $@

docs: $(VENV)-docs/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --quiet --site-dir site
	@echo site/index.html

clean:
	rm -rf $(VENV) $(VENV)-docs $(OUT) site build dist
