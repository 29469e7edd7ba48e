.DEFAULT_GOAL := help
.PHONY: help setup test test-kubernetes lint demo up down bench lock clean distclean

# Any Python finds a 3.11 by itself; name one with PYTHON=/path/to/python3.11.
PYTHON ?= python3
# Further words for pytest, the demo or the benchmark: make test ARGS="-k lease"
ARGS ?=

ENVIRONMENTS := $(PYTHON) scripts/environments.py
BIN := .venv/bin
# Without bytecode every start of Airflow, Ray and vLLM takes two to three times as long.
unexport PYTHONDONTWRITEBYTECODE

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make what is missing: both environments and the test model
	@$(ENVIRONMENTS) setup

test: setup ## run the whole test suite, the real end-to-end included
	$(BIN)/python -m pytest $(ARGS)

test-kubernetes: setup ## run the Kubernetes suite alone; on a real cluster with ARCADIA_TEST_KUBECONFIG
	$(BIN)/python -m pytest tests/kubernetes $(ARGS)

lint: setup ## ruff, mypy --strict and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: ## answer 64+ prompts with SmolLM2, tensor parallel over two Ray workers
	@$(ENVIRONMENTS) setup --demo
	@$(BIN)/python -m demo.run $(ARGS)

up: ## start a local Airflow with the DAGs loaded, and say how to use it
	@$(ENVIRONMENTS) setup --demo
	@$(BIN)/python -m demo.stack up

down: ## end what `make up` started, children included
	@test ! -x $(BIN)/python || $(BIN)/python -m demo.stack down

bench: setup ## measure against vLLM offline and run-batch; writes benchmarks/results.json
	$(BIN)/python -m benchmarks $(ARGS)

lock: ## resolve requirements/*.in again
	@$(ENVIRONMENTS) lock

clean: down ## remove caches and what the demo and the tests left
	rm -rf var/demo var/up .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist

distclean: clean ## also remove both environments and the models
	rm -rf .venv .venv-worker var
