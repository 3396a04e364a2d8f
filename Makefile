# Two commands matter: `make demo` and `make test`. Both build .venv once.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: setup demo serve-demo test test-slow kills stress fuzz check format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,local,demo,export,rag,e5,serve,otel,redis,postgres,langchain,llamaindex,dev]'
	touch $@

demo: setup
	$(BIN)/embedsmith demo

# The caching proxy with its dashboard, in front of a simulated LLM; needs `make demo` first for the model.
serve-demo: setup
	test -d runs/demo/model || $(BIN)/embedsmith demo
	$(BIN)/embedsmith serve --upstream simulator: --model runs/demo/model --threshold 0.8 \
		--store sqlite:///runs/demo/cache.db --feedback runs/demo/feedback.jsonl

# Byte code is written, whatever the environment says: two hundred processes import the same modules.
test test-slow kills stress fuzz: export PYTHONDONTWRITEBYTECODE :=

# One process more than cores: some tests wait, for a server that starts or one that never answers.
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $$($(BIN)/python -c "import os; print(os.cpu_count() + 1)") --dist worksteal

test-slow: setup
	$(BIN)/pytest -q -m slow

# SIGKILL at 120 random points of synthesis and 50 of training, at 200 of a cache under 16 writers, at 20 of four
# processes with four writers each on each kind of store, and throughout the migration and re-encoding of stores (minutes).
kills: setup
	EMBEDSMITH_KILLS=20 $(BIN)/pytest -q --timeout 1800 -k "kill" tests/llm/test_journal.py
	EMBEDSMITH_KILLS=100 $(BIN)/pytest -q --timeout 3600 -k "sigkill" tests/synthesis/test_command.py
	EMBEDSMITH_KILLS=50 $(BIN)/pytest -q --timeout 3600 -k "sigkill" tests/test_training.py
	EMBEDSMITH_KILLS=200 $(BIN)/pytest -q --timeout 1800 -k "kill" tests/cache/test_semantic.py
	EMBEDSMITH_KILLS=20 $(BIN)/pytest -q --timeout 1800 -k "kill or dies" tests/contracts

# 32 threads, 10,000 operations each, on one SQLite cache (minutes).
stress: setup
	EMBEDSMITH_THREADS=32 EMBEDSMITH_OPERATIONS=10000 $(BIN)/pytest -q --timeout 3600 -k everything_at_once tests/cache

# schemathesis on the API's description, 1,000 examples an operation (tens of minutes).
fuzz: setup
	EMBEDSMITH_FUZZ=1000 $(BIN)/pytest -q --timeout 3600 tests/server/test_openapi.py

check: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: setup
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis runs
