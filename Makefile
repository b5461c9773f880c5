# Two commands do everything on a fresh machine with Python >= 3.11: make quickstart, make test.
PYTHON ?= python3
RUN := .venv/bin/python
TEST := .venv-test/bin/python
JAX ?= jax
METHOD ?= grpo
SEED ?= 0
WORKDIR ?= runs/quickstart-$(METHOD)-$(SEED)

.PHONY: quickstart test test-all results lint clean

quickstart: .venv/ready          ## trains a small model from nothing; on an accelerator with JAX="jax[cuda12]" or "jax[tpu]"
	$(RUN) -m entropy_rl.train --config=configs/quickstart.py:$(METHOD) --config.seed=$(SEED) --workdir=$(WORKDIR)
	$(RUN) -m entropy_rl.analyze --workdir=$(WORKDIR)

test: .venv-test/ready lint      ## everything that takes seconds
	$(TEST) -m pytest -n auto --dist loadfile

test-all: .venv-test/ready lint  ## the slow ones too: SmolLM2, kills, notebooks
	$(TEST) -m pytest -n auto --dist loadfile -m ""

results: .venv/ready             ## the pages of results/claims and results/atlas, from the data in them
	$(RUN) results/claims/verdicts.py
	$(RUN) results/atlas/page.py

lint: .venv-test/ready
	$(TEST) -m ruff check .
	$(TEST) -m ruff format --check .
	$(TEST) -m mypy
	$(TEST) -m codespell_lib

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet "$(JAX)" -r requirements.txt
	touch $@

.venv-test/ready: requirements.txt requirements-test.txt
	$(PYTHON) -m venv .venv-test
	$(TEST) -m pip install --quiet --upgrade pip
	$(TEST) -m pip install --quiet -r requirements-test.txt
	touch $@

clean:
	rm -rf .venv .venv-test runs .pytest_cache .mypy_cache .ruff_cache
