# The four verbs are install, lint, test and bench; demo shows what it is all about.
# Everything happens in .venv; PYTHON names the interpreter to make it with (3.11 or later). TORCH=cpu and TORCH=cuda
# name the build of torch; without either, scripts/install_torch.py chooses by the machine, once.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
TORCH := $(or $(patsubst .venv/torch-%,%,$(firstword $(wildcard .venv/torch-*))),auto)

.PHONY: demo install lint test test-slow faults soak bench bench-learning bench-memory clean

# The demo needs the package alone; everything else here needs all of it.
demo: .venv/runtime
	@BIN=$(BIN) scripts/demo

install: .venv/installed

# Each stamp is the last thing made, so a broken installation is taken up again.
.venv/torch-$(TORCH): constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python scripts/install_torch.py $(TORCH)
	@rm -f .venv/torch-*
	@touch $@

.venv/runtime: pyproject.toml constraints.txt .venv/torch-$(TORCH)
	$(PIP) .
	@touch $@

.venv/installed: .venv/runtime
	$(PIP) ".[dev]"
	@touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A process a core, each with one thread; a file stays in one process, since its tests share what is slow to make. Files
# come in their own order: by their numbers of tests, the slowest would come last, and the other cores wait for it.
test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

test-slow: install
	$(BIN)/pytest -m slow

# Kills, failing disks, flipped bits and fuzzing in full: a quarter of an hour on a fast core, an hour on a busy one
# (docs/RELIABILITY.md).
faults: install
	$(BIN)/pytest -m faults

MINUTES ?= 60
soak: install
	$(BIN)/python tests/faults/soak.py --minutes $(MINUTES)

bench: install
	$(BIN)/python benchmarks/throughput.py

bench-learning: install data/shakespeare
	$(BIN)/python benchmarks/learning.py

data/shakespeare: install
	$(BIN)/llada prepare --output_dir $@

bench-memory: install
	$(BIN)/python benchmarks/memory.py

clean:
	rm -rf .venv build dist src/*.egg-info
