# Two commands: `make demo` and `make test`. Each sets up what it needs inside this folder.
#   TORCH=torch==2.13.0   which torch the virtual environment gets
#   PYTHON=python3        which interpreter makes it
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
CUDA_TORCH ?= torch==2.14.1
CUDA_VENV ?= .venv-cuda
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

.PHONY: demo test test-slow cuda-check gpu-check bench lint format build setup clean help
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.built ## distill a LeNet-5-Half from a LeNet-5 without any data
	@$(BIN)/zskd-fast demo

test: $(VENV)/.built ## run the test suite
	$(BIN)/python -m pytest

test-slow: $(VENV)/.built ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

# The CUDA build has its own virtual environment, so the CPU's stays unchanged.
cuda-check: ## build with nvcc and CUDA's torch (5.5 GB) and test it, without a GPU
	$(MAKE) setup VENV=$(CUDA_VENV) TORCH='$(CUDA_TORCH)'
	$(CUDA_VENV)/bin/python tests/cuda/check.py cpu

# Looks for a GPU before it installs anything. Without CUDA the package is built for its dependencies only: check.py
# builds the extension itself. With torch and the dependencies at hand, and no network: python tests/cuda/check.py device
gpu-check: ## test on a machine with a GPU: device tests, demo, equal stores, benchmarks
	$(PYTHON) tests/cuda/check.py look
	$(MAKE) setup VENV=$(CUDA_VENV) TORCH='$(CUDA_TORCH)'
	ZSKD_CUDA=0 PATH="$(abspath $(CUDA_VENV)/bin):$$PATH" $(CUDA_VENV)/bin/pip install -qq --no-build-isolation '.[report,test,bench]'
	$(CUDA_VENV)/bin/python tests/cuda/check.py device

bench: $(VENV)/.built ## time the ops and the whole job against their alternatives
	$(BIN)/python -m pytest -q benchmarks/*/bench_*.py --benchmark-columns=median,iqr,rounds,iterations
	$(BIN)/python -m benchmarks.report

lint: $(VENV)/.built ## check style and types (ruff, mypy, clang-format); change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/.built ## format the code in place (ruff, clang-format)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

build: $(VENV)/.built ## the virtual environment and the extension
setup: $(VENV)/.tools

# A system Python may lack its venv module or its headers. They are installed for root (mostly a container), and named
# for other users.
$(VENV)/.tools: pyproject.toml
	@if ! $(PYTHON) -c 'import ensurepip, sysconfig, os; assert os.path.exists(sysconfig.get_paths()["include"] + "/Python.h")' 2>/dev/null; then \
	  packages="python3-venv python3-dev"; \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q && apt-get install -qy $$packages; \
	  else echo "$(PYTHON) lacks its venv module or its headers: sudo apt-get install $$packages"; exit 1; fi; \
	fi
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH) into $(VENV)"
	@$(BIN)/pip install -qq --upgrade pip
	@$(BIN)/pip install -qq '$(TORCH)'
	@$(BIN)/pip install -qq 'setuptools>=77' 'cmake>=3.25' ninja 'pybind11>=2.13' wheel
	@touch $@

$(VENV)/.built: $(VENV)/.tools $(SOURCES)
	@echo "Building the extension (a minute or two)"
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install -qq --no-build-isolation -e '.[report,test,bench,lint]'
	@touch $@

clean: ## remove what was built, the virtual environment included
	rm -rf $(VENV) build dist *.egg-info zskd_fast/_C*.so zskd_fast/_built_for_torch.txt
