# Two commands on a fresh machine: `make deploy` runs the main job, `make test` checks the tree.
#
#   make deploy [TARGET=openvino-cpu] [ARGS='--max-latency 1ms']   install what the target needs, and run it
#   make test                                                      run lint, types, import contracts, every test
#   make quick                                                     the same without the slow tests
#   make gates                                                  check sizes and layers of small artifacts, with hnas-bench
#   make test-sign                                              run the tests of signatures in an environment of their own
#   make test-extras                                            the same for MLflow and LoadGen
#   make site                                                   build the documentation as a site, and check its links
#   make matrix                                                    install and use both ends of the ranges; before a release
#   make format                                                    apply the fixes and the layout that `make ruff` checks

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: deploy test quick gates test-sign test-extras site lint ruff types imports limits rooms matrix format clean

TARGET ?= openvino-cpu
ARGS ?=
# A test whose runtime or program is listed here fails where it is missing. .ci/run adds strace.
REQUIRE ?= onnxruntime,openvino,tflite
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTHONS ?= $(PYTHON)

VENV := .venv
SIGN := .venv-sign
SITE := .venv-site
EXTRAS := .venv-extras
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
# One process per core, at most four: each loads torch and every runtime. The tests of a file share fixtures, so one
# process runs them all. tests/conftest.py puts long files first; xdist's own order would start those of few long tests
# last, where one process works and the others wait.
PYTEST = HNAS_REQUIRE=$(REQUIRE) $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder --durations=30 --durations-min=10

# The profile names the backend NAME; the extra NAME-convert builds for it. For an unknown target only the packages of the
# search are installed, and hnas-deploy refuses the target in one line.
BACKEND = $(BIN)/python -c 'import sys; from hnas import hw_profiles; print(hw_profiles.load(sys.argv[1]).backend)' '$(TARGET)' 2>/dev/null

deploy: $(STAMPS)/created
	@backend=$$($(BACKEND) || true); $(MAKE) --silent "$(STAMPS)/search$${backend:+,$$backend-convert}"
	$(BIN)/hnas-deploy --target '$(TARGET)' $(ARGS)

test: lint
	$(PYTEST)

quick: lint
	$(PYTEST) -m 'not slow'

# Another thread would only spin: the network is small.
gates: $(STAMPS)/all,dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.gates

# A test that is skipped here fails: this is the one place where it runs. It needs openssl and strace.
test-sign: $(SIGN)/installed
	$(SIGN)/bin/python -m pytest -rs tests/export/zoo/test_signing.py tests/hnas/cli/test_zoo.py \
		tests/privacy/test_commands.py::test_steps_and_signatures_send_nothing | tee $(SIGN)/log
	@! grep -E '[0-9]+ skipped' $(SIGN)/log

test-extras: $(EXTRAS)/installed
	$(EXTRAS)/bin/python -m pytest -n 2 -rs -k 'loadgen or mlflow and (registered or silenced)' \
		tests/benchmarks/gate/test_loadgen.py tests/export/zoo/test_mlflow.py tests/privacy/test_packages.py | tee $(EXTRAS)/log
	@! grep -E '[0-9]+ skipped' $(EXTRAS)/log

# Links that lead nowhere fail. The pages are in build/site; their search needs a server, such as python -m http.server.
site: $(SITE)/installed
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/python -m tests.site

# mypy takes a minute; the other three finish beside it.
lint: $(STAMPS)/all,dev
	@$(MAKE) --no-print-directory --jobs --output-sync=target ruff types imports limits

# pre-commit calls these four, so each check is defined once.
ruff: $(STAMPS)/all,dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMPS)/all,dev
	$(BIN)/mypy --strict -p hnas

imports: $(STAMPS)/all,dev
	$(BIN)/lint-imports

limits: $(STAMPS)/all,dev
	$(BIN)/python -m tests.house

rooms: $(STAMPS)/all,dev
	$(BIN)/python -m tests.house --write

matrix: $(STAMPS)/all,dev
	$(BIN)/python -m tests.matrix $(PYTHONS) $(ARGS)

format: $(STAMPS)/all,dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMPS)/created:
	@test -n '$(PYTHON)' || { echo 'no python3 on PATH; install Python 3.11 or newer' >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "$(PYTHON) is %d.%d; hnas needs Python 3.11 or newer, say which with PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# Everything that CI installs, from files whose sha256 is known: one that was exchanged is refused. torch is not among
# them, since its builds for CPU and GPU have one version and different files. With the hashes of both, pip takes the
# large build of the index before a CPU build that lies on this disk, since that one's address states no hash.
$(STAMPS)/all,dev: pyproject.toml constraints.txt requirements.lock | $(STAMPS)/created
	@echo "installing hnas[all,dev] into $(VENV)"
	@$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch '$@'

# model-signing needs a newer typing_extensions than litert-torch admits. So its packages come before those of $(VENV), in
# an environment that only adds them. MLflow and LoadGen have one too: 25 packages that no other test needs.
.venv-%/installed: %.lock | $(STAMPS)/all,dev
	@$(BIN)/python -m venv $(@D)
	@$(@D)/bin/python -m pip install --disable-pip-version-check --no-compile --require-hashes --no-deps -r $<
	@for python in $(BIN) $(@D)/bin; do $$python/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; done | \
		{ read -r behind; read -r own; echo "import site; site.addsitedir('$$behind')" >"$$own/behind.pth"; }
	@touch $@

$(SITE)/installed: site.lock | $(STAMPS)/created
	@$(BIN)/python -m venv $(SITE)
	@$(SITE)/bin/python -m pip install --disable-pip-version-check --require-hashes --no-deps -r site.lock
	@touch $@

# One stamp file per set of extras: a second call installs nothing.
$(STAMPS)/%: pyproject.toml constraints.txt | $(STAMPS)/created
	@echo "installing hnas[$*] into $(VENV)"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch '$@'

clean:
	rm -rf $(VENV) $(SIGN) $(EXTRAS) $(SITE) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
