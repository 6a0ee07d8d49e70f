# Everything a developer types. `make demo` and `make test` build what they need in .venv; nothing is installed elsewhere.

.DEFAULT_GOAL := help
.PHONY: help demo test test-all docs format clean

SHELL := /bin/sh
BIN := .venv/bin
STAMP := .venv/.installed
UNFINISHED := .venv/.installing

# A Python that can build an environment: new enough, with venv and pip's bootstrap. It is run, not merely looked up,
# because a version manager may offer a command that only prints an error.
USABLE = -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p $(USABLE) && { echo $$p; break; }; done)

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP)  ## run the whole thing on the embedded model and task; writes demo/report.html
	$(BIN)/bayes-lora demo --out demo --overwrite
	@echo "report: $(CURDIR)/demo/report.html"

define static-checks
$(BIN)/ruff check
$(BIN)/ruff format --check
$(BIN)/mypy
endef

# A worker for each core; tests of one module stay together, since they share fixtures.
PYTEST = $(BIN)/pytest -n auto --dist loadscope --no-loadscope-reorder --cov --cov-report=term --durations=10

test: $(STAMP)  ## lint, types, and the tests that are not marked slow, with coverage
	$(static-checks)
	$(PYTEST) -m 'not slow'

test-all: $(STAMP)  ## the same with the slow tests
	$(static-checks)
	$(PYTEST)

# Not --quiet, under which strict sees no warnings. Left out: Material on its own end of life; CONTRIBUTING.md has it.
docs: $(STAMP)  ## build the site, strict, into site/; a broken link or a missing docstring fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "site: $(CURDIR)/site/index.html (search needs a server: python3 -m http.server --directory site)"

format: $(STAMP)  ## fix what ruff can fix, then format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove caches, build output, site/ and demo/ (keeps .venv and runs/)
	rm -rf build dist demo site htmlcov .coverage .mypy_cache .ruff_cache .pytest_cache
	find bayes_lora models inference experiments tests -name __pycache__ -prune -exec rm -rf {} +

# torch comes first and alone, by its pin: whichever build of that version the machine's index offers (CPU or CUDA)
# then satisfies the constraints. The environment is made anew when an installation was cut short (UNFINISHED is still
# there) or there is no working pip in it; when pip itself gave up, for want of a network say, what is there is kept.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@if [ -e $(UNFINISHED) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer with venv and pip was found." \
	    "Install one (on Debian and Ubuntu: python3.11 and python3.11-venv), or name it: make PYTHON=/path/to/python3.11" \
	    >&2; exit 1; }; \
	  "$(PYTHON)" $(USABLE) || { echo "error: PYTHON=$(PYTHON) does not run, is older than 3.11," \
	    "or lacks venv or ensurepip" >&2; exit 1; }; \
	  echo "creating .venv with $$("$(PYTHON)" --version)"; \
	  "$(PYTHON)" -m venv --clear .venv; \
	fi
	@touch $(UNFINISHED)
	$(BIN)/python -m pip install "$$(grep '^torch==' constraints.txt)" || { rm -f $(UNFINISHED); exit 1; }
	$(BIN)/python -m pip install -c constraints.txt -e '.[demo,dev,docs,notebooks,quantized]' || { rm -f $(UNFINISHED); exit 1; }
	@rm -f $(UNFINISHED)
	@touch $@
