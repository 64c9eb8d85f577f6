# Two commands do everything on a machine with Python >= 3.11 and nothing else: `make demo` and `make test`, which then
# skips the tests that need another program (README.md lists them).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEVELOPMENT := $(VENV)/.development
# The npm packages that tests use; each directory has its lock.
NODE_PACKAGES := tests/browser/js/node_modules/.installed tests/clients/node/node_modules/.installed

.PHONY: demo test soak check format lock schema prices clean bench bench-quick bench-scale bench-peers
# Two targets may install into one environment.
.NOTPARALLEL:

demo: $(RUNTIME)  ## mock vendor + proxy, no key and no network needed
	@exec $(BIN)/python -m proxy demo

# Many tests wait for clocks and processes, so two at a time take half as long, also on one core. JOBS=0 runs them in turn.
JOBS ?= 2
test: $(DEVELOPMENT) $(NODE_PACKAGES)  ## every test, with branch coverage
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --durations 15 --cov --cov-report=term

MINUTES ?= 10
soak: $(DEVELOPMENT)  ## a mixed load on real processes for MINUTES, then what must hold afterwards; ARGS for more
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

check: $(DEVELOPMENT)  ## format, lint, types, import directions, lock files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.locks

format: $(DEVELOPMENT)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

schema: $(RUNTIME)  ## regenerate config/schema.json from the models
	$(BIN)/python -m proxy schema > config/schema.json

prices: $(DEVELOPMENT)  ## regenerate proxy/usage/prices.json from genai-prices; for new prices: make lock ARGS="--upgrade-package genai-prices"
	@$(BIN)/python .ci/prices.py

# The lock files name versions and hashes, no addresses: any index that serves the same files will do. They keep the extras that
# one package asks of another, for those who install a lock file with pip alone. ARGS=--upgrade takes the newest versions.
COMPILE := $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --no-strip-extras --no-emit-index-url \
	--no-emit-trusted-host --no-emit-find-links --no-header
lock: $(DEVELOPMENT)  ## bring every lock file in line with what is asked for; ARGS=--upgrade, or ARGS="--upgrade-package NAME"
	$(COMPILE) $(ARGS) --output-file .ci/requirements.txt pyproject.toml
	$(COMPILE) $(ARGS) --extra dev --output-file .ci/requirements-dev.txt pyproject.toml .ci/requirements.txt
	$(COMPILE) --extra otel --constraint .ci/requirements-dev.txt --output-file .ci/requirements-otel.txt pyproject.toml .ci/requirements.txt
	$(COMPILE) $(ARGS) --output-file benchmarks/requirements.txt benchmarks/requirements.in
	$(COMPILE) $(ARGS) --output-file benchmarks/peers/requirements.txt benchmarks/peers/requirements.in
	cd tests/clients/node && npm install --package-lock-only
	cd tests/browser/js && npm install --package-lock-only

# Each environment is ready when its stamp is there; the script writes it last.
INSTALL := PYTHON="$(PYTHON)" sh .ci/install.sh

$(RUNTIME): .ci/requirements.txt
	@$(INSTALL) $< $@

# The runtime's lock file is a part of the other, which `make check` watches.
$(DEVELOPMENT): .ci/requirements-dev.txt pyproject.toml
	@$(INSTALL) $< $@ .
	@cp .ci/requirements.txt $(RUNTIME)

# What only the benchmark needs stands apart from what the proxy and its tests run with; docs/benchmark.md explains.
BENCH_VENV := benchmarks/.venv
BENCH_PEERS := benchmarks/.peers

bench: $(RUNTIME) $(BENCH_VENV)/.ready  ## measure the proxy and its peers side by side; ARGS=--quick, or any option
	@$(BIN)/python -m benchmarks $(ARGS)

bench-quick: $(RUNTIME) $(BENCH_VENV)/.ready  ## the same, rougher, in under 3 minutes
	@$(BIN)/python -m benchmarks --quick $(ARGS)

bench-scale: $(RUNTIME) $(BENCH_VENV)/.ready  ## cost and delay against the number of open streams
	@$(BIN)/python -m benchmarks --scale $(ARGS)

bench-peers: $(BENCH_PEERS)/litellm/.ready  ## install what is compared: nginx and HAProxy by apt, LiteLLM beside them
	@sh benchmarks/peers/install.sh

$(BENCH_VENV)/.ready: benchmarks/requirements.txt
	@$(INSTALL) $< $@

$(BENCH_PEERS)/litellm/.ready: benchmarks/peers/requirements.txt
	@$(INSTALL) $< $@

# Without npm the tests that need its packages are skipped, and say so.
%/node_modules/.installed: %/package.json %/package-lock.json
	@if command -v npm >/dev/null; then cd $* && npm ci --loglevel=error && touch node_modules/.installed; \
	else echo "npm is not installed: the tests of npm packages in $* will be skipped"; fi

clean:
	rm -rf benchmarks/.build $(BENCH_VENV) $(BENCH_PEERS) $(dir $(NODE_PACKAGES))
	rm -rf $(VENV) .coverage* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
