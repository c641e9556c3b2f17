# Everything a newcomer needs: `make demo` trains a small model from real text and shows how to serve it,
# `make test` proves the code. Both set themselves up on a machine with python3 (3.11 or newer), make and g++.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STORE ?= demo
# A file stays on one process, which makes its fixtures once, and none of the long ones comes last, as with the order of
# xdist; one process more than cores, since many wait for others.
TOGETHER := -n $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) --maxprocesses 5 --dist loadfile --no-loadscope-reorder
CHAT := $(BIN)/llmctl chat demo.grpo --store $(STORE) --max-tokens 60

.PHONY: help setup setup-dev demo serve test test-quick lint format bench clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml setup.py llmctl/data/clean/markup.c llmctl/data/dedup/kernel.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "llmctl needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

setup: $(VENV)/.installed  ## make the virtual environment with everything that llmctl needs

setup-dev: $(VENV)/.installed-dev  ## the same with the tools for tests and lint

demo: setup  ## raw text to a served model: train, evaluate, answer (at most 12 minutes on 2 cores)
	@$(BIN)/llmctl run recipes/demo.yaml --store $(STORE)
	@echo; echo "== Preferences: what dpo gained on right and wrong answers about functions that the model never saw =="
	@$(BIN)/llmctl show demo.dpo --store $(STORE) | grep heldout_
	@echo; echo "== Evaluation: held-out documents and questions about functions that the model never saw =="
	@$(BIN)/llmctl show demo.eval --store $(STORE)
	@echo; echo "== Rewards: answers of ten to sixteen words, to held-out questions before and after grpo =="
	@$(BIN)/llmctl show demo.grpo --store $(STORE) | grep heldout_
	@echo; echo "== Distillation: held-out answers to a student alone, and to the same student with the teacher =="
	@$(BIN)/llmctl show demo.alone --store $(STORE) | grep heldout_loss
	@$(BIN)/llmctl show demo.distill --store $(STORE) | grep heldout_loss
	@echo; echo "== Three sample answers =="
	@$(CHAT) 'What does `os.path.join` do?' 'What does `json.dumps` do?' 'What does `random.shuffle` do?'
	@echo "Serve it:  $(BIN)/llmctl serve demo.grpo --store $(STORE)"

serve: setup  ## serve the demo's model on http://127.0.0.1:8000
	@$(BIN)/llmctl serve demo.grpo --store $(STORE)

test: setup-dev  ## the whole test suite
	$(BIN)/python -m pytest -q $(TOGETHER)

test-quick: setup-dev  ## the test suite without what takes minutes
	$(BIN)/python -m pytest -q $(TOGETHER) -m 'not slow'

lint: setup-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup-dev  ## bring the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup-dev  ## measure speed; see docs/benchmarks.md
	$(BIN)/python bench/train.py

clean:  ## remove what setup and demo make by default; a STORE or VENV of your own stays
	rm -rf .venv demo
