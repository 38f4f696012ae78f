# Every target sets itself up. `make help` lists them.
#
#   PYTHON=python3.12   which interpreter (3.10 or later); each gets a virtual environment of its own
#   ARGS="-k redis -x"  further arguments for pytest
#   QUICK=1             test-performance: a look of a minute or two instead of a measurement
#   JOBS=4              test processes (default: three for two processors, since tests wait for servers half of the time)

PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) \* 3 / 2)
SINK ?=
ON ?= redis,rabbitmq
SCENARIOS ?= 200
MINUTES ?= 10
RATE ?= 1000
SEED ?=
QUICK ?=
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PERFORMANCE_VENV := $(VENV)-performance
PERFORMANCE_STAMP := $(PERFORMANCE_VENV)/.stamp
PERFORMANCE_PYTHON := $(PERFORMANCE_VENV)/bin/python
PYTEST := $(BIN)/python -m pytest
TEST_ENV := TEST_ENV_PYTHON=$(BIN)/python scripts/test-env.sh
# The rooms without threads, clocks and sockets: nothing in them is hard to test, so all of it is tested.
PURE := streamll/delivery/*,streamll/wire/*,streamll/codec.py,streamll/privacy/*,streamll/plain.py,streamll/redaction.py,streamll/values.py,streamll/ranges.py,streamll/sketch.py,streamll/views/*,streamll/runtime/segment.py,streamll/monitors/budget.py,streamll/monitors/rate.py,streamll/monitors/events/flow.py,streamll/monitors/loops/pulse.py,streamll/monitors/memory/alerts.py,streamll/monitors/memory/leak_verdict.py,streamll/monitors/memory/series.py,streamll/monitors/measuring/series.py,streamll/monitors/profiling/stacks.py,streamll/monitors/tracing/patterns.py,streamll/monitors/tracing/rate.py
NEEDS_SERVERS := integration or redis or rabbitmq or e2e

.DEFAULT_GOAL := help
.PHONY: help setup scorecard chaos soak demo speed test test-unit test-integration test-setup test-teardown test-performance \
	performance-report test-all coverage-run lint format typecheck lock clean print-python

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make the virtual environment, from the lock file

# ENVIRONMENT(folder, lock file): a virtual environment with what the lock names, and streamll itself, editable.
define ENVIRONMENT
	@command -v "$(PYTHON)" >/dev/null || { echo "No '$(PYTHON)' here. Name an interpreter of 3.10 or later: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "'$(PYTHON)' is $$("$(PYTHON)" --version 2>&1). streamll needs 3.10 or later: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -m venv --clear $(1) || { echo "'$(PYTHON)' cannot make a virtual environment (on Debian: apt install python3-venv)." >&2; exit 1; }
	@echo "Installing into $(1) what $(2) names ..."
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(2)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(1)/.stamp
endef

$(STAMP): requirements-dev.lock pyproject.toml
	$(call ENVIRONMENT,$(VENV),requirements-dev.lock)

# Of its own: the benchmarks' peers bring pytest plugins and hooks along, which are not to reach the tests.
$(PERFORMANCE_STAMP): requirements-performance.lock pyproject.toml
	$(call ENVIRONMENT,$(PERFORMANCE_VENV),requirements-performance.lock)

scorecard: $(STAMP) ## How well redaction finds what is private, over the corpus in tests/corpus, into docs/privacy.md
	@$(BIN)/python -m tests.corpus --write

chaos: $(STAMP) ## Seeded faults on real servers (SCENARIOS=n of them; ON=redis,rabbitmq,scripted; SEED=n: one again)
	@$(BIN)/python -m tests.chaos --on '$(ON)' --scenarios '$(SCENARIOS)' $(if $(SEED),--seed '$(SEED)')

soak: $(STAMP) ## Steady load, a fault every few seconds, on real servers (MINUTES=n; ON=redis,rabbitmq; RATE=events a second; SEED=n)
	@$(BIN)/python -m tests.soak --on '$(ON)' --minutes '$(MINUTES)' --rate '$(RATE)' $(if $(SEED),--seed '$(SEED)') $(ARGS)

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

test-unit: $(STAMP) ## The tests that need no server: decisions, encoding, privacy (ARGS=tests/monitors: those of the monitors too)
	@$(PYTEST) tests/unit $(ARGS)

test-integration: $(STAMP) ## The tests that need real servers, with fresh ones around them
	@$(TEST_ENV) run -- $(PYTEST) -n $(JOBS) -m "$(NEEDS_SERVERS)" --ignore=tests/performance $(ARGS)

test-setup: $(STAMP) ## Start test servers and leave them running (scripts/test-env.sh env: what to export)
	@$(TEST_ENV) up

test-teardown: $(STAMP) ## End what test-setup started
	@$(TEST_ENV) down

# The report is made also when some of it could not be measured (pytest's 1), but not when nothing was stored.
test-performance: $(PERFORMANCE_STAMP) ## The benchmarks and their report, on real servers (QUICK=1: a look, under 3 minutes)
	@measured=0; \
	$(PERFORMANCE_PYTHON) -m pytest tests/performance --benchmark-enable --timeout=0 -p no:cacheprovider \
		--benchmark-storage=file://./.benchmarks --benchmark-save=performance --benchmark-columns=median,iqr,rounds \
		$(if $(filter-out 0,$(QUICK)),--quick) $(ARGS) || measured=$$?; \
	[ $$measured -le 1 ] || exit $$measured; \
	$(PERFORMANCE_PYTHON) -m tests.performance.report && exit $$measured

performance-report: $(PERFORMANCE_STAMP) ## Write README.md's performance section from the newest run of test-performance
	@$(PERFORMANCE_PYTHON) -m tests.performance.report --readme README.md

test-all: test test-performance ## Everything: test, then test-performance

lint: $(STAMP) ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP) ## Let ruff format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

typecheck: $(STAMP) ## mypy, strict, on the package, its tests and examples
	@$(BIN)/mypy streamll tests $(wildcard examples)

lock: $(STAMP) ## Renew the lock files to the newest versions that pyproject.toml allows
	@$(call LOCK,requirements-dev.lock,--extra dev --extra demo,all that the tests and the demo need)
	@$(call LOCK,requirements-performance.lock,--extra dev --extra performance --constraint requirements-dev.lock,all that the benchmarks need)

# LOCK(file, what uv is told, what it is good for). The file itself is no input: every version is chosen anew.
LOCK = $(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.10 $(2) \
		--no-emit-index-url --no-annotate --no-header --output-file $(1) pyproject.toml && \
	{ echo "\# Made by 'make lock' from pyproject.toml, for Python 3.10 and later: $(3)."; cat $(1); } > $(1).new && mv $(1).new $(1)

print-python:
	@echo $(BIN)/python

clean: ## Remove what make made (servers first: make test-teardown)
	rm -rf .venv .venv-* .coverage .coverage.* htmlcov .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks build dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
