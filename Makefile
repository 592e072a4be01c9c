# Everything runs in .venv, which `setup` makes; each target needs no other to be called first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.done
ROOMS := orchestrator agents retrieval prompts eval

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow lint types bench clean

help: ## Show what can be made.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(DONE) ## Install everything into .venv (2 to 4 minutes the first time).

$(DONE): pyproject.toml constraints.txt
	@echo "Making $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." && false)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "Installing torch, open_clip, langgraph, chromadb and the rest (about 3 GB on disk) ..."
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --group dev --editable .
	@touch $(DONE)
	@echo "Installed."

demo: $(DONE) ## Render leaves, fit, evaluate and write demo-run/report.html.
	@$(BIN)/secondlook demo --out demo-run

test: $(DONE) ## Run the tests (under 5 minutes).
	@echo "Running the tests ..."
	@# A process for each core: threads of their own would only wait for one another.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

slow: $(DONE) ## Run the tests that look long for what is rare (about 5 minutes).
	@$(BIN)/python -m pytest -m slow

# The rooms as they are installed, for tools that look for packages on disk.
link_rooms = rm -rf .typecheck && mkdir -p .typecheck/secondlook \
	&& ln -s $(addprefix ../../,$(wildcard secondlook/*) $(ROOMS)) .typecheck/secondlook/

lint: $(DONE) ## Check style and the order of imports between rooms.
	@echo "Checking style ..."
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(link_rooms)
	@cd .typecheck && PYTHONPATH=. ../$(BIN)/lint-imports --config ../pyproject.toml

types: $(DONE) ## Check types.
	@echo "Checking types ..."
	@$(link_rooms)
	@cd .typecheck && MYPYPATH=. ../$(BIN)/mypy --config-file ../pyproject.toml -p secondlook

bench: $(DONE) ## Measure overhead, cache, memory, speed and simulated panels (15 to 30 minutes).
	@$(BIN)/python benchmarks/overhead.py
	@$(BIN)/python benchmarks/warm_cache.py
	@$(BIN)/python benchmarks/memory.py
	@$(BIN)/python benchmarks/start.py
	-@$(BIN)/python benchmarks/speed.py
	-@$(BIN)/python benchmarks/simulated_panels.py

clean: ## Delete what was made.
	rm -rf $(VENV) .typecheck demo-run build *.egg-info
