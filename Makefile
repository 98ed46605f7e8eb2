# Two commands on a fresh machine: `make deploy` runs the main job, `make test` proves the tree.
#
#   make deploy [TARGET=openvino-cpu] [ARGS='--max-latency 1ms']   installs what that target needs, and runs it
#   make test                                                      lint, types, import contracts, every test
#   make quick                                                     the same without the slow tests
#   make format                                                    rewrites the tree as `make ruff` wants it

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: deploy test quick lint ruff types imports format clean

TARGET ?= openvino-cpu
ARGS ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3)

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
# A process a core, at most four: each holds torch and every runtime. Tests of one file share its fixtures, so stay together.
PYTEST = HNAS_REQUIRE=onnxruntime,openvino,tflite $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# The profile names the backend, and the extra NAME-convert is what builds for it; an unknown target gets the search's
# packages only and is refused, in one line, by hnas-deploy itself.
BACKEND = $(BIN)/python -c 'import sys; from hnas import hw_profiles; print(hw_profiles.load(sys.argv[1]).backend)' '$(TARGET)' 2>/dev/null

deploy: $(STAMPS)/created
	@backend=$$($(BACKEND) || true); $(MAKE) --silent "$(STAMPS)/search$${backend:+,$$backend-convert}"
	$(BIN)/hnas-deploy --target '$(TARGET)' $(ARGS)

test: lint
	$(PYTEST)

quick: lint
	$(PYTEST) -m 'not slow'

lint: ruff types imports

# pre-commit calls these three, so that there is one spelling of every check.
ruff: $(STAMPS)/all,dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMPS)/all,dev
	$(BIN)/mypy --strict -p hnas

imports: $(STAMPS)/all,dev
	$(BIN)/lint-imports

format: $(STAMPS)/all,dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMPS)/created:
	@test -n '$(PYTHON)' || { echo 'no python3 on PATH; install Python 3.11 or newer' >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "$(PYTHON) is %d.%d; hnas needs Python 3.11 or newer, say which with PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# One stamp for each set of extras: the second call installs nothing.
$(STAMPS)/%: pyproject.toml constraints.txt | $(STAMPS)/created
	@echo "installing hnas[$*] into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch '$@'

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
