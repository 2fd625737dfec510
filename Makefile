# `make localize` and `make test` work on a machine that has only Python 3.11+, make and git.
# The environment is made once; it is made again when pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install localize compare interop test release lowest lint format clean

help:  ## Show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "headloc needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(STAMP)  ## Create .venv and install the locked dependencies

localize: $(STAMP)  ## Localize the heads of the bundled model on add-k
	$(BIN)/headloc localize

# The tiny GPT-2 of the tests has 16 heads, so that every subset of them can be tried.
TINY := model=local model.path=tests/data/gpt2_tiny model.dtype=float32 task.k_max=8 \
	task.x_min=1 task.x_max=16 'task.held_out_k=[]'

compare: $(STAMP)  ## Compare methods on the bundled model and a tiny GPT-2: the figures of its guide
	$(BIN)/headloc compare output_dir=build/compare/bundled
	$(BIN)/headloc compare $(TINY) output_dir=build/compare/gpt2_tiny

interop: $(STAMP)  ## Compare with other tools, in an environment of their own
	test -x build/interop/bin/python || $(PYTHON) -m venv build/interop
	build/interop/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[interop]' pytest hypothesis
	build/interop/bin/python -m pytest -rs tests/interop

release: $(STAMP)  ## Build the distributions, install the wheel into a clean environment and use it
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.packaging.release

# The oldest versions that pyproject.toml admits. LOWEST_TORCH names another torch, where the oldest
# one is too large to fetch; LOWEST_TESTS some of the tests. What newer releases call deprecated is
# not looked at.
LOWEST_TORCH ?= $(shell sed -n 's/^torch==//p' tests/packaging/lowest.txt)
LOWEST_TESTS ?= tests --ignore=tests/packaging

lowest:  ## Run the tests on the oldest versions of the dependencies, in an environment of their own
	test -x build/lowest/bin/python || $(PYTHON) -m venv build/lowest
	sed 's/^torch==.*/torch==$(LOWEST_TORCH)/' tests/packaging/lowest.txt > build/lowest/lowest.txt
	build/lowest/bin/python -m pip install --quiet --constraint build/lowest/lowest.txt \
		--editable '.[large,joblib,submitit]' 'pytest>=9' pytest-xdist hypothesis
	build/lowest/bin/python -m pip check
	OMP_NUM_THREADS=1 build/lowest/bin/python -m pytest --numprocesses auto --dist loadfile \
		-W ignore::DeprecationWarning -W ignore::FutureWarning $(LOWEST_TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## Lint, type-check and run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

format: $(STAMP)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
