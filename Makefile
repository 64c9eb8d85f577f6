# Two commands do everything on a machine with Python >= 3.11 and nothing else: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEVELOPMENT := $(VENV)/.development
# The npm packages that tests use; each directory has its lock.
NODE_PACKAGES := tests/browser/js/node_modules/.installed tests/clients/node/node_modules/.installed

.PHONY: demo test soak check format lock schema clean bench bench-quick bench-scale bench-peers

demo: $(RUNTIME)  ## mock vendor + proxy, no key and no network needed
	@exec $(BIN)/python -m proxy demo

# Many tests wait for clocks and processes, so two at a time take half as long, also on one core. JOBS=0 runs them in turn.
JOBS ?= 2
test: $(DEVELOPMENT) $(NODE_PACKAGES)  ## every test, with branch coverage
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --durations 15 --cov --cov-report=term

MINUTES ?= 10
soak: $(DEVELOPMENT)  ## a mixed load on real processes for MINUTES, then what must hold afterwards; ARGS for more
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

check: $(DEVELOPMENT)  ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEVELOPMENT)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

schema: $(RUNTIME)  ## regenerate config/schema.json from the models
	$(BIN)/python -m proxy schema > config/schema.json

# The lock files name versions and hashes, no addresses: any index that serves the same files will do.
COMPILE := $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url \
	--no-emit-trusted-host --no-emit-find-links --no-header
lock: $(DEVELOPMENT)
	$(COMPILE) --output-file .ci/requirements.txt pyproject.toml
	$(COMPILE) --extra dev --constraint .ci/requirements.txt --output-file .ci/requirements-dev.txt pyproject.toml
	cd tests/clients/node && npm install --package-lock-only

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): .ci/requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .ci/requirements.txt
	@touch $@

$(DEVELOPMENT): .ci/requirements-dev.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .ci/requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(RUNTIME) $@

# What only the benchmark needs stands apart from what the proxy and its tests run with; docs/benchmark.md explains.
BENCH_VENV := benchmarks/.venv
BENCH_PEERS := benchmarks/.peers
PIP := -m pip --disable-pip-version-check install --quiet

bench: $(RUNTIME) $(BENCH_VENV)/.ready  ## measure the proxy and its peers side by side; ARGS=--quick, or any option
	@$(BIN)/python -m benchmarks $(ARGS)

bench-quick: $(RUNTIME) $(BENCH_VENV)/.ready  ## the same, rougher, in under 3 minutes
	@$(BIN)/python -m benchmarks --quick $(ARGS)

bench-scale: $(RUNTIME) $(BENCH_VENV)/.ready  ## cost and delay against the number of open streams
	@$(BIN)/python -m benchmarks --scale $(ARGS)

bench-peers: $(BENCH_PEERS)/litellm/.ready  ## install what is compared: nginx and HAProxy by apt, LiteLLM beside them
	@sh benchmarks/peers/install.sh

$(BENCH_VENV)/.ready: benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python $(PIP) -r benchmarks/requirements.txt
	@touch $@

$(BENCH_PEERS)/litellm/.ready: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(BENCH_PEERS)/litellm
	$(BENCH_PEERS)/litellm/bin/python $(PIP) -r benchmarks/peers/requirements.txt
	@touch $@

# Without npm the tests that need its packages are skipped, and say so.
%/node_modules/.installed: %/package.json %/package-lock.json
	@if command -v npm >/dev/null; then cd $* && npm ci --loglevel=error && touch node_modules/.installed; \
	else echo "npm is not installed: the tests of npm packages in $* will be skipped"; fi

clean:
	rm -rf benchmarks/.build $(BENCH_VENV) $(BENCH_PEERS) $(dir $(NODE_PACKAGES))
	rm -rf $(VENV) .coverage* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
