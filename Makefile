# make demo | make test | make test-fast | make lint | make install
# PYTHON picks the interpreter (3.10 to 3.13) that .venv is made from.
PYTHON ?= python3
VENV ?= .venv
# Processes that the tests run in: as many as cores.
JOBS ?= auto
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo test test-fast lint clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml dev/constraints.txt dev/install_detectron2.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c dev/constraints.txt torch torchvision
	$(BIN)/python dev/install_detectron2.py
	$(BIN)/python -m pip install -q -c dev/constraints.txt -e ".[dev]"
	$(BIN)/python -m pip check
	touch $(INSTALLED)

demo: install
	$(BIN)/python -m doublehead_d2.tools.quickstart

test: install
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-fast: install
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
