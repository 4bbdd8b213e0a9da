# Two targets: `make demo` shows the whole chain on a small map, `make test` checks everything.
# Each sets up its own virtual environment in .venv and needs only Python 3.11 or newer, make and a
# package index. Variables: PYTHON (interpreter), TORCH (requirement for machines without an NVIDIA GPU).

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The tests that run a second time, with the client of cryoSPARC 4.7; it lies in a folder of its own.
CRYOSPARC47 := $(CURDIR)/$(VENV)/cryosparc47
CRYOSPARC47_TESTS := $(patsubst %,tests/cryosparc/test_%.py,\
  connection external_job fake_server_v4 job_again job_features job_life job_refusals particle_kinds stacks)

.PHONY: demo test

demo: $(VENV)/.installed
	$(BIN)/cryoforum demo -o demo --overwrite

# Every check runs even when an earlier one failed; the exit code tells whether all passed.
test: $(VENV)/.installed-dev $(VENV)/.cryosparc47
	@failed=""; \
	$(BIN)/ruff check . || failed="$$failed ruff-check"; \
	$(BIN)/ruff format --check . || failed="$$failed ruff-format"; \
	$(BIN)/mypy || failed="$$failed mypy"; \
	if [ -n "$$failed" ]; then echo "make test: failed before the tests:$$failed"; fi; \
	$(BIN)/python -m pytest || failed="$$failed pytest"; \
	if [ -d "$(CRYOSPARC47)" ]; then \
	  PYTHONPATH="$(CRYOSPARC47)" CRYOFORUM_CRYOSPARC_CLIENT=4.7 $(BIN)/python -m pytest $(CRYOSPARC47_TESTS) \
	    || failed="$$failed pytest-cryosparc-4.7"; \
	else \
	  echo "make test: the client of cryoSPARC 4.7 needs Python 3.13 or older: its tests are left out"; \
	fi; \
	if [ -n "$$failed" ]; then echo "make test: failed:$$failed" >&2; exit 1; fi

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cryoforum needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Without an NVIDIA GPU the CPU build of torch goes in first, so that nothing drags in CUDA libraries.
# PyTorch's own CPU index is used where it answers within five seconds.
$(VENV)/.torch: | $(VENV)/bin/python
	@set -e; if command -v nvidia-smi >/dev/null 2>&1; then \
	  echo "NVIDIA GPU found: the package index's own build of torch is used"; \
	elif $(BIN)/python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' \
	    $(TORCH_CPU_INDEX)/torch/ >/dev/null 2>&1; then \
	  $(PIP) install --quiet --progress-bar off "$(TORCH)" --extra-index-url $(TORCH_CPU_INDEX); \
	else \
	  echo "$(TORCH_CPU_INDEX) does not answer: torch comes from the default package index"; \
	  $(PIP) install --quiet --progress-bar off "$(TORCH)"; \
	fi
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.torch
	$(PIP) install --quiet --progress-bar off -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.torch
	$(PIP) install --quiet --progress-bar off -e ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.cryosparc47: | $(VENV)/.torch
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 14))'; then \
	  $(PIP) install --quiet --progress-bar off --no-deps --only-binary :all: --upgrade \
	    --target "$(CRYOSPARC47)" cryosparc-tools==4.7.1; \
	fi
	@touch $@
