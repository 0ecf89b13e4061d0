# Plain Python 3.11+ (with venv) and make are all that is assumed. Every target works alone and first.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
FOLDERS := engine kernels protos clients

# The Python that everything is tested on, else the next newer one that is there.
ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3 python3.14; do \
	if $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo $$p; break; fi; done)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test check prove gpu-check protos lint types drift clean .all .chromium .triton

help:  ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.engine .triton  ## Make a marketplace, serve it with models, match over gRPC: about a minute
	$(BIN)/matchwright demo

test: .all  ## All tests, large counts reduced: under ten minutes on two cores
	@# One worker more than cores: many tests wait for the servers that they have started.
	n=$$(($$(getconf _NPROCESSORS_ONLN) + 1)); \
	$(BIN)/python -m pytest --numprocesses $$((n > 4 ? 4 : n)) --dist loadfile --no-loadscope-reorder

check: .all  ## Lint, types, proto drift, then the tests: what CI runs
	@$(MAKE) --no-print-directory lint types drift
	@$(MAKE) --no-print-directory test

prove: $(VENV)/.dev .chromium .venv-airflow/.done .venv-triton/.done  ## All tests and benches with full counts; writes proofs/*.json
	$(BIN)/python bench/prove.py

gpu-check:  ## Kernel tests and bench with the system's Python, NumPy, CuPy and pytest
	PYTHONPATH=engine:kernels:protos:clients $${GPU_PYTHON:-python3} bench/gpu_check.py

protos: $(VENV)/.dev  ## Generate the stubs from the .proto files
	$(BIN)/python protos/generate.py

drift: $(VENV)/.dev  ## Fail when the committed stubs differ from the .proto files
	$(BIN)/python protos/generate.py --check

lint: $(VENV)/.dev  ## Ruff, and the guard against stray __init__.py files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@for x in $(FOLDERS); do for f in $$x/__init__.py $$x/matchwright/__init__.py; do \
		if [ -e $$f ]; then echo "$$f hides the other folders of the namespace; delete it"; exit 1; fi; \
	done; done

types: $(VENV)/.dev  ## mypy --strict
	$(BIN)/mypy

# Whatever the tests need, side by side.
.all: | $(BIN)/python
	@$(MAKE) --no-print-directory -j3 $(VENV)/.dev .chromium .triton

# Debian's browser, which the report of a run is looked at in. Where it cannot be installed, those
# tests are skipped and say so.
.chromium:
	@if [ ! -x /usr/bin/chromium ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		export DEBIAN_FRONTEND=noninteractive; \
		get="apt-get install -y --no-install-recommends chromium"; \
		$$get >/dev/null 2>&1 || { apt-get update && $$get; } >/dev/null 2>&1 || true; fi

# Airflow pins what we use in other versions, so that it has an environment of its own. Only the
# example of the nightly job is tried in it.
.venv-airflow/.done: | $(BIN)/python
	$(PYTHON) -m venv .venv-airflow
	.venv-airflow/bin/python -m pip install --quiet --disable-pip-version-check 'apache-airflow>=3,<4'
	@touch $@

# A Triton server for tests and the demo, in an environment of its own: it needs NumPy below 2. Where it
# cannot be installed, those tests are skipped and the demo says that it does without; `make prove` fails.
.triton: | $(BIN)/python
	@mkdir -p .venv-triton; log=.venv-triton/install.log; \
	$(MAKE) --no-print-directory .venv-triton/.done >$$log 2>&1 \
		|| echo "going on without a Triton server: $$(grep -m 1 ERROR $$log || tail -n 1 $$log)"

.venv-triton/.done: constraints-triton.txt | $(BIN)/python
	[ -x .venv-triton/bin/python ] || $(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: \
		--retries 1 --timeout 20 -r constraints-triton.txt
	@touch $@

clean:  ## Remove the environment, caches and build outputs
	rm -rf $(VENV) .venv-airflow .venv-triton .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build demo-store
	find $(FOLDERS) tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "no Python 3.11 or newer with venv found; name one: make PYTHON=/path/to/python3"; exit 2; fi
	$(PYTHON) -m venv $(VENV)

# The engine and its command line: all that the demo needs.
$(VENV)/.engine: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[engine,triton,train]'
	@touch $@

# Everything that the tests need. CuPy is there so that the kernels compile, GPU or not.
$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[engine,triton,train,otel,gpu,dev]'
	@touch $(VENV)/.engine $@
