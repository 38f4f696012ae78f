# Every target sets itself up. `make help` lists them.
#
#   PYTHON=python3.12   which interpreter (3.10 or later); each gets a virtual environment of its own
#   ARGS="-k redis -x"  further arguments for pytest
#   JOBS=4              test processes (default: three for two processors, since tests wait for servers half of the time)

PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) \* 3 / 2)
SINK ?=
ON ?= redis,rabbitmq
SCENARIOS ?= 200
SEED ?=
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PYTEST := $(BIN)/python -m pytest
TEST_ENV := TEST_ENV_PYTHON=$(BIN)/python scripts/test-env.sh
# The rooms without threads, clocks and sockets: nothing in them is hard to test, so all of it is tested.
PURE := streamll/delivery/*,streamll/wire/*,streamll/codec.py,streamll/privacy.py,streamll/values.py,streamll/ranges.py,streamll/views/*,streamll/runtime/segment.py
NEEDS_SERVERS := integration or redis or rabbitmq or e2e

.DEFAULT_GOAL := help
.PHONY: help setup chaos demo speed test test-unit test-integration test-setup test-teardown test-performance test-all \
	coverage-run lint format typecheck lock clean print-python

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make the virtual environment, from the lock file

$(STAMP): requirements-dev.lock pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "No '$(PYTHON)' here. Name an interpreter of 3.10 or later: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "'$(PYTHON)' is $$("$(PYTHON)" --version 2>&1). streamll needs 3.10 or later: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -m venv --clear $(VENV) || { echo "'$(PYTHON)' cannot make a virtual environment (on Debian: apt install python3-venv)." >&2; exit 1; }
	@echo "Installing into $(VENV) what requirements-dev.lock names ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

chaos: $(STAMP) ## Seeded faults on real servers (SCENARIOS=n of them; ON=redis,rabbitmq,scripted; SEED=n: one again)
	@$(BIN)/python -m tests.chaos --on '$(ON)' --scenarios '$(SCENARIOS)' $(if $(SEED),--seed '$(SEED)')

demo: $(STAMP) ## Watch a real job, stream its events, read them back (SINK=URL chooses where to)
	@$(BIN)/python examples/demo.py $(if $(SINK),--sink '$(SINK)')

speed: $(STAMP) ## What emit costs and what sinks carry on this machine, on real servers
	@$(BIN)/python scripts/speed.py

test: lint typecheck coverage-run ## Lint, types, all tests with coverage, on real servers

# Branch coverage: 90 % of the whole (pyproject.toml), 100 % of the pure rooms.
coverage-run: $(STAMP)
	@$(BIN)/coverage erase
	$(TEST_ENV) run -- $(PYTEST) -n $(JOBS) --dist worksteal --ignore=tests/performance --cov --cov-report= --cov-fail-under=0 $(ARGS)
	@failed=0; \
	$(BIN)/coverage report || failed=1; \
	echo "The pure rooms, which must be covered to the last branch:"; \
	$(BIN)/coverage report --include='$(PURE)' --fail-under=100 || failed=1; \
	exit $$failed

test-unit: $(STAMP) ## The tests that need no server: decisions, encoding, privacy
	@$(PYTEST) tests/unit $(ARGS)

test-integration: $(STAMP) ## The tests that need real servers, with fresh ones around them
	@$(TEST_ENV) run -- $(PYTEST) -n $(JOBS) -m "$(NEEDS_SERVERS)" --ignore=tests/performance $(ARGS)

test-setup: $(STAMP) ## Start test servers and leave them running (scripts/test-env.sh env: what to export)
	@$(TEST_ENV) up

test-teardown: $(STAMP) ## End what test-setup started
	@$(TEST_ENV) down

test-performance: $(STAMP) ## The benchmarks: one process, real servers
	@if [ -d tests/performance ]; then \
		$(TEST_ENV) run -- $(PYTEST) tests/performance --benchmark-enable --timeout=0 $(ARGS); \
	else \
		echo "There are no benchmarks (tests/performance) yet."; \
	fi

test-all: test test-performance ## Everything: test, then test-performance

lint: $(STAMP) ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP) ## Let ruff format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

typecheck: $(STAMP) ## mypy, strict, on the package, its tests and examples
	@$(BIN)/mypy streamll tests $(wildcard examples)

lock: $(STAMP) ## Renew requirements-dev.lock to the newest versions that pyproject.toml allows
	@$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.10 --extra dev --extra demo \
		--no-emit-index-url --no-annotate --no-header --output-file requirements-dev.lock pyproject.toml
	@{ echo "# Made by 'make lock' from pyproject.toml, for Python 3.10 and later: all that the tests and the demo need."; \
		cat requirements-dev.lock; } > requirements-dev.lock.new && mv requirements-dev.lock.new requirements-dev.lock

print-python:
	@echo $(BIN)/python

clean: ## Remove what make made (servers first: make test-teardown)
	rm -rf .venv .venv-* .coverage .coverage.* htmlcov .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks build dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
