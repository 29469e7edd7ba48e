.DEFAULT_GOAL := help
.PHONY: help setup chromium test test-browser test-fast test-kubernetes test-loopback test-chaos test-fuzz test-matrix test-compose chaos matrix soak lint docs demo up down bench wheel lock clean distclean

# Any Python finds a 3.11 by itself; name one with PYTHON=/path/to/python3.11.
PYTHON ?= python3
# Further words for pytest, the demo or the benchmark: make test ARGS="-k lease"
ARGS ?=
# Tests in parallel processes: most of them wait. Those that start an engine run one after another in one of
# the processes, beside all others (tests/selection.py).
TEST_PROCESSES ?= 4

ENVIRONMENTS := $(PYTHON) scripts/environments.py
BIN := .venv/bin
PYTEST = $(BIN)/python -m pytest
IN_PARALLEL = -n $(TEST_PROCESSES) --dist loadscope --durations 10 --durations-min 1
# Without bytecode every start of Airflow, Ray and vLLM takes two to three times as long.
unexport PYTHONDONTWRITEBYTECODE
# Of `make test-compose` alone.
unexport ARCADIA_TEST_COMPOSE

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make what is missing: both environments and the test model
	@$(ENVIRONMENTS) setup

chromium: ## install the browser of the pages' tests, where this is root on Debian; without one they are skipped
	@$(ENVIRONMENTS) chromium

test-browser: setup chromium ## run the tests of the pages in a browser; ARCADIA_SCREENSHOTS=1 takes pictures for docs
	$(PYTEST) tests/browser $(ARGS)

test: setup ## run the test suite, real engines and whole Airflows included; test-browser and test-chaos are apart
	$(PYTEST) $(IN_PARALLEL) -m "not chaos and not browser" $(ARGS)

test-fast: setup ## run what needs no engine, no scheduler and no cluster: a minute and a half
	$(PYTEST) $(IN_PARALLEL) -m "not slow and not chaos and not engine and not e2e and not airflow and not cluster" $(ARGS)

test-kubernetes: setup ## run the Kubernetes suite alone; on a real cluster with ARCADIA_TEST_KUBECONFIG
	$(PYTEST) tests/kubernetes $(ARGS)

test-loopback: setup ## run the loopback cluster's own tests, changed or not
	$(PYTEST) $(IN_PARALLEL) tests/loopback_cluster $(ARGS)

test-chaos: setup ## kill the processes of a real batch fifty times (make test does it eleven times)
	$(PYTEST) -m chaos $(ARGS)

chaos: setup ## N random sets of faults around batches on mock engines: rows lost, doubled, wrong; make chaos N=200
	$(BIN)/python -m tests.batch.chaos $(N) $(ARGS)

matrix: setup ## kill, mark, time out, clear runs in every step, of processes and in a cluster; ARGS="--in cluster"
	$(BIN)/python -m tests.lifecycle.matrix --table docs/lifecycle.md $(ARGS)

N ?= 200
soak: setup ## N random paths of the matrix, of both: make soak N=200
	$(BIN)/python -m tests.lifecycle.matrix --soak $(N) $(ARGS)

test-fuzz: setup ## send a worker's server 10,000 odd requests twice (make test sends 400)
	ARCADIA_FUZZ_REQUESTS=10000 $(PYTEST) tests/runtime/test_fuzz.py $(ARGS)

test-compose: setup ## build docker-compose.yaml, run its demo DAG, remove it: where docker or podman runs containers
	ARCADIA_TEST_COMPOSE=1 $(PYTEST) tests/compose $(ARGS)

test-matrix: setup ## unit tests with the lowest versions the package takes, and on the other Pythons it names
	$(BIN)/python scripts/version_matrix.py $(ARGS)

lint: setup ## ruff, mypy --strict and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: ## build the documentation into var/docs/html: warnings are errors, links between pages are checked
	@$(ENVIRONMENTS) docs
	PYTHONPATH=var/docs/packages $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet \
		--doctree-dir var/docs/doctrees docs var/docs/html $(ARGS)

demo: ## answer 64+ prompts with SmolLM2, tensor parallel over two Ray workers
	@$(ENVIRONMENTS) setup --demo
	@$(BIN)/python -m demo.run $(ARGS)

up: ## start a local Airflow with the DAGs loaded, and say how to use it
	@$(ENVIRONMENTS) setup --demo
	@$(BIN)/python -m demo.stack up

down: ## end what `make up` started, children included
	@test ! -x $(BIN)/python || $(BIN)/python -m demo.stack down

bench: setup ## measure beside vLLM offline, run-batch and Ray Data LLM; ARGS=throughput for these alone
	$(BIN)/python -m benchmarks $(ARGS)

wheel: ## build the package into dist/, to be installed with pip
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .

lock: ## resolve requirements/*.in again
	@$(ENVIRONMENTS) lock

clean: down ## remove caches and what the demo and the tests left
	rm -rf var/demo var/up .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist

distclean: clean ## also remove both environments and the models
	rm -rf .venv .venv-worker var
