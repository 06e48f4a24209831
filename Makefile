# Every target sets up what it needs in .venv first; nothing has to be installed by hand.
.DEFAULT_GOAL := help
.PHONY: help setup demo test check format tables docs gpu clean
PYTHON := .venv/bin/python
# Two workers on two cores; more than four would spend their time importing torch.
WORKERS := --numprocesses=logical --maxprocesses=4 --dist=worksteal

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv with everything pinned; instant when nothing changed
	@scripts/setup.sh

demo: setup ## a policy, a shallower student, and the proof, on this machine
	.venv/bin/lithe demo

test: setup ## the whole test suite (ARGS="tests/unit -k cut" runs a part)
	@scripts/setup.sh browser
	$(PYTHON) -m pytest $(WORKERS) $(ARGS)

check: setup ## formatting, lint and types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

format: setup ## rewrite the code in the house format and mend what lint can
	$(PYTHON) -m ruff check --fix-only .
	$(PYTHON) -m ruff format .

tables: setup ## rewrite the tables of README.md and docs/methods.md, from results/ and by probing
	$(PYTHON) scripts/tables.py
	$(PYTHON) scripts/methods.py

docs: setup ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

gpu: ## on an NVIDIA GPU: tests and speed bench into results/<device> (PYTHON=python3 with torch)
	@PYTHON="$(if $(filter $(origin PYTHON),file),python3,$(PYTHON))" scripts/gpu.sh $(ARGS)

clean: ## remove the environment, caches and build products
	rm -rf .venv .uv site build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
