# Two commands on a fresh machine with Python 3.11 or newer, git and make: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKERS ?= auto
SPREAD = --numprocesses $(WORKERS)

.PHONY: help setup compiled demo test test-fast goldens fuzz lint format bench bench-gpu study clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]'
	touch $@

setup: $(VENV)/.installed  ## make the environment in .venv

demo: setup compiled  ## make a small zoo, merge it through `mlflow run`, show what came out
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m mlflow_breadcrumbs quickstart --folder demo

.PHONY: demo-text
demo-text: setup compiled  ## the same with text models: a pretrained MiniLM, five tasks of real texts
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m mlflow_breadcrumbs quickstart --kind text --folder demo-text

test: setup compiled  ## all tests, the slow ones too, a worker per core
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(SPREAD) --durations 10 $(ARGUMENTS)

test-fast: setup compiled  ## without the slow tests
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(SPREAD) -m 'not slow' $(ARGUMENTS)

goldens: setup  ## write what the commands print into tests/goldens/output; look at the difference
	REWRITE_GOLDENS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q tests/commands/test_output.py

fuzz: setup  ## damaged input of every kind for SECONDS (60) each, with counts; a fault fails
	$(BIN)/python -m fuzz --seconds $(or $(SECONDS),60) $(ARGUMENTS)

# Where PYTHONDONTWRITEBYTECODE is set, every command that a test starts would compile it again.
compiled: setup
	$(BIN)/python -m compileall -q mlflow_breadcrumbs study fuzz tests

lint: setup  ## ruff, mypy, and the order of the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup  ## time the engine; --mergekit PATH compares: make bench ARGUMENTS='--mergekit …'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/engine.py $(ARGUMENTS)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/registry.py

format: setup  ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-gpu: setup  ## measure the GPU backend on this machine's GPU, write benchmarks/results/gpu.md
	$(BIN)/python benchmarks/gpu.py

study: setup  ## the study of docs/study.md: fetch, fine-tune, measure, write its tables; resumable
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev,study]'
	$(BIN)/python -m study $(ARGUMENTS)

.PHONY: screenshots
screenshots: setup  ## pictures of MLflow's pages of the demo into docs/images; wants chromium
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev,screenshots]'
	$(BIN)/python docs/screenshots.py

clean:  ## remove the environment and what the demo made
	rm -rf $(VENV) demo demo-text build dist *.egg-info

.PHONY: docs
docs: setup  ## build the documentation into site/, strictly: a broken link fails
	PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
