# Everything is installed from PyPI into .venv; PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# a file system in memory with 1 GB of room, if there is one on which programs may run, as tests'
# scripts do: Docker's is mounted noexec
IN_MEMORY = $(shell grep ' /dev/shm ' /proc/mounts 2>/dev/null | grep -qv noexec \
	&& df --output=avail /dev/shm | awk 'NR == 2 && $$1 > 1e6 {print "/dev/shm"}')

.PHONY: demo test test-system mutants lint bench clean

demo: $(VENV)/.installed
	$(BIN)/biomass demo

# one thread: the models are tiny, and two threads that wait for a busy core cost 20 x; bytecode is
# kept, whatever the shell says: pytest and hundreds of child processes would compile all anew.
# What tests write lies in memory and goes as they pass: 7 min 49 s, to the disk 8 min 42 s.
# test-system writes to the disk
test: $(VENV)/.installed-test
	$(if $(IN_MEMORY),PYTEST_DEBUG_TEMPROOT=$(IN_MEMORY) )OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -o tmp_path_retention_policy=failed

test-system: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -rs -m "system or not system" --hypothesis-profile=default

# changes in the code, one at a time: do the quick tests notice? 920 of them in 54 minutes on 2 cores
mutants: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --editable ".[mutants]"
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutants.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

bench: $(VENV)/.installed-test
	for each in benchmarks/bench_*.py; do $(BIN)/python $$each || exit 1; done

clean:
	rm -rf $(VENV) build mutants *.egg-info

# torch, torchvision and timm in one pip run: torchvision pins torch exactly. Editable: a checkout is where people edit.
$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@
