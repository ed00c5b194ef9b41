# Every target sets up what it needs: a virtual environment with the pinned packages, made once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Test processes; each computes with one thread.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup browser quickstart test lint format bench clean

help:  ## Say what each target does
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Re-made only when the requirements change, so that a second run installs nothing.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(STAMP)  ## Make .venv and install the pinned packages into it

# Pages are tested in Chromium. Where it is missing and Debian's packages can be installed, they are.
browser:  ## Find Chromium, or install Debian's
	@[ -n "$$CHROMIUM" ] && exit 0; \
	for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ]; then \
	  echo "Chromium is missing: install it, or set CHROMIUM to its program." >&2; exit 1; fi; \
	apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	  apt-get -qq install -y --no-install-recommends chromium >/dev/null

quickstart: $(STAMP)  ## Train the packaged captioner with PPO for a few minutes and show what changed
	$(BIN)/mmft ppo --config configs/quickstart.yaml

test: $(STAMP) browser  ## Run every test
	$(BIN)/python -m pytest -q -n $(WORKERS)

lint: $(STAMP)  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Put the code into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## Measure steps, rewards, regularisers, objectives, agents and the report; over an hour
	$(BIN)/python -m tests.benchmarks
	$(BIN)/python -m tests.benchmarks.rewards
	$(BIN)/python -m tests.benchmarks.regularizers
	$(BIN)/python -m tests.benchmarks.offline_rwl
	$(BIN)/python -m tests.benchmarks.objectives
	$(BIN)/python -m tests.benchmarks.environments
	$(BIN)/python -m tests.benchmarks.report

clean:  ## Remove the environment, caches and builds; keep runs/
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
