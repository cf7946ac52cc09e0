# Two commands are all that a newcomer needs: `make demo` and `make test`.
# Both set up what they need in a virtual environment of their own.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
# Each worker takes one half, so that what modules share is made once, and helps with the other.
PYTEST_ARGS ?= -n 2 --dist worksteal

# Tests start many processes: what Python compiles is compiled once.
unexport PYTHONDONTWRITEBYTECODE

# The tests of what everything else stands on: under a minute on two cores, by measured times.
QUICK := tests/test_layers.py tests/test_distribution.py tests/formats tests/recipe tests/storage \
  tests/planning tests/checkpoint tests/runs tests/publish tests/reader tests/codecs \
  --ignore tests/formats/test_hostile.py --ignore tests/codecs/test_vq.py \
  --ignore tests/codecs/test_trellis.py --ignore tests/codecs/test_hnerv.py

.PHONY: demo test quick slow properties faults triton vllm check coverage wheel lint types format docs clean

# The main job on the bundled model: calibrate, compile, verify, size, perplexity, a few generated lines.
demo: $(VENV)/.runtime
	$(BIN)/reallm demo

# The tests alone; nothing outside this repository is needed.
test: coverage
	$(BIN)/python -m pytest $(PYTEST_ARGS) --ignore tests/formats

# A first look, while you work.
quick: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(QUICK)

# Tests of a minute and more.
slow: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m slow

# The property tests with new random examples: what they find becomes an `@example`.
properties: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m hypothesis --hypothesis-profile random tests

# Kills, signals, full disks and forged files, at length: an hour and more.
faults: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m faults

# The Triton kernels without a GPU: in the interpreter, and compiled for three architectures. A
# gigabyte of triton is installed first.
triton: $(VENV)/.triton
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m triton tests/kernels/test_triton.py
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m triton tests/kernels/test_triton_compiled.py

# vLLM for the CPU, in an environment of its own: the same tokens as transformers. For the night.
vllm:
	.ci/vllm $(PYTHON)

# All that CI runs.
check: lint types test

# The container's own tests, which reach every line and every branch of it.
coverage: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS) --quiet tests/formats \
	  --cov=reallm_formats --cov-branch --cov-fail-under=100

# The wheel is built and installed into a clean environment, and the demo runs from it there.
wheel: $(VENV)/.dev
	rm -rf build/wheel
	$(BIN)/python -m pip --disable-pip-version-check --quiet wheel --no-deps \
	  --no-build-isolation --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip --disable-pip-version-check --quiet install \
	  --constraint constraints.txt "$$(echo build/wheel/*.whl)[fast]"
	cd build/wheel && env -u PYTHONPATH venv/bin/reallm demo
	rm -rf build/wheel

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy --num-workers 2

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation as a site, in site/.
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[fast]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.runtime

$(VENV)/.triton: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev,triton]'
	touch $@ $(VENV)/.dev $(VENV)/.runtime

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[docs]'
	touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
