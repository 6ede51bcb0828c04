# `make help` says what there is. Everything below needs Python 3.11 or newer, make, git, and root or sudo for the
# Debian packages that are missing.

SHELL := /bin/bash
PYTHON ?= python3
ARGS ?=
TESTS ?=
DEBIAN ?=
CELL ?=
PAGES ?=
PROCESSES ?= 4
# More test processes than processors, as they wait more than they work, each with a RabbitMQ node of its own; a file's
# tests stay together, and the order is that of tests/order.py. One process is enough for a part. What fails beside others
# runs once more, alone: scripts/test.
workers := --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

run := .venv/bin/python -m
debian := faketime pgbouncer postgresql prometheus rabbitmq-server redis-server util-linux
export PYTHON
# pyright's version is pinned: it need not look for a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help demo bench test chaos check lint types test-rabbitmq4 test-debian test-jaeger test-matrix test-versions docs screenshots clean venv-demo venv-dev debian jaeger

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: venv-demo ## a shop of five services, every effect counted; ARGS="--orders 2000 --json", ARGS=--help
	@$(run) rabbitevents demo $(ARGS)

bench: venv-dev ## how fast, beside others in all languages; ARGS="--quick --json", ARGS=--page, DEBIAN=trixie for RabbitMQ 4
	@scripts/debian-packages gcc libc6-dev librabbitmq-dev rabbitmq-server redis-server util-linux
	@$(if $(DEBIAN),scripts/rabbitmq4 $(DEBIAN)) $(run) benchmarks $(ARGS)

test: venv-dev debian ## the tests; TESTS="tests/test_demo.py -k sabotage" runs some of them
	@$(if $(TESTS),$(run) pytest $(TESTS),scripts/test $(workers))
	@$(if $(TESTS),,echo "what Jaeger shows was not looked at (tests/jaeger was skipped): make test-jaeger does, and needs Go")

chaos: venv-dev debian ## faults meet loads on real servers, counted; ARGS="--injections 200 --seed 7 --pairwise", ARGS=--cluster, ARGS=--soak, ARGS=--peers, ARGS=--self-test, ARGS=--help
	@$(run) tests.chaos $(ARGS)

check: lint types test ## all that CI runs

lint: venv-dev ## ruff: rules and format
	@$(run) ruff check
	@$(run) ruff format --check

types: venv-dev ## mypy and pyright, both strict
	@$(run) mypy
	@$(run) pyright

test-rabbitmq4: venv-dev debian ## the tests on RabbitMQ 4.0, Debian trixie's; DEBIAN=sid is 4.3 (needs root)
	@scripts/rabbitmq4 $(or $(DEBIAN),trixie) $(run) pytest $(TESTS)

test-jaeger: jaeger venv-dev debian ## what people look for in Jaeger, asked of a real one (needs Go; minutes the first time)
	@RABBITEVENTS_TEST_JAEGER=$(CURDIR)/.work/jaeger/jaeger $(run) pytest tests/jaeger

test-matrix: ## the tests on all versions of everything, one after the other; CELL=lowest TESTS=..., CELL=--list (needs root)
	@$(PYTHON) scripts/matrix.py $(CELL)

test-versions: ## what rests on RabbitMQ's version, on 3.10, 4.0 and 4.3: the operator's commands (needs root)
	@$(PYTHON) scripts/matrix.py versions-3.10 versions-4.0 versions-4.3

test-debian: ## both commands on a new machine with nothing on it, DEBIAN=bookworm, trixie or sid (needs root)
	@scripts/in-debian $(or $(DEBIAN),bookworm)

docs: venv-dev debian ## build the documentation into docs/_build/html, and check that all that it says runs
	@$(run) sphinx -q -E -a -W --keep-going -b html docs docs/_build/html
	@$(run) pytest tests/test_docs.py tests/test_tutorial.py tests/test_commands.py tests/test_snippets.py tests/test_site.py tests/test_service_page.py tests/test_wire_contract.py
	@echo "docs/_build/html/index.html"

screenshots: venv-dev ## look at the site at four widths, light and dark, in Chromium; PAGES="howto/retry.html" for some
	@scripts/debian-packages chromium fonts-dejavu-core
	@$(run) sphinx -q -b html docs docs/_build/html
	@.venv/bin/python scripts/screenshots.py --to docs/_build/screenshots docs/_build/html $(PAGES)
	@echo "docs/_build/screenshots"

clean: ## remove what was made here: the environment, caches, the root folders of other Debians
	rm -rf --one-file-system .venv .work build dist docs/_build *.egg-info .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv-demo venv-dev: venv-%:
	@scripts/venv $*

jaeger:
	@scripts/jaeger >/dev/null

debian:
ifndef RABBITEVENTS_TEST_AMQP_URL
	@scripts/debian-packages $(debian)
endif
