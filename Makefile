# A machine with make and python3 (3.11 or newer) is enough: whatever else a target needs goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
EXTRAS := align app compbench dev evaluation explanation remote synthesis
COMMA := ,
# One thread for each of two test processes; torch would take all cores in both.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Threads that wait for each other sleep; where they spin, a demo beside other work takes three times as long.
DEMO := OMP_WAIT_POLICY=passive $(BIN)/robustclip demo

# mkdocs reads the source and imports nothing of it, so its environment holds neither torch nor the package.
DOCS := .venv-docs
DOCS_NEEDS := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])

.PHONY: demo test test-slow test-gpu test-oldest check docs bench

$(INSTALLED): pyproject.toml src/robustclip_emoji/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("robustclip needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e src/robustclip_emoji -e '.[emoji,$(subst $() ,$(COMMA),$(EXTRAS))]'
	touch $@

demo: $(INSTALLED)
	$(DEMO)

test: $(INSTALLED)
	$(PYTEST) -m 'not slow and not gpu' -n 2 --dist worksteal

test-slow: $(INSTALLED)
	$(PYTEST) -m slow

test-gpu: $(INSTALLED)
	$(PYTEST) -m gpu tests/selftest

# The fast tests with the oldest releases that pyproject.toml allows, whose own warnings are ignored.
test-oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct -r pyproject.toml $(addprefix --extra ,$(EXTRAS))
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --no-deps -e src/robustclip_emoji -e .
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -m 'not slow and not gpu' -n 2 --dist worksteal -W ignore

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

$(DOCS)/.installed: pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $$($(PYTHON) -c '$(DOCS_NEEDS)')
	touch $@

docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet
	@echo "build/site/index.html"

bench: $(INSTALLED)
	$(BIN)/python tools/bench.py
	$(BIN)/python tools/bench_parts.py
	$(BIN)/python tools/bench_synthesis.py
	$(BIN)/python tools/bench_drawing.py
